"""Processes that work together, each of which prints ``found JSON`` at its end."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT = 600.0
FOUND = "found "


def together(
    commands: Sequence[Sequence[str]],
    environment: Mapping[str, str] = MappingProxyType({}),
    timeout: float = TIMEOUT,
) -> list[Any]:
    """Run commands at once; return what each has found.

    Parameters
    ----------
    commands : sequence of sequence of str
        Each runs in a folder that is removed afterwards, with this checkout on its path.
    environment : mapping of str to str, optional
        Added to that of this process.
    timeout : float, default 600
        Seconds that all may take.

    Raises
    ------
    SystemExit
        If one of them fails, or is late: with its command and the end of what it wrote. The others are ended.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    deadline = time.monotonic() + timeout
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"{index}.out") for index in range(len(commands))]
        try:
            for command, output in zip(commands, outputs, strict=True):
                with output.open("w") as file:
                    processes.append(
                        subprocess.Popen(
                            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
                        )
                    )
            running = dict(zip(processes, outputs, strict=True))
            found = {}
            while running and time.monotonic() < deadline:
                for process in [process for process in running if process.poll() is not None]:
                    found[process] = _found(process, running.pop(process))
                time.sleep(0.05)
            for process, output in running.items():
                raise SystemExit(_failure(process, f"is not done after {timeout:g} s", output))
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return [found[process] for process in processes]


def _found(process: "subprocess.Popen[bytes]", output: Path) -> Any:
    for line in output.read_text(errors="replace").splitlines():
        if line.startswith(FOUND):
            return json.loads(line.removeprefix(FOUND))
    raise SystemExit(_failure(process, f"ended with {process.returncode}", output))


def _failure(process: "subprocess.Popen[bytes]", what: str, output: Path) -> str:
    return "\n".join([f"{process.args!r} {what}:", *output.read_text(errors="replace").splitlines()[-20:]])
