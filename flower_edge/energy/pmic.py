"""The power management chip of a Raspberry Pi 5, read by ``vcgencmd pmic_read_adc``."""

import re
import shutil
import subprocess
from pathlib import Path

from flower_edge.energy.sensor import PowerSensor

_LINE = re.compile(r"\s*(\w+)_[AV]\s+(current|volt)\(\d+\)=([0-9.]+)[AV]\s*")
# What vcgencmd says to users without access to the firmware, older versions first.
_MAY_NOT = ("VCHI initialization failed", "Can't open device file", "ermission denied")
_FOLDERS = ("usr/bin", "opt/vc/bin")
# Asking the firmware takes milliseconds; a firmware that hangs is not to hang the caller.
_PATIENCE = 5.0


class Pmic(PowerSensor):
    """The sum of voltage times current over the rails that the chip makes.

    What USB devices and hats take from the 5 V supply does not pass through the chip, nor do its own losses.

    Parameters
    ----------
    command : str
        Path of ``vcgencmd``.
    """

    period = 0.25

    def __init__(self, command: str) -> None:
        self._command = command
        self.source = f"Raspberry Pi PMIC ({len(self.rails())} rails)"

    def watts(self) -> float:
        """Read the power of all rails."""
        return sum(volts * amperes for volts, amperes in self.rails().values())

    def rails(self) -> dict[str, tuple[float, float]]:
        """Read voltage and current of each rail that has both.

        Raises
        ------
        OSError
            If the command fails or tells of no rail: boards before the Pi 5 have no such chip.
        """
        try:
            done = subprocess.run(  # noqa: S603 - a fixed command
                [self._command, "pmic_read_adc"],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{self._command} pmic_read_adc gave no answer in {_PATIENCE} s") from error
        read: dict[str, dict[str, float]] = {}
        for line in done.stdout.splitlines():
            if match := _LINE.fullmatch(line):
                read.setdefault(match[1], {})[match[2]] = float(match[3])
        rails = {name: (of["volt"], of["current"]) for name, of in read.items() if len(of) == 2}
        if done.returncode or not rails:
            said = " ".join((done.stdout + done.stderr).split())
            if any(sign in said for sign in _MAY_NOT):
                raise PermissionError(
                    f"vcgencmd may not ask the firmware ({said:.120}): add the user to the group video"
                )
            raise OSError(f"{self._command} pmic_read_adc says {said!r:.120}, expected volts and amperes")
        return rails


def find(root: Path) -> Pmic | None:
    """Return the chip of this board, None if it has none.

    Raises
    ------
    PermissionError
        If there may be one, but this user may not ask it.
    """
    command = shutil.which("vcgencmd", path=":".join(str(root / folder) for folder in _FOLDERS))
    if command is None:
        return None
    try:
        return Pmic(command)
    except PermissionError:
        raise
    except OSError:
        return None
