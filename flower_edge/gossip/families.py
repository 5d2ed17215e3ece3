"""The kinds of schedules that a plan is chosen among."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flower_edge.gossip.choice import Objective
from flower_edge.gossip.disagreement import least_disagreement
from flower_edge.gossip.energy import Energies, EnergyModel, UnicastEnergy
from flower_edge.gossip.fastest import fastest
from flower_edge.gossip.finite_time import finite_time
from flower_edge.gossip.graph import Links, link_array
from flower_edge.gossip.learned import learned_cycle
from flower_edge.gossip.matcha import matcha
from flower_edge.gossip.matchings import cyclic_matchings, random_matchings, with_pauses
from flower_edge.gossip.phase import Phase
from flower_edge.gossip.rationed import rationed_schedule
from flower_edge.gossip.sparsify import Pruned
from flower_edge.gossip.weights import metropolis_hastings

if TYPE_CHECKING:
    import networkx as nx

FULL_METROPOLIS = "full graph, Metropolis weights"

BASELINES = ("full", "fastest", "finite-time", "matcha", "random-matchings")
"""Kinds that every plan is shown beside."""

RATIONS = (1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 1.5, 2, 3, 4, 6, 8, 12)
"""In exchanges that a node can pay for in a round."""

LARGE_GRAPH_RATIONS = (1 / 4, 1 / 2, 1, 2, 4)
LARGE_GRAPH = 200

FORESIGHTS = (0.9, 0.99)

PAUSES = (1, 2, 4, 8)
"""Rounds from one exchange to the next, for schedules that pay per transmission and not per link."""

BASELINE_ROUNDS = 128
"""Length of the pseudo-random cycles that stand for random schedules."""

NO_LINKS = np.zeros((0, 2), np.int64)

MATCHA_BUDGETS = (0.1, 0.5)
LEARNED_PHASES = 64


class Schedule(NamedTuple):
    """A named cycle of mixing matrices.

    Attributes
    ----------
    kind : str
        The mode of `optimize` that makes such schedules.
    name : str
        What it is, in words.
    phases : tuple of Phase
        The mixing matrices.
    gap : float or None
        Certificate of weights of least ρ.
    """

    kind: str
    name: str
    phases: tuple[Phase, ...]
    gap: float | None = None


def full_graph(graph: "nx.Graph", nonnegative: bool) -> Iterator[Schedule]:
    """Use all links: with Metropolis–Hastings weights, of least ρ, and of least D, these also with pauses."""
    links, n = link_array(graph), len(graph)
    yield Schedule("full", FULL_METROPOLIS, (Phase(links, metropolis_hastings(graph)),))
    best = fastest(links, n, nonnegative=nonnegative)
    yield Schedule("full", "full graph, weights of least ρ", (Phase(links, best.weights),), best.gap)
    yield from _paused("full", "full graph, weights of least D", (Phase(links, least_disagreement(graph)),))


def static(graph: "nx.Graph", pruned: Callable[[], list[Pruned]]) -> Iterator[Schedule]:
    """Take one sparse W of least D for every budget of links, with and without pauses."""
    stages = pruned()
    # The first is the whole base graph, which `full_graph` has; a tree has no other.
    for stage in stages[1:] or stages:
        weights = least_disagreement(graph.edge_subgraph(map(tuple, stage.links.tolist())))
        name = f"static, ≤ {_most_links(stage.links)} links, weights of least D"
        yield from _paused("static", name, (Phase(stage.links, weights),))


def fastest_static(
    n: int, pruned: Callable[[], list[Pruned]], cost: Callable[[Schedule, float], float], nonnegative: bool
) -> Iterator[Schedule]:
    """Take W of least ρ for every budget, and of these the cheapest: Zhang, Chiu, He (ICASSP 2024).

    `cost` is told a schedule and its ρ.
    """
    best: tuple[float, Schedule] | None = None
    for stage in pruned():
        found = fastest(stage.links, n, nonnegative=nonnegative, start=None if nonnegative else stage.weights)
        name = f"static, ≤ {_most_links(stage.links)} links, weights of least ρ"
        schedule = Schedule("fastest", name, (Phase(stage.links, found.weights),), found.gap)
        price = cost(schedule, found.rho)
        if best is None or price < best[0]:
            best = price, schedule
    if best is not None:
        yield best[1]


def cyclic(n: int, pruned: Callable[[], list[Pruned]]) -> Iterator[Schedule]:
    """Take the matchings of sparse static plans in turn, with weights of ½ and with learned ones."""
    for stage in pruned():
        phases = cyclic_matchings(stage.links, n)
        name = f"matchings of ≤ {_most_links(stage.links)} links in a cycle"
        yield Schedule("cyclic", f"{name}, weights ½", phases)
        if len(phases) <= LEARNED_PHASES:
            yield Schedule("cyclic", f"{name}, learned weights", learned_cycle(phases, n))


def rationed(
    graph: "nx.Graph", energy: EnergyModel, objective: Objective, needs: Callable[[Sequence[Phase]], float]
) -> Iterator[Schedule]:
    """Ration gossip, from one exchange in sixteen rounds up to nearly all links.

    `needs` says how many rounds a schedule needs: of several foresights the quickest is kept.
    """
    links, n = link_array(graph), len(graph)
    costs = exchange_costs(energy, links, n)
    if not (costs > 0).all():
        return
    most = np.bincount(links.ravel(), minlength=n).max()
    for exchanges in LARGE_GRAPH_RATIONS if n > LARGE_GRAPH else RATIONS:
        if exchanges > most:
            return
        rations = rations_at(_level(energy, objective, links, costs, n, exchanges), energy, objective, n)
        found = []
        for foresight in FORESIGHTS[:1] if n > LARGE_GRAPH else FORESIGHTS:
            # So small a ration may not bring all nodes together in a cycle of bearable length.
            with suppress(ValueError):
                found.append(rationed_schedule(graph, costs, rations, foresight=foresight))
        if found:
            yield Schedule(
                "rationed",
                f"rationed, {exchanges:.3g} exchange{'s'[: exchanges != 1]} a round",
                min(found, key=needs),
            )


def literature(graph: "nx.Graph", seed: int) -> Iterator[Schedule]:
    """Take random matchings, MATCHA, and exact averages in a cycle where the base graph has the links."""
    yield Schedule("random-matchings", "random matchings", random_matchings(graph, BASELINE_ROUNDS, seed))
    for budget in MATCHA_BUDGETS:
        yield Schedule("matcha", f"MATCHA({budget:g})", matcha(graph, budget, BASELINE_ROUNDS, seed).phases)
    exact = finite_time(graph)
    if exact is not None:
        yield from _paused("finite-time", "exact average in a cycle", exact)


def exchange_costs(energy: EnergyModel, links: Links, n: int) -> Energies:
    """Wh of an exchange at the two ends of each link, if it is the only one of its ends in a round."""
    if isinstance(energy, UnicastEnergy):
        return energy.link_costs(links, n)
    silent = energy.per_node(NO_LINKS, n)
    alone = [energy.per_node(link[None], n)[link] - silent[link] for link in links]
    return np.array(alone).reshape(-1, 2)


def rations_at(level: float, energy: EnergyModel, objective: Objective, n: int) -> Energies:
    """Wh that each node may spend on exchanges in a round, so that the objective is `level` for all of them.

    `level` is in Wh of a node's whole round; in shares of its battery for the lifetime; for the total, it is
    what every node may spend on exchanges.
    """
    if objective == "total":
        return np.full(n, level)
    allowed = level * energy.batteries(n) if objective == "lifetime" else np.full(n, level)
    return np.asarray(allowed - energy.per_node(NO_LINKS, n), np.float64)


def _level(
    energy: EnergyModel, objective: Objective, links: Links, costs: Energies, n: int, exchanges: float
) -> float:
    """Return the level of `rations_at` at which a typical node can pay for so many exchanges in a round."""
    compute = energy.per_node(NO_LINKS, n)
    mean_cost = np.bincount(links.ravel(), costs.ravel(), n) / np.bincount(links.ravel(), minlength=n)
    if objective == "total":
        return float(exchanges * np.median(mean_cost))
    if objective == "busiest":
        return float(compute.max() + exchanges * np.median(mean_cost))
    batteries = energy.batteries(n)
    own = np.isfinite(batteries)
    return float((compute / batteries).max() + exchanges * np.median(mean_cost[own] / batteries[own]))


def _most_links(links: Links) -> int:
    return int(np.bincount(links.ravel()).max())


def _paused(kind: str, name: str, phases: tuple[Phase, ...]) -> Iterator[Schedule]:
    for every in PAUSES:
        paused = with_pauses(phases, every)
        yield Schedule(kind, name if every == 1 else f"{name}, every {every} rounds", paused)
