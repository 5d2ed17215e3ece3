"""Sparse regular graphs that mix nearly as fast as any: what to use where every node can reach every other.

In a d-regular graph with weights 1/d, W is the adjacency matrix divided by d. Its ρ cannot be much below
2√(d − 1)/d in a large graph (Alon, Boppana: A. Nilli, Discrete Math. 1991), and graphs that do not exceed it
are named Ramanujan (Lubotzky, Phillips, Sarnak, Combinatorica 1988). Random regular graphs come close
(J. Friedman, Memoirs AMS 2008), so that a short search among their neighbours finds Ramanujan graphs.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from flower_edge._extras import require
from flower_edge.gossip.graph import MAX_NODES, Links, is_connected
from flower_edge.gossip.weights import one_blas_thread

Adjacency: TypeAlias = npt.NDArray[np.bool_]

ROUNDING = 1e-9
CIRCULANTS = 200
DRAWS = 20
SHUFFLES = 10
"""Exchanges per link that make a graph random."""

EXCHANGES = 300
TRIALS = 20
OUTERMOST_LINKS = 200
DENSE_NODES = 200
"""Up to here the dense spectrum is the faster way to its outermost eigenvalue."""


class RegularGraph(NamedTuple):
    """Links of a (nearly) d-regular graph, with how well it mixes with the constant weights 1/d.

    Attributes
    ----------
    links : ndarray of int64, shape (m, 2)
        Connected, in the order of `link_array`. Where n·d is odd, one node has d − 1 links.
    rho : float
        ‖W − J‖₂ for weights 1/d at every link; at the node with d − 1 links, 1/d stays on the diagonal.
    bound : float
        2√(d − 1)/d.
    is_ramanujan : bool
        Whether ``rho`` is at most ``bound``, and below one: an even ring, whose bound is one, does not mix.
    """

    links: Links
    rho: float
    bound: float
    is_ramanujan: bool


def ramanujan(n: int, degree: int, seed: int = 0) -> RegularGraph:
    """Search for links of a complete graph that make a Ramanujan graph.

    Candidates are circulant graphs and random regular graphs. The one with the least ρ is improved by
    exchanging pairs of links, (i, j) and (k, l) for (i, k) and (j, l), where the outermost eigenvector says
    that it lowers ρ most.

    Parameters
    ----------
    n : int
        Number of nodes, 3 to 4096.
    degree : int
        d, the links of a node, 2 to n − 1.
    seed : int, default 0
        Of the random graphs. The same arguments give the same graph.

    Returns
    -------
    RegularGraph
        Whether it meets the bound is in `is_ramanujan`.

    Raises
    ------
    ValueError
        If n or degree is out of range.
    """
    if not 3 <= n <= MAX_NODES:
        raise ValueError(f"received {n} nodes, expected 3 to {MAX_NODES}")
    if not 2 <= degree < n:
        raise ValueError(f"received degree {degree} for {n} nodes, expected 2 to {n - 1}")
    rng = np.random.default_rng(seed)
    with one_blas_thread():
        found = [(_outermost(adjacency, degree)[0], adjacency) for adjacency in _candidates(n, degree, rng)]
        _, best = min(found, key=lambda candidate: abs(candidate[0]))
        best = _exchanged(best, degree)
        rho = abs(_outermost(best, degree)[0])
    bound = 2 * float(np.sqrt(degree - 1)) / degree
    links = np.argwhere(np.triu(best)).astype(np.int64)
    return RegularGraph(links, rho, bound, rho <= bound and rho < 1 - ROUNDING)


def _outermost(adjacency: Adjacency, degree: int) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the eigenvalue of W − J that is largest in magnitude, and its vector."""
    n = len(adjacency)
    linalg, sparse = require("scipy.linalg", "topology"), require("scipy.sparse.linalg", "topology")
    missing = degree - adjacency.sum(1)
    if n <= DENSE_NODES:
        matrix = (adjacency + np.diag(missing)) / degree - 1.0 / n
        eigenvalues, vectors = linalg.eigh(matrix, check_finite=False)
        end = 0 if -eigenvalues[0] > eigenvalues[-1] else n - 1
        return float(eigenvalues[end]), vectors[:, end]
    rows = require("scipy.sparse", "topology").csr_array(adjacency, dtype=np.float64)
    deviation = sparse.LinearOperator(
        (n, n), lambda x: (rows @ x + missing * x) / degree - x.mean(), dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(n)
    eigenvalues, vectors = sparse.eigsh(deviation, 1, which="LM", v0=start)
    return float(eigenvalues[0]), vectors[:, 0]


def _candidates(n: int, degree: int, rng: np.random.Generator) -> Iterator[Adjacency]:
    first = _circulant(n, degree, np.arange(1, degree // 2 + 1))
    yield first
    others = [_best_circulant(n, degree, rng)] if n * degree % 2 == 0 else []
    others += [_shuffled(first, rng) for _ in range(DRAWS)]
    # ρ does not tell: it is 1 for disconnected graphs, and for bipartite ones, such as an even ring, as well.
    yield from (other for other in others if is_connected(np.argwhere(np.triu(other)), n))


def _circulant(n: int, degree: int, offsets: npt.NDArray[np.int64]) -> Adjacency:
    """Link nodes at the given distances around a ring; an odd degree adds links straight across it."""
    adjacency = np.zeros((n, n), bool)
    nodes = np.arange(n)
    for offset in offsets:
        adjacency[nodes, (nodes + offset) % n] = True
    if degree % 2:
        # With an odd number of nodes the steps of (n − 1)/2 visit all: every other step leaves one node out.
        half = n // 2
        steps = nodes[:half] if n % 2 == 0 else nodes[: n - 1 : 2] * half % n
        adjacency[steps, (steps + half) % n] = True
    return adjacency | adjacency.T


def _best_circulant(n: int, degree: int, rng: np.random.Generator) -> Adjacency:
    """Draw offsets at random, and keep those of the least ρ: all eigenvalues are sums of cosines."""
    distances = np.arange(1, (n + 1) // 2)
    modes = np.arange(1, n // 2 + 1)
    cosines = 2.0 * np.cos(2.0 * np.pi * np.outer(modes, distances) / n)
    across = np.where(modes % 2, -1.0, 1.0) if degree % 2 else np.zeros(len(modes))
    least, best = float("inf"), distances[: degree // 2]
    for _ in range(CIRCULANTS):
        drawn = rng.choice(len(distances), degree // 2, replace=False)
        rho = float(np.abs(cosines[:, drawn].sum(1) + across).max()) / degree
        if rho < least:
            least, best = rho, distances[drawn]
    return _circulant(n, degree, best)


def _shuffled(adjacency: Adjacency, rng: np.random.Generator) -> Adjacency:
    """Exchange pairs of links at random, which keeps all degrees."""
    adjacency = adjacency.copy()
    links = np.argwhere(np.triu(adjacency))
    links = np.where(rng.random((len(links), 1)) < 0.5, links, links[:, ::-1])
    for a, b in rng.integers(len(links), size=(SHUFFLES * len(links), 2)).tolist():
        (i, j), (k, l_) = links[a].tolist(), links[b].tolist()
        if len({i, j, k, l_}) == 4 and not adjacency[i, k] and not adjacency[j, l_]:
            _exchange(adjacency, i, j, k, l_)
            # Turned half of the time, so that every pairing of the four ends can come up.
            links[a], links[b] = ((i, k), (j, l_)) if (a + b) % 2 else ((k, i), (j, l_))
    return adjacency


def _exchange(adjacency: Adjacency, i: int, j: int, k: int, l_: int) -> None:
    """Take links (i, j) and (k, l) out, put (i, k) and (j, l) in."""
    for one, other, linked in ((i, j, False), (k, l_, False), (i, k, True), (j, l_, True)):
        adjacency[one, other] = adjacency[other, one] = linked


def _exchanged(adjacency: Adjacency, degree: int) -> Adjacency:
    """Exchange pairs of links while one of the most promising exchanges lowers ρ."""
    eigenvalue, vector = _outermost(adjacency, degree)
    for _ in range(EXCHANGES):
        for exchange in _promising(adjacency, np.sign(eigenvalue), vector):
            trial = adjacency.copy()
            _exchange(trial, *exchange)
            outermost = _outermost(trial, degree)
            if abs(outermost[0]) < abs(eigenvalue) - ROUNDING:
                adjacency, (eigenvalue, vector) = trial, outermost
                break
        else:
            break
    return adjacency


def _promising(adjacency: Adjacency, sign: float, vector: npt.NDArray[np.float64]) -> list[tuple[int, ...]]:
    """Return exchanges that lower the outermost eigenvalue most, to first order."""
    links = np.argwhere(np.triu(adjacency))
    weight = -sign * vector[links[:, 0]] * vector[links[:, 1]]
    outermost = links[np.argsort(weight, kind="stable")[:OUTERMOST_LINKS]]
    both_ways = np.concatenate([outermost, outermost[:, ::-1]])
    (i, j), (k, l_) = both_ways.T[:, :, None], outermost.T[:, None, :]
    change = sign * (vector[i] - vector[l_]) * (vector[k] - vector[j])
    legal = (i != k) & (j != l_) & (i != l_) & (j != k) & ~adjacency[i, k] & ~adjacency[j, l_]
    change = np.where(legal, change, 0.0)
    first, second = np.unravel_index(np.argsort(change, axis=None, kind="stable")[:TRIALS], change.shape)
    return [
        (*both_ways[a].tolist(), *outermost[b].tolist())
        for a, b in zip(first, second, strict=True)
        if change[a, b] < 0
    ]
