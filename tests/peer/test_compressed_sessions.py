"""Sessions that send few bytes: what the host would do, through broken links, doubts and restarts."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from fleet import FAST, Fleet

from flower_edge.gossip import (
    ChocoCopies,
    CompressedMixer,
    DeepSqueeze,
    GossipPlan,
    Int4,
    Int8,
    LinkChoco,
    PlainQuantised,
    TopK,
    full_graph_plan,
    load_graph,
)
from flower_edge.gossip.phase import Phase
from flower_edge.peer import StateError

ALGORITHMS = [ChocoCopies, LinkChoco, DeepSqueeze, PlainQuantised]
TWO = GossipPlan.from_matrix(np.full((2, 2), 0.5))
Make = Callable[..., CompressedMixer]


@pytest.fixture
def plan() -> GossipPlan:
    """Six nodes on a ring with two chords."""
    graph = nx.cycle_graph(6)
    graph.add_edges_from([(0, 3), (1, 4)])
    return full_graph_plan(load_graph(graph))


def compressed(plan: GossipPlan, make: Make, codec: object, elements: int = 97, **options: object) -> Fleet:
    layout = codec.codec(elements)
    return Fleet(plan, elements, mixer=lambda node: make(node, plan, layout), **options)


def by_host(fleet: Fleet, make: Make, codec: object, rounds: int) -> np.ndarray:
    """The same mixers in one process, one after the other."""
    plan, layout = fleet.plan, codec.codec(fleet.elements)
    mixers = [make(node, plan, layout) for node in range(plan.n)]
    models = np.array(fleet.start)
    for round_ in range(1, rounds + 1):
        models += fleet.gains
        rows = [plan.row(node, round_) for node in range(plan.n)]
        sent = [mixer.outgoing(models[i], plan.neighbours(i, round_)) for i, mixer in enumerate(mixers)]
        models = np.stack(
            [
                mixer.mix(models[i], rows[i], {j: sent[j][i] for j in rows[i] if j != i})
                for i, mixer in enumerate(mixers)
            ]
        )
    return models


@pytest.mark.parametrize("codec", [Int8(), Int4(rounding="stochastic"), TopK(0.1)], ids=lambda c: c.name)
@pytest.mark.parametrize("make", ALGORITHMS)
def test_sessions_do_what_the_host_would_do(plan: GossipPlan, make: Make, codec: object) -> None:
    fleet = compressed(plan, make, codec)

    reports = asyncio.run(fleet.run(5))

    hosted = by_host(fleet, make, codec, 5)
    for report, expected in zip(reports, hosted, strict=True):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)
        assert not report.refusals


def test_links_that_change(plan: GossipPlan) -> None:
    links = [[[0, 1], [2, 3], [4, 5]], [[0, 5], [1, 2], [3, 4]], [[0, 3], [1, 4]]]
    cycle = GossipPlan(6, tuple(Phase(np.array(pairs), np.full(len(pairs), 0.5)) for pairs in links))
    fleet = compressed(cycle, LinkChoco, Int8())

    reports = asyncio.run(fleet.run(9))

    for report, expected in zip(reports, by_host(fleet, LinkChoco, Int8(), 9), strict=True):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)


def test_wire_bytes_are_those_of_the_codec() -> None:
    """Within 1 %, by the kernel's count: a message is a letter of the mixer with what the codec makes."""
    elements = 300_000
    fleet = compressed(TWO, LinkChoco, Int8(), elements)
    reports = asyncio.run(fleet.run(4))

    message = LinkChoco(0, TWO, Int8().codec(elements)).outgoing(fleet.start[0], [1])[1]
    assert len(message) < 1.01 * elements
    for report in reports:
        for name in ("bytes_sent", "bytes_received"):
            assert 4 * len(message) < sum(getattr(r, name) for r in report.rounds) <= 1.01 * 4 * len(message)


@pytest.mark.parametrize("make", [ChocoCopies, pytest.param(LinkChoco, marks=pytest.mark.slow), DeepSqueeze])
def test_wires_that_break_keep_the_mean(plan: GossipPlan, make: Make) -> None:
    async def run() -> tuple[Fleet, list]:
        fleet = compressed(plan, make, Int4(), 60_000, seconds=0.002)
        await fleet.lay_wires()
        running = asyncio.ensure_future(fleet.run(80))
        draw = random.Random(1)
        await asyncio.sleep(0.3)
        for _ in range(15):
            relay = draw.choice(list(fleet.relays.values()))
            relay.cut() if draw.random() < 0.7 else relay.freeze()
            await asyncio.sleep(draw.random() * 0.06)
            relay.heal()
        reports = await running
        await fleet.pull_wires()
        return fleet, reports

    fleet, reports = asyncio.run(run())

    fleet.check_mean(reports)
    assert not any(report.unsettled for report in reports)
    assert sum(r.neighbours - len(r.counted) for report in reports for r in report.rounds) > 3


def check_memories(mixers: list[CompressedMixer]) -> None:
    """Both ends of a link remember the same."""
    states = [mixer.state() for mixer in mixers]
    for i, state in enumerate(states):
        for name, vector in state.items():
            kind, _, j = name.partition("/")
            if kind == "apart":
                np.testing.assert_array_equal(vector, -states[int(j)][f"apart/{i}"])
            elif kind == "reference":
                np.testing.assert_array_equal(vector, states[int(j)][f"reference/{i}"])


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("make", ALGORITHMS)
def test_a_lost_answer_is_settled_later(make: Make, counts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memories move at both ends or at neither, though one end learns of it rounds later."""
    mixers: dict[int, CompressedMixer] = {}
    fleet = compressed(TWO, make, Int8(), seconds=0.02)
    original = fleet.mixer
    fleet.mixer = lambda node: mixers.setdefault(node, original(node))

    reports = asyncio.run(fleet.run_through_a_doubt(90, counts, monkeypatch))

    assert reports[1].late == [(0, 3, counts)]
    assert (1 in reports[0].rounds[2].counted) == counts
    fleet.check_mean(reports)
    check_memories([mixers[0], mixers[1]])
    assert reports[0].rounds[-1].counted == (1,)
    # As close as one step of training and, for those that have one, the codec's floor allow.
    step = np.abs(fleet.gains[0] - fleet.gains[1]).max()
    assert np.abs(reports[0].model - reports[1].model).max() < 3 * step


@pytest.mark.parametrize("make", [ChocoCopies, LinkChoco, DeepSqueeze])
def test_memories_are_on_the_disk(plan: GossipPlan, make: Make, tmp_path: Path) -> None:
    codec = Int4(rounding="stochastic")
    fleet = compressed(plan, make, codec, folder=tmp_path)
    asyncio.run(fleet.run(3))
    reports = asyncio.run(fleet.run(7))

    whole = compressed(plan, make, codec)
    for report, other in zip(reports, asyncio.run(whole.run(7)), strict=True):
        np.testing.assert_array_equal(report.model, other.model)

    other = compressed(plan, PlainQuantised, codec, folder=tmp_path)
    with pytest.raises(StateError, match=rf"mixer '{make.__name__}, int4/channel', expected 'PlainQuantised"):
        other.session(0)


@pytest.mark.parametrize("make", [ChocoCopies, LinkChoco])
def test_a_node_that_lost_its_disk_begins_its_links_anew(
    plan: GossipPlan, make: Make, tmp_path: Path
) -> None:
    fleet = compressed(plan, make, Int8(), folder=tmp_path)
    asyncio.run(fleet.run(4))
    (tmp_path / "node-2").unlink()
    fleet.gains[:] = 0
    reports = asyncio.run(fleet.run(60))

    models = np.array([report.model for report in reports])
    assert np.abs(models - models.mean(0)).max() < 1e-3


def test_a_restart_from_an_older_round_begins_links_anew(plan: GossipPlan, tmp_path: Path) -> None:
    """What was not on the disk any more when the node was killed; the others remember more than it does."""
    fleet = compressed(plan, ChocoCopies, Int8(), folder=tmp_path)
    asyncio.run(fleet.run(4))
    older = (tmp_path / "node-2").read_bytes()
    asyncio.run(fleet.run(6))
    (tmp_path / "node-2").write_bytes(older)
    fleet.gains[:] = 0
    reports = asyncio.run(fleet.run(60))

    models = np.array([report.model for report in reports])
    assert np.abs(models - models.mean(0)).max() < 1e-3


@pytest.mark.parametrize(
    ("other", "terms"),
    [
        (partial(LinkChoco), "int4/channel"),
        (partial(LinkChoco, gamma=0.5), "gamma 0.5"),
        (partial(ChocoCopies, gamma=1.0), "copies, int8"),
        (partial(LinkChoco, start=np.ones(97, np.float32)), "start "),
        (None, "fp32"),
    ],
    ids=["codec", "gamma", "algorithm", "start", "no codec"],
)
def test_a_neighbour_with_another_codec_is_refused_by_name(
    other: Make | None, terms: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = compressed(TWO, LinkChoco, Int8(), settings=replace(FAST, connect_timeout=1.0))
    one = fleet.mixer
    codec = Int4() if terms == "int4/channel" else Int8()
    fleet.mixer = lambda node: one(0) if node == 0 else other and other(node, plan=TWO, codec=codec.codec(97))

    reports = asyncio.run(fleet.run(2))

    assert reports[1].refusals["another codec or algorithm"] >= 1
    assert not any(r.counted for report in reports for r in report.rounds)
    assert f"expected '{'fp32' if other is None else ''}" in caplog.text
    assert terms in caplog.text
    assert "link, int8/channel, gamma 1.0, start zeros" in caplog.text
