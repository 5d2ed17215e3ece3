"""A plan for a fleet that lost or gained nodes, without starting over."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flower_edge._extras import require
from flower_edge.gossip.choice import Objective, objective_per_round, spent_per_round
from flower_edge.gossip.disagreement import least_disagreement
from flower_edge.gossip.energy import Energies, EnergyModel, UnicastEnergy
from flower_edge.gossip.families import NO_LINKS, exchange_costs, rations_at
from flower_edge.gossip.graph import Links, check_connected, connected_components
from flower_edge.gossip.phase import Phase
from flower_edge.gossip.rationed import LONGEST_CYCLE, rationed_schedule
from flower_edge.gossip.transmissions import Transmissions
from flower_edge.gossip.weights import mixing_matrix, one_blas_thread

if TYPE_CHECKING:
    import networkx as nx

    from flower_edge.gossip.plan import GossipPlan

SLACK = 1 + 1e-9

COUNTED = UnicastEnergy(compute=0.0, send=1.0, receive=0.0)
"""Where exchanges cost nothing, or it is not known what, they are counted."""


def repaired(
    plan: "GossipPlan", removed: Iterable[int], added: Sequence[Iterable[int]], energy: EnergyModel | None
) -> "GossipPlan":
    """Return a plan for the fleet after nodes left and joined: see `GossipPlan.repair`."""
    if plan.base is None:
        raise ValueError("the plan does not know its base graph: make it with base=link_array(graph)")
    base, numbers = _repaired_base(plan.base, plan.n, removed, added)
    n = int((numbers >= 0).sum()) + len(added)
    if energy is None and plan.energy is not None:
        energy = _energy_of(plan.energy, numbers, n)
    objective: Objective = "busiest" if plan.choice is None else plan.choice.objective
    before, after = plan.energy, energy
    if before is None or after is None or not (exchange_costs(before, plan.base, plan.n) > 0).all():
        before, after, objective = COUNTED, COUNTED, "busiest"
    if objective == "lifetime" and after.battery is None:
        objective = "busiest"  # whoever had a battery has left
    spent = spent_per_round(plan.phases, plan.n, before)
    level = objective_per_round(spent, before, objective)
    if objective == "total":
        level = float((spent - before.per_node(NO_LINKS, plan.n)).max())
    costs, rations = exchange_costs(after, base, n), rations_at(level, after, objective, n)
    return type(plan)(n, _repaired_phases(plan, base, numbers, costs, rations), energy, base)


def _energy_of(energy: EnergyModel, numbers: npt.NDArray[np.int64], n: int) -> EnergyModel:
    """Return the energy model of the nodes that stay."""
    stay = numbers >= 0
    own = energy.n is not None or energy.transmissions is not None
    if own and n > stay.sum():
        raise ValueError(
            "the plan's energy model has values node by node or link by link, and none for the added nodes: "
            "give the new fleet's model as energy=…"
        )
    values = {
        name: tuple(np.asarray(value)[stay].tolist()) if isinstance(value, tuple) else value
        for name, value in (
            (name, getattr(energy, name)) for name in ("compute", "send", "receive", "battery")
        )
    }
    if isinstance(values["battery"], tuple) and np.isinf(values["battery"]).all():
        values["battery"] = None  # all that are left are on mains
    transmissions = energy.transmissions
    if transmissions is not None:
        links = numbers[transmissions.links]
        left = (links >= 0).all(1)
        transmissions = Transmissions(links[left], transmissions.factors[left])
    return replace(energy, **values, transmissions=transmissions)


def _repaired_base(
    base: Links, n: int, removed: Iterable[int], added: Sequence[Iterable[int]]
) -> tuple[Links, npt.NDArray[np.int64]]:
    """Return the base links after nodes left and joined, and each old node's new number, −1 if it left.

    Raises
    ------
    ValueError
        If a node to remove or to link to is not there, a new node has no links, or what is left is not
        connected.
    """
    gone = set(removed)
    if unknown := sorted(gone - set(range(n))):
        raise ValueError(f"received node {unknown[0]} to remove, expected nodes 0..{n - 1}")
    survivors = [node for node in range(n) if node not in gone]
    total = len(survivors) + len(added)
    if total < 2:
        raise ValueError(f"{total} nodes would be left, expected at least 2")
    numbers = np.full(n, -1, np.int64)
    numbers[survivors] = np.arange(len(survivors))
    kept = numbers[base]
    pairs = {tuple(link) for link in kept[(kept >= 0).all(1)].tolist()}
    for new, neighbours in enumerate(added, len(survivors)):
        neighbours = list(neighbours)
        if not neighbours:
            raise ValueError(f"added node number {new - len(survivors)} has no links, expected at least one")
        for old in neighbours:
            if not 0 <= old < n or numbers[old] < 0:
                raise ValueError(
                    f"an added node is linked to node {old}, expected one of 0..{n - 1} that stays"
                )
            pairs.add((int(numbers[old]), new))
    links = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    check_connected(links, total)
    return links, numbers


def _repaired_phases(
    plan: "GossipPlan", base: Links, numbers: npt.NDArray[np.int64], costs: Energies, rations: Energies
) -> tuple[Phase, ...]:
    """Return phases on the new base graph that spend no more than the rations, if it can be done."""
    nx = require("networkx", "topology")
    graph = nx.Graph(base.tolist())
    if len(plan.phases) > 1:
        return _rationed(graph, costs, np.maximum(rations, costs.max() / LONGEST_CYCLE))
    if plan.base is not None and len(plan.phases[0].links) == len(plan.base):
        links = base
    else:
        links = numbers[plan.phases[0].links]
        with one_blas_thread():
            links = _refilled(links[(links >= 0).all(1)], base, costs, rations)
    return (Phase(links, least_disagreement(graph.edge_subgraph(map(tuple, links.tolist())))),)


def _rationed(graph: "nx.Graph", costs: Energies, rations: Energies) -> tuple[Phase, ...]:
    """Return rationed gossip, with larger rations if the fleet falls apart with these."""
    while True:
        try:
            return rationed_schedule(graph, costs, rations)
        except ValueError:
            if (rations > costs.sum()).all():
                raise
            rations = 2 * rations


def _refilled(links: Links, base: Links, costs: Energies, rations: Energies) -> Links:
    """Put in links that the nodes can afford, the most useful first, and those without which it is cut."""
    n = len(rations)
    chosen = {tuple(link) for link in links.tolist()}
    spent = np.zeros(n)
    index = {tuple(link): number for number, link in enumerate(base.tolist())}
    for link in chosen:
        spent[list(link)] += costs[index[link]]
    while True:
        now = np.array(sorted(chosen), np.int64).reshape(-1, 2)
        unused = [number for link, number in index.items() if link not in chosen]
        ends = base[unused]
        affordable = (spent[ends] + costs[unused] <= rations[ends] * SLACK).all(1)
        component = _component_of(now, n)
        joins = component[ends[:, 0]] != component[ends[:, 1]]
        # A cut comes before any budget.
        open_ = (joins & affordable) if (joins & affordable).any() else joins if joins.any() else affordable
        if not open_.any():
            return now
        best = np.flatnonzero(open_)[_usefulness(now, n, ends[open_]).argmax()]
        chosen.add(tuple(ends[best].tolist()))
        spent[ends[best]] += costs[unused[best]]


def _usefulness(links: Links, n: int, candidates: Links) -> npt.NDArray[np.float64]:
    """Return how far apart the models at the candidates' ends stay while training with `links` alone."""
    degrees = np.bincount(links.ravel(), minlength=n)
    weights = 1.0 / (1.0 + degrees[links].max(1)) if len(links) else np.zeros(0)
    eigenvalues, vectors = np.linalg.eigh(mixing_matrix(links, weights, n) - 1.0 / n)
    squares = np.minimum(np.square(eigenvalues), 1 - 1e-9)
    i, j = candidates.T
    return np.asarray(np.square(vectors[i] - vectors[j]) @ (squares / (1.0 - squares)), np.float64)


def _component_of(links: Links, n: int) -> npt.NDArray[np.int64]:
    number = np.zeros(n, np.int64)
    for index, component in enumerate(connected_components(links, n)):
        number[component] = index
    return number
