"""What links are chosen for, as smooth convex functions of the link weights with their second derivatives.

Both objectives are sums of rational functions of the eigenvalues λ of W − J, or of their logarithms, so that
their Hessians in the link weights are elementwise products of Gram matrices BᵀXB, where B has a column
e_i − e_j for every link (i, j) and X is a function of W. Newton's method then fits weights in a few steps,
and the same Hessian says what the fit would be worth with other links (`_moves`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from flower_edge._extras import require
from flower_edge.gossip.graph import Links
from flower_edge.gossip.weights import Matrix, Weights, metropolis_weights, mixing_matrix

Vector: TypeAlias = npt.NDArray[np.float64]
ObjectiveName = Literal["rho", "disagreement"]

NEWTON_LINKS = 1000
"""With more links than this, their Hessian costs more than the further steps of L-BFGS."""

RIDGE = 1e-9
SUFFICIENT = 0.2
SHORTEST_STEP = 1e-5
LEVEL_STEPS = 60


class Expansion(NamedTuple):
    """An objective around one W, by eigenvalue.

    Attributes
    ----------
    value : float
        The objective.
    first : ndarray of float64, shape (n,)
        Its slope in every eigenvalue.
    products : tuple of (ndarray, ndarray)
        Pairs (p, q) of functions of the eigenvalues: the Hessian is Σ (Bᵀp(W)B) ∘ (Bᵀq(W)B), …
    rank_one : ndarray of float64, shape (n,)
        …less h hᵀ with h = diag Bᵀr(W)B, for this function r of the eigenvalues.
    """

    value: float
    first: Vector
    products: tuple[tuple[Vector, Vector], ...]
    rank_one: Vector


class Objective(Protocol):
    """A convex function of the eigenvalues of W − J."""

    def expand(self, eigenvalues: Vector) -> Expansion:
        """Return the objective and its derivatives; the value is infinite outside of its domain."""
        ...


@dataclass(frozen=True)
class LogBarrier:
    """A smooth stand-in for ρ: the least s − (gap/2n) log det((s − W + J)(s + W − J)) over s.

    What an interior-point method for ρ minimises at one point of its path. The weights that minimise it have
    a ρ within `gap` of the least one.

    Attributes
    ----------
    gap : float
        Small means close to ρ, and hard to follow by a quadratic model.
    """

    gap: float

    def expand(self, eigenvalues: Vector) -> Expansion:
        n = len(eigenvalues)
        share = self.gap / (2 * n)
        s = self._level(eigenvalues, share)
        above, below = 1.0 / (s - eigenvalues), 1.0 / (s + eigenvalues)
        value = s + share * float(np.log(above * below).sum())
        curvature = share * float((above**2 + below**2).sum())
        root = np.sqrt(share)
        return Expansion(
            value,
            share * (above - below),
            ((root * above, root * above), (root * below, root * below)),
            share * (above**2 - below**2) / np.sqrt(curvature),
        )

    def _level(self, eigenvalues: Vector, share: float) -> float:
        """Return the s with Σ 1/(s − λ) + 1/(s + λ) = 1/share, by Newton's method on the reciprocal sum."""
        squares = np.square(eigenvalues)
        top = float(np.sqrt(squares.max()))
        least = s = top + share
        for _ in range(LEVEL_STEPS):
            room = s * s - squares
            pull = float((2 * s / room).sum())
            slope = float((2 / room - 4 * s * s / room**2).sum())
            # The reciprocal of the sum is nearly linear in s, unlike the sum itself.
            step = (share - 1.0 / pull) / (-slope / pull**2)
            s = max(s + step, least)
            if abs(step) <= 1e-13 * s:
                break
        return s


@dataclass(frozen=True)
class Disagreement:
    """D(W) of `flower_edge.gossip.disagreement`, and its Hessian."""

    def expand(self, eigenvalues: Vector) -> Expansion:
        n = len(eigenvalues)
        if np.abs(eigenvalues).max() >= 1.0 - 1e-9:
            nothing = np.zeros(n)
            return Expansion(float("inf"), nothing, (), nothing)
        # λ²/(1 − λ²) = ½ (1/(1 − λ) + 1/(1 + λ)) − 1
        above, below = 1.0 / (1.0 - eigenvalues), 1.0 / (1.0 + eigenvalues)
        value = float((above + below).sum()) / (2 * n) - 1.0
        return Expansion(
            value,
            (above**2 - below**2) / (2 * n),
            ((above / n, above**2), (below / n, below**2)),
            np.zeros(n),
        )


class Fit(NamedTuple):
    """Links with fitted weights, and the objective around them."""

    links: Links
    weights: Weights
    value: float
    expansion: Expansion
    vectors: Matrix


def evaluate(objective: Objective, links: Links, weights: Weights, n: int) -> Fit:
    """Return the objective at given weights."""
    eigenvalues, vectors = np.linalg.eigh(mixing_matrix(links, weights, n) - 1.0 / n)
    expansion = objective.expand(eigenvalues)
    return Fit(links, weights, expansion.value, expansion, vectors)


def slopes(fit: Fit, directions: Links) -> Vector:
    """Return the slope of the objective in the weight of each of `directions`, shape (len(directions),)."""
    i, j = directions.T
    return np.asarray(-np.square(fit.vectors[i] - fit.vectors[j]) @ fit.expansion.first, np.float64)


def hessian(fit: Fit, directions: Links) -> Matrix:
    """Return the second derivatives in the weights of `directions`."""
    i, j = directions.T
    modes = fit.vectors[i] - fit.vectors[j]
    total = np.zeros((len(directions), len(directions)))
    for p, q in fit.expansion.products:
        gram = (modes * p) @ modes.T
        total += gram * (gram if q is p else (modes * q) @ modes.T)
    bend = np.square(modes) @ fit.expansion.rank_one
    total -= np.outer(bend, bend)
    return total


def diagonal(fit: Fit, directions: Links) -> Vector:
    """Return the diagonal of `hessian`."""
    i, j = directions.T
    squares = np.square(fit.vectors[i] - fit.vectors[j])
    total = -np.square(squares @ fit.expansion.rank_one)
    for p, q in fit.expansion.products:
        total += (squares @ p) * (squares @ q)
    return np.asarray(total, np.float64)


def fit(
    objective: Objective, links: Links, n: int, start: Weights, steps: int, tolerance: float = 1e-7
) -> Fit:
    """Lower the objective by at most `steps` steps of Newton's method, or by L-BFGS where links are many.

    Parameters
    ----------
    objective : Objective
        What to lower.
    links : ndarray of int64, shape (m, 2)
        Links of a connected graph.
    n : int
        Number of nodes.
    start : ndarray of float64, shape (m,)
        Weights to start from; where the objective is infinite there, Metropolis–Hastings weights.
    steps : int
        The most steps.
    tolerance : float
        Ends when Newton's model promises less than this.
    """
    current = evaluate(objective, links, start, n)
    if not np.isfinite(current.value):
        current = evaluate(objective, links, metropolis_weights(links, n), n)
    if len(links) > NEWTON_LINKS:
        return _quasi_newton(objective, current, n, steps)
    for _ in range(steps):
        gradient = slopes(current, links)
        step = -ridged_solve(hessian(current, links), gradient)
        promise = float(-gradient @ step)
        if promise < 2 * tolerance:
            break
        length = 1.0
        while length > SHORTEST_STEP:
            trial = evaluate(objective, links, current.weights + length * step, n)
            if trial.value <= current.value - SUFFICIENT * length * promise:
                break
            length /= 2
        else:
            break
        current = trial
    return current


def ridged_solve(matrix: Matrix, right: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Solve with a positive semidefinite matrix, lifted a little: many links are not independent."""
    linalg = require("scipy.linalg", "topology")
    size = len(matrix)
    lift = RIDGE * float(np.trace(matrix)) / max(size, 1)
    while True:
        try:
            factor = linalg.cho_factor(matrix + lift * np.eye(size), check_finite=False)
        except np.linalg.LinAlgError:
            lift *= 100
        else:
            return np.asarray(linalg.cho_solve(factor, right, check_finite=False), np.float64)


def _quasi_newton(objective: Objective, start: Fit, n: int, steps: int) -> Fit:
    """L-BFGS in weights scaled by the Hessian's diagonal."""
    optimize = require("scipy.optimize", "topology")
    links = start.links
    scale = 1.0 / np.sqrt(np.maximum(diagonal(start, links), 1e-12))

    def value_and_slopes(scaled: Weights) -> tuple[float, Weights]:
        trial = evaluate(objective, links, start.weights + scale * scaled, n)
        if not np.isfinite(trial.value):
            # Out of the domain: far above the start, but not so far that the next step is next to nothing.
            return 10.0 * start.value, np.zeros_like(scaled)
        return trial.value, scale * slopes(trial, links)

    result = optimize.minimize(
        value_and_slopes, np.zeros(len(links)), jac=True, method="L-BFGS-B", options={"maxiter": steps}
    )
    return evaluate(objective, links, start.weights + scale * result.x, n)
