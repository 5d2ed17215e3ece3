"""Upper bounds of knapsacks with several budgets: one-budget relaxations, and the prices they imply."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

AROUND_BREAK = np.array([0, -1, 1, -2, 2, -4, 4, -7, 7, -12, 12, -24, 24])
"""Good prices are the densities of the break item and of those this far from it."""

LATTICE_STEPS = 4
FINEST_STEP = 0.01
MOST_PRICES = 24


class Relaxed(NamedTuple):
    """Continuous knapsacks: their optima, all densities from high to low, the break item of each in them."""

    bound: Array
    density: Array
    at: Indices


def relax(values: Array, weights: Array, free: Mask, slack: Array) -> Relaxed:
    """Solve continuous one-budget knapsacks (Dantzig, 1957) that differ in their free items and their slack.

    Parameters
    ----------
    values, weights : ndarray, shape (n,)
        Positive values, weights of at least 0.
    free : ndarray of bool, shape (m, n)
        Which items each of the m knapsacks may hold.
    slack : ndarray, shape (m,)
        At least 0.
    """
    density = np.full(len(values), np.inf)
    with np.errstate(over="ignore"):
        np.divide(values, weights, out=density, where=weights > 0)
    order = np.argsort(-density, kind="stable")
    picked = free[:, order]
    # A leading 0 stands for the empty knapsack.
    weight = np.zeros((len(free), len(values) + 1))
    value = np.zeros_like(weight)
    np.cumsum(picked * weights[order], axis=1, out=weight[:, 1:])
    np.cumsum(picked * values[order], axis=1, out=value[:, 1:])
    at = (weight[:, 1:] <= slack[:, None]).sum(1)
    rows = np.arange(len(free))
    density = np.append(density[order], 0.0)
    left = np.maximum(slack - weight[rows, at], 0.0)
    return Relaxed(value[rows, at] + left * np.where(left > 0, density[at], 0.0), density, at)


def weightings(budgets: int) -> Array:
    """Return weightings of the budgets, spread evenly, that sum to 1, shape (m, budgets)."""
    grid = np.indices((LATTICE_STEPS + 1,) * budgets).reshape(budgets, -1).T
    spread: Array = grid[grid.sum(axis=1) == LATTICE_STEPS] / LATTICE_STEPS
    return spread


class Priced(NamedTuple):
    """A bound of a knapsack, and prices of its budgets, shape (q, k), that bound it well near its optimum."""

    bound: float
    prices: Array


def price(values: Array, costs: Array, slack: Array) -> Priced:
    """Bound a knapsack by its surrogates: every weighting of the budgets makes one of them out of all.

    The bound is quasi-convex in the weighting, so a pattern search refines the best of a lattice. Whatever it
    finds is a valid bound.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Positive.
    costs : ndarray, shape (n, k)
        At least 0.
    slack : ndarray, shape (k,)
        At least 0.
    """
    free = np.ones((1, len(values)), bool)

    def surrogate(weighting: Array) -> tuple[float, Array, Array]:
        found = relax(values, costs @ weighting, free, np.array([slack @ weighting]))
        rates = found.density[np.clip(found.at[0] + AROUND_BREAK, 0, len(values))]
        return float(found.bound[0]), weighting, rates[np.isfinite(rates)]

    tried = [surrogate(weighting) for weighting in weightings(costs.shape[1])]
    best = min(tried, key=lambda found: found[0])
    step = 1.0 / LATTICE_STEPS
    while costs.shape[1] > 1 and step > FINEST_STEP:
        step /= 2
        for corner in np.eye(costs.shape[1]):
            for moved in (best[1] + step * (corner - best[1]), best[1] - step * corner):
                if moved.min() >= 0:
                    tried.append(surrogate(moved / moved.sum()))
        best = min(tried, key=lambda found: found[0])
    near = sorted(tried, key=lambda found: found[0])[1:]
    prices = [rate * best[1] for rate in best[2]]
    prices += [rates[0] * other for _, other, rates in near if len(rates)]
    return Priced(best[0], np.array([*prices[:MOST_PRICES], np.zeros(costs.shape[1])]))
