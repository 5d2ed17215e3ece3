"""Simulated nodes that exchange models directly: all on this machine, and all at the same time."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_edge.strategies.binding import PARTITION_QUERY, QUERY_TIMEOUT
from flower_edge.strategies.replies import accept

MEETING_TIMEOUT = 30.0
"""Seconds that a node waits for the others; processes of the Simulation Engine start when they are needed."""


def is_simulated() -> bool:
    """Whether this process is a worker of Flower's Simulation Engine, which runs in ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def simulated_root(run: str) -> Path:
    """Return the folder in which the simulated nodes of a run keep their files."""
    return Path(tempfile.gettempdir()) / f"flower_edge-{os.getuid()}-{run}"


def forget(run: str) -> None:
    """Remove what the simulated nodes of a run have kept."""
    shutil.rmtree(simulated_root(run), ignore_errors=True)


def loopback_address() -> str:
    """Return an address on this machine at which nobody listens yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def meet(run: str, node: int, n: int, timeout: float = MEETING_TIMEOUT) -> int:
    """Wait until all simulated nodes of a run are here at the same time; return how many are.

    Who gives up leaves, so that one that comes later does not take it for present.
    """
    folder = simulated_root(run) / "meeting"
    # One by one: of parents, `mkdir` would use the usual mode.
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, exist_ok=True)
    mine, deadline = folder / str(node), time.monotonic() + timeout
    mine.touch()
    while (here := len(list(folder.iterdir()))) < n and time.monotonic() < deadline:
        time.sleep(0.05)
    if here < n:
        mine.unlink()
    return here


def check_together(grid: Grid, run: str, n: int) -> None:
    """Raise a ValueError unless all simulated nodes can run at the same time.

    Nodes of a session wait for each other: with fewer processes than nodes the first ones would do it alone,
    before the last ones begin.
    """
    found: list[int] = []

    def take(node_id: int, content: RecordDict) -> None:
        found.append(int(str(content.config_records["gossip"]["met"])))

    question = RecordDict({"gossip": ConfigRecord({"run": run, "meet": n})})
    queries = [
        Message(question, dst_node_id=node_id, message_type=PARTITION_QUERY)
        for node_id in sorted(grid.get_node_ids())
    ]
    accept(grid.send_and_receive(queries, timeout=QUERY_TIMEOUT + MEETING_TIMEOUT * n), take)
    if len(found) < n or min(found) < n:
        raise ValueError(
            f"simulation='direct' needs all {n} nodes at the same time, and {max(found, default=0)} were: "
            "let ClientApps ask for fewer CPUs (client-resources-num-cpus may be below 1), or use "
            "simulation='hosted'. The engine never runs more than 32 at a time, or the machine's CPUs + 4"
        )
