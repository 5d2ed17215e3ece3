"""Six nodes in six processes, of which one or two die, stop, or find no room on their disk."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from node_process import BAD_FRAMES, BETWEEN_BAD_FRAMES
from node_processes import (
    NODES,
    SETTINGS,
    check_mean,
    check_nothing_left,
    check_survivors,
    counted,
    processes,
)

from flower_edge.peer.listener import BAD_FRAME

ROUNDS = 60
KILLS = [
    "killed in send",
    pytest.param("killed in training", marks=pytest.mark.slow),
    pytest.param("killed in receive", marks=pytest.mark.slow),
]


def victims(count: int) -> list[int]:
    """Node 4 decides on some of its links and not on others; 0 on all of them. They are no neighbours."""
    return [4, 0][:count]


def some(count: int) -> object:
    """One node of six in every run of the tests, two in the long one."""
    return pytest.param(count, marks=[] if count == 1 else [pytest.mark.slow])


def test_wire_bytes_are_those_of_the_models(tmp_path: Path) -> None:
    """2 · neighbours · payload within 1 %, by the kernel's count, without what TCP had to send again."""
    with processes(tmp_path, seconds=0.0) as fleet:
        nodes = [fleet.start(node) for node in range(NODES)]
        check_survivors(nodes, [])

    for node in nodes:
        payload = 4 * 44_426 * sum(neighbours for _, neighbours, *_ in node.done["rounds"])
        for direction in (4, 5):
            measured = sum(round_[direction] for round_ in node.done["rounds"])
            if direction == 4:
                measured -= node.done["resent"]
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
        kept = {}
        for victim in lost:
            assert nodes[victim].wait() == -signal.SIGKILL, nodes[victim].log[-4000:]
            kept[victim] = fleet.state(victim).round
            trained = [s["round"] for s in nodes[victim].said if s["what"] == "train"]
            assert trained[-1] - 2 <= kept[victim] <= trained[-1], "all but the round under way is on disk"
            nodes[victim] = fleet.start(victim)
            nodes[victim].reaches(1)
            assert nodes[victim].said[0] == {"what": "start", "round": kept[victim]}
        check_survivors(nodes, [])

    check_mean(nodes, kept)
    for victim in lost:
        rounds = [r for r, *_ in nodes[victim].done["rounds"]]
        assert rounds[0] > kept[victim]
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
            check_nothing_left(nodes[victim])

    check_mean(nodes)
    for victim in lost:
        for neighbour in fleet.plan.neighbours(victim, 0):
            assert 5 < counted(nodes[victim], neighbour) < ROUNDS - 5


@pytest.mark.parametrize("count", [some(1), some(2)])
def test_a_full_disk_stops_nobody(count: int, tmp_path: Path) -> None:
    with processes(tmp_path, seconds=0.02) as fleet:
        full = victims(count)
        nodes = [fleet.start(node, "disk full" if node in full else "", 10) for node in range(NODES)]
        check_survivors(nodes, [])
        kept = {node: fleet.state(node).round for node in full}

    for node in full:
        assert kept[node] in (8, 9)
        assert nodes[node].done["unsaved"] == ROUNDS - kept[node]
        assert "is not on disk, an earlier one is" in nodes[node].log
        assert nodes[node].done["rounds"][-1][2] == fleet.plan.neighbours(node, 0)
    check_mean(nodes)
    assert sorted(p.name for p in tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("count", [some(1), some(2)])
def test_frames_that_break_the_rules_cost_their_links_one_round(count: int, tmp_path: Path) -> None:
    """Corrupted, truncated, sent twice, of an earlier round, too large: one kind after another."""
    # Between two kinds there has to be time to dial again: 0.2 s to wait, as much of gRPC's own, a handshake.
    with processes(tmp_path, seconds=0.1) as fleet:
        bad = victims(count)
        nodes = [fleet.start(node, "bad frames" if node in bad else "") for node in range(NODES)]
        check_survivors(nodes, [])

    check_mean(nodes)
    for node in bad:
        assert not nodes[node].done["refusals"]
        were_bad = {said["kind"]: said["round"] for said in nodes[node].said if said["what"] == "bad frames"}
        assert list(were_bad) == list(BAD_FRAMES)
        for neighbour in fleet.plan.neighbours(node, 0):
            # gRPC itself refuses what is oversized; a link that is back may break again in the same round.
            assert len(BAD_FRAMES) - 1 <= nodes[neighbour].done["refusals"][BAD_FRAME] <= 2 * len(BAD_FRAMES)
            in_round = {r: found for r, _, found, *_ in nodes[neighbour].done["rounds"]}
            for kind, round_ in were_bad.items():
                assert node not in in_round.get(round_, ()) or kind == "sent twice"
                after = range(round_ + 1, round_ + BETWEEN_BAD_FRAMES)
                assert any(node in in_round.get(r, ()) for r in after), f"{kind}: the link is back"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_thirty_seconds_of_silence(count: int, tmp_path: Path) -> None:
    with processes(tmp_path, seconds=0.6) as fleet:
        lost = victims(count)
        nodes = [fleet.start(node) for node in range(NODES)]
        nodes[lost[0]].reaches(3)
        for victim in lost:
            os.kill(nodes[victim].process.pid, signal.SIGSTOP)
        time.sleep(30.0)
        for victim in lost:
            os.kill(nodes[victim].process.pid, signal.SIGCONT)
        check_survivors(nodes, lost)
        for victim in lost:
            assert nodes[victim].wait() == 0
            check_nothing_left(nodes[victim])

    check_mean(nodes)
    for victim in lost:
        assert nodes[victim].done["rounds"][-1][2], "it is one of them again"
