"""Who sends to whom, where what goes one way does not go the other."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Arcs = npt.NDArray[np.int64]
MAX_NODES = 10**5


@dataclass(frozen=True, eq=False, repr=False)
class DirectedPlan:
    """A directed graph, for `PushSum`: each node gives equal shares to itself and to all that it sends to.

    The matrix of these shares is column-stochastic: what a node gives away is what others get. Its rows need
    not sum to one; a weight that travels along makes up for that.

    Parameters
    ----------
    n : int
        Number of nodes.
    arcs : array_like of int, shape (m, 2)
        From which node to which. Every node has to reach every other.

    Raises
    ------
    ValueError
        If the arcs are no pairs of integers, an arc leads to a node that is none, or to where it comes from,
        or is there twice, or the graph is not strongly connected.
    """

    n: int
    arcs: Arcs

    energy = None
    """No model of what a round costs."""

    def __post_init__(self) -> None:
        arcs = np.array(self.arcs)
        if arcs.size == 0:
            arcs = arcs.astype(np.int64).reshape(0, 2)
        if arcs.ndim != 2 or arcs.shape[1] != 2 or not np.issubdtype(arcs.dtype, np.integer):
            raise ValueError(f"received arcs of {arcs.dtype} {arcs.shape}, expected integers of shape (m, 2)")
        arcs = arcs.astype(np.int64)
        if not 2 <= self.n <= MAX_NODES:
            raise ValueError(f"received a plan for n = {self.n} nodes, expected 2 to {MAX_NODES}")
        if arcs.size and not 0 <= arcs.min() <= arcs.max() < self.n:
            raise ValueError(f"an arc has node {arcs.min()} or {arcs.max()}, expected nodes 0..{self.n - 1}")
        if (own := arcs[arcs[:, 0] == arcs[:, 1]]).size:
            raise ValueError(f"an arc leads from node {own[0, 0]} to itself, expected other nodes")
        if len(np.unique(arcs, axis=0)) != len(arcs):
            raise ValueError("an arc is there twice, expected each once")
        object.__setattr__(self, "arcs", arcs[np.lexsort((arcs[:, 1], arcs[:, 0]))])
        for ends, how in ((arcs, "does not reach"), (arcs[:, ::-1], "is not reached by")):
            if missing := sorted(set(range(self.n)) - _reached(self.n, ends)):
                raise ValueError(
                    f"node 0 {how} nodes {missing[:5]}, expected that every node reaches every other"
                )

    @property
    def phases(self) -> Sequence[Arcs]:
        """One: the arcs are the same in all rounds."""
        return (self.arcs,)

    def receivers(self, node: int) -> list[int]:
        """Return the nodes that `node` sends to, ascending."""
        return sorted(self.arcs[self.arcs[:, 0] == node, 1].tolist())

    def senders(self, node: int) -> list[int]:
        """Return the nodes that send to `node`, ascending."""
        return sorted(self.arcs[self.arcs[:, 1] == node, 0].tolist())

    def row(self, node: int, round: int) -> dict[int, float]:
        """Return what `node` gives to itself and to each that it knows: 0 to those that only send."""
        receivers = self.receivers(node)
        share = 1.0 / (1 + len(receivers))
        row = dict.fromkeys(self.senders(node), 0.0) | dict.fromkeys([node, *receivers], share)
        return dict(sorted(row.items()))

    def neighbours(self, node: int, round: int) -> list[int]:
        """Return the nodes that `node` sends to or hears of."""
        return [other for other in self.row(node, round) if other != node]

    def links_per_node(self, round: int) -> npt.NDArray[np.int64]:
        """Return how many arcs begin or end at each node, int64 of shape (n,)."""
        return np.bincount(self.arcs.ravel(), minlength=self.n)

    @cached_property
    def matrix(self) -> npt.NDArray[np.float64]:
        """The shares: column j is what node j gives to whom, float64 of shape (n, n)."""
        matrix = np.eye(self.n)
        matrix[self.arcs[:, 1], self.arcs[:, 0]] = 1.0
        return np.asarray(matrix / matrix.sum(0))

    @cached_property
    def rho(self) -> float:
        """How much disagreement a round leaves in the long run: the second largest |eigenvalue|."""
        return float(np.sort(np.abs(np.linalg.eigvals(self.matrix)))[-2])

    @property
    def spectral_gap(self) -> float:
        """1 − ρ."""
        return 1.0 - self.rho

    def digest(self) -> str:
        """Return a SHA-256 of the whole plan."""
        return hashlib.sha256(json.dumps({"n": self.n, "arcs": self.arcs.tolist()}).encode()).hexdigest()

    def describe(self) -> str:
        """Say in one line what the plan is."""
        return f"directed, {self.n} nodes, {len(self.arcs)} arcs, ρ = {self.rho:.4f}"

    def __repr__(self) -> str:
        return f"<DirectedPlan: {self.describe()}>"

    def __eq__(self, other: Any) -> bool:
        return self.digest() == other.digest() if isinstance(other, DirectedPlan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest())


def _reached(n: int, arcs: Arcs) -> set[int]:
    """Return the nodes that node 0 reaches."""
    following: dict[int, list[int]] = {}
    for begin, end in arcs.tolist():
        following.setdefault(begin, []).append(end)
    found, left = {0}, [0]
    while left:
        new = set(following.get(left.pop(), ())) - found
        found |= new
        left += new
    return found
