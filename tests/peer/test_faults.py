"""Six nodes in six processes, of which one or two die, stop, or find no room on their disk."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from fleet import free_ports

from flower_edge.gossip import GossipPlan, full_graph_plan, load_graph
from flower_edge.peer import Identity, State
from flower_edge.peer.session import run_id

ROUNDS, NODES = 60, 6
SETTINGS = {
    "connect_timeout": 30.0,
    "peer_timeout": 2.0,
    "decision_timeout": 0.5,
    "redial_interval": 0.2,
    "farewell_timeout": 3.0,
}
LIMIT = SETTINGS["peer_timeout"] + 5.0
KILLS = ("killed in training", "killed in send", "killed in receive")


class Node:
    """A process, and what it has said."""

    def __init__(self, config: dict) -> None:
        self.config = config
        self.said: list[dict] = []
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "node_process.py"), json.dumps(config)],
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
    def __init__(self, folder: Path, elements: int, seconds: float) -> None:
        graph = nx.cycle_graph(NODES)
        graph.add_edges_from([(0, 3), (1, 4)])
        self.plan: GossipPlan = full_graph_plan(load_graph(graph))
        self.plan.to_json(folder / "plan.json")
        for node in range(NODES):
            Identity.temporary().save(folder / f"{node}.key", folder / f"{node}.crt")
        self.folder = folder
        self.common = {
            "folder": str(folder),
            "ports": free_ports(NODES),
            "elements": elements,
            "rounds": ROUNDS,
            "seconds": seconds,
            "settings": SETTINGS,
        }
        self.started: list[Node] = []

    def start(self, node: int, fault: str = "", when: int = 0) -> Node:
        process = Node({**self.common, "node": node, "fault": fault, "when": when})
        self.started.append(process)
        return process

    def state(self, node: int) -> State:
        return State.load(self.folder / f"{node}.state", run_id("faults"), node, self.common["elements"])


@contextmanager
def processes(folder: Path, elements: int = 44_426, seconds: float = 0.05) -> Iterator[Processes]:
    fleet = Processes(folder, elements, seconds)
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


def victims(count: int) -> list[int]:
    """Node 4 decides on some of its links and not on others; 0 on all of them. They are no neighbours."""
    return [4, 0][:count]


def some(count: int) -> object:
    """One node of six in every run of the tests, two in the long one."""
    return pytest.param(count, marks=[] if count == 1 else [pytest.mark.slow])


def check_survivors(nodes: list[Node], lost: list[int]) -> None:
    for number, node in enumerate(nodes):
        if number not in lost:
            assert node.wait() == 0, node.log[-4000:]
            assert [r for r, *_ in node.done["rounds"]][-1] == ROUNDS
            assert node.longest_stop() <= LIMIT
            assert node.done["sockets"] == 0


def test_wire_bytes_are_those_of_the_models(tmp_path: Path) -> None:
    """2 · neighbours · payload within 1 %, by the kernel's count."""
    with processes(tmp_path, seconds=0.0) as fleet:
        nodes = [fleet.start(node) for node in range(NODES)]
        check_survivors(nodes, [])

    for node in nodes:
        payload = 4 * 44_426 * sum(neighbours for _, neighbours, *_ in node.done["rounds"])
        for direction in (4, 5):
            measured = sum(round_[direction] for round_ in node.done["rounds"])
            assert payload < measured <= 1.01 * payload
        low, high = node.done["value"]
        assert high - low < 1e-5
    values = [node.done["value"][0] for node in nodes]
    expected = np.mean([number + ROUNDS * 0.01 * (number + 1) for number in range(NODES)])
    assert np.mean(values) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("count", [some(1), some(2)])
@pytest.mark.parametrize("fault", KILLS)
def test_a_killed_node_stops_nobody_and_comes_back(fault: str, count: int, tmp_path: Path) -> None:
    elements = 1_500_000 if fault == "killed in send" else 44_426  # so that a model has several frames
    with processes(tmp_path, elements, seconds=0.12) as fleet:
        lost = victims(count)
        nodes = [
            fleet.start(node, fault if node in lost else "", 5 + lost.index(node) if node in lost else 0)
            for node in range(NODES)
        ]
        for victim in lost:
            assert nodes[victim].wait() == -signal.SIGKILL, nodes[victim].log[-4000:]
            kept = fleet.state(victim).round
            trained = [s["round"] for s in nodes[victim].said if s["what"] == "train"]
            assert trained[-1] - 2 <= kept <= trained[-1], "all but the round that was under way is on disk"
            nodes[victim] = fleet.start(victim)
            nodes[victim].reaches(1)
            assert nodes[victim].said[0] == {"what": "start", "round": kept}
        check_survivors(nodes, [])

    for victim in lost:
        rounds = [r for r, *_ in nodes[victim].done["rounds"]]
        assert rounds[0] > kept
        for neighbour in fleet.plan.neighbours(victim, 0):
            assert counted(nodes[victim], neighbour) > 5


@pytest.mark.parametrize("count", [some(1), some(2)])
def test_a_stopped_node_is_left_out_and_comes_back(count: int, tmp_path: Path) -> None:
    with processes(tmp_path) as fleet:
        lost = victims(count)
        nodes = [fleet.start(node) for node in range(NODES)]
        nodes[lost[0]].reaches(5)
        for victim in lost:
            os.kill(nodes[victim].process.pid, signal.SIGSTOP)
        time.sleep(SETTINGS["peer_timeout"] + 1.5)
        for victim in lost:
            os.kill(nodes[victim].process.pid, signal.SIGCONT)
        check_survivors(nodes, lost)
        for victim in lost:
            assert nodes[victim].wait() == 0

    check_mean(fleet, nodes)
    for victim in lost:
        for neighbour in fleet.plan.neighbours(victim, 0):
            assert 5 < counted(nodes[victim], neighbour) < ROUNDS - 5


def check_mean(fleet: Processes, nodes: list[Node]) -> None:
    """Every node's training is in the mean as often as the node trained: no link counted at one end only."""
    values, expected = [], []
    for number, node in enumerate(nodes):
        done = node.done
        assert not done["unsettled"]
        values.append(np.mean(done["value"]))
        expected.append(number + len(done["rounds"]) * np.float32(0.01 * (number + 1)))
    assert np.mean(values) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    with processes(tmp_path, seconds=0.02) as fleet:
        nodes = [fleet.start(node, "disk full" if node == 4 else "", 10) for node in range(NODES)]
        check_survivors(nodes, [])
        kept = fleet.state(4).round

    assert kept in (8, 9)
    assert nodes[4].done["unsaved"] == ROUNDS - kept
    assert "is not on disk, an earlier one is" in nodes[4].log
    assert nodes[4].done["rounds"][-1][2] == fleet.plan.neighbours(4, 0)
    check_mean(fleet, nodes)
    assert sorted(p.name for p in tmp_path.glob("*.partial")) == []


@pytest.mark.slow
def test_thirty_seconds_of_silence(tmp_path: Path) -> None:
    with processes(tmp_path, seconds=0.6) as fleet:
        nodes = [fleet.start(node) for node in range(NODES)]
        nodes[4].reaches(3)
        os.kill(nodes[4].process.pid, signal.SIGSTOP)
        time.sleep(30.0)
        os.kill(nodes[4].process.pid, signal.SIGCONT)
        check_survivors(nodes, [4])
        assert nodes[4].wait() == 0

    check_mean(fleet, nodes)
    assert nodes[4].done["rounds"][-1][2], "it is one of them again"
