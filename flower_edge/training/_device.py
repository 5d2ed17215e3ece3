"""Which machine this is."""

import platform
from pathlib import Path

_BOARD = Path("/proc/device-tree/model")
_PROCESSORS = Path("/proc/cpuinfo")


def device_name() -> str:
    """Return the name of the board where the kernel knows it, else that of the processor."""
    try:
        if _BOARD.exists():
            return _BOARD.read_text(errors="replace").strip("\0 \n")
        for line in _PROCESSORS.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
