"""The choice of a plan: how much a node may spend, on which exchanges, with what weights, in which rounds."""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from flower_edge._extras import require
from flower_edge.gossip import families
from flower_edge.gossip._search import Search
from flower_edge.gossip.choice import Objective, objective_per_round, spent_per_round
from flower_edge.gossip.convergence import Convergence
from flower_edge.gossip.disagreement import least_disagreement
from flower_edge.gossip.energy import EnergyModel
from flower_edge.gossip.families import Schedule
from flower_edge.gossip.fastest import fastest_symmetric
from flower_edge.gossip.graph import check_graph, link_array
from flower_edge.gossip.learned import learned_cycle
from flower_edge.gossip.phase import Phase
from flower_edge.gossip.plan import GossipPlan
from flower_edge.gossip.radio import RadioEnergy, for_model
from flower_edge.gossip.sparsify import prune
from flower_edge.gossip.weights import metropolis_hastings

if TYPE_CHECKING:
    import networkx as nx

FullGraphWeights = Literal["metropolis", "fastest", "least-disagreement"]
Mode = Literal[
    "auto", "rationed", "static", "fastest", "cyclic", "finite-time", "matcha", "random-matchings", "full"
]
Progress = Callable[[str, int, int], None]

Step = tuple[str, Callable[[], Iterable[Schedule]]]
"""A name, and a maker of schedules."""

PRUNED_LINKS = 600
"""Pruning takes half a minute or more beyond; larger graphs are pruned only if the mode needs it."""

LEARNED_NODES, LEARNED_PHASES = 64, 64
"""Largest cycle whose weights are learned after it was chosen."""

PAPER = Convergence(heterogeneity=1.0)
"""Unit constants, as nothing is known of the task."""

logger = logging.getLogger("flower_edge")


def full_graph_plan(
    graph: "nx.Graph", energy: EnergyModel | None = None, *, weights: FullGraphWeights = "metropolis"
) -> GossipPlan:
    """Make the plan that uses every link of the base graph: the baseline of the sparse ones.

    Parameters
    ----------
    graph : networkx.Graph
        Base graph.
    energy : EnergyModel, optional
        What a round costs.
    weights : {"metropolis", "fastest", "least-disagreement"}, default "metropolis"
        Weights by `metropolis_hastings`, `fastest_symmetric` or `least_disagreement`.
    """
    rules = {
        "metropolis": metropolis_hastings,
        "fastest": lambda graph: fastest_symmetric(graph).weights,
        "least-disagreement": least_disagreement,
    }
    if weights not in rules:
        raise ValueError(f"received weights {weights!r}, expected one of {sorted(rules)}")
    links = link_array(graph)
    return GossipPlan(len(graph), (Phase(links, rules[weights](graph)),), energy, base=links)


def optimize(
    graph: "nx.Graph",
    energy: "EnergyModel | RadioEnergy",
    model_bytes: float | None = None,
    *,
    objective: Objective = "busiest",
    mode: Mode = "auto",
    nonnegative: bool = False,
    min_connectivity: int = 1,
    max_slowdown: float = 3.0,
    convergence: Convergence | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> GossipPlan:
    """Choose the plan with which training costs least energy until the models have converged.

    The bi-level method of Zhang, Chiu, He (ICASSP 2024): for every budget, links and weights that mix best;
    of all budgets, the one with the least (rounds to converge) · (energy of a round). Beyond the paper, W(t)
    may change from round to round (`rationed_schedule` is where most is saved), rounds are predicted from how
    far apart the models really stay rather than from ρ (`Convergence.rounds`), and what is known from the
    literature competes, so that a plan is never predicted to lose to it.

    Parameters
    ----------
    graph : networkx.Graph
        Base graph; the plan uses links of it alone.
    energy : EnergyModel or RadioEnergy
        What a round costs each node.
    model_bytes : float, optional
        Bytes of one model on the air, after compression: needed with a `RadioEnergy`, and only then.
    objective : {"busiest", "total", "lifetime"}, default "busiest"
        What to minimise: the energy of the node that spends most, that of all nodes, or the largest share of
        a node's battery (so that the first battery to die lives longest).
    mode : str, default "auto"
        ``"auto"`` chooses among all of the following but ``"cyclic"``. ``"rationed"``: in every round the
        exchanges that matter most and that the nodes can afford. ``"static"``: one sparse W of least
        disagreement. ``"fastest"``: one sparse W of least ρ, chosen by K(ρ): the method of the paper.
        ``"cyclic"``: the matchings of a static plan, one after the other, with learned weights.
        ``"finite-time"``: exact averages after some rounds, on base graphs that have the links.
        ``"matcha"``, ``"random-matchings"`` and ``"full"``: the literature's baselines.
    nonnegative : bool, default False
        Whether every entry of every W(t) has to be zero or more.
    min_connectivity : int, default 1
        One more than the node failures that the links of a cycle survive.
    max_slowdown : float, default 3
        The most rounds that a plan may need, as a multiple of those that the full graph with
        Metropolis–Hastings weights is predicted to need. At 1 the models stay about as close as on the full
        graph, and the same constant learning rate reaches the same accuracy; larger values save more, and
        want a learning rate that decays. If no plan is as quick, the quickest is taken.
    convergence : Convergence, optional
        The bound that predicts rounds.
    seed : int, default 0
        Of everything random in it.
    progress : callable, optional
        Called with what was just done, how many steps are done, and of how many.

    Returns
    -------
    GossipPlan
        With ``choice``: the candidates, the baselines and what decided.

    Raises
    ------
    ValueError
        If the graph is not connected, or not as often as asked for, an argument is out of range, or no plan
        of this mode exists on this graph.
    """
    check_graph(graph)
    energy = for_model(energy, model_bytes, graph)
    _check(graph, energy, objective, mode, min_connectivity, max_slowdown)
    search = Search(
        graph,
        energy,
        objective,
        convergence or Convergence(),
        mode=mode,
        nonnegative=nonnegative,
        min_connectivity=min_connectivity,
        max_slowdown=max_slowdown,
    )
    steps = _steps(search, seed)
    for done, (what, schedules) in enumerate(steps, 1):
        for schedule in schedules():
            candidate = search.consider(schedule)
            logger.info(
                "%s: D = %.3g, predicted energy %.4g",
                *(candidate.name, candidate.disagreement, candidate.predicted_energy),
            )
        if progress is not None:
            progress(what, done, len(steps))
    best = _polished(search, search.best())
    return GossipPlan(search.n, best.phases, energy, base=link_array(graph), choice=search.choice(best))


def _steps(search: Search, seed: int) -> list[Step]:
    """List what there is to do, the baselines first."""
    graph, energy, objective, mode = search.graph, search.energy, search.objective, search.mode
    steps: list[Step] = [
        ("full graph", partial(families.full_graph, graph, search.nonnegative)),
        ("literature", partial(families.literature, graph, seed)),
    ]
    if mode in ("auto", "rationed"):
        rationed = partial(families.rationed, graph, energy, objective, search.rounds)
        steps.append(("rationed gossip", rationed))
    if graph.number_of_edges() > PRUNED_LINKS and mode not in ("static", "fastest", "cyclic"):
        logger.info("%d links: static sparse plans are left out, ask for one by its mode", len(graph.edges))
        return steps
    least_rho = partial(prune, graph, **_limits(search))
    least_d = partial(prune, graph, objective="disagreement", **_limits(search))

    def cost(schedule: Schedule, rho: float) -> float:
        spent = spent_per_round(schedule.phases, search.n, energy)
        return PAPER.worst_case_rounds(rho, search.n) * objective_per_round(spent, energy, objective)

    fastest = partial(families.fastest_static, search.n, least_rho, cost, search.nonnegative)
    steps.append(("static plans of least ρ", fastest))
    if mode in ("auto", "static"):
        steps.append(("static plans of least D", partial(families.static, graph, least_d)))
    if mode == "cyclic":
        steps.append(("cyclic matchings", partial(families.cyclic, search.n, least_d)))
    return steps


def _limits(search: Search) -> dict[str, Any]:
    """Return what to prune by: the number of links where all cost the same, else what each costs its ends."""
    links, n = link_array(search.graph), search.n
    limits: dict[str, Any] = {"min_connectivity": search.min_connectivity}
    costs = families.exchange_costs(search.energy, links, n)
    # Pruning goes by shares of budgets: an end whose radio is free costs next to nothing instead.
    costs = np.maximum(costs, 1e-9 * costs.max()) if costs.any() else np.ones_like(costs)
    if search.objective == "lifetime":
        limits |= {"cost": costs, "budget": search.energy.batteries(n)}
    elif np.ptp(costs) > 0:
        limits["cost"] = costs
    return limits


def _polished(search: Search, best: Schedule) -> Schedule:
    """Learn the weights of a rationed cycle that is short enough; take them if they promise less energy."""
    if best.kind != "rationed" or search.nonnegative:
        return best
    if search.n > LEARNED_NODES or len(best.phases) > LEARNED_PHASES:
        return best
    learned = Schedule(best.kind, f"{best.name}, learned weights", learned_cycle(best.phases, search.n))
    candidate = search.consider(learned)
    # A cycle may agree in the end, and yet spread some differences before it gathers them.
    better = candidate.predicted_energy < search.candidates[best.name].predicted_energy and candidate.rho < 1
    return learned if better else best


def _check(
    graph: "nx.Graph",
    energy: EnergyModel,
    objective: Objective,
    mode: str,
    min_connectivity: int,
    max_slowdown: float,
) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"received mode {mode!r:.60}, expected one of {', '.join(get_args(Mode))}")
    if not max_slowdown >= 1:
        raise ValueError(f"max_slowdown is {max_slowdown}, expected 1 or more")
    if not 1 <= min_connectivity < len(graph):
        raise ValueError(f"min_connectivity is {min_connectivity}, expected 1 to {len(graph) - 1}")
    if min_connectivity > 1:
        nx = require("networkx", "topology")
        if (has := nx.node_connectivity(graph)) < min_connectivity:
            raise ValueError(
                f"min_connectivity is {min_connectivity}, but the base graph itself falls apart when "
                f"{has} of its nodes fail"
            )
    # An unknown objective, or a lifetime without batteries, fails before any work.
    objective_per_round(energy.per_node(link_array(graph), len(graph)), energy, objective)
