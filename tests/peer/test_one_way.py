"""Sessions over directed graphs: push-sum between real nodes, as at a host, and through broken wires."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fleet import FAST, Fleet

from flower_edge.gossip import DirectedPlan, PushSum
from flower_edge.peer import PayloadError, PeerSession
from flower_edge.peer.frames import decode, model_frames
from flower_edge.peer.inbox import Inbox
from flower_edge.peer.neighbour import Neighbour
from flower_edge.peer.part import run_id
from flower_edge.peer.payload import Sealed

PLAN = DirectedPlan(5, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 0], [0, 2], [2, 0]])


class Directed(Fleet):
    """Training ends after `trains` rounds, so that the models can come together."""

    def __init__(self, elements: int = 97, trains: int = 1000, **options: object) -> None:
        super().__init__(PLAN, elements, mixer=lambda node: PushSum(node, PLAN), **options)
        self.trains = trains

    async def lay_wires(self) -> None:
        from relay import Relay

        for a, b in PLAN.arcs.tolist():
            pair = min(a, b), max(a, b)
            if pair not in self.relays:
                self.relays[pair] = relay = Relay(self.ports[pair[1]])
                await relay.start()

    def train(self, node: int, model: np.ndarray, round_: int) -> tuple[np.ndarray, dict[str, float]]:
        trained, metrics = super().train(node, model, round_)
        return (trained if round_ <= self.trains else model.copy()), metrics

    def trained_mean(self) -> np.ndarray:
        """Of all that the nodes began with and have learned."""
        total = np.sum(self.start, axis=0, dtype=np.float64)
        for node, rounds in self.trained.items():
            total += sum(round_ <= self.trains for round_ in rounds) * self.gains[node].astype(np.float64)
        return total / PLAN.n


def by_host(fleet: Directed, rounds: int) -> list[np.ndarray]:
    mixers = [PushSum(node, PLAN) for node in range(PLAN.n)]
    models = [model.copy() for model in fleet.start]
    for _ in range(rounds):
        models = [model + gain for model, gain in zip(models, fleet.gains, strict=True)]
        sent = [mixer.outgoing(models[i], PLAN.neighbours(i, 0)) for i, mixer in enumerate(mixers)]
        models = [
            mixer.mix(models[i], PLAN.row(i, 0), {j: sent[j][i] for j in PLAN.senders(i)})
            for i, mixer in enumerate(mixers)
        ]
    return models


@pytest.mark.parametrize("elements", [97, 300_001])
def test_sessions_do_what_the_host_would_do(elements: int) -> None:
    fleet = Directed(elements, seconds=lambda node, round_: 0.05 if node == 3 else 0.0)

    reports = asyncio.run(fleet.run(6))

    for node, (report, expected) in enumerate(zip(reports, by_host(fleet, 6), strict=True)):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)
        assert all(list(r.counted) == PLAN.senders(node) for r in report.rounds)


def test_wires_that_break_lose_nothing() -> None:
    async def run() -> tuple[Directed, list]:
        fleet = Directed(trains=30, seconds=0.002)
        await fleet.lay_wires()
        running = asyncio.ensure_future(fleet.run(260))
        draw = random.Random(1)
        await asyncio.sleep(0.3)
        for _ in range(15):
            relay = draw.choice(list(fleet.relays.values()))
            relay.cut() if draw.random() < 0.7 else relay.freeze()
            await asyncio.sleep(draw.random() * 0.05)
            relay.heal()
        reports = await running
        await fleet.pull_wires()
        return fleet, reports

    fleet, reports = asyncio.run(run())

    missed = [
        r
        for node, report in enumerate(reports)
        for r in report.rounds
        if r.counted != tuple(PLAN.senders(node))
    ]
    assert len(missed) > 3
    for report in reports:
        np.testing.assert_allclose(report.model, fleet.trained_mean(), rtol=1e-4, atol=1e-4)


def test_messages_that_get_lost_one_way_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third message of node 0 is dropped where it arrives; node 0 is not told, and goes on."""
    take, lost = Neighbour._take_model, []

    def lose(self: Neighbour, frame: object) -> None:
        if frame.node != 0 or frame.round % 3 or frame.round > 40:
            take(self, frame)
        else:
            lost.append(frame.round)

    monkeypatch.setattr(Neighbour, "_take_model", lose)
    fleet = Directed(trains=30, settings=replace(FAST, peer_timeout=0.1))

    reports = asyncio.run(fleet.run(220))

    assert len(lost) > 5
    for report in reports:
        np.testing.assert_allclose(report.model, fleet.trained_mean(), rtol=1e-4, atol=1e-4)


def test_a_node_that_lost_its_disk_does_not_lead_the_others_back() -> None:
    """Node 3 dies in mid-run and comes back with nothing, where the others are by then."""

    async def run() -> tuple[Directed, list[PeerSession], int]:
        fleet = Directed(seconds=0.005, settings=replace(FAST, farewell_timeout=0.5))
        sessions = [fleet.session(node) for node in range(5)]
        running = [asyncio.ensure_future(session.run_async(200)) for session in sessions]
        while len(fleet.trained[0]) < 100:
            await asyncio.sleep(0.01)
        running[3].cancel()
        await asyncio.wait({running[3]})
        died_in = max(fleet.trained[3])
        sessions[3] = fleet.session(3)
        running[3] = asyncio.ensure_future(sessions[3].run_async(200))
        await asyncio.gather(*running)
        return fleet, sessions, died_in

    fleet, sessions, died_in = asyncio.run(run())

    assert fleet.trained[3][fleet.trained[3].index(died_in) + 1] > died_in
    assert 3.5 < sum(session._mixer.weight for session in sessions) < 6.0


def test_a_node_that_is_slow_in_its_first_round_loses_nothing() -> None:
    """The others give it up, and it gains all that they gave meanwhile."""
    fleet = Directed(
        trains=30,
        seconds=lambda node, round_: 1.0 if (node, round_) == (3, 1) else 0.02,
        settings=replace(FAST, peer_timeout=0.1),
    )

    reports = asyncio.run(fleet.run(220))

    assert reports[3].rounds[0].round > 5
    for report in reports:
        np.testing.assert_allclose(report.model, fleet.trained_mean(), rtol=1e-4, atol=1e-4)


def test_a_sum_of_another_size_is_no_model() -> None:
    """Before the first round a mixer does not know how large a model is: the inbox does."""
    inbox = Inbox(Sealed(PushSum(1, PLAN), PushSum.largest_message), 97, largest=1e8)
    message = PushSum(0, PLAN).outgoing(np.ones(50, np.float32), [1])[1]
    (frame,) = model_frames(run_id("a test"), 0, 1, "fp32", message)

    with pytest.raises(PayloadError, match=r"received a vector of shape \(50,\), expected \(97,\)"):
        inbox.add(decode(frame))


def test_a_node_with_another_model_stops_nobody() -> None:
    fleet = Directed(seconds=lambda node, round_: 0.0 if node == 3 else 0.5)
    fleet.start[3], fleet.gains = np.zeros(50, np.float32), [*fleet.gains]
    fleet.gains[3] = fleet.gains[3][:50]

    reports = asyncio.run(fleet.run(2))

    assert [r.counted for r in reports[4].rounds] == [(), ()]
    assert reports[4].refusals["a model that is none"] >= 1
    assert reports[1].rounds[-1].counted == (0,)


def test_a_session_goes_on_with_the_sums_on_its_disk(tmp_path: Path) -> None:
    fleet = Directed(folder=tmp_path)
    asyncio.run(fleet.run(4))
    reports = asyncio.run(fleet.run(9))

    for report, expected in zip(reports, by_host(fleet, 9), strict=True):
        np.testing.assert_allclose(report.model, expected, rtol=1e-5, atol=1e-5)


def test_a_session_needs_all_that_it_has_to_do_with() -> None:
    fleet = Directed()
    with pytest.raises(ValueError, match=r"nobody says how to reach nodes \[1, 2, 4\]"):
        PeerSession(
            *(0, [PLAN.row(0, 0)], [], fleet.start[0], lambda model, round_: (model, {})),
            **{"run": "a", "listen": "127.0.0.1:0", "identity": fleet.identities[0]},
            mixer=PushSum(0, PLAN),
        )
