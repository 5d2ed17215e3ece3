"""Weights for given links: what makes a mixing matrix of a graph.

A symmetric mixing matrix with rows that sum to one is W = I − Σ_l w_l (e_i − e_j)(e_i − e_j)ᵀ over the links l = (i, j): its
link weights say it all. ρ = ‖W − J‖₂, with J = 11ᵀ/n, is how much of the nodes' disagreement is left after one round.
"""

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from flower_edge._extras import require
from flower_edge.gossip.graph import Links, check_graph, link_array

if TYPE_CHECKING:
    import networkx as nx

Weights: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[np.float64]


def mixing_matrix(links: Links, weights: Weights, n: int) -> Matrix:
    """Return W, float64 of shape (n, n), from the weights of its links; what a row gives away, its own node keeps the rest of."""
    matrix = np.zeros((n, n))
    i, j = links[:, 0], links[:, 1]
    matrix[i, j] = matrix[j, i] = weights
    matrix[np.diag_indices(n)] = 1.0 - matrix.sum(1)
    return matrix


def rho(matrix: Matrix) -> float:
    """Return ‖W − J‖₂ of a symmetric mixing matrix: 0 averages at once, 1 never."""
    spectrum = np.linalg.eigvalsh(matrix - 1.0 / len(matrix))
    return float(max(-spectrum[0], spectrum[-1]))


def metropolis_hastings(graph: "nx.Graph") -> Weights:
    """Return the Metropolis–Hastings weight 1 / (1 + max(d_i, d_j)) of every link.

    Needs only the degrees of a link's two ends (Xiao, Boyd, Kim, J. Parallel Distrib. Comput. 2007, eq. 6).

    Parameters
    ----------
    graph : networkx.Graph
        Base graph.

    Returns
    -------
    ndarray of float64, shape (m,)
        In the order of `link_array`.
    """
    check_graph(graph)
    links = link_array(graph)
    degrees = np.bincount(links.ravel(), minlength=len(graph))
    return 1.0 / (1.0 + degrees[links].max(1))


def fastest_symmetric(graph: "nx.Graph", *, nonnegative: bool = False) -> Weights:
    """Return the link weights that minimise ρ = ‖W − J‖₂.

    A semidefinite program (Xiao, Boyd, Systems & Control Letters 2004, eq. 17), solved by cvxpy with CLARABEL. It takes about a
    second for 33 nodes and 187 links and grows steeply.

    Parameters
    ----------
    graph : networkx.Graph
        Base graph.
    nonnegative : bool, default False
        Whether every entry of W has to be zero or more (the fastest mixing Markov chain of Boyd, Diaconis, Xiao, SIAM Review 2004).

    Returns
    -------
    ndarray of float64, shape (m,)
        In the order of `link_array`.

    Raises
    ------
    RuntimeError
        If the solver gives up.
    """
    check_graph(graph)
    cp = require("cvxpy", "topology")
    sparse = require("scipy.sparse", "topology")
    links, n = link_array(graph), len(graph)
    m = len(links)
    i, j = links.T
    # One sparse operator from the weights to vec(Laplacian): cvxpy compiles it whole, a product of matrices it expands.
    entries = np.concatenate([i * n + i, j * n + j, i * n + j, j * n + i])
    signs = np.repeat([1.0, 1.0, -1.0, -1.0], m)
    laplacian = sparse.csc_array((signs, (entries, np.tile(np.arange(m), 4))), shape=(n * n, m))
    weights, bound = cp.Variable(m), cp.Variable()
    deviation = np.eye(n) - 1.0 / n - cp.reshape(laplacian @ weights, (n, n), order="C")
    constraints = [deviation << bound * np.eye(n), deviation >> -bound * np.eye(n)]
    if nonnegative:
        given_away = sparse.csc_array(
            (np.ones(2 * m), (links.T.ravel(), np.tile(np.arange(m), 2))), shape=(n, m)
        )
        constraints += [weights >= 0, given_away @ weights <= 1]
    problem = cp.Problem(cp.Minimize(bound), constraints)
    problem.solve(solver=cp.CLARABEL)
    if weights.value is None:
        raise RuntimeError(f"CLARABEL ended with status {problem.status!r} on {n} nodes and {m} links")
    solution = np.asarray(weights.value, np.float64)
    return _into_simplex(solution, links, n) if nonnegative else solution


def _into_simplex(weights: Weights, links: Links, n: int) -> Weights:
    """Take away the solver's tolerance: no weight below zero, no row that gives away more than one."""
    weights = np.maximum(weights, 0.0)
    given = np.bincount(links.ravel(), np.repeat(weights, 2), minlength=n)
    return weights / max(1.0, float(given.max()))
