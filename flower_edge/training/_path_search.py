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
            if path in blocks[-1]:
                blocks[-1].remove(path)
                total -= 1
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


class _Branch(NamedTuple):
    """A part of the choices: facilities that are paid for, units that are taken, units that may be."""

    paid: Mask
    taken: Mask
    allowed: Mask


class _Search:
    """Branches wait in the order of their bounds."""

    def __init__(self, problem: Problem, deadline: float) -> None:
        self.problem, self.deadline = problem, deadline
        self.best = 0.0
        self.chosen: Mask = np.zeros(len(problem.values), bool)
        self.untried = 0.0
        self.waiting: list[tuple[float, int, _Branch]] = []
        self.serial = count()

    @property
    def limit(self) -> float:
        return self.best * (1 + ROUNDING)

    def run(self) -> Found:
        problem = self.problem
        listed = unions(problem.paths, MOST_PATHS)
        if listed is None:
            n, f = problem.needs.shape
            everything = _Branch(np.zeros(f, bool), np.zeros(n, bool), np.ones(n, bool))
            self._push(float(problem.values.sum()), everything)
        else:
            self._push_all(bits(listed, len(problem.facility_costs)))
        while self.waiting:
            negative_bound, _, branch = heapq.heappop(self.waiting)
            if -negative_bound <= self.limit:
                break
            if time.perf_counter() > self.deadline and self.best > 0:
                self.untried = max(self.untried, -negative_bound)
                break
            self._try(-negative_bound, branch)
        return Found(self.best, self.chosen, max(self.best, self.untried))

    def _push(self, bound: float, branch: _Branch) -> None:
        if bound > self.limit:
            heapq.heappush(self.waiting, (-bound, next(self.serial), branch))

    def _push_all(self, paid: Mask) -> None:
        """Push one branch for each union of paths, bounded together."""
        problem = self.problem
        way = bits(problem.paths, len(problem.facility_costs))
        slack = 1.0 - paid @ problem.facility_costs
        fits = (slack >= -ROUNDING).all(axis=1)
        paid, slack = paid[fits], np.maximum(slack[fits], 0.0)
        allowed = (~paid).astype(np.float32) @ way.T.astype(np.float32) == 0
        off_path = problem.needs & ~way.any(axis=0)
        costs = problem.costs + _split(problem.values, off_path) @ problem.facility_costs
        bound = np.full(len(paid), np.inf)
        for weighting in weightings(costs.shape[1]):
            relaxed = relax(problem.values, costs @ weighting, allowed, slack @ weighting)
            np.minimum(bound, relaxed.bound, out=bound)
        nothing = np.zeros(len(problem.values), bool)
        for row, value in enumerate(bound.tolist()):
            self._push(value, _Branch(paid[row], nothing, allowed[row]))

    def _try(self, bound: float, branch: _Branch) -> None:
        """Solve a branch, as far as little of it is left; otherwise split it."""
        problem = self.problem
        sunk = float(problem.values[branch.taken].sum())
        spent = branch.paid @ problem.facility_costs + problem.costs[branch.taken].sum(axis=0)
        slack = np.maximum(1.0 - spent, 0.0)
        self._remember(sunk, branch.taken)
        units = np.flatnonzero(branch.allowed)
        if not len(units):
            return
        still = problem.needs[units] & ~branch.paid
        values = problem.values[units]
        costs = problem.costs[units] + _split(values, still) @ problem.facility_costs
        priced = price(values, costs, slack)
        bound = min(bound, sunk + priced.bound)
        if bound <= self.limit:
            return
        groups = _tied(still)
        if max(map(len, groups), default=1) > MOST_TOGETHER:
            density = values / (costs @ priced.prices[0] + ROUNDING)
            self._take_in_turn(branch, units[np.argsort(-density)])
            self._branch_on_facility(bound, branch, units, still, priced.prices[0])
            return
        members, choices = self._items(units, still, groups)
        solution = solve(choices, slack, priced.prices, self.best - sunk)
        if solution.taken is not None:
            chosen = branch.taken.copy()
            for item, alternative in enumerate(solution.taken):
                if alternative >= 0:
                    chosen[members[item][alternative]] = True
            self._remember(sunk + solution.value, chosen)
        left = min(bound, sunk + solution.untried)
        if left > self.limit:
            doubtful = members[solution.pivot][-1]
            self._branch_on_unit(left, branch, doubtful[problem.values[doubtful].argmax()])

    def _remember(self, value: float, chosen: Mask) -> None:
        if value > self.limit:
            self.best, self.chosen = value, chosen

    def _items(
        self, units: Indices, still: Mask, groups: list[Indices]
    ) -> tuple[list[list[Indices]], Choices]:
        """Make an item of every group: its alternatives are its subsets, which pay a facility once."""
        problem = self.problem
        alone = np.setdiff1d(np.arange(len(units)), np.concatenate([*groups, np.empty(0, np.intp)]))
        width = 2 ** max(map(len, groups), default=1) - 1
        values = np.full((len(alone) + len(groups), width), -np.inf)
        costs = np.zeros((*values.shape, problem.costs.shape[1]))
        values[: len(alone), 0] = problem.values[units[alone]]
        costs[: len(alone), 0] = problem.costs[units[alone]] + still[alone] @ problem.facility_costs
        members = [[unit] for unit in units[alone, None]]
        for item, group in enumerate(groups, len(alone)):
            subsets = bits(range(1, 2 ** len(group)), len(group))
            together = units[group]
            values[item, : len(subsets)] = subsets @ problem.values[together]
            costs[item, : len(subsets)] = (
                subsets @ problem.costs[together] + (subsets @ still[group]) @ problem.facility_costs
            )
            members.append([together[subset] for subset in subsets])
        return members, Choices(values, costs)

    def _branch_on_unit(self, bound: float, branch: _Branch, unit: int) -> None:
        """Take a unit, or do without it."""
        problem = self.problem
        this = np.arange(len(problem.values)) == unit
        allowed = branch.allowed & ~this
        self._push(bound, branch._replace(allowed=allowed))
        taken, paid = branch.taken | this, branch.paid | problem.needs[unit]
        spent = paid @ problem.facility_costs + problem.costs[taken].sum(axis=0)
        if (spent <= 1.0 + ROUNDING).all():
            self._push(bound, _Branch(paid, taken, allowed))

    def _branch_on_facility(
        self, bound: float, branch: _Branch, units: Indices, still: Mask, prices: Array
    ) -> None:
        """Pay for a facility and all that its users need besides, or do without it and its users.

        It is the one with the most at stake: the price of paying or the value of its users, if that is less.
        """
        problem = self.problem
        # Counts, which float32 holds exactly.
        together = still.T.astype(np.float32) @ still.astype(np.float32)
        implied = (together == together.diagonal()[:, None]) & still.any(axis=0, keepdims=True).T
        at_stake = np.minimum(implied @ (problem.facility_costs @ prices), problem.values[units] @ still)
        facility = int(np.where(still.any(axis=0), at_stake, -1.0).argmax())
        paid = branch.paid | implied[facility]
        spent = paid @ problem.facility_costs + problem.costs[branch.taken].sum(axis=0)
        if (spent <= 1.0 + ROUNDING).all():
            self._push(bound, branch._replace(paid=paid))
        self._push(bound, branch._replace(allowed=branch.allowed & ~problem.needs[:, facility]))

    def _take_in_turn(self, branch: _Branch, order: Indices) -> None:
        """Take units in this order as long as they fit."""
        problem = self.problem
        paid, chosen = problem.needs[branch.taken].any(axis=0), branch.taken.copy()
        spent = paid @ problem.facility_costs + problem.costs[chosen].sum(axis=0)
        for unit in order:
            more = problem.costs[unit] + (problem.needs[unit] & ~paid) @ problem.facility_costs
            if (spent + more <= 1.0 + ROUNDING).all():
                spent, chosen[unit] = spent + more, True
                paid |= problem.needs[unit]
        self._remember(float(problem.values[chosen].sum()), chosen)


def _split(values: Array, needs: Mask) -> Array:
    """Share every facility out among the units that need it, by their values.

    No set of units pays more for its shares than for its facilities, so a knapsack with these costs bounds
    the true one.
    """
    weighted = values[:, None] * needs
    total = weighted.sum(axis=0)
    return weighted / np.where(total > 0, total, 1.0)


def _tied(still: Mask) -> list[Indices]:
    """Group the units that share a facility, directly or through others; leave out those that share none."""
    shared = still[:, still.sum(axis=0) > 1]
    pending = shared.any(axis=1)
    groups = []
    while pending.any():
        inside = np.zeros(len(still), bool)
        inside[pending.argmax()] = True
        size = 0
        while inside.sum() > size:
            size = int(inside.sum())
            inside = np.any(shared[:, shared[inside].any(axis=0)], axis=1)
        pending &= ~inside
        groups.append(np.flatnonzero(inside))
    return groups
