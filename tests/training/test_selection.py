"""The most important tensors within budgets, against every subset, one by one."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.training import _path_search
from flower_edge.training.backward_graph import BackwardGraph, Operation, SharedActivation, TrainableTensor
from flower_edge.training.selection import BackwardBudget, Selection, select_tensors

pytestmark = pytest.mark.board

KINDS = ("chain", "residual", "dense", "nested", "any")
BUDGETS = (("seconds",), ("bytes",), ("seconds", "bytes"), ("seconds", "bytes", "joules"))


class Builder:
    """Grows a random graph until it has the number of tensors asked for."""

    def __init__(self, rng: np.random.Generator, tensors: int) -> None:
        self.rng, self.left = rng, tensors
        self.operations: list[Operation] = []

    def add(self, *inputs: int, most: int = 2) -> int:
        rng = self.rng
        count = min(self.left, int(rng.integers(0, most + 1)))
        self.left -= count
        index = len(self.operations)
        tensors = tuple(
            TrainableTensor(
                f"{index}.{number}",
                # Zeros and ties are as common as anything else.
                float(rng.choice([0.0, 1.0, rng.exponential()])),
                int(rng.integers(0, 50)),
                int(rng.integers(0, 20)),
                float(rng.random()),
            )
            for number in range(count)
        )
        seconds = float(rng.choice([0.0, 0.5, rng.exponential(0.5)]))
        self.operations.append(
            Operation(str(index), inputs, seconds, tensors, int(rng.integers(0, 30)), float(rng.random()))
        )
        return index

    def line(self, start: int, length: int) -> int:
        for _ in range(length):
            start = self.add(start)
        return start

    def block(self, start: int, depth: int = 0) -> int:
        """Two branches that are added up; the second is a shortcut, or down-samples."""
        main = self.line(start, int(self.rng.integers(1, 4)))
        if depth:
            main = self.block(main, depth - 1)
        shortcut = self.line(start, int(self.rng.integers(0, 3)))
        return self.add(main, shortcut, most=0)


def random_graph(kind: str, tensors: int, rng: np.random.Generator, shared: bool = False) -> BackwardGraph:
    builder = Builder(rng, tensors)
    last = builder.add()
    while builder.left:
        everything = range(len(builder.operations))
        match kind:
            case "chain":
                last = builder.add(last)
            case "residual" | "nested":
                last = builder.block(last, depth=int(kind == "nested"))
            case "dense":
                last = builder.add(*everything[-int(rng.integers(1, 5)) :])
            case _:
                builder.add(*sorted({int(source) for source in rng.choice(everything, 2)}))
    operations = tuple(builder.operations)
    names = [tensor.name for operation in operations for tensor in operation.tensors]
    activations = tuple(
        SharedActivation(
            int(rng.integers(0, 80)),
            tuple({int(index) for index in rng.integers(0, len(operations), rng.integers(0, 3))}),
            tuple({str(name) for name in rng.choice(names, rng.integers(1, 4))}),
        )
        for _ in range(6 * shared)
    )
    return BackwardGraph(operations, activations)


def every_cost(graph: BackwardGraph, names: list[str]) -> dict[str, np.ndarray]:
    """What every subset of `names` costs, from the definition; subset s holds name i if its bit i is set."""
    subsets = (np.arange(2 ** len(names))[:, None] >> np.arange(len(names)) & 1).astype(bool)
    chosen = {name: subsets[:, index] for index, name in enumerate(names)}
    none = np.zeros(len(subsets), bool)
    seconds, size, joules = np.zeros((3, len(subsets)))
    behind: list[np.ndarray] = []
    paid: list[np.ndarray] = []
    for operation in graph.operations:
        pays = none.copy()
        for source in operation.inputs:
            pays = pays | behind[source]
        trained = pays
        for tensor in operation.tensors:
            takes = chosen.get(tensor.name, none)
            trained = trained | takes
            seconds += takes * tensor.grad_weight_seconds
            size += takes * (tensor.saved_bytes + tensor.state_bytes)
            joules += takes * tensor.grad_weight_joules
        seconds += pays * operation.grad_input_seconds
        size += pays * operation.saved_bytes
        joules += pays * operation.grad_input_joules
        behind.append(trained)
        paid.append(pays)
    for activation in graph.shared:
        kept = none
        for index in activation.grad_inputs:
            kept = kept | paid[index]
        for name in activation.tensors:
            kept = kept | chosen.get(name, none)
        size += kept * activation.saved_bytes
    return {"seconds": seconds, "bytes": size, "joules": joules}


def best_by_trying(graph: BackwardGraph, importance: dict[str, float], budget: BackwardBudget) -> float:
    names = [name for name in graph.tensor_names if importance[name] > 0]
    values = np.array([importance[name] for name in names])
    fits = np.ones(2 ** len(names), bool)
    for name, cost in every_cost(graph, names).items():
        fits &= cost <= getattr(budget, name) * (1 + 1e-12)
    totals = np.array([values @ (subset >> np.arange(len(names)) & 1) for subset in np.flatnonzero(fits)])
    return float(totals.max(initial=0.0))


def check(
    graph: BackwardGraph, importance: dict[str, float], budget: BackwardBudget, best: float
) -> Selection:
    selection = select_tensors(graph, importance, budget, time_limit=60.0)
    if selection.head_only:
        assert best == 0.0
        return selection
    assert selection.importance == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert selection.upper_bound == selection.importance
    assert selection.proven_optimal
    assert budget.allows(selection.cost)
    assert selection.cost == graph.cost(selection.names)
    assert all(importance[name] > 0 for name in selection.names)
    return selection


def random_case(seed: int) -> tuple[BackwardGraph, dict[str, float], BackwardBudget]:
    rng = np.random.default_rng(seed)
    kind, limited = KINDS[seed % len(KINDS)], BUDGETS[seed % len(BUDGETS)]
    graph = random_graph(kind, int(rng.integers(1, 15)), rng, shared=bool(seed % 3))
    draw: Callable[[], float] = (
        (lambda: float(rng.normal() + 0.7)) if seed % 7 else (lambda: float(rng.integers(0, 3)))
    )
    importance = {name: draw() for name in graph.tensor_names}
    full = graph.full_cost
    budget = BackwardBudget(**{name: float(rng.uniform(0.05, 1.0)) * getattr(full, name) for name in limited})
    return graph, importance, budget


@pytest.mark.parametrize("first", range(0, 400, 40))
def test_equals_every_subset_tried(first: int) -> None:
    for seed in range(first, first + 40):
        graph, importance, budget = random_case(seed)
        check(graph, importance, budget, best_by_trying(graph, importance, budget))


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_equals_every_subset_tried_when_it_has_to_branch(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where unions of paths are too many to list, few states are kept, and activations tie many tensors."""
    monkeypatch.setattr(_path_search, "MOST_PATHS", 1)
    monkeypatch.setattr(_path_search, "MOST_TOGETHER", 2)
    monkeypatch.setattr("flower_edge.training._knapsack.WIDTH", 2)
    for seed in range(first, first + 40):
        graph, importance, budget = random_case(seed)
        check(graph, importance, budget, best_by_trying(graph, importance, budget))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    importance=st.lists(st.floats(-1e3, 1e3), min_size=9, max_size=9),
    share=st.floats(0.0, 1.2),
)
def test_equals_every_subset_tried_at_any_importance(
    seed: int, kind: str, importance: list[float], share: float
) -> None:
    graph = random_graph(kind, 9, np.random.default_rng(seed))
    named = dict(zip(graph.tensor_names, importance, strict=True))
    budget = BackwardBudget(seconds=share * graph.full_cost.seconds)
    check(graph, named, budget, best_by_trying(graph, named, budget))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_a_greater_budget_never_selects_less(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(kind, 40, rng)
    importance = {name: float(rng.exponential()) for name in graph.tensor_names}
    found = [
        select_tensors(graph, importance, BackwardBudget(seconds=share * graph.full_cost.seconds))
        for share in (0.25, 0.5, 0.75, 1.0)
    ]
    reached = [0.0 if selection.head_only else selection.importance for selection in found]
    assert reached == sorted(reached)
    assert set(found[-1].names) == set(graph.tensor_names)


def test_units_are_chosen_together_or_not_at_all() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        graph = random_graph(KINDS[seed % len(KINDS)], 10, rng, shared=True)
        importance = {name: float(rng.normal() + 0.5) for name in graph.tensor_names}
        names = [str(name) for name in rng.permutation(graph.tensor_names)]
        units = [names[:2], names[2:5], names[5:7]]
        budget = BackwardBudget(0.5 * graph.full_cost.seconds, 0.7 * graph.full_cost.bytes)
        groups = [*units, *([name] for name in names[7:])]
        best = 0.0
        for subset in range(2 ** len(groups)):
            tried = [group for index, group in enumerate(groups) if subset >> index & 1]
            worth = [sum(importance[name] for name in group) for group in tried]
            if min(worth, default=0.0) > 0 and budget.allows(
                graph.cost(name for group in tried for name in group)
            ):
                best = max(best, sum(worth))

        selection = select_tensors(graph, importance, budget, units=units)

        if selection.head_only:
            assert best == 0.0
            continue
        assert selection.importance == pytest.approx(best, rel=1e-9)
        for unit in units:
            assert len(set(unit) & set(selection.names)) in (0, len(unit))


def chain(*seconds: tuple[float, float]) -> BackwardGraph:
    """A tensor an operation: pairs of the times of its gradient and of that of the operation's input."""
    return BackwardGraph(
        tuple(
            Operation(f"layer{i}", (i - 1,) if i else (), dy, (TrainableTensor(f"w{i}", dw),))
            for i, (dw, dy) in enumerate(seconds)
        )
    )


def test_a_shortcut_spares_the_other_branch() -> None:
    """Of two parallel branches, only the one that leads to a trained tensor is travelled."""
    graph = BackwardGraph(
        (
            Operation("stem", ()),
            Operation("branch", (0,), 1.0, (TrainableTensor("branch.w", 1.0),)),
            Operation("dear", (1,), 100.0),
            Operation("shortcut", (0,), 1.0, (TrainableTensor("shortcut.w", 1.0),)),
            Operation("add", (2, 3), 0.5),
        )
    )
    selection = select_tensors(graph, {"branch.w": 5.0, "shortcut.w": 1.0}, BackwardBudget(seconds=2.0))

    assert selection.names == ("shortcut.w",)
    assert selection.cost.seconds == 1.5
    assert selection.limits == ("seconds",)


def test_a_tensor_read_twice_pays_for_both() -> None:
    tied = Operation("first", (), 0.0, (TrainableTensor("tied", 1.0, state_bytes=8),))
    again = Operation("last", (0,), 3.0, (TrainableTensor("tied", 2.0), TrainableTensor("head", 0.5)))
    graph = BackwardGraph((tied, again))
    importance = {"tied": 2.0, "head": 1.0}

    assert graph.cost(["tied"]).seconds == 6.0
    assert select_tensors(graph, importance, BackwardBudget(seconds=6.0)).names == ("tied",)
    assert select_tensors(graph, importance, BackwardBudget(seconds=5.9)).names == ("head",)


def test_an_activation_that_three_tensors_share_is_kept_once() -> None:
    readers = tuple(Operation(name, (0,), 0.0, (TrainableTensor(name, 1.0),)) for name in "qkv")
    graph = BackwardGraph(
        (Operation("norm", ()), *readers), (SharedActivation(100, tensors=("q", "k", "v")),)
    )

    selection = select_tensors(graph, dict.fromkeys("qkv", 1.0), BackwardBudget(bytes=100))

    assert selection.names == ("q", "k", "v")
    assert selection.cost.saved_bytes == 100


@pytest.mark.parametrize("budget", [BackwardBudget(), BackwardBudget(seconds=1e9, bytes=1e9)])
def test_without_a_limit_all_that_matters_is_chosen(budget: BackwardBudget) -> None:
    graph = chain((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    selection = select_tensors(graph, {"w0": 1.0, "w1": -1.0, "w2": 0.0}, budget)

    assert selection.names == ("w0",)
    assert selection.limits == ()
    assert selection.proven_optimal


def test_a_budget_of_nothing_falls_back_on_the_head() -> None:
    graph = chain((1.0, 1.0), (2.0, 1.0))
    selection = select_tensors(graph, {"w0": 1.0, "w1": 3.0}, BackwardBudget(seconds=0.0))

    assert selection.names == ("w1",)
    assert selection.head_only
    assert not selection.proven_optimal
    assert selection.limits == ("seconds",)
    assert "0 seconds (the cheapest needs 2)" in selection.note
    assert "w1" in selection.note


def test_the_head_brings_its_unit() -> None:
    graph = chain((1.0, 1.0), (2.0, 1.0), (2.0, 1.0))
    units = iter([("w2", "w1")])
    selection = select_tensors(
        graph, dict.fromkeys(graph.tensor_names, 1.0), BackwardBudget(seconds=0.0), units=units
    )

    assert selection.names == ("w1", "w2")


def test_a_budget_of_nothing_takes_what_costs_nothing() -> None:
    graph = chain((0.0, 0.0), (2.0, 0.0), (0.0, 1.0), (0.0, 0.0))
    selection = select_tensors(graph, dict.fromkeys(graph.tensor_names, 1.0), BackwardBudget(seconds=0.0))

    assert selection.names == ("w2", "w3")
    assert not selection.head_only


def test_nothing_is_important() -> None:
    selection = select_tensors(chain((1.0, 1.0)), {"w0": -1.0}, BackwardBudget(seconds=5.0))

    assert selection.names == ()
    assert selection.importance == 0.0
    assert "no tensor has a positive importance" in selection.note


def test_an_empty_graph() -> None:
    assert select_tensors(BackwardGraph(()), {}, BackwardBudget(seconds=1.0)).names == ()


def test_equal_importances_and_equal_times() -> None:
    graph = chain(*[(1.0, 0.0)] * 160)
    selection = select_tensors(graph, dict.fromkeys(graph.tensor_names, 1.0), BackwardBudget(seconds=77.5))

    assert selection.importance == 77.0
    assert selection.proven_optimal


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9, 1e290])
def test_the_scale_of_importances_and_times_does_not_matter(scale: float) -> None:
    graph = chain(*[(scale * (1 + i % 5), scale) for i in range(12)])
    importance = {name: scale * (1 + i % 3) for i, name in enumerate(graph.tensor_names)}
    budget = BackwardBudget(seconds=20 * scale)

    found = select_tensors(graph, importance, budget)

    assert found.importance / scale == pytest.approx(best_by_trying(graph, importance, budget) / scale)


def test_when_time_runs_out_the_bound_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flower_edge.training._knapsack.WIDTH", 1)
    unproven = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        graph = random_graph("residual", 14, rng, shared=True)
        importance = {name: float(rng.exponential()) for name in graph.tensor_names}
        full = graph.full_cost
        budget = BackwardBudget(0.5 * full.seconds, 0.5 * full.bytes, 0.5 * full.joules)
        best = best_by_trying(graph, importance, budget)

        selection = select_tensors(graph, importance, budget, time_limit=1e-9)

        assert budget.allows(selection.cost)
        assert selection.importance <= best * (1 + 1e-9)
        assert selection.upper_bound >= best * (1 - 1e-9)
        assert selection.proven_optimal == (selection.note == "")
        unproven += not selection.proven_optimal
    assert unproven


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ({"w0": math.nan}, "importance of 'w0' is nan"),
        ({"w0": math.inf}, "importance of 'w0' is inf"),
        ({}, "'w0' is without an importance"),
        ({"w0": 1.0, "w9": 1.0}, "'w9' is unknown to the graph"),
    ],
)
def test_refuses_importances_that_do_not_fit(importance: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_tensors(chain((1.0, 1.0)), importance, BackwardBudget(seconds=1.0))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([["w0", "w1"], ["w1"]], "'w1' is named by units twice"),
        ([["w7"]], "names 'w7'"),
        ([[]], "a unit is \\[\\]"),
        (["w0"], "a unit is 'w0'"),
    ],
)
def test_refuses_units_that_do_not_fit(units: list[list[str]], message: str) -> None:
    graph = chain((1.0, 1.0), (1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        select_tensors(graph, {"w0": 1.0, "w1": 1.0}, BackwardBudget(seconds=1.0), units=units)


def test_refuses_budgets_and_time_limits_without_meaning() -> None:
    with pytest.raises(ValueError, match="budget of seconds is -1"):
        BackwardBudget(seconds=-1.0)
    with pytest.raises(ValueError, match="budget of bytes is nan"):
        BackwardBudget(bytes=math.nan)
    with pytest.raises(ValueError, match="time_limit is 0"):
        select_tensors(chain((1.0, 1.0)), {"w0": 1.0}, BackwardBudget(), time_limit=0.0)
