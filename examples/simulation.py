"""Flower's own command line, run in a corner of its own that is gone afterwards."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROUND = re.compile(r"\[ROUND (\d+)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
RUN_ID = re.compile(r"started run (\d+)")
TRACEBACK = "Traceback (most recent call last):"


class SimulationError(RuntimeError):
    """A run that Flower did not complete; the message has the cause from Flower's log."""


class LocalFlower:
    """A local SuperLink that nobody else sees: its own ``FLWR_HOME``, ports and ray directory.

    ``flwr run APP local`` leaves a SuperLink daemon behind, and that one ray's processes when it is stopped
    halfway. All of them, and no others, have this object's folder as ``FLWR_HOME`` in their environment: by
    that they are found and ended on exit, whatever the reason for it.

    Examples
    --------
    >>> with LocalFlower() as flower:
    ...     flower.run(Path("examples/quickstart"), nodes=33, config={"num-server-rounds": 3})
    """

    def __enter__(self) -> Self:
        _adopt_orphans()
        # In /tmp, whatever TMPDIR says: ray's sockets lie below, and a socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="flower-", dir="/tmp"))
        superlink_port, control_port = free_ports(2)
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "FLWR_HOME": str(self.folder),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(superlink_port),
            "FLWR_LOCAL_CONTROL_API_PORT": str(control_port),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",  # every core has a worker of its own already
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # the default gives way to whatever else runs
            "HF_HOME": str(self.folder / "huggingface"),
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),
            "COLUMNS": "1000",  # rich would break the lines of the log that are looked for
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        main_thread = threading.current_thread() is threading.main_thread()
        if main_thread:  # an impatient second Ctrl-C must not leave half of them behind
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while processes := self.processes():
                for process in processes:
                    _kill(process)
                time.sleep(0.1)
            time.sleep(0.2)  # the last ones killed may not be dead enough yet to be reaped
            _reap_children()
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            if main_thread:
                signal.signal(signal.SIGINT, before)

    def run(
        self,
        app: Path,
        nodes: int,
        config: Mapping[str, bool | float | int | str],
        on_round: Callable[[int], None] = lambda _: None,
        timeout: float = 900.0,
    ) -> None:
        """Run a Flower app in simulation, to its end.

        Parameters
        ----------
        app : Path
            The app's folder.
        nodes : int
            How many nodes to simulate.
        config : mapping
            Overrides of the app's run config.
        on_round : callable, optional
            Called with its number when a round begins.
        timeout : float, default 900
            Seconds after which the run is given up.

        Raises
        ------
        SimulationError
            If the run did not complete.
        """
        workers = min(nodes, len(os.sched_getaffinity(0)))
        federation = f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={workers}"
        self._run(app, "local", config, on_round, timeout, "--federation-config", federation)

    def _run(
        self,
        app: Path,
        superlink: str,
        config: Mapping[str, bool | float | int | str],
        on_round: Callable[[int], None],
        timeout: float,
        *options: str,
    ) -> list[str]:
        """Run a Flower app to its end, and return its log."""
        # In a file, because what the command line takes has no way to write a quote. A JSON string is a TOML
        # string, and so are JSON's numbers and booleans.
        run_config = self.folder / "run-config.toml"
        run_config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))
        log: list[str] = []
        with subprocess.Popen(
            ["flwr", "run", str(app), superlink, "--stream", "--run-config", str(run_config), *options],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            watchdog = threading.Timer(timeout, process.kill)
            watchdog.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    log.append(COLOUR.sub("", line.rstrip()))
                    if match := ROUND.search(line):
                        on_round(int(match[1]))
            finally:
                watchdog.cancel()
        self._check(log, timeout if process.returncode == -signal.SIGKILL else None)
        return log

    def _check(self, log: list[str], timed_out_after: float | None) -> None:
        """Raise a SimulationError unless the run is complete: ``flwr run`` exits with 0 either way."""
        if timed_out_after is not None:
            raise SimulationError(f"the run was not complete after {timed_out_after:g} s; {_last(log)}")
        run_id = next((match[1] for line in log if (match := RUN_ID.search(line))), None)
        if run_id is None:
            raise SimulationError(f"Flower did not start the run; {_last(log)}")
        listing = subprocess.run(
            ["flwr", "list", "--run-id", run_id, "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            run: dict[str, Any] = json.loads(listing.stdout)["runs"][0]
        except (ValueError, LookupError) as error:
            raise SimulationError(
                f"flwr list gave no status of run {run_id}: {listing.stdout}{listing.stderr}"
            ) from error
        if run["status"] != "finished:completed":
            details = run.get("status-details") or "no details"
            raise SimulationError(f"Flower says {run['status']}: {details}\n\n{_last(log)}")

    def processes(self) -> list[int]:
        """Return the ids of all living processes that belong to this Flower."""
        marker = f"FLWR_HOME={self.folder}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:  # ended meanwhile, or another user's
                continue
        return found


def _adopt_orphans() -> None:
    """Become the parent of daemons that this process's children leave behind, so that it can reap them.

    Otherwise that is up to process 1, which in a container often does not.
    """
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _reap_children() -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                os.waitpid(int(stat.parent.name), os.WNOHANG)
        except OSError:  # ended meanwhile
            continue


def _kill(process: int) -> None:
    # They keep nothing that outlives this Flower, so there is no need to be gentle and slow.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _last(log: list[str]) -> str:
    """Return the end of Flower's log, from the last traceback on if there is one."""
    starts = [number for number, line in enumerate(log) if TRACEBACK in line]
    return "\n".join(["Flower's log ends with:", *(log[starts[-1] :] if starts else log[-20:])])


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens at now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
