"""Which links to use: pruning a base graph until no node has more than a budget of them."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from flower_edge._extras import require
from flower_edge.gossip.graph import Links, check_graph, link_array
from flower_edge.gossip.weights import (
    Weights,
    metropolis_hastings,
    one_blas_thread,
    smoothed_fastest,
    smoothed_rho,
)

if TYPE_CHECKING:
    import networkx as nx

SMOOTHING = 0.01
FIT_STEPS = 100
REFIT_STEPS = 30
TRIALS = 5
TRIAL_STEPS = 6


class Pruned(NamedTuple):
    """What is left of a base graph at one budget.

    Attributes
    ----------
    budget : int
        The most links that a node has.
    links : ndarray of int64, shape (m, 2)
        Connected, in the order of `link_array`.
    weights : ndarray of float64, shape (m,)
        Weights with nearly the least ρ for these links.
    """

    budget: int
    links: Links
    weights: Weights


def prune(graph: "nx.Graph") -> list[Pruned]:
    """Take links away one by one, always where most are, and keep what is left at every budget on the way.

    The greedy step of Zhang, Chiu, He (ICASSP 2024): of the links at the busiest nodes, those of least
    |weight| are tried, and the one that is missed least goes, unless the graph would fall apart. Then the
    weights are fitted anew. Where a budget is reached, links that fit into it again, because both of their
    ends have lost others since, come back.

    Parameters
    ----------
    graph : networkx.Graph
        Base graph.

    Returns
    -------
    list of Pruned
        One for every budget, from the base graph's maximum degree down to the least that is reached without
        cutting the graph.
    """
    check_graph(graph)
    with one_blas_thread():
        return _prune(graph)


def _prune(graph: "nx.Graph") -> list[Pruned]:
    base, n = link_array(graph), len(graph)
    links, weights = base, smoothed_fastest(base, n, metropolis_hastings(graph), SMOOTHING, FIT_STEPS)[0]
    budget = int(_degrees(base, n).max())
    stages = [Pruned(budget, links, weights)]
    while True:
        candidates = _removable(links, n)
        if not candidates.size:
            return stages
        gone = _least_missed(links, weights, n, candidates)
        links = np.delete(links, gone, 0)
        weights, _ = smoothed_fastest(links, n, np.delete(weights, gone), SMOOTHING, REFIT_STEPS)
        if _degrees(links, n).max() < budget:
            budget -= 1
            links, weights = _refill(base, links, weights, n, budget)
            stages.append(Pruned(budget, links, weights))


def _degrees(links: Links, n: int) -> npt.NDArray[np.int64]:
    return np.bincount(links.ravel(), minlength=n)


def _removable(links: Links, n: int) -> npt.NDArray[np.int64]:
    """Links at the busiest nodes that are no bridges; none if one of those nodes has bridges alone."""
    nx = require("networkx", "topology")
    degrees = _degrees(links, n)
    busiest = degrees == degrees.max()
    bridges = {tuple(sorted(bridge)) for bridge in nx.bridges(nx.Graph(links.tolist()))}
    spare = np.array([tuple(link) not in bridges for link in links.tolist()])
    candidates = np.flatnonzero(spare & busiest[links].any(1))
    stuck = np.setdiff1d(np.flatnonzero(busiest), links[candidates])
    return candidates[:0] if stuck.size else candidates


def _least_missed(links: Links, weights: Weights, n: int, candidates: npt.NDArray[np.int64]) -> int:
    degrees = _degrees(links, n)
    # A link between two of the busiest nodes relieves both.
    relieves_both = (degrees[links[candidates]] == degrees.max()).all(1)
    cost = np.abs(weights[candidates]) * np.where(relieves_both, 1.0, 1.5)
    trials = candidates[np.argsort(cost, kind="stable")[:TRIALS]]

    def without(link: int) -> float:
        rest = np.delete(links, link, 0)
        return smoothed_fastest(rest, n, np.delete(weights, link), SMOOTHING, TRIAL_STEPS)[1]

    return int(min(trials, key=without))


def _refill(base: Links, links: Links, weights: Weights, n: int, budget: int) -> tuple[Links, Weights]:
    """Put back base links whose ends are both below the budget, the one that lowers ρ fastest first."""
    while True:
        used = set(map(tuple, links.tolist()))
        free = _degrees(links, n) < budget
        fitting = np.array([free[i] and free[j] and (i, j) not in used for i, j in base.tolist()])
        if not fitting.any():
            return links, weights
        unused = base[fitting]
        _, slopes = smoothed_rho(links, weights, n, SMOOTHING, unused)
        links = np.vstack([links, unused[np.abs(slopes).argmax()]])
        order = np.lexsort((links[:, 1], links[:, 0]))
        links, start = links[order], np.append(weights, 0.0)[order]
        weights, _ = smoothed_fastest(links, n, start, SMOOTHING, REFIT_STEPS)
