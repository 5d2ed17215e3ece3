"""What a board needs to run a node: each check says what it found, and what to do if something is amiss."""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flower_edge import kernels
from flower_edge.energy import find_sensors

LEAST_PYTHON = (3, 11)
LEAST_TORCH = (2, 10)
LEAST_FLWR = (1, 28)

LEAST_MEMORY = 512 << 20
"""Bytes for a process that imports torch and trains a small network: see docs/boards.md."""

LEAST_DISK = 1 << 30
"""Bytes: a Flower app, its models and its logs."""

# A process that only looks whether torch's own code runs on this processor.
_TRY_TORCH = "import torch; torch.nn.functional.conv2d(torch.ones(1, 1, 9, 9), torch.ones(1, 1, 3, 3))"
_TORCH_SECONDS = 120
_CPU_INDEX = "pip install torch --index-url https://download.pytorch.org/whl/cpu"

State = Literal["ok", "note", "fix"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    state : {"ok", "note", "fix"}
        A note leaves something to be wished for; what says "fix" keeps a node from running, or running well.
    found : str
    advice : str
        What to do; empty where all is well.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def python() -> Check:
    """Check the version of Python, and that it is a 64-bit one."""
    version = ".".join(map(str, sys.version_info[:3]))
    found = f"{version}, {8 * ctypes.sizeof(ctypes.c_void_p)} bit"
    if sys.version_info < LEAST_PYTHON:
        return Check("Python", "fix", found, "install Python 3.11 or newer")
    if sys.maxsize < 2**32:
        return Check("Python", "fix", found, "install a 64-bit system: there is no torch for 32 bits")
    return Check("Python", "ok", found)


def flwr() -> Check:
    """Check that Flower is installed."""
    version = _version("flwr")
    if version is None:
        return Check("flwr", "fix", "not installed", "pip install flwr")
    if _numbers(version) < LEAST_FLWR:
        return Check("flwr", "fix", version, "pip install -U flwr: 1.28 or newer is needed")
    return Check("flwr", "ok", version)


def torch(root: Path = Path("/")) -> Check:
    """Check that torch is installed, is a build for this board, and runs on its processor."""
    version = _version("torch")
    if version is None:
        return Check("torch", "fix", "not installed: this board can mix, but not train", _CPU_INDEX)
    cuda = _cuda_of_torch()
    found = f"{version}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    if _numbers(version) < LEAST_TORCH:
        return Check("torch", "fix", found, f"2.10 or newer is needed: {_CPU_INDEX}")
    if cuda and not _has_gpu(root):
        advice = f"this board has no NVIDIA GPU, and CUDA takes gigabytes of its disk: {_CPU_INDEX}"
        return Check("torch", "fix", found, advice)
    if reason := _why_torch_fails():
        advice = f"{_CPU_INDEX}; 2.10 itself does not run on ARMv8.0 (Raspberry Pi 3, 4), 2.11 does"
        return Check("torch", "fix", f"{found}; {reason}", advice)
    return Check("torch", "ok", found)


def compiled_kernels() -> Check:
    """Check that the compiled kernels are there, and say which versions run."""
    explanation = kernels.explain()
    found = ", ".join(f"{family} {version}" for family, version in explanation.versions.items())
    if not explanation.cpu:
        return Check("kernels", "fix", found, explanation.reason)
    if override := os.environ.get("FLOWER_EDGE_ISA"):
        return Check("kernels", "note", found, f"FLOWER_EDGE_ISA={override} is set: unset it for the best")
    return Check("kernels", "ok", found)


def processor() -> Check:
    """Say what the processor has that kernels care about, and how many cores there are."""
    features = kernels.explain().cpu or "not probed, since there are no compiled kernels"
    return Check("processor", "ok", f"{len(os.sched_getaffinity(0))} cores, {features}")


def page_size() -> Check:
    """Say how large pages are: 4 KB, or 16 KB on a Raspberry Pi 5."""
    return Check("page size", "ok", f"{os.sysconf('SC_PAGE_SIZE') // 1024} KB")


def clock(now: float | None = None) -> Check:
    """Check that the clock is right, as far as that can be known: certificates are valid from and until."""
    now = time.time() if now is None else now
    found = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    advice = "timedatectl set-ntp true (a board without a battery for its clock forgets the time)"
    # What was installed earlier cannot be younger than now.
    if now < Path(__file__).stat().st_mtime - 86400:
        found = f"{found}, before this package was installed"
        return Check("clock", "fix", found, f"{advice}: certificates would be refused")
    if not _is_synchronised():
        return Check("clock", "note", f"{found}, not synchronised", advice)
    return Check("clock", "ok", f"{found}, synchronised")


def memory(root: Path = Path("/")) -> Check:
    """Check how much memory is free."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith("kB")}
        free, total, swap = sizes["MemAvailable"], sizes["MemTotal"], sizes["SwapFree"]
    except (OSError, KeyError, ValueError) as error:
        return Check("memory", "note", f"unknown ({error})")
    found = f"{_size(free)} of {_size(total)} free, and {_size(swap)} of swap"
    if free < LEAST_MEMORY:
        advice = f"training needs about {_size(LEAST_MEMORY)}: end other programs, or add swap (zram)"
        return Check("memory", "fix", found, advice)
    return Check("memory", "ok", found)


def disk(folder: Path | None = None) -> Check:
    """Check how much room is left where Flower and the partition live."""
    folder = Path.home() if folder is None else folder
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free in {folder}"
    if free < LEAST_DISK:
        return Check("disk", "fix", found, f"make room: a node needs about {_size(LEAST_DISK)}")
    return Check("disk", "ok", found)


def energy_sensors(root: Path = Path("/")) -> Check:
    """Say which energy sensors there are."""
    sensors = find_sensors(root)
    found = "; ".join(sensor.source for sensor in sensors.sensors) or "no energy sensor"
    if sensors.obstacles or not sensors.sensors:
        advice = "; ".join(sensors.obstacles) or "energies are modelled, never measured, on this board"
        return Check("energy", "note", found, advice)
    return Check("energy", "ok", found)


def reachable(kind: str, address: str, seconds: float = 5.0) -> Check:
    """Check that something listens at HOST:PORT.

    Raises
    ------
    ValueError
        If that is no address.
    """
    name, (host, port) = f"{kind} {address}", parse_address(address)
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return Check(name, "ok", "reachable")
    except TimeoutError:
        advice = "check the address and the firewalls between"
        return Check(name, "fix", f"no answer in {seconds:g} s", advice)
    except ConnectionRefusedError:
        advice = f"start it, or open port {port}: its machine answers, but nothing listens"
        return Check(name, "fix", "refused", advice)
    except OSError as error:
        return Check(name, "fix", str(error.strerror or error), "check the address and the network")


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``.

    Raises
    ------
    ValueError
        If it is neither.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f"received the address {text!r:.80}, expected HOST:PORT, such as 10.0.0.2:9092")
    return host, int(port)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _cuda_of_torch() -> str:
    """Return the CUDA that torch was built for, "" for none; without importing torch, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return ""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else ""


def _has_gpu(root: Path) -> bool:
    # The second is that of Jetson boards.
    return any((root / "dev" / name).exists() for name in ("nvidia0", "nvhost-gpu", "nvgpu"))


def _why_torch_fails() -> str:
    try:
        done = subprocess.run(  # noqa: S603 - this Python
            [sys.executable, "-c", _TRY_TORCH],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TORCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"it does not start in {_TORCH_SECONDS} s"
    if done.returncode == -signal.SIGILL:
        return "it has instructions that this processor lacks (SIGILL)"
    last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return f"it does not run here: {last[0]:.200}" if done.returncode else ""


def _is_synchronised() -> bool:
    """Whether the kernel's clock is steered by NTP or the like: STA_UNSYNC of adjtimex(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    # struct timex of 64-bit Linux: modes, offset, freq, maxerror and esterror come before the status.
    buffer = ctypes.create_string_buffer(512)
    if libc.adjtimex(buffer) < 0:
        return False
    status = int.from_bytes(buffer.raw[40:44], sys.byteorder)
    return not status & 0x40


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
