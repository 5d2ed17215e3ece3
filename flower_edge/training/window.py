"""Against slow nodes that train the last layers only, and against drift between nodes."""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from flower_edge.training.backward_graph import BackwardGraph
from flower_edge.training.selection import head


@dataclass(frozen=True)
class SlidingWindow:
    """Which tensors may be chosen, one stretch of the network after the other.

    A node that is too slow for more than the last layers' gradients would choose among those every time, and
    the rest of its network would never learn from its data. So the trainable tensors are cut into stretches,
    in order from output to input, and each choice may take tensors of one stretch, and of the head, only.
    Zhang, Chen, Bian, Wang, Xu, "FedEL: Federated Elastic Learning for Heterogeneous Devices", NeurIPS 2025,
    slide a window over blocks of layers and give each block an output of its own; here the network stays as
    it is, and the gradient travels from its one output to the stretch. Stretches are equal in the time that
    it takes to travel through them, as far as whole operations allow.

    Parameters
    ----------
    positions : int
        The number of stretches, at least 1.

    Raises
    ------
    TypeError
        If it is not an int.
    ValueError
        If it is less than 1.
    """

    positions: int

    def __post_init__(self) -> None:
        if isinstance(self.positions, bool) or not isinstance(self.positions, int):
            raise TypeError(f"positions is {self.positions!r:.70}, expected an int")
        if self.positions < 1:
            raise ValueError(f"positions is {self.positions}, expected at least 1")

    def stretches(
        self, graph: BackwardGraph, units: Iterable[Collection[str]] = ()
    ) -> tuple[tuple[str, ...], ...]:
        """Cut the tensors of a model.

        Parameters
        ----------
        graph : BackwardGraph
            Of the model, `ElasticTrainer.graph`.
        units : iterable of collections of str, optional
            What must not be cut, `ElasticTrainer.units`; every other tensor stands alone.

        Returns
        -------
        tuple of tuple of str
            One for each position, from output to input; every tensor is in one.

        Raises
        ------
        ValueError
            If there are more positions than depths at which tensors lie.
        """
        given = [tuple(unit) for unit in units]
        taken = {name for unit in given for name in unit}
        at_depth: dict[float, list[str]] = {}
        for unit in [*given, *((name,) for name in graph.tensor_names if name not in taken)]:
            at_depth.setdefault(path_seconds(graph, unit), []).extend(unit)
        depths = sorted(at_depth)
        if len(depths) < self.positions:
            raise ValueError(
                f"the window has {self.positions} positions, expected at most {len(depths)}: tensors lie at "
                "that many depths"
            )
        bounds = [0, *self._cuts(depths), len(depths)]
        place = {name: index for index, name in enumerate(graph.tensor_names)}
        return tuple(
            tuple(sorted((name for d in depths[begin:end] for name in at_depth[d]), key=place.__getitem__))
            for begin, end in pairwise(bounds)
        )

    def names(
        self, graph: BackwardGraph, number: int, units: Iterable[Collection[str]] = ()
    ) -> frozenset[str]:
        """Return the tensors that the choice of this number may take: those of one stretch, and the head.

        Parameters
        ----------
        graph : BackwardGraph
        number : int
            How many choices have been made before. The window begins at the output, moves one stretch towards
            the input with each choice, and then begins again.
        units : iterable of collections of str, optional
            As in `stretches`. All of a unit that has a tensor of the head may be chosen.

        Returns
        -------
        frozenset of str
            What `ElasticTrainer.select` takes as `among`.

        Raises
        ------
        ValueError
            As `stretches`.
        """
        given = [tuple(unit) for unit in units]
        return frozenset(head(graph, given)).union(self.stretches(graph, given)[number % self.positions])

    def _cuts(self, depths: list[float]) -> list[int]:
        """Return where each stretch but the first begins, no stretch being empty."""
        cuts: list[int] = []
        for position in range(1, self.positions):
            wanted = depths[-1] * position / self.positions
            nearest = bisect_left(depths, wanted)
            if nearest and wanted - depths[nearest - 1] < depths[nearest] - wanted:
                nearest -= 1
            least = (cuts[-1] if cuts else 0) + 1
            cuts.append(min(max(nearest, least), len(depths) - (self.positions - position)))
        return cuts


def path_seconds(graph: BackwardGraph, names: Collection[str]) -> float:
    """Return the time that the gradient takes from the output to these tensors."""
    return math.fsum(graph.operations[index].grad_input_seconds for index in graph.paid(names))


def blend(local: Mapping[str, float], global_: Mapping[str, float], share: float) -> dict[str, float]:
    """Mix a node's importances with those of the fleet, so that its choice follows its own data less.

    Zhang, Chen, Bian, Wang, Xu, "FedEL", NeurIPS 2025, likewise mix local with global importance, against
    drift between nodes with different data. Losses and learning rates of other nodes may be larger, so each
    is scaled first: the magnitudes of the node's sum to 1, and the fleet's, on the tensors known to both, to
    the same as the node's there. If one of them is zero on all of those, it says nothing, and the other
    counts alone.

    Parameters
    ----------
    local : mapping of str to float
        From `ElasticTrainer.importance`.
    global_ : mapping of str to float
        The fleet's, its mean over the nodes for example.
    share : float
        Of the fleet's, in [0, 1].

    Returns
    -------
    dict of str to float
        For each tensor of `local`. One that the fleet does not know keeps its own, scaled importance; one
        that is not in `local` is left out.

    Raises
    ------
    ValueError
        If the share is out of its range, or an importance is not finite.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected at least 0 and at most 1")
    for name, value in (*local.items(), *global_.items()):
        if not math.isfinite(value):
            raise ValueError(f"the importance of {name!r} is {value}, expected a finite number")
    common = local.keys() & global_.keys()
    everything = _magnitude(local, local)
    own, others = _magnitude(local, common), _magnitude(global_, common)
    if not others:
        share = 0.0
    elif not own:
        share = 1.0
    scale = own / everything if own else 1.0
    mixed = {name: value / (everything or 1.0) for name, value in local.items()}
    for name in common:
        mixed[name] = (1 - share) * mixed[name] + share * scale * (global_[name] / (others or 1.0))
    return mixed


def _magnitude(importance: Mapping[str, float], names: Collection[str]) -> float:
    return math.fsum(abs(importance[name]) for name in names)
