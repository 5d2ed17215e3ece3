"""Which round a node goes on with: that of the fleet, not that of one that claims to be ahead."""

import asyncio

import numpy as np
import pytest
from fleet import Fleet

from flower_edge.gossip import ClippedGossip, GossipPlan
from flower_edge.peer.frames import hello
from flower_edge.peer.pace import fleet_round

ALL = [{0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}]
"""Node 0 has a link to each of three nodes, in every round."""

IN_TURN = [{0: 0.5, 1: 0.5}, {0: 0.5, 2: 0.5}, {0: 1.0}]


@pytest.mark.parametrize(
    ("rows", "theirs", "expected"),
    [
        (ALL, {}, 7),
        (ALL, {1: 9}, 9),
        (ALL, {1: 200, 2: 7}, 7),
        (ALL, {1: 200, 2: 7, 3: 7}, 7),
        (ALL, {1: 200, 2: 9, 3: 3}, 9),
        (ALL, {1: 9, 2: 9, 3: 9}, 9),
        (ALL, {1: 5, 2: 6, 3: 2}, 7),
        # Rounds 7 and 8 have no link to node 1: in round 9 it has left nothing out, in round 10 round 9.
        (IN_TURN, {1: 9}, 7),
        (IN_TURN, {1: 10}, 10),
        (IN_TURN, {1: 10, 2: 7}, 7),
        (IN_TURN, {1: 10, 2: 8}, 8),
    ],
)
def test_a_second_one_has_to_be_there(rows: list, theirs: dict, expected: int) -> None:
    assert fleet_round(7, rows, theirs) == expected


def test_one_node_alone_ends_nobodys_training() -> None:
    """It says once that it is in the last round."""
    rounds = 40
    plan = GossipPlan.from_matrix(np.full((5, 5), 0.2))

    async def run() -> Fleet:
        fleet = Fleet(plan, seconds=0.02, mixer=ClippedGossip)
        sessions = [fleet.session(node) for node in range(5)]
        running = [asyncio.ensure_future(session.run_async(rounds)) for session in sessions]
        while len(fleet.trained[4]) < 5:
            await asyncio.sleep(0.01)
        to_node_0 = sessions[4]._fleet[0]
        to_node_0._post(hello(to_node_0._run, 4, rounds, to_node_0._terms))
        await asyncio.gather(*running)
        return fleet

    fleet = asyncio.run(run())

    assert all(fleet.trained[node] == list(range(1, rounds + 1)) for node in range(4))
