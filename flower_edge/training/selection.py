"""Which tensors to train within budgets of time, memory and energy: the most important set, exactly.

Huang, Yang, Gao, "ElasticTrainer", MobiSys 2023, pose the problem on a chain and solve it with times rounded
to a grid. Here the costs stay real numbers and the graph stays what it is, residual branches and all:

* Fix which operations pass a gradient on (a union of paths from the output). Their cost is sunk, all tensors
  that they reach are free, and what is left is a 0/1 knapsack. On a chain there is one such union for each
  deepest tensor; branches within one block multiply, blocks add up.
* A continuous knapsack bounds every union, all of them at once. They are then solved exactly in the order of
  their bounds, until no bound is left above the best choice found.
* If there are too many unions, the search branches on single operations instead, bounded by knapsacks in
  which every tensor pays a share of its path.
"""

import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from flower_edge.training._facilities import Facilities, lay_out
from flower_edge.training._knapsack import ROUNDING
from flower_edge.training._path_search import Problem, search
from flower_edge.training._relaxation import Array, Indices, Mask
from flower_edge.training.backward_graph import BackwardGraph, Cost


@dataclass(frozen=True)
class BackwardBudget:
    """What training may cost beyond the fixed costs of a step; all of it holds at once.

    Parameters
    ----------
    seconds : float, default inf
        Backward time.
    bytes : float, default inf
        Saved activations, gradients and optimizer state together.
    joules : float, default inf
        Energy of the backward pass.

    Raises
    ------
    ValueError
        If a budget is negative or NaN.
    """

    seconds: float = math.inf
    bytes: float = math.inf
    joules: float = math.inf

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if not limit >= 0:
                raise ValueError(f"the budget of {name} is {limit}, expected at least 0 (inf for no limit)")

    @property
    def finite(self) -> dict[str, float]:
        """The budgets that limit anything, by name."""
        return {name: float(limit) for name, limit in asdict(self).items() if limit < math.inf}

    def allows(self, cost: Cost) -> bool:
        """Whether a cost is within every budget, up to a relative rounding error of 1e-12."""
        return all(getattr(cost, name) <= limit * (1 + ROUNDING) for name, limit in self.finite.items())


@dataclass(frozen=True)
class Selection:
    """The tensors to train.

    Attributes
    ----------
    names : tuple of str
        In the order of the forward pass.
    importance : float
        Their total.
    cost : Cost
        What training them costs; within the budgets unless `head_only`.
    upper_bound : float
        No set within the budgets has a greater importance.
    proven_optimal : bool
        Whether `importance` reaches the bound, up to a relative rounding error of 1e-12. Otherwise time ran
        out.
    limits : tuple of str
        The budgets that keep a further tensor of positive importance from joining; empty if all are chosen.
    head_only : bool
        Whether no tensor of positive importance fits the budgets, or there is none, so that the head, the
        tensors of the last operation that reads any for the first time and their units, was taken in spite
        of them.
    note : str
        What to tell a person about it; empty if there is nothing to tell.
    """

    names: tuple[str, ...]
    importance: float
    cost: Cost
    upper_bound: float
    proven_optimal: bool
    limits: tuple[str, ...]
    head_only: bool = False
    note: str = ""


def select_tensors(
    graph: BackwardGraph,
    importance: Mapping[str, float],
    budget: BackwardBudget,
    *,
    units: Iterable[Collection[str]] = (),
    time_limit: float = 1.0,
) -> Selection:
    """Find the tensors of greatest total importance whose training stays within all budgets.

    Parameters
    ----------
    graph : BackwardGraph
        What training costs.
    importance : mapping of str to float
        Of every tensor of the graph. One without a positive importance is never chosen, except as a part of a
        unit.
    budget : BackwardBudget
        Limits beyond the fixed costs of a step.
    units : iterable of collections of str, optional
        Tensors that are chosen together or not at all, such as a convolution and its normalisation. A unit
        counts with the sum of its importances.
    time_limit : float, default 1.0
        Seconds after which the best set found is returned with the bound proven until then. The first set
        takes some milliseconds in any case.

    Returns
    -------
    Selection
        Optimal if `Selection.proven_optimal`.

    Raises
    ------
    ValueError
        If an importance is missing, unknown or not finite, a unit names an unknown tensor or one that another
        unit has, or the time limit is not positive.
    """
    if not time_limit > 0:
        raise ValueError(f"time_limit is {time_limit}, expected more than 0 seconds")
    deadline = time.perf_counter() + time_limit
    units = list(units)
    _check_importance(graph, importance)
    worth = {}
    for unit in _all_units(graph, units):
        total = math.fsum(importance[name] for name in unit)
        if total > 0:
            worth[unit] = total
    if not worth:
        return _selection(graph, importance, (), note="no tensor has a positive importance")
    limits = budget.finite
    facilities = lay_out(graph, list(worth), list(limits))
    available = np.array(list(limits.values()))
    fitting = np.flatnonzero((facilities.alone <= available * (1 + ROUNDING)).all(axis=1))
    if not len(fitting):
        return _head(graph, importance, limits, facilities, units)
    values = np.array(list(worth.values()))
    scale = values.max()
    problem = _within(facilities, values / scale, available, fitting)
    found = search(problem, deadline)
    chosen = np.zeros(len(values), bool)
    chosen[fitting] = found.chosen
    return _selection(
        graph,
        importance,
        [name for unit, taken in zip(worth, chosen, strict=True) if taken for name in unit],
        upper_bound=None if found.proven else found.upper_bound * float(scale),
        limits=_what_limits(facilities, chosen, limits),
    )


def head(graph: BackwardGraph, units: Iterable[Collection[str]] = ()) -> tuple[str, ...]:
    """Return the tensors of the last operation that reads any for the first time, with all of their units."""
    for index, operation in reversed(tuple(enumerate(graph.operations))):
        own = {tensor.name for tensor in operation.tensors if graph.readers[tensor.name][0] == index}
        if own:
            own = own.union(*(unit for unit in units if not own.isdisjoint(unit)))
            return tuple(name for name in graph.tensor_names if name in own)
    raise ValueError("the graph has no tensors, expected one to train")


def _check_importance(graph: BackwardGraph, importance: Mapping[str, float]) -> None:
    differing = sorted(importance.keys() ^ graph.readers.keys())
    if differing:
        what = "unknown to the graph" if differing[0] in importance else "without an importance"
        raise ValueError(
            f"tensor {differing[0]!r} is {what}, expected an importance for each of the graph's "
            f"{len(graph.readers)} tensors and for nothing else"
        )
    for name, value in importance.items():
        if not math.isfinite(value):
            raise ValueError(f"the importance of {name!r} is {value}, expected a finite number")


def _all_units(graph: BackwardGraph, units: Iterable[Collection[str]]) -> list[tuple[str, ...]]:
    """Return the units given, and one for each tensor that none of them has."""
    found: list[tuple[str, ...]] = []
    taken: set[str] = set()
    for unit in units:
        if isinstance(unit, str) or not unit:
            raise ValueError(f"a unit is {unit!r}, expected a collection of tensor names such as a list")
        for name in unit:
            if name not in graph.readers:
                raise ValueError(f"a unit names {name!r}, expected a tensor of the graph")
            if name in taken:
                raise ValueError(f"tensor {name!r} is named by units twice, expected at most once")
            taken.add(name)
        found.append(tuple(unit))
    return found + [(name,) for name in graph.tensor_names if name not in taken]


def _within(facilities: Facilities, values: Array, available: Array, fitting: Indices) -> Problem:
    """Keep the units that fit alone, and measure costs in shares of the budgets."""
    needs = facilities.needs[fitting]
    facility_costs = np.where(needs.any(axis=0, keepdims=True).T, facilities.facility_costs, 0.0)
    # What fits in a budget of nothing costs nothing.
    real = available > 0
    return Problem(
        values[fitting],
        facilities.costs[fitting][:, real] / available[real],
        facility_costs[:, real] / available[real],
        needs,
        [facilities.paths[index] for index in fitting],
    )


def _head(
    graph: BackwardGraph,
    importance: Mapping[str, float],
    limits: Mapping[str, float],
    facilities: Facilities,
    units: Iterable[Collection[str]],
) -> Selection:
    """Fall back on the head."""
    cheapest = facilities.alone.min(axis=0)
    found = ", ".join(
        f"{limit:.4g} {name} (the cheapest needs {least:.4g})"
        for (name, limit), least in zip(limits.items(), cheapest, strict=True)
    )
    selection = _selection(graph, importance, head(graph, units), limits=tuple(limits))
    return replace(
        selection,
        upper_bound=0.0,
        proven_optimal=False,
        head_only=True,
        note=f"no tensor of positive importance fits the budget of {found}; "
        f"the head is trained in spite of it: {', '.join(selection.names)}",
    )


def _what_limits(facilities: Facilities, chosen: Mask, limits: Mapping[str, float]) -> tuple[str, ...]:
    paid: Mask = np.any(facilities.needs[chosen], axis=0, keepdims=True)[0]
    spent = facilities.costs[chosen].sum(axis=0) + paid @ facilities.facility_costs
    more = facilities.costs[~chosen] + (facilities.needs[~chosen] & ~paid) @ facilities.facility_costs
    over = (spent + more > np.array(list(limits.values())) * (1 + ROUNDING)).any(axis=0)
    return tuple(name for name, exceeded in zip(limits, over, strict=True) if exceeded)


def _selection(
    graph: BackwardGraph,
    importance: Mapping[str, float],
    names: Iterable[str],
    upper_bound: float | None = None,
    limits: tuple[str, ...] = (),
    note: str = "",
) -> Selection:
    chosen = frozenset(names)
    ordered = tuple(name for name in graph.tensor_names if name in chosen)
    total = math.fsum(importance[name] for name in ordered)
    return Selection(
        names=ordered,
        importance=total,
        cost=graph.cost(ordered),
        upper_bound=total if upper_bound is None else max(total, upper_bound),
        proven_optimal=upper_bound is None,
        limits=limits,
        note=note or ("" if upper_bound is None else "time ran out before this was proven to be the best"),
    )
