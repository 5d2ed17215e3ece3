"""How far apart nodes' models stay while they train, and the weights that keep them closest.

ρ says how fast disagreement dies once training stops: it looks at the slowest mode alone. While training
goes on, every local step makes new disagreement in *all* modes. In the linear model of D-PSGD, x ← W (x − η
g) with independent gradient noise of variance σ² in each node, mode k of W (eigenvalue λ_k) settles at
variance η²σ² λ_k² / (1 − λ_k²), so that

    1/n Σ_i E‖x_i − x̄‖² = η²σ² · D(W),    D(W) = 1/n Σ_{k ≥ 2} λ_k² / (1 − λ_k²).

Weights of least ρ push the whole spectrum to ±ρ and can have a larger D than plain Metropolis–Hastings
weights; weights of least D keep it near zero. D(W) ≤ ρ² / (1 − ρ²), the bound that worst-case analyses use
in its place.

Gradients that differ between nodes in the same way in every round (label skew) push the models apart, too:
mode k settles at λ_k / (1 − λ_k) times η times its pull. For pulls of unit size at every node,

    P(W) = 1/n Σ_{k ≥ 2} λ_k² / (1 − λ_k)².

Of schedules W(t), both are the mean over the rounds of a cycle, each after its mixing.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flower_edge._extras import require
from flower_edge.gossip.contraction import mixed
from flower_edge.gossip.graph import Links, check_graph, link_array
from flower_edge.gossip.phase import Phase
from flower_edge.gossip.weights import Matrix, Weights, metropolis_hastings, mixing_matrix, one_blas_thread

if TYPE_CHECKING:
    import networkx as nx

LARGEST_EIGENVALUE = 1 - 1e-9

DOUBLINGS = 40
"""2⁴⁰ cycles: if the models are not steady after them, rounding alone keeps them from growing for ever."""

SETTLED = 1e-12


def disagreement(matrix: Matrix) -> float:
    """Return D(W), the steady mean squared distance of the models from their mean, per unit of η²σ².

    Parameters
    ----------
    matrix : ndarray of float64, shape (n, n)
        A symmetric mixing matrix.

    Returns
    -------
    float
        0 for W = J; infinite where the models never agree (ρ ≥ 1).
    """
    return _value(np.linalg.eigvalsh(matrix - 1.0 / len(matrix)))


def least_disagreement(graph: "nx.Graph") -> Weights:
    """Return the link weights with the least D(W).

    The problem is convex and its own barrier, since D grows without bound as ρ → 1; it is solved by L-BFGS
    from the Metropolis–Hastings weights. Weights may be negative.

    Parameters
    ----------
    graph : networkx.Graph
        Base graph; all its links are used.

    Returns
    -------
    ndarray of float64, shape (m,)
        A weight for every link, in the order of `link_array`.

    Raises
    ------
    ValueError
        If the graph is not connected.
    """
    check_graph(graph)
    links, n = link_array(graph), len(graph)
    optimize = require("scipy.optimize", "topology")
    start = metropolis_hastings(graph)
    with one_blas_thread():
        # Far above the start, but not so far that the line search takes a step of next to nothing.
        beyond = max(10.0 * disagreement(mixing_matrix(links, start, n)), 1e-3)
        result = optimize.minimize(
            lambda weights: _value_and_slope(links, weights, n, beyond),
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 500, "maxfun": 5000, "ftol": 1e-12, "gtol": 1e-9},
        )
    return np.asarray(result.x, np.float64)


def cyclic_disagreement(phases: Sequence[Phase], n: int) -> float:
    """Return D of a schedule, the mean over the rounds of a cycle: for one phase, `disagreement`.

    The covariance of the models repeats itself with the cycle: C ← W_t (C + I − J) W_tᵀ.

    Parameters
    ----------
    phases : sequence of Phase
        One cycle; phases without links are silent rounds.
    n : int
        Number of nodes.

    Returns
    -------
    float
        Infinite where the models never agree.
    """
    with one_blas_thread():
        covariance = steady_covariance(phases, n)
        if covariance is None:
            return float("inf")
        total = 0.0
        for phase in phases:
            covariance = _noisy(phase, covariance)
            # Where a cycle averages exactly, rounding may leave less than nothing.
            total += max(0.0, float(np.trace(covariance)))
    return total / len(phases) / n


def steady_covariance(phases: Sequence[Phase], n: int) -> Matrix | None:
    """Return the covariance of the models at the end of every cycle; None where the models never agree."""

    def doubled(cycle: Matrix, once: Matrix) -> Matrix:
        return once + cycle @ once @ cycle.T

    return _steady(phases, n, _noisy, doubled)


def _noisy(phase: Phase, covariance: Matrix) -> Matrix:
    """One round: independent noise of size 1 in every node, then mixing."""
    n = len(covariance)
    return mixed(phase, mixed(phase, covariance + np.eye(n) - 1.0 / n).T)


def persistent_disagreement(phases: Sequence[Phase], n: int) -> float:
    """Return P of a schedule, the mean over the rounds of a cycle.

    The models' displacement repeats itself with the cycle: Z ← W_t (Z + I − J), with a column for the pull
    of each node. Parameters and return value as for `cyclic_disagreement`.
    """

    def step(phase: Phase, displacement: Matrix) -> Matrix:
        return mixed(phase, displacement + np.eye(n) - 1.0 / n)

    def doubled(cycle: Matrix, once: Matrix) -> Matrix:
        return once + cycle @ once

    with one_blas_thread():
        displacement = _steady(phases, n, step, doubled)
        if displacement is None:
            return float("inf")
        total = 0.0
        for phase in phases:
            displacement = step(phase, displacement)
            total += float(np.square(displacement).sum())
    return total / len(phases) / n


def _steady(
    phases: Sequence[Phase],
    n: int,
    step: Callable[[Phase, Matrix], Matrix],
    doubled: Callable[[Matrix, Matrix], Matrix],
) -> Matrix | None:
    """Sum what all past cycles left, doubling their number each time; None if that has no end."""
    if not phases:
        raise ValueError("received no phases, expected a cycle of at least one round")
    once, cycle = np.zeros((n, n)), np.eye(n) - 1.0 / n
    for phase in phases:
        once, cycle = step(phase, once), mixed(phase, cycle)
    for _ in range(DOUBLINGS):
        # What grows without end overflows in the end, in its norm before it does so itself.
        with np.errstate(over="ignore", invalid="ignore"):
            more = doubled(cycle, once)
            size = np.linalg.norm(more)
        if not np.isfinite(size):
            return None
        if np.linalg.norm(more - once) <= SETTLED * size:
            return more
        once, cycle = more, cycle @ cycle
        cycle -= cycle.mean(0)
    return None


def _value(spectrum: npt.NDArray[np.floating]) -> float:
    squares = np.square(spectrum)
    if squares.max() >= LARGEST_EIGENVALUE**2:
        return float("inf")
    return float((squares / (1.0 - squares)).sum() / len(spectrum))


def _value_and_slope(links: Links, weights: Weights, n: int, beyond: float) -> tuple[float, Weights]:
    """D and its slope; out of the domain `beyond`, which sends a line search back."""
    spectrum, vectors = np.linalg.eigh(mixing_matrix(links, weights, n) - 1.0 / n)
    value = _value(spectrum)
    if not np.isfinite(value):
        return beyond, np.zeros_like(weights)
    slopes = 2.0 * spectrum / np.square(1.0 - np.square(spectrum)) / n
    i, j = links.T
    return value, -np.square(vectors[i] - vectors[j]) @ slopes
