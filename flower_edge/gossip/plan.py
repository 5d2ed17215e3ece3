"""Mixing plans: who averages with whom, with what weight, in which round."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flower_edge._extras import require
from flower_edge.gossip._plan_json import decode, digest_of, encode
from flower_edge.gossip._strict_json import check_text, is_int, parse_object, read_text
from flower_edge.gossip.choice import Choice
from flower_edge.gossip.contraction import contraction
from flower_edge.gossip.energy import Energies, EnergyModel
from flower_edge.gossip.graph import MAX_NODES, Links, check_connected
from flower_edge.gossip.phase import Phase

if TYPE_CHECKING:
    import networkx as nx
    import scipy.sparse

LARGEST_RHO = 1 - 1e-12
"""Rounding may show a ρ of 1 as a little less; even a path of 4096 nodes stays 1e-7 below."""

SUM_TOLERANCE = 1e-9
"""How far a row of a given matrix may be from one, and the matrix from symmetric."""


@dataclass(frozen=True, eq=False, repr=False)
class GossipPlan:
    """The mixing matrices W(t) of a fleet: symmetric, doubly stochastic, sparse.

    Round t uses phase t mod len(phases), found from the round number alone, so that nodes need no
    coordinator; a static plan has one phase. To load a plan and to read its rows, numpy is enough.

    Parameters
    ----------
    n : int
        Number of nodes, 2 to 4096.
    phases : tuple of Phase
        Links and weights of the rounds of one cycle.
    energy : EnergyModel, optional
        What a round costs.
    base : ndarray of int64, shape (m, 2), optional
        Links of the base graph, in the order of `link_array`: what `repair` may use.
    choice : Choice, optional
        Why the plan is what it is.

    Raises
    ------
    ValueError
        If the phases name other nodes than 0..n-1, or the models would never agree: the links of all phases
        together do not connect the nodes (the message names the components), or ρ ≥ 1.
    """

    n: int
    phases: tuple[Phase, ...]
    energy: EnergyModel | None = None
    base: Links | None = None
    choice: Choice | None = None

    def __post_init__(self) -> None:
        if not is_int(self.n) or not 2 <= self.n <= MAX_NODES:
            raise ValueError(
                f"received a plan for n = {self.n!r:.60} nodes, expected a whole number from 2 to {MAX_NODES}"
            )
        if not self.phases:
            raise ValueError("received no phases, expected at least one")
        union = np.concatenate([phase.links for phase in self.phases])
        if union.size and union.max() >= self.n:
            raise ValueError(f"a link leads to node {union.max()}, expected nodes 0..{self.n - 1}")
        check_connected(union, self.n)
        if self.base is not None:
            object.__setattr__(self, "base", self._checked_base(self.base))
        if self.energy is not None and self.energy.n not in (None, self.n):
            raise ValueError(f"the energy model is for {self.energy.n} nodes, the plan for {self.n}")
        if not self.rho < LARGEST_RHO:
            raise ValueError(
                f"with these weights ρ = ‖W − J‖ is {self.rho}, expected less than 1: "
                "the models would never agree"
            )

    @classmethod
    def from_matrix(cls, matrix: Any, energy: EnergyModel | None = None) -> "GossipPlan":
        """Make a static plan of a mixing matrix.

        Parameters
        ----------
        matrix : array_like or scipy sparse array, shape (n, n)
            W: symmetric, with rows that sum to one within 1e-9. Entries may be negative.
        energy : EnergyModel, optional
            What a round costs.

        Raises
        ------
        ValueError
            If it is not square, finite, symmetric or doubly stochastic (the message names the worst row and
            its sum), or if its ρ is not below 1.
        """
        dense = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, np.float64)
        if dense.ndim != 2 or dense.shape[0] != dense.shape[1]:
            raise ValueError(f"received a matrix of shape {dense.shape}, expected a square one")
        if (bad := np.argwhere(~np.isfinite(dense))).size:
            i, j = bad[0].tolist()
            raise ValueError(f"W[{i}, {j}] is {dense[i, j]}, expected finite entries")
        asymmetry = np.abs(dense - dense.T)
        if asymmetry.size and asymmetry.max() > SUM_TOLERANCE:
            i, j = map(int, np.unravel_index(asymmetry.argmax(), asymmetry.shape))
            raise ValueError(
                f"W[{i}, {j}] is {dense[i, j]} and W[{j}, {i}] is {dense[j, i]}, expected a symmetric matrix"
            )
        sums = dense.sum(1)
        worst = int(np.abs(sums - 1).argmax()) if sums.size else 0
        if sums.size and abs(sums[worst] - 1) > SUM_TOLERANCE:
            raise ValueError(
                f"W is not doubly stochastic: row {worst} sums to {sums[worst]}, "
                f"expected 1 within {SUM_TOLERANCE}"
            )
        links = np.argwhere(np.triu(dense, 1))
        return cls(len(dense), (Phase(links, dense[links[:, 0], links[:, 1]]),), energy)

    def phase(self, round: int) -> Phase:
        """Return the links and weights of a round."""
        return self.phases[round % len(self.phases)]

    @cached_property
    def rho(self) -> float:
        """ρ = ‖W − J‖₂, how much disagreement a round leaves; of several phases, the geometric mean."""
        return contraction(self.phases, self.n)

    @property
    def spectral_gap(self) -> float:
        """1 − ρ."""
        return 1.0 - self.rho

    def matrix(self, round: int) -> "scipy.sparse.csr_array":
        """Return W(t), float64 of shape (n, n). Needs scipy."""
        sparse = require("scipy.sparse", "topology")
        rows = self._rows[round % len(self.phases)]
        return sparse.csr_array(
            (
                np.array([weight for row in rows for weight in row.values()]),
                np.array([node for row in rows for node in row]),
                np.cumsum([0, *map(len, rows)]),
            ),
            shape=(self.n, self.n),
        )

    def row(self, node: int, round: int) -> dict[int, float]:
        """Return a node's row of W(t): node → weight, ascending, its own included; it sums to one."""
        return dict(self._row(node, round))

    def neighbours(self, node: int, round: int) -> list[int]:
        """Return the nodes that `node` exchanges models with in a round, ascending."""
        return [other for other in self._row(node, round) if other != node]

    def links_per_node(self, round: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Return how many links each node uses in a round, int64 of shape (n,)."""
        return np.bincount(self.phase(round).links.ravel(), minlength=self.n)

    def energy_per_node(self, round: int) -> Energies:
        """Return the modelled Wh of each node in a round, float64 of shape (n,).

        Raises
        ------
        ValueError
            If the plan has no energy model.
        """
        if self.energy is None:
            raise ValueError("this plan has no energy model: make it with energy=UnicastEnergy(…)")
        return self.energy.per_node(self.phase(round).links, self.n)

    def mean_energy_per_node(self) -> Energies:
        """Return the modelled Wh of each node in a round, as a mean over the cycle, float64 of shape (n,).

        Raises
        ------
        ValueError
            If the plan has no energy model.
        """
        rounds = [self.energy_per_node(round) for round in range(len(self.phases))]
        return np.asarray(np.mean(rounds, axis=0), np.float64)

    def validate(self, graph: "nx.Graph") -> None:
        """Raise a ValueError if the plan is not for this base graph: other nodes, or links that it lacks."""
        if len(graph) != self.n:
            raise ValueError(f"the plan is for {self.n} nodes, the graph has {len(graph)}")
        for number, phase in enumerate(self.phases):
            if missing := [link for link in phase.links.tolist() if not graph.has_edge(*link)]:
                shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
                raise ValueError(f"phase {number} uses {len(missing)} links that the graph lacks: {shown}")

    def repair(
        self,
        removed: Iterable[int] = (),
        added: Sequence[Iterable[int]] = (),
        energy: EnergyModel | None = None,
    ) -> "GossipPlan":
        """Make a plan for the fleet without some nodes, or with new ones, in a fraction of `optimize`'s time.

        No node spends more than the busiest one does now (in the terms of the objective that the plan was
        chosen for), unless the fleet would fall apart: a static plan keeps its links, gets new ones where
        nodes have energy to spare, and new weights; any other becomes rationed gossip. Needs the extra
        ``topology``.

        Parameters
        ----------
        removed : iterable of int, optional
            Nodes that left. The others keep their order and close ranks.
        added : sequence of iterables of int, optional
            For each new node, the nodes (by their present numbers) that it can talk to. New nodes come last,
            in this order.
        energy : EnergyModel, optional
            Of the new fleet. By default the plan's own; needed if nodes are added and it has values node by
            node or link by link.

        Returns
        -------
        GossipPlan
            Without a ``choice``, since nothing was weighed. What `optimize` was asked for beside the
            objective (no negative entries, a connectivity) is not known to a plan, and not kept.

        Raises
        ------
        ValueError
            If the plan has no `base`, a node is not there, or what is left is not connected.
        """
        from flower_edge.gossip.repair import repaired

        return repaired(self, removed, added, energy)

    def describe(self) -> str:
        """Say in one line what the plan is."""
        links = [len(phase.links) for phase in self.phases]
        busiest = max(int(self.links_per_node(t).max()) for t in range(len(self.phases)))
        kind = "static" if len(links) == 1 else f"{len(links)} phases"
        text = (
            f"{kind}, {self.n} nodes, {sum(links) / len(links):.4g} links a round, "
            f"at most {busiest} a node, ρ = {self.rho:.4f}"
        )
        if self.energy is not None:
            text += f", {self.mean_energy_per_node().max():.4g} Wh a round at the busiest node"
        return text

    def __repr__(self) -> str:
        return f"<GossipPlan: {self.describe()}>"

    def __eq__(self, other: object) -> bool:
        return self.digest() == other.digest() if isinstance(other, GossipPlan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest())

    def digest(self) -> str:
        """Return a SHA-256 of the whole plan: equal plans, and only those, have the same one."""
        return digest_of(self._document())

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the plan as JSON, and write it to `path` if given; `from_json` reads it back bit for bit.

        Raises
        ------
        ValueError
            If the plan is so large that `from_json` would refuse it: no board could start with it.
        """
        content = self._document()
        document = {**content, "digest": digest_of(content)}
        text = json.dumps(document)
        try:
            check_text(text, "as JSON")
            decode(document)
        except ValueError as error:
            raise ValueError(
                f"the plan could not be read back: {error}. Take one with fewer phases or links, such as "
                "one of another mode"
            ) from error
        if path is not None:
            Path(path).write_text(text + "\n", "utf-8")
        return text

    @classmethod
    def from_json(cls, text_or_path: str | Path) -> "GossipPlan":
        """Read a plan that `to_json` wrote.

        Parameters
        ----------
        text_or_path : str or Path
            The JSON itself (a str that begins with a brace), or the file's path.

        Raises
        ------
        ValueError
            For a file that is not a plan, has another version, was changed since it was written, or would
            never converge. The message says what is wrong. Nothing of a claimed size is allocated before the
            file is seen to back it.
        """
        inline = isinstance(text_or_path, str) and text_or_path.lstrip().startswith("{")
        where = "gossip plan" if inline else f"gossip plan {str(text_or_path)!r}"
        text = str(text_or_path) if inline else read_text(text_or_path)
        document = parse_object(text, where)
        try:
            decoded = decode(document)
            phases = tuple(Phase(links, weights) for links, weights in decoded.phases)
            choice = None if decoded.choice is None else Choice.from_document(decoded.choice)
            plan = cls(decoded.n, phases, decoded.energy, decoded.base, choice)
            decoded.check_digest()
            return plan
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _document(self) -> dict[str, Any]:
        phases = [(phase.links, phase.weights) for phase in self.phases]
        choice = None if self.choice is None else self.choice.to_document()
        return encode(self.n, phases, self.energy, self.base, choice)

    def _checked_base(self, base: Links) -> Links:
        links = Phase(base, np.zeros(len(base))).links
        if links.size and links.max() >= self.n:
            raise ValueError(f"a base link leads to node {links.max()}, expected nodes 0..{self.n - 1}")
        known = set(map(tuple, links.tolist()))
        for number, phase in enumerate(self.phases):
            if strange := [link for link in phase.links.tolist() if tuple(link) not in known]:
                raise ValueError(f"phase {number} uses link {strange[0]}, which the base graph lacks")
        return links

    def _row(self, node: int, round: int) -> dict[int, float]:
        if not 0 <= node < self.n:
            raise ValueError(f"received node {node}, expected 0 to {self.n - 1}")
        return self._rows[round % len(self.phases)][node]

    @cached_property
    def _rows(self) -> list[list[dict[int, float]]]:
        return [_rows_of(phase, self.n) for phase in self.phases]


def _rows_of(phase: Phase, n: int) -> list[dict[int, float]]:
    given: list[dict[int, float]] = [{} for _ in range(n)]
    for (i, j), weight in zip(phase.links.tolist(), phase.weights.tolist(), strict=True):
        given[i][j] = given[j][i] = weight
    rows = []
    for node, weights in enumerate(given):
        weights[node] = 1.0 - math.fsum(weights.values())
        rows.append(dict(sorted(weights.items())))
    return rows
