"""The most valuable units within budgets, when units share facilities: exactly, by branch and bound."""

import heapq
import time
from itertools import count
from typing import NamedTuple

import numpy as np

from flower_edge.training._facilities import bits
from flower_edge.training._knapsack import ROUNDING, Choices, solve
from flower_edge.training._relaxation import Array, Indices, Mask, price, relax, weightings

MOST_PATHS = 4096
"""Up to this many unions of paths are listed; beyond, the search branches on facilities."""

MOST_TOGETHER = 6
"""Up to this many units that share facilities are one item whose alternatives are all their subsets."""


class Problem(NamedTuple):
    """Choose units of greatest value whose cost is at most 1 in each of k budgets.

    Attributes
    ----------
    values : ndarray, shape (n,)
        Positive, at most 1.
    costs : ndarray, shape (n, k)
        Each unit's own.
    facility_costs : ndarray, shape (f, k)
    needs : ndarray of bool, shape (n, f)
    paths : list of int
        The part of `needs` that is the way of the gradient, as bit masks.
    """

    values: Array
    costs: Array
    facility_costs: Array
    needs: Mask
    paths: list[int]


class Found(NamedTuple):
    """The best choice, its value, and an upper bound of every choice that fits."""

    value: float
    chosen: Mask
    upper_bound: float

    @property
    def proven(self) -> bool:
        """Whether the choice is optimal."""
        return self.upper_bound <= self.value * (1 + ROUNDING)


def unions(paths: list[int], most: int) -> list[int] | None:
    """List every union of paths, the empty one included; None if there are more than `most`.

    Where a path contains all shorter ones, as at the end of a residual block, nothing that ends before it can
    differ behind it. So blocks add up, and only branches within one block multiply.
    """
    blocks = [[0]]
    so_far = total = 0
    for path in sorted({path for path in paths if path}, key=int.bit_count):
        while blocks[-1][0] & ~path:
            last = blocks.pop()
            blocks[-1] += last
        if so_far & ~path:
            known = set(blocks[-1])
            fresh = {path | other for other in blocks[-1]} - known
            blocks[-1] += fresh
            total += len(fresh)
        else:
            blocks.append([path])
            total += 1
        so_far |= path
        if total > most:
            return None
    return [union for block in blocks for union in block]


def search(problem: Problem, deadline: float) -> Found:
    """Find the most valuable choice: best bound first, so that what is left bounds all that was not tried."""
    if not problem.costs.shape[1]:
        value = float(problem.values.sum())
        return Found(value, np.ones(len(problem.values), bool), value)
    return _Search(problem, deadline).run()


class _Search:
    """A branch fixes which facilities are paid for, and which units may still be chosen."""

    def __init__(self, problem: Problem, deadline: float) -> None:
        self.problem, self.deadline = problem, deadline
        self.best = 0.0
        self.chosen: Mask = np.zeros(len(problem.values), bool)
        self.untried = 0.0
        self.branches: list[tuple[float, int, Mask, Mask]] = []
        self.serial = count()

    @property
    def limit(self) -> float:
        return self.best * (1 + ROUNDING)

    def run(self) -> Found:
        listed = unions(self.problem.paths, MOST_PATHS)
        if listed is None:
            n, f = self.problem.needs.shape
            self._push(float(self.problem.values.sum()), np.zeros(f, bool), np.ones(n, bool))
        else:
            self._push_all(bits(listed, len(self.problem.facility_costs)))
        while self.branches:
            negative_bound, _, paid, allowed = heapq.heappop(self.branches)
            if -negative_bound <= self.limit:
                break
            if time.perf_counter() > self.deadline and self.best > 0:
                self.untried = max(self.untried, -negative_bound)
                break
            self._try(-negative_bound, paid, allowed)
        return Found(self.best, self.chosen, max(self.best, self.untried))

    def _push(self, bound: float, paid: Mask, allowed: Mask) -> None:
        if bound > self.limit:
            heapq.heappush(self.branches, (-bound, next(self.serial), paid, allowed))

    def _push_all(self, paid: Mask) -> None:
        """Push one branch for each union of paths, bounded together."""
        problem = self.problem
        way = bits(problem.paths, len(problem.facility_costs))
        slack = 1.0 - paid @ problem.facility_costs
        fits = (slack >= -ROUNDING).all(axis=1)
        paid, slack = paid[fits], np.maximum(slack[fits], 0.0)
        blocked = (~paid).astype(np.float32) @ way.T.astype(np.float32)
        allowed = blocked == 0
        off_path = problem.needs & ~way.any(axis=0)
        costs = problem.costs + _split(problem.values, off_path) @ problem.facility_costs
        bound = np.full(len(paid), np.inf)
        for weighting in weightings(costs.shape[1]):
            relaxed = relax(problem.values, costs @ weighting, allowed, slack @ weighting)
            np.minimum(bound, relaxed.bound, out=bound)
        for row, value in enumerate(bound.tolist()):
            self._push(value, paid[row], allowed[row])

    def _try(self, bound: float, paid: Mask, allowed: Mask) -> None:
        """Solve a branch if facilities that are still open tie few units together; otherwise split it."""
        problem = self.problem
        slack = np.maximum(1.0 - paid @ problem.facility_costs, 0.0)
        units = np.flatnonzero(allowed)
        if not len(units):
            return
        still = problem.needs[units] & ~paid
        values = problem.values[units]
        costs = problem.costs[units] + _split(values, still) @ problem.facility_costs
        priced = price(values, costs, slack)
        bound = min(bound, priced.bound)
        if bound <= self.limit:
            return
        groups = _tied(still)
        if max(map(len, groups)) > MOST_TOGETHER:
            self._improve(paid, units[np.argsort(-values / (costs @ priced.prices[0] + ROUNDING))])
            self._split_branch(bound, paid, allowed, still, units, priced.prices[0])
            return
        members, choices = self._items(units, still, groups)
        solution = solve(choices, slack, priced.prices, self.best, self.deadline)
        self.untried = max(self.untried, min(bound, solution.untried))
        if solution.taken is not None:
            self.best = solution.value
            self.chosen = np.zeros(len(problem.values), bool)
            for item, alternative in enumerate(solution.taken):
                if alternative >= 0:
                    self.chosen[members[item][alternative]] = True

    def _items(
        self, units: Indices, still: Mask, groups: list[list[int]]
    ) -> tuple[list[list[Indices]], Choices]:
        """Make an item of every group: its alternatives are its subsets, which pay a facility once."""
        problem = self.problem
        width = 2 ** max(map(len, groups)) - 1
        values = np.full((len(groups), width), -np.inf)
        costs = np.zeros((len(groups), width, problem.costs.shape[1]))
        members = []
        for item, group in enumerate(groups):
            subsets = bits(list(range(1, 2 ** len(group))), len(group))
            chosen = units[group]
            values[item, : len(subsets)] = subsets @ problem.values[chosen]
            costs[item, : len(subsets)] = subsets @ problem.costs[chosen]
            if still[group].any():
                costs[item, : len(subsets)] += (subsets @ still[group]) @ problem.facility_costs
            members.append([chosen[subset] for subset in subsets])
        return members, Choices(values, costs)

    def _split_branch(
        self, bound: float, paid: Mask, allowed: Mask, still: Mask, units: Indices, prices: Array
    ) -> None:
        """Branch on the facility whose price or whose users, the lesser of the two, weigh most."""
        problem = self.problem
        together = still.T.astype(np.float32) @ still.astype(np.float32)
        implied = (together == together.diagonal()[:, None]) & still.any(axis=0, keepdims=True).T
        price_of = implied @ (problem.facility_costs @ prices)
        at_stake = problem.values[units] @ still
        facility = int(np.minimum(price_of, at_stake).argmax())
        if not still[:, facility].any():
            facility = int(still.sum(axis=0).argmax())
        opened = paid | implied[facility]
        if ((opened @ problem.facility_costs) <= 1.0 + ROUNDING).all():
            self._push(bound, opened, allowed)
        self._push(bound, paid, allowed & ~problem.needs[:, facility])

    def _improve(self, paid: Mask, order: Indices) -> None:
        """Take units in this order as long as they fit."""
        problem = self.problem
        spent, held = np.zeros(problem.costs.shape[1]), np.zeros_like(paid)
        chosen = np.zeros(len(problem.values), bool)
        for unit in order:
            more = problem.costs[unit] + (problem.needs[unit] & ~held) @ problem.facility_costs
            if (spent + more <= 1.0 + ROUNDING).all():
                spent, chosen[unit] = spent + more, True
                held |= problem.needs[unit]
        value = float(problem.values[chosen].sum())
        if value > self.limit:
            self.best, self.chosen = value, chosen


def _split(values: Array, needs: Mask) -> Array:
    """Share every facility out among the units that need it, by their values.

    No set of units pays more for its shares than for its facilities, so a knapsack with these costs bounds
    the true one.
    """
    weighted = values[:, None] * needs
    total = weighted.sum(axis=0)
    return weighted / np.where(total > 0, total, 1.0)


def _tied(still: Mask) -> list[list[int]]:
    """Group the units that share a facility, directly or through others."""
    groups: list[list[int]] = []
    shared = still[:, still.sum(axis=0) > 1]
    pending = np.ones(len(still), bool)
    for unit in range(len(still)):
        if not pending[unit]:
            continue
        inside: Mask = np.zeros(len(still), bool)
        inside[unit] = True
        if shared[unit].any():
            grown = inside
            while True:
                grown = shared[:, shared[inside].any(axis=0)].any(axis=1) | inside
                if (grown == inside).all():
                    break
                inside = grown
        pending &= ~inside
        groups.append(np.flatnonzero(inside).tolist())
    return groups
