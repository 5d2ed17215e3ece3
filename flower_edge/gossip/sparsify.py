"""Which links to use: pruning a base graph until no node has more than a budget of them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from flower_edge._extras import require
from flower_edge.gossip.graph import Links, check_graph, link_array
from flower_edge.gossip.weights import Weights, metropolis_hastings, mixing_matrix

if TYPE_CHECKING:
    import networkx as nx


def prune(graph: "nx.Graph") -> Iterator[tuple[int, Links]]:
    """Take links away one by one, always where most are, and yield what is left at every budget on the way.

    Of the links at the busiest nodes, the one with the least weight goes, unless the graph would fall apart; the weights are
    those that (nearly) minimise ρ over the links left.

    Parameters
    ----------
    graph : networkx.Graph
        Base graph.

    Yields
    ------
    budget : int
        The most links that a node has; from the base graph's maximum degree down, one by one, to the least that is reached
        without cutting the graph.
    links : ndarray of int64, shape (m, 2)
        What is left, connected, in the order of `link_array`.
    """
    check_graph(graph)
    nx = require("networkx", "topology")
    links, n = link_array(graph), len(graph)
    left = nx.Graph(links.tolist())
    weights = smoothed_fastest(links, n, metropolis_hastings(graph))
    budget = max(degree for _, degree in left.degree)
    yield budget, links
    while True:
        degrees = np.bincount(links.ravel(), minlength=n)
        if degrees.max() < budget:
            budget = int(degrees.max())
            yield budget, links
        bridges = set(nx.bridges(left))
        ends = degrees[links]
        removable = np.array([(i, j) not in bridges and (j, i) not in bridges for i, j in links.tolist()])
        candidates = np.flatnonzero(removable & (ends.max(1) == budget))
        stuck = np.setdiff1d(np.flatnonzero(degrees == budget), links[candidates])
        if stuck.size:
            return
        # A link between two of the busiest nodes serves both.
        cost = np.abs(weights[candidates]) * np.where(ends[candidates].min(1) == budget, 1.0, 1.5)
        gone = candidates[cost.argmin()]
        left.remove_edge(*links[gone].tolist())
        links, weights = np.delete(links, gone, 0), np.delete(weights, gone)
        weights = smoothed_fastest(links, n, weights)


def smoothed_fastest(
    links: Links, n: int, start: Weights, *, smoothing: float = 0.01, steps: int = 30
) -> Weights:
    """Approach the weights of least ρ by L-BFGS on a smooth upper bound of it; milliseconds where `fastest_symmetric` takes seconds.

    The bound is μ log Σ exp(±λ/μ) over the eigenvalues λ of W − J; it is at most μ log 2n above ρ.
    """
    optimize = require("scipy.optimize", "topology")
    i, j = links.T

    def objective(weights: Weights) -> tuple[float, Weights]:
        eigenvalues, vectors = np.linalg.eigh(mixing_matrix(links, weights, n) - 1.0 / n)
        exponents = np.concatenate([eigenvalues, -eigenvalues]) / smoothing
        top = exponents.max()
        terms = np.exp(exponents - top)
        total = terms.sum()
        slope = (terms[:n] - terms[n:]) / total
        gradient = -np.square(vectors[i] - vectors[j]) @ slope
        return float(smoothing * (top + np.log(total))), gradient

    result = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": steps})
    return np.asarray(result.x, np.float64)
