"""Sessions over real mutual TLS, against the matrices that they are rows of."""

import asyncio
import logging
import os
import random
import time
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from fleet import FAST, Fleet

from flower_edge.gossip import DPSGD, ChocoSGD, DeepSqueeze, GossipPlan, Int8, full_graph_plan, load_graph
from flower_edge.gossip.phase import Phase
from flower_edge.peer import Fp32, Identity, Member, PeerSession, PeerSettings, rows_of


@pytest.fixture
def plan() -> GossipPlan:
    """Six nodes on a ring with two chords."""
    graph = nx.cycle_graph(6)
    graph.add_edges_from([(0, 3), (1, 4)])
    return full_graph_plan(load_graph(graph))


def cycle_of_matchings() -> GossipPlan:
    """Six nodes; in each of two rounds every node has one neighbour, in the third only four have."""
    links = [[[0, 1], [2, 3], [4, 5]], [[0, 5], [1, 2], [3, 4]], [[0, 3], [1, 4]]]
    return GossipPlan(6, tuple(Phase(np.array(pairs), np.full(len(pairs), 0.5)) for pairs in links))


def by_matrix(fleet: Fleet, rounds: int) -> np.ndarray:
    models = np.array(fleet.start, np.float64)
    for round_ in range(1, rounds + 1):
        models = fleet.plan.matrix(round_).toarray() @ (models + fleet.gains)
    return models


@pytest.mark.parametrize("elements", [1, 7, 97, 600_001])
def test_all_nodes_together_multiply_by_the_mixing_matrix(plan: GossipPlan, elements: int) -> None:
    fleet = Fleet(plan, elements)

    reports = asyncio.run(fleet.run(5))

    for report, expected in zip(reports, by_matrix(fleet, 5), strict=True):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)
    for node, report in enumerate(reports):
        assert [r.round for r in report.rounds] == [1, 2, 3, 4, 5]
        assert all(list(r.counted) == plan.neighbours(node, r.round) for r in report.rounds)
        assert [r.metrics["train_loss"] for r in report.rounds] == [1, 2, 3, 4, 5]
        assert not report.refusals
        assert not report.unsettled


def test_a_fast_node_waits_where_the_plan_says_so_and_nowhere_else() -> None:
    """Matchings: while two nodes of a pair are slow the others are rounds ahead of them, and nobody skips."""
    fleet = Fleet(cycle_of_matchings(), seconds=lambda node, round_: 0.15 if node in (2, 3) else 0.0)

    reports = asyncio.run(fleet.run(9))

    for report, expected in zip(reports, by_matrix(fleet, 9), strict=True):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)
    assert all(rounds == list(range(1, 10)) for rounds in fleet.trained.values())


def test_two_runs_are_the_same_bit_for_bit(plan: GossipPlan) -> None:
    first, second = (asyncio.run(Fleet(plan).run(4)) for _ in range(2))

    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.model, other.model)


def test_a_straggler_is_left_out_and_comes_back(plan: GossipPlan) -> None:
    fleet = Fleet(plan, seconds=lambda node, round_: 2.5 if (node, round_) == (4, 3) else 0.02)

    reports = asyncio.run(fleet.run(100))

    fleet.check_mean(reports)
    assert all(4 not in r.counted for report in reports for r in report.rounds if 3 <= r.round <= 5)
    assert (
        max(r.exchange_seconds for node in range(4) for r in reports[node].rounds) < FAST.peer_timeout + 5.0
    )
    assert fleet.trained[4][:3] == [1, 2, 3]
    assert reports[4].rounds[2].round > 3, "what it trained counts for the round in which the others were"
    assert reports[4].rounds[-1].counted, "it is one of them again"


def test_wires_that_break_keep_the_mean(plan: GossipPlan) -> None:
    """Cut and frozen at random, in every moment of the exchange."""

    async def run() -> tuple[Fleet, list]:
        fleet = Fleet(plan, 60_000, seconds=0.002)
        await fleet.lay_wires()
        running = asyncio.ensure_future(fleet.run(120))
        draw = random.Random(1)
        await asyncio.sleep(0.5)
        for _ in range(40):
            relay = draw.choice(list(fleet.relays.values()))
            relay.cut() if draw.random() < 0.7 else relay.freeze()
            await asyncio.sleep(draw.random() * 0.1)
            relay.heal()
        for relay in fleet.relays.values():
            relay.heal()
        reports = await running
        await fleet.pull_wires()
        return fleet, reports

    fleet, reports = asyncio.run(run())

    fleet.check_mean(reports)
    assert not any(report.unsettled for report in reports)
    failed = sum(r.neighbours - len(r.counted) for report in reports for r in report.rounds)
    assert failed > 10


@pytest.mark.parametrize("counts", [True, False])
def test_a_lost_answer_is_settled_later(counts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(GossipPlan.from_matrix(np.full((2, 2), 0.5)), seconds=0.025)

    reports = asyncio.run(fleet.run_through_a_doubt(100, counts, monkeypatch))

    assert reports[1].late == [(0, 3, counts)]
    assert reports[1].rounds[2].in_doubt == (0,)
    assert (1 in reports[0].rounds[2].counted) == counts
    fleet.check_mean(reports)
    assert reports[0].rounds[-1].counted == (1,)


def test_a_node_that_starts_again_goes_on_where_it_was(plan: GossipPlan, tmp_path: Path) -> None:
    fleet = Fleet(plan, folder=tmp_path)
    halfway = asyncio.run(fleet.run(3))

    sessions = [fleet.session(node) for node in range(6)]
    assert [session.resumed.round for session in sessions] == [3] * 6
    for session, report in zip(sessions, halfway, strict=True):
        np.testing.assert_array_equal(session.resumed.model, report.model)
    reports = asyncio.run(fleet.run(7))

    for report, expected in zip(reports, by_matrix(fleet, 7), strict=True):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)
        assert [r.round for r in report.rounds] == [4, 5, 6, 7]


def test_a_node_that_is_behind_joins_the_others_where_they_are(plan: GossipPlan, tmp_path: Path) -> None:
    fleet = Fleet(plan, folder=tmp_path, seconds=0.02)

    async def run() -> list:
        early = [asyncio.ensure_future(fleet.session(node).run_async(3)) for node in range(6)]
        await asyncio.gather(*early)
        fleet.settings = PeerSettings(connect_timeout=0.5, peer_timeout=1.0, redial_interval=0.05)
        running = [asyncio.ensure_future(fleet.session(node).run_async(80)) for node in range(5)]
        await asyncio.sleep(1.2)
        late = asyncio.ensure_future(fleet.session(5).run_async(80))
        return await asyncio.gather(*running, late)

    reports = asyncio.run(run())

    rounds = [r.round for r in reports[5].rounds]
    assert rounds[0] > 4
    assert rounds[-1] == 80
    assert reports[5].rounds[-1].counted
    assert sum(5 in r.counted for r in reports[0].rounds) > 5


def test_training_that_diverges_stays_at_home(plan: GossipPlan) -> None:
    fleet = Fleet(plan)
    fleet.gains[2, 5] = np.nan

    reports = asyncio.run(fleet.run(4))

    assert all(np.isfinite(report.model).all() for report in reports)
    assert all(2 not in r.counted for report in reports for r in report.rounds)
    np.testing.assert_array_equal(reports[2].model, fleet.start[2])
    assert max(r.exchange_seconds for report in reports for r in report.rounds) < FAST.peer_timeout


def test_a_model_that_is_too_large_is_refused_by_both_ends(plan: GossipPlan) -> None:
    fleet = Fleet(plan)
    fleet.gains[2] = 1e9

    reports = asyncio.run(fleet.run(2))

    neighbours = plan.neighbours(2, 0)
    assert all(reports[j].refusals == {"a model that is none": 2} for j in neighbours)
    assert all(2 not in r.counted for report in reports for r in report.rounds)
    assert all(r.counted == () for r in reports[2].rounds)


def test_a_full_disk_stops_nobody(plan: GossipPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(plan, folder=tmp_path / "gone")

    reports = asyncio.run(fleet.run(3))

    assert [report.unsaved for report in reports] == [3] * 6
    assert "round 3 is not on disk, an earlier one is" in caplog.text
    for report, expected in zip(reports, by_matrix(fleet, 3), strict=True):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)


def test_clear_text_has_to_be_asked_for_and_says_so(
    plan: GossipPlan, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(plan)
    with pytest.raises(ValueError, match="no certificate: give an identity, or say PeerSettings"):
        fleet.session(0, identity=None)
    with pytest.raises(ValueError, match="have no certificate, so that links to them cannot be pinned"):
        PeerSession(
            *(0, rows_of(plan, 0), [Member(j, f"a:{j + 1}") for j in range(6)], fleet.start[0]),
            lambda model, round_: (model, {}),
            **{"run": "a", "listen": "127.0.0.1:0", "identity": Identity.temporary()},
        )

    insecure = PeerSettings(insecure=True, connect_timeout=5)
    with caplog.at_level(logging.WARNING, "flower_edge.peer"):
        fleet = Fleet(plan, settings=insecure, identity=None)
        reports = asyncio.run(fleet.run(2))

    assert caplog.text.count("insecure=True: links are in clear text") == 6
    for report, expected in zip(reports, by_matrix(fleet, 2), strict=True):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": []}, r"nobody says how to reach nodes \[1, 3, 5\]"),
        ({"rows": []}, "received 0 rows"),
        ({"rows": [{1: 1.0}]}, "each with node 0 itself"),
        ({"model": np.zeros(3)}, "received a model of float64"),
        ({"model": np.zeros((3, 3), np.float32)}, "expected float32"),
        ({"model": np.float32([np.nan])}, "the model has NaN"),
        ({"identity": 1}, "node 1 has this node's own certificate"),
    ],
)
def test_what_does_not_go_together(plan: GossipPlan, change: dict, message: str) -> None:
    fleet = Fleet(plan)
    if "identity" in change:
        change = {"identity": fleet.identities[1]}
    arguments = {"rows": rows_of(plan, 0), "members": fleet.members(0), "model": fleet.start[0]}
    arguments |= {"run": "a", "listen": "127.0.0.1:0", "identity": fleet.identities[0], **change}

    with pytest.raises(ValueError, match=message):
        PeerSession(0, train=lambda model, round_: (model, {}), **arguments)


def test_a_mixer_that_cannot_leave_out_a_link_is_refused(plan: GossipPlan) -> None:
    with pytest.raises(ValueError, match="Remembering cannot leave out a link that fails"):
        Fleet(plan).session(0, mixer=type("Remembering", (DPSGD,), {"memoryless": False})(0))
    with pytest.raises(ValueError, match=r"ChocoSGD cannot leave out a link .* as ChocoCopies or"):
        Fleet(plan).session(0, mixer=ChocoSGD(0, plan, Int8().codec(97)))
    with pytest.raises(ValueError, match="received the mixer of node 2, expected that of 0"):
        Fleet(plan).session(0, mixer=DPSGD(2))


def test_a_mixer_of_bytes_has_a_codec_of_its_own(plan: GossipPlan) -> None:
    fleet = Fleet(plan)
    mixer = DeepSqueeze(0, plan, Int8().codec(len(fleet.start[0])))

    with pytest.raises(ValueError, match="sends bytes of its own, in int8/channel, received codec"):
        fleet.session(0, mixer=mixer, codec=Fp32())


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True, "3"])
def test_a_wait_is_a_positive_number(value: object) -> None:
    with pytest.raises(ValueError, match=r"peer_timeout is .*; expected a positive number"):
        PeerSettings(peer_timeout=value)


def test_a_port_that_is_taken(plan: GossipPlan) -> None:
    fleet = Fleet(plan)
    fleet.ports[1] = fleet.ports[0]

    with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{fleet.ports[0]}"):
        asyncio.run(fleet.run(1))


def test_sessions_leave_no_descriptor_behind() -> None:
    fleet = Fleet(GossipPlan.from_matrix(np.full((2, 2), 0.5)))

    def after_a_session() -> int:
        asyncio.run(fleet.run(2))
        lowest = 10**6
        for _ in range(40):  # gRPC closes sockets in a thread of its own
            lowest = min(lowest, len(os.listdir("/proc/self/fd")))
            time.sleep(0.02)
        return lowest

    after_a_session()
    counts = [after_a_session() for _ in range(3)]

    assert counts == counts[:1] * 3
