"""A node is killed while it does not know whether a link counted, and learns of it in its next life."""

import asyncio
import json
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fleet import FAST, Fleet, when_sent

from flower_edge.gossip import DPSGD, ChocoCopies, GossipPlan, Int8, LinkChoco
from flower_edge.peer import State
from flower_edge.peer.frames import Kind
from flower_edge.peer.neighbour import Neighbour
from flower_edge.peer.part import run_id

ROUNDS, DOUBTFUL, ELEMENTS = 90, 3, 97
MIXERS = {
    "DPSGD": lambda node, plan: DPSGD(node),
    "ChocoCopies": lambda node, plan: ChocoCopies(node, plan, Int8().codec(ELEMENTS)),
    "LinkChoco": lambda node, plan: LinkChoco(node, plan, Int8().codec(ELEMENTS)),
}


@pytest.mark.parametrize(
    ("mixer", "counts"),
    [
        ("ChocoCopies", True),
        ("DPSGD", False),
        pytest.param("ChocoCopies", False, marks=pytest.mark.slow),
        pytest.param("DPSGD", True, marks=pytest.mark.slow),
        pytest.param("LinkChoco", True, marks=pytest.mark.slow),
        pytest.param("LinkChoco", False, marks=pytest.mark.slow),
    ],
)
def test_a_doubt_survives_the_node(
    mixer: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wire breaks when node 0 is about to say that round 3 counts, or before it hears the question."""
    plan = GossipPlan.from_matrix(np.full((2, 2), 0.5))
    slow = replace(FAST, connect_timeout=20.0, farewell_timeout=10.0)

    async def life(fleet: Fleet, *, dies: bool) -> asyncio.subprocess.Process:
        config = {
            "folder": str(tmp_path),
            "elements": ELEMENTS,
            "mixer": mixer,
            "port": fleet.ports[1],
            "rounds": ROUNDS,
            "round": DOUBTFUL,
            "gain": float(fleet.gains[1, 0]),
            "settings": asdict(slow),
            "dies": dies,
        }
        return await asyncio.create_subprocess_exec(
            *(sys.executable, str(Path(__file__).parent / "doubtful_node.py"), json.dumps(config)),
            stdout=asyncio.subprocess.PIPE,
        )

    async def run() -> tuple[Fleet, object, dict, dict]:
        fleet = Fleet(plan, ELEMENTS, slow, seconds=0.05, mixer=lambda node: MIXERS[mixer](node, plan))
        fleet.gains[:] = fleet.gains[:, :1]
        for node, identity in enumerate(fleet.identities):
            identity.save(tmp_path / f"{node}.key", tmp_path / f"{node}.crt")
        await fleet.lay_wires()
        (relay,) = fleet.relays.values()

        def deaf(self: Neighbour, message: bytes) -> None:
            if message[5] == Kind.READY and self.link.round == DOUBTFUL and not cuts:
                cuts.append(DOUBTFUL)
                relay.cut()
                return
            heard(self, message)

        cuts: list[int] = []
        heard = Neighbour.take
        if counts:
            when_sent(monkeypatch, Kind.COMMIT, DOUBTFUL, relay.cut)
        else:
            monkeypatch.setattr(Neighbour, "take", deaf)
        first = await life(fleet, dies=True)
        running = asyncio.ensure_future(fleet.session(0).run_async(ROUNDS))
        said, _ = await first.communicate()
        assert first.returncode == -signal.SIGKILL
        kept = State.load(tmp_path / "node-1", run_id("a test"), 1, ELEMENTS)
        second = await life(fleet, dies=False)
        relay.heal()
        said, _ = await second.communicate()
        report = await running
        await fleet.pull_wires()
        return fleet, report, kept, json.loads(said)

    fleet, report, kept, said = asyncio.run(run())

    assert kept.round == DOUBTFUL
    assert kept.doubts[0].round == DOUBTFUL
    assert (report.rounds[DOUBTFUL - 1].counted == (1,)) == counts
    assert said["late"] == [[0, DOUBTFUL, counts]]
    assert not said["unsettled"]
    assert report.rounds[-1].counted == (1,)
    # What each node has trained is in the mean: of the killed one, the rounds that it kept and those after.
    trained = len(report.rounds) * fleet.gains[0] + (kept.round + len(said["rounds"])) * fleet.gains[1]
    expected = (1.0 + trained.astype(np.float64)) / 2
    found = (report.model.astype(np.float64) + said["model"]) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
