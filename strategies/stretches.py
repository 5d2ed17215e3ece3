"""Who mixes which part of the model, when not every node has trained all of it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import Layout
from flower_edge.gossip.directed import DirectedPlan
from flower_edge.gossip.plan import GossipPlan


@dataclass(frozen=True)
class Stretch:
    """Arrays next to each other in the flat vector that the same nodes mix.

    Attributes
    ----------
    start, stop : int
        Where it lies in the vector.
    live : frozenset of int
        The nodes that mix it. For all others it stays as it is, and links to them give their weight back to
        both ends: the matrix that acts on the stretch is symmetric and doubly stochastic.
    """

    start: int
    stop: int
    live: frozenset[int]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def stretches(
    layout: Layout, live: Collection[int], trained: Mapping[int, Collection[str]] | None = None
) -> Iterator[Stretch]:
    """Cut the flat vector where the nodes that mix it change.

    Parameters
    ----------
    layout : Layout
        Of the model.
    live : collection of int
        The nodes that take part in the round.
    trained : mapping of int to collection of str, optional
        For each live node, the names of the arrays that it mixes; all of them by default.

    Yields
    ------
    Stretch
        In the order of the vector; as few as possible, one if every live node mixes everything.
    """
    everyone = frozenset(live)
    if trained is None:
        yield Stretch(0, layout.size, everyone)
        return
    mixed = [spec for spec in layout.specs if spec.mixed]
    ends = list(accumulate(spec.size for spec in mixed))
    nodes = [frozenset(node for node in everyone if spec.name in trained[node]) for spec in mixed]
    start = 0
    for mixing, group in groupby(zip(nodes, ends, strict=True), key=lambda pair: pair[0]):
        *_, (_, stop) = group
        if stop > start:
            yield Stretch(start, stop, mixing)
        start = stop


def live_links(plan: GossipPlan, server_round: int, live: Collection[int]) -> npt.NDArray[np.int64]:
    """Return the links of W(t) whose two ends are live, shape (m, 2)."""
    links = plan.phase(server_round).links
    alive = np.zeros(plan.n, bool)
    alive[list(live)] = True
    return links[alive[links].all(axis=1)]


def energy(
    plan: GossipPlan | DirectedPlan, server_round: int, parts: Collection[Stretch], compression: float = 1.0
) -> npt.NDArray[np.float64]:
    """Return the Wh of each node in a round, shape (n,); *modelled*, zero for a plan without energy model.

    To exchange a part costs its share of what the whole model costs, times its bytes over those in fp32
    (`compression`); to compute costs the same whatever was trained, since energy models have one figure for
    it.
    """
    total = np.zeros(plan.n)
    if isinstance(plan, DirectedPlan) or plan.energy is None:
        return total
    size = sum(part.size for part in parts)
    for part in parts:
        # The shares add up to one, and so does what a node spends without any link.
        links = live_links(plan, server_round, part.live)
        whole, none = (plan.energy.per_node(those, plan.n) for those in (links, links[:0]))
        total += part.size / size * (whole - (1.0 - compression) * (whole - none))
    return total
