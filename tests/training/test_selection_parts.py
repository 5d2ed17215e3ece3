"""The parts of the exact selection, against other solvers and plain definitions; and the published one."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from benchmarks.published_selection import published_selection
from benchmarks.selection import chain, residual
from flower_edge.training._knapsack import Choices, _undominated, solve
from flower_edge.training._path_search import unions
from flower_edge.training._relaxation import price, relax
from flower_edge.training.backward_graph import BackwardGraph
from flower_edge.training.selection import BackwardBudget, select_tensors

Draw = Callable[[int, np.random.Generator], BackwardGraph]


def random_knapsack(seed: int, items: int, budgets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    costs = rng.exponential(size=(items, budgets)) * (rng.random((items, budgets)) > 0.1)
    return rng.lognormal(size=items), costs, rng.uniform(0.1, 0.9, budgets) * costs.sum(axis=0)


def program(
    graph: BackwardGraph, importance: dict[str, float], budget: BackwardBudget
) -> tuple[np.ndarray, LinearConstraint]:
    """Write a selection as a 0/1 program, with a variable for each tensor and each operation paid for."""
    names = list(graph.tensor_names)
    n, m = len(names), len(graph.operations)
    tensors = {tensor.name: tensor for operation in graph.operations for tensor in operation.tensors}
    rows, limits = [], []

    def needs(variable: int, operation: int) -> None:
        row = np.zeros(n + m)
        row[variable], row[n + operation] = 1.0, -1.0
        rows.append(row)
        limits.append(0.0)

    for index in range(m):
        for consumer in graph.consumers[index]:
            needs(n + index, consumer)
            for tensor in graph.operations[index].tensors:
                needs(names.index(tensor.name), consumer)
    own: dict[str, list[float]] = {
        "seconds": [tensors[name].grad_weight_seconds for name in names],
        "bytes": [tensors[name].saved_bytes + tensors[name].state_bytes for name in names],
    }
    way: dict[str, list[float]] = {
        "seconds": [operation.grad_input_seconds for operation in graph.operations],
        "bytes": [operation.saved_bytes for operation in graph.operations],
    }
    for name, limit in budget.finite.items():
        rows.append(np.array(own[name] + way[name]) / limit)
        limits.append(1.0)
    worth = np.array([importance[name] for name in names] + [0.0] * m)
    return worth, LinearConstraint(np.array(rows), ub=np.array(limits))


@pytest.mark.parametrize("seed", range(12))
def test_equals_a_mixed_integer_solver_on_larger_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = residual(45, rng)
    importance = dict(zip(graph.tensor_names, rng.lognormal(0, 1, 60).tolist(), strict=False))
    full = graph.full_cost
    budget = BackwardBudget(
        seconds=float(rng.uniform(0.2, 0.8)) * full.seconds,
        bytes=float(rng.uniform(0.2, 0.8)) * full.bytes if seed % 2 else np.inf,
    )
    worth, constraint = program(graph, importance, budget)
    best = milp(
        -worth,
        integrality=np.ones(len(worth)),
        bounds=Bounds(0, 1),
        constraints=constraint,
        options={"mip_rel_gap": 0},
    )

    selection = select_tensors(graph, importance, budget, time_limit=60.0)

    assert selection.proven_optimal
    # The other solver keeps within its limits up to 1e-6 or so.
    assert selection.importance == pytest.approx(-best.fun, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), budgets=st.integers(1, 3))
def test_relaxations_bound_and_one_budget_is_solved_exactly(seed: int, budgets: int) -> None:
    values, costs, slack = random_knapsack(seed, 25, budgets)
    continuous = -linprog(-values, A_ub=costs.T, b_ub=slack, bounds=(0, 1)).fun

    bound = price(values, costs, slack).bound

    assert bound >= continuous * (1 - 1e-9)
    assert bound <= continuous * (1 + (1e-9 if budgets == 1 else 0.05))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_knapsacks_are_relaxed_together_as_they_are_alone(seed: int) -> None:
    values, costs, _ = random_knapsack(seed, 20, 1)
    rng = np.random.default_rng(seed)
    free = rng.random((7, 20)) > 0.4
    slack = rng.uniform(0, 1, 7) * costs.sum()

    together = relax(values, costs[:, 0], free, slack).bound

    for row in range(7):
        alone = linprog(-values[free[row]], A_ub=costs[free[row]].T, b_ub=slack[row], bounds=(0, 1))
        assert together[row] == pytest.approx(-alone.fun, rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), budgets=st.integers(1, 3))
def test_knapsack_equals_every_subset_tried(seed: int, budgets: int) -> None:
    values, costs, slack = random_knapsack(seed, 12, budgets)
    subsets = (np.arange(2**12)[:, None] >> np.arange(12) & 1).astype(bool)
    totals = (subsets @ values)[(subsets @ costs <= slack).all(axis=1)]

    choices = Choices(values[:, None], costs[:, None])
    found = solve(choices, slack, price(values, costs, slack).prices, 0.0)

    assert found.value == pytest.approx(totals.max())
    assert found.untried <= found.value
    assert found.taken is not None
    taken = found.taken == 0
    assert values[taken].sum() == pytest.approx(found.value)
    assert (costs[taken].sum(axis=0) <= slack + 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    states=st.integers(1, 400),
    budgets=st.integers(1, 3),
    ties=st.booleans(),
)
def test_only_dominated_states_go(seed: int, states: int, budgets: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    value, cost = rng.random(states), rng.random((states, budgets))
    if ties:
        value, cost = np.rint(4 * value), np.rint(4 * cost)
    kept = _undominated(value, cost)

    no_worse = (value[:, None] >= value) & (cost[:, None] <= cost).all(axis=2)
    # Everything that went is matched by something that stayed, and with up to two budgets no more stays.
    assert no_worse[kept].any(axis=0).all()
    if budgets < 3:
        assert not (no_worse[np.ix_(kept, kept)] & ~np.eye(len(kept), dtype=bool)).any()


@settings(max_examples=60, deadline=None)
@given(paths=st.lists(st.integers(0, 255), max_size=8))
def test_unions_are_all_there_is(paths: list[int]) -> None:
    expected = {0}
    for path in paths:
        expected |= {path | other for other in expected}

    found = unions(paths, 1000)

    assert found is not None
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert unions(paths, len(expected) - 1) is not None
    assert len(expected) < 3 or unions(paths, len(expected) - 2) is None


@pytest.mark.parametrize("draw", [chain, residual])
def test_the_published_selection_fits_and_is_never_better(draw: Draw) -> None:
    behind = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        graph = draw(30, rng)
        importance = dict(zip(graph.tensor_names, rng.lognormal(0, 1, 60).tolist(), strict=False))
        budget = BackwardBudget(seconds=float(rng.uniform(0.1, 0.9)) * graph.full_cost.seconds)

        published = published_selection(graph, importance, budget.seconds)
        ours = select_tensors(graph, importance, budget)

        assert budget.allows(graph.cost(published))
        reached = sum(importance[name] for name in published)
        assert published
        assert reached <= ours.importance * (1 + 1e-9)
        behind += reached < ours.importance * (1 - 1e-9)
    assert behind


def test_the_published_selection_is_exact_on_a_grid_without_ways() -> None:
    """With times that are whole steps and free ways it is the textbook's dynamic program."""
    rng = np.random.default_rng(3)
    graph = chain(20, rng)
    operations = tuple(
        type(operation)(
            operation.name,
            operation.inputs,
            0.0,
            (type(operation.tensors[0])(operation.tensors[0].name, float(rng.integers(1, 20))),),
        )
        for operation in graph.operations
    )
    graph = BackwardGraph(operations)
    importance = dict(zip(graph.tensor_names, rng.lognormal(size=20).tolist(), strict=True))

    published = published_selection(graph, importance, 50.0, steps=50)

    ours = select_tensors(graph, importance, BackwardBudget(seconds=50.0))
    assert sum(importance[name] for name in published) == pytest.approx(ours.importance)
