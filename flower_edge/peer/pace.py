"""Which round a node goes on with when others are ahead of it."""

from collections.abc import Mapping, Sequence

from flower_edge.peer.part import Row


def fleet_round(round: int, rows: Sequence[Row], theirs: Mapping[int, int]) -> int:
    """Return the round that a second neighbour has reached, or the only one, if it left this node behind.

    One that is ahead alone may lie, and would end the training of all that follow it. More than two would
    keep a part of the fleet that was cut off from coming back: at its border most neighbours are behind, too.

    Parameters
    ----------
    round : int
        That this node would do next.
    rows : sequence of mapping of int to float
        Its row of W(t) for each phase of the plan.
    theirs : mapping of int to int
        The latest round that each neighbour is known to be in.
    """
    reached = []
    for j, their_round in theirs.items():
        ahead = range(round, their_round)
        # One that is ahead because the plan has no link to it in between has left nothing out.
        left_out = any(j in rows[r % len(rows)] for r in ahead[: len(rows)])
        reached.append(their_round if left_out else round)
    return min(sorted(reached)[-2:], default=round)
