"""Six nodes in six processes, and what has to hold of them whatever happens to some."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import networkx as nx
import numpy as np
import pytest

from flower_edge.gossip import GossipPlan, full_graph_plan, load_graph
from flower_edge.peer import Identity, State
from flower_edge.peer.part import run_id

NODES = 6
SETTINGS = {
    "connect_timeout": 30.0,
    "peer_timeout": 2.0,
    "decision_timeout": 0.5,
    "redial_interval": 0.2,
    "keepalive_interval": 1.0,
    "keepalive_timeout": 1.5,
    "farewell_timeout": 3.0,
}
LIMIT = SETTINGS["peer_timeout"] + 5.0


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Node:
    """A process, and what it has said."""

    def __init__(self, config: dict, prefix: Sequence[str] = ()) -> None:
        self.config = config
        self.said: list[dict] = []
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__).parent / "node_process.py"), json.dumps(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""
        self.readers = [threading.Thread(target=read) for read in (self._listen, self._read_log)]
        for reader in self.readers:
            reader.start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def _read_log(self) -> None:
        self.log = self.process.stderr.read()

    def wait(self, seconds: float = 120.0) -> int:
        code = self.process.wait(seconds)
        for reader in self.readers:
            reader.join(seconds)
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def reaches(self, round_: int, seconds: float = 60.0) -> None:
        """Wait until the node trains for a round."""
        deadline = time.monotonic() + seconds
        while not any(s["what"] == "train" and s["round"] >= round_ for s in list(self.said)):
            assert time.monotonic() < deadline, self.said[-1:]
            time.sleep(0.01)

    @property
    def done(self) -> dict:
        assert self.said, self.log[-4000:]
        assert self.said[-1]["what"] == "done", self.log[-4000:]
        return self.said[-1]

    def longest_stop(self) -> float:
        """Seconds from one round to the next, at most; the wait for the others to start is left out."""
        began = [s["now"] for s in self.said if s["what"] == "train"]
        return float(np.diff(began).max())


class Processes:
    """Processes of nodes, each under a command such as ``ip netns exec`` if there is one for it."""

    def __init__(
        self,
        folder: Path,
        elements: int,
        seconds: float,
        rounds: int,
        addresses: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        settings: Mapping[str, float],
    ) -> None:
        graph = nx.cycle_graph(NODES)
        graph.add_edges_from([(0, 3), (1, 4)])
        self.plan: GossipPlan = full_graph_plan(load_graph(graph))
        self.plan.to_json(folder / "plan.json")
        for node in range(NODES):
            Identity.temporary().save(folder / f"{node}.key", folder / f"{node}.crt")
        self.folder = folder
        self.common = {
            "folder": str(folder),
            "addresses": list(addresses),
            "elements": elements,
            "rounds": rounds,
            "seconds": seconds,
            "settings": {**SETTINGS, **settings},
        }
        self.rounds = rounds
        self.prefixes = prefixes
        self.started: list[Node] = []

    def start(self, node: int, fault: str = "", when: int = 0, prefix: Sequence[str] = ()) -> Node:
        config = {**self.common, "node": node, "fault": fault, "when": when}
        process = Node(config, [*self.prefixes[node], *prefix])
        self.started.append(process)
        return process

    def state(self, node: int) -> State:
        return State.load(self.folder / f"{node}.state", run_id("faults"), node, self.common["elements"])


@contextmanager
def processes(
    folder: Path,
    elements: int = 44_426,
    seconds: float = 0.05,
    rounds: int = 60,
    addresses: Sequence[str] = (),
    prefixes: Sequence[Sequence[str]] = ((),) * NODES,
    settings: Mapping[str, float] = MappingProxyType({}),
) -> Iterator[Processes]:
    """Let nodes be started, and see to it that none outlives the test."""
    addresses = addresses or [f"127.0.0.1:{port}" for port in free_ports(NODES)]
    fleet = Processes(folder, elements, seconds, rounds, addresses, prefixes, settings)
    try:
        yield fleet
    finally:
        for node in fleet.started:
            if node.process.poll() is None:
                os.kill(node.process.pid, signal.SIGCONT)
                node.process.kill()
            node.wait()


def counted(node: Node, other: int) -> int:
    return sum(other in found for _, _, found, *_ in node.done["rounds"])


def check_survivors(nodes: list[Node], lost: list[int]) -> None:
    """Everyone else has done all rounds, and never stopped for longer than a peer may be silent and 5 s."""
    for number, node in enumerate(nodes):
        if number not in lost:
            assert node.wait() == 0, node.log[-4000:]
            assert [r for r, *_ in node.done["rounds"]][-1] == node.config["rounds"]
            assert node.longest_stop() <= LIMIT
            check_nothing_left(node)


def check_nothing_left(node: Node) -> None:
    """No socket, file or process of the session is left; gRPC keeps few descriptors for its own threads."""
    left = dict(node.done["left"])
    assert left.pop("descriptors") <= 16
    assert left == {"sockets": 0, "files": 0, "processes": 0}


def check_mean(nodes: list[Node], kept: Mapping[int, int] = MappingProxyType({})) -> None:
    """Every node's training is in the mean as often as the node trained: no link counted at one end only.

    `kept` are the rounds that nodes had on their disks when they started again."""
    values, expected = [], []
    for number, node in enumerate(nodes):
        done = node.done
        assert not done["unsettled"]
        values.append(np.mean(done["value"]))
        rounds = kept.get(number, 0) + len(done["rounds"])
        expected.append(number + rounds * np.float32(0.01 * (number + 1)))
    assert np.mean(values) == pytest.approx(np.mean(expected), rel=1e-5)
