"""Knapsacks with several budgets and several choices an item, solved exactly in real-valued costs.

Items are decided one at a time, the most ambiguous first (the core of Pisinger, "A minimal algorithm for the
0-1 knapsack problem", 1997). A state goes if another is no dearer and no worse, or if a Lagrangian bound
shows that no completion of it beats the best solution known. Nothing is rounded to a grid.
"""

from typing import NamedTuple

import numpy as np

from flower_edge.training._relaxation import Array, Indices, Mask

ROUNDING = 1e-12
"""Relative: sums of costs and of values are told apart down to this."""

WIDTH = 2048
"""Most states kept; the bounds of those that go are known."""

NEIGHBOURS = 32
"""With three budgets, dominance is looked for among this many neighbours."""

BLOCK = 128


class Choices(NamedTuple):
    """Items of which at most one alternative each is taken.

    Attributes
    ----------
    values : ndarray, shape (n, a)
        -inf where an item has fewer alternatives.
    costs : ndarray, shape (n, a, k)
    """

    values: Array
    costs: Array


class Solution(NamedTuple):
    """The best choice found above the floor.

    Attributes
    ----------
    value : float
        The floor if nothing above it was found.
    taken : ndarray of int, shape (n,), or None
        The alternative of each item, -1 for none.
    untried : float
        A bound of all that was not tried; -inf if everything was.
    pivot : int
        The most valuable item about which the bounds leave a doubt.
    """

    value: float
    taken: Indices | None
    untried: float
    pivot: int


def solve(choices: Choices, slack: Array, prices: Array, floor: float) -> Solution:
    """Find the choice of greatest value above `floor`.

    Parameters
    ----------
    choices : Choices
        n items.
    slack : ndarray, shape (k,)
        What the choice may cost.
    prices : ndarray, shape (q, k)
        At least 0. The better they are, the sooner it is done.
    floor : float
        Only greater values are of interest.

    Returns
    -------
    Solution
        Optimal if `Solution.untried` is not above its value.
    """
    return _Core(choices, slack, prices, floor).solve()


class _Core:
    """States: partial choices of the items decided so far, with their value and their cost."""

    def __init__(self, choices: Choices, slack: Array, prices: Array, floor: float) -> None:
        n, _, k = choices.costs.shape
        # Alternative 0 is to take nothing, from here on.
        self.values = np.concatenate([np.zeros((n, 1)), choices.values], axis=1)
        self.costs = np.concatenate([np.zeros((n, 1, k)), choices.costs], axis=1)
        self.slack, self.prices, self.best = slack, prices, floor
        self.allowance = slack + ROUNDING
        self.untried = -np.inf
        self.found: tuple[int, int, Indices] | None = None
        self.history: list[tuple[Indices, Indices]] = []

        net = self.values[:, :, None] - self.costs @ prices.T
        gain = net.max(axis=1)
        reach = (prices @ slack + gain.sum(0)) - (gain[:, None, :] - net)
        self.reach = reach.min(axis=2)
        """Bound of the solutions that take this alternative of this item, shape (n, 1 + a)."""

        rivals = np.partition(self.reach, -2, axis=1)[:, -2]
        self.order = np.argsort(-rivals, kind="stable")
        self.rival = rivals[self.order]
        self.greedy = net.argmax(axis=1)
        """What each price alone would take of each item, shape (n, q)."""

        rows = self.order[:, None]
        self.rest_gain = _suffix_sums(gain[self.order])
        self.rest_value = _suffix_sums(self.values[rows, self.greedy[self.order]])
        self.rest_cost = _suffix_sums(self.costs[rows, self.greedy[self.order]])

    @property
    def limit(self) -> float:
        """What a solution has to exceed to be better than the best."""
        return self.best + ROUNDING * abs(self.best)

    def solve(self) -> Solution:
        value, cost = np.zeros(1), np.zeros((1, len(self.slack)))
        self._complete(0, value, cost)
        for step, item in enumerate(self.order):
            if self.rival[step] <= self.limit:
                self._settle(step, value, cost)
                break
            value, cost = self._decide(step, item, value, cost)
            if not len(value):
                break
            self._complete(step + 1, value, cost)
        doubtful = self.order[self.rival > self.limit]
        pivot = doubtful[self.values[doubtful].max(axis=1).argmax()] if len(doubtful) else 0
        return Solution(self.best, self._taken(), self.untried, int(pivot))

    def _decide(self, step: int, item: int, value: Array, cost: Array) -> tuple[Array, Array]:
        """Extend all states by every alternative of an item that may still lead to something better."""
        open_to = np.flatnonzero(self.reach[item] > self.limit)
        parent = np.tile(np.arange(len(value)), len(open_to))
        taken = np.repeat(open_to, len(value))
        value = value[parent] + self.values[item, taken]
        cost = cost[parent] + self.costs[item, taken]
        # States run along the second axis, over which numpy takes minima much faster.
        bound = value + (self.prices @ (self.slack - cost).T + self.rest_gain[step + 1, :, None]).min(axis=0)
        keep = np.flatnonzero((bound > self.limit) & (cost <= self.allowance).all(axis=1))
        keep = keep[_undominated(value[keep], cost[keep])]
        keep = self._narrow(keep, bound)
        self.history.append((parent[keep], taken[keep]))
        return value[keep], cost[keep]

    def _narrow(self, keep: Indices, bound: Array) -> Indices:
        """Drop the least promising of too many states, and remember what they might have reached."""
        if len(keep) <= WIDTH:
            return keep
        ranked = keep[np.argsort(-bound[keep], kind="stable")]
        self.untried = max(self.untried, float(bound[ranked[WIDTH]]))
        return ranked[:WIDTH]

    def _complete(self, step: int, value: Array, cost: Array) -> None:
        """Finish every state in the way each price would, and remember the best that fits."""
        total = value + self.rest_value[step, :, None]
        price, state = np.nonzero(total > self.limit)
        total = total[price, state]
        fits = (cost[state] + self.rest_cost[step, price] <= self.allowance).all(axis=1)
        if fits.any():
            total[~fits] = -np.inf
            pick = total.argmax()
            self.best = float(total[pick])
            self.found = (step, int(state[pick]), self.greedy[:, price[pick]])

    def _settle(self, step: int, value: Array, cost: Array) -> None:
        """Finish every state where all items left have one alternative that may lead to something better."""
        items = self.order[step:]
        forced = self.reach.argmax(axis=1)
        total = value + self.values[items, forced[items]].sum()
        fits = (cost + self.costs[items, forced[items]].sum(0) <= self.allowance).all(axis=1)
        total[~fits] = -np.inf
        if total.max() > self.limit:
            self.best = float(total.max())
            self.found = (step, int(total.argmax()), forced)

    def _taken(self) -> Indices | None:
        if self.found is None:
            return None
        step, state, rest = self.found
        taken = rest.copy()
        for depth in reversed(range(step)):
            parent, alternative = self.history[depth]
            taken[self.order[depth]] = alternative[state]
            state = int(parent[state])
        return taken - 1


def _undominated(value: Array, cost: Array) -> Indices:
    """Return the states that no other one makes superfluous; with three budgets, some that one does, too."""
    order = np.lexsort((*cost.T, -value))
    cost = cost[order]
    match cost.shape[1]:
        case 1:
            keep = _first_below(cost[:, 0])
        case 2:
            keep = _below_staircase(cost)
        case _:
            keep = np.ones(len(order), bool)
            for distance in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
                keep[distance:] &= ~(cost[:-distance] <= cost[distance:]).all(axis=1)
    return order[keep]


def _first_below(cost: Array) -> Mask:
    """Tell which numbers are below all before them."""
    least = np.minimum.accumulate(cost)
    keep: Mask = np.ones(len(cost), bool)
    keep[1:] = cost[1:] < least[:-1]
    return keep


def _below_staircase(cost: Array) -> Mask:
    """Tell which pairs have no pair before them that is at most as large in both; shape (m, 2)."""
    keep: Mask = np.ones(len(cost), bool)
    stairs = np.array([[-np.inf, np.inf]])
    earlier = np.tri(BLOCK, k=-1, dtype=bool)
    for start in range(0, len(cost), BLOCK):
        block = cost[start : start + BLOCK]
        fresh = stairs[np.searchsorted(stairs[:, 0], block[:, 0], side="right") - 1, 1] > block[:, 1]
        block = block[fresh]
        size = len(block)
        below = (
            (block[:, 0] <= block[:, None, 0]) & (block[:, 1] <= block[:, None, 1]) & earlier[:size, :size]
        )
        best = ~below.any(axis=1)
        fresh[fresh] = best
        keep[start : start + BLOCK] = fresh
        stairs = np.concatenate([stairs, block[best]])
        stairs = stairs[np.lexsort((stairs[:, 1], stairs[:, 0]))]
        stairs = stairs[_first_below(stairs[:, 1])]
    return keep


def _suffix_sums(terms: Array) -> Array:
    """Return the sums of terms[i:] for every i up to and including len(terms), along the first axis."""
    sums = np.zeros((len(terms) + 1, *terms.shape[1:]))
    sums[:-1] = terms[::-1].cumsum(axis=0)[::-1]
    return sums
