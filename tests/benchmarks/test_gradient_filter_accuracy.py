"""What the accuracy benchmark of gradient filtering runs, keeps, and says about it."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gradient_filter_accuracy as benchmark
from benchmarks.fine_tuning import Budget
from benchmarks.gradient_filter_accuracy import (
    ALL,
    CLAIMED,
    CURVES,
    DEFAULT,
    EXACT,
    FROZEN,
    NODES,
    PAPER,
    SEEDS,
    Case,
    Method,
    budget_of,
    cases,
    change,
    finish,
    found,
    groups,
    kept_at,
    methods_of,
    plan,
    plot,
)
from benchmarks.harness import Benchmark
from benchmarks.networks import resnet20
from benchmarks.pretrain import pretrained
from flower_edge.training import EdgeConv2d

CASE = Case("resnet20", 1, 4, 0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Task:
    """Stands for minutes of training: exact gradients reach 80 %, others lose components + 1 points."""

    def __init__(self, seed: int) -> None:
        self.seed, self.runs = seed, 0

    def alone(self, start: object) -> float:
        assert callable(start)
        self.runs += 1
        model = resnet20(10)
        start(model)
        rules = [layer.rule.saved for layer in model.modules() if isinstance(layer, EdgeConv2d)]
        return 0.8 + 0.01 * self.seed - (0.01 * (1 + rules[0].components) if rules else 0.0)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    made: list[Task] = []

    def fine_tuning(case: Case, budget: Budget, folder: Path, device: str) -> Task:
        made.append(Task(case.seed))
        return made[-1]

    monkeypatch.setattr(benchmark, "fine_tuning", fine_tuning)
    return made


def test_every_case_has_its_seeds_and_an_exact_run() -> None:
    every = list(groups(quick=False))

    assert sum(map(len, every)) == len(cases(quick=False)) == len(set(cases(quick=False)))
    for group in every:
        assert [case.seed for case in group] == list(range(SEEDS))
        assert len({(case.network, case.nodes, case.layers) for case in group}) == 1
        assert {EXACT, FROZEN, PAPER} < set(methods_of(group[0]))
    assert CLAIMED in {(c.network, c.nodes, c.layers) for group in every for c in group}
    for network in ("resnet20", "mobilenet_v2"):
        trained = {(group[0].nodes, group[0].layers) for group in every if group[0].network == network}
        assert trained == {(NODES, 4), (NODES, ALL), *((1, layers) for layers in (1, 2, 3, 4, ALL))}


def test_a_run_is_done_once(tasks: list[Task]) -> None:
    budget = budget_of(CASE, quick=False)
    kept_at(CASE, PAPER, budget).parent.mkdir(parents=True)
    kept_at(CASE, PAPER, budget).write_text(json.dumps({"accuracy": 0.5}))

    finish(CASE, budget, Path())
    finish(CASE, budget, Path())

    (task,) = tasks
    assert task.runs == len(methods_of(CASE)) - 1
    kept = json.loads(kept_at(CASE, EXACT, budget).read_text())
    assert kept["accuracy"] == 0.8
    assert Case(*(kept[name] for name in ("network", "nodes", "layers", "seed"))) == CASE
    assert json.loads(kept_at(CASE, PAPER, budget).read_text()) == {"accuracy": 0.5}


def test_no_run_begins_when_it_is_late(tasks: list[Task]) -> None:
    finish(CASE, budget_of(CASE, quick=False), Path(), until=0.0)

    assert not tasks
    assert found([CASE], EXACT, quick=False) is None


def test_everything_that_decides_an_outcome_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        kept_at(case, method, budget)
        for case in (CASE, Case("resnet20", 1, 4, 1), Case("resnet20", NODES, 4, 0))
        for method in (EXACT, *CURVES)
        for budget in (Budget(), Budget(epochs=4))
    }
    assert len(names) == 3 * (1 + len(CURVES)) * 2

    before = kept_at(CASE, PAPER, Budget())
    monkeypatch.setattr(benchmark, "tap_symbols", lambda *_: torch.zeros(1))
    assert kept_at(CASE, PAPER, Budget()) != before


def test_losses_are_against_exact_gradients_of_the_same_seed(tasks: list[Task]) -> None:
    group = [case for case in cases(quick=False) if (case.network, case.nodes, case.layers) == CLAIMED]
    for case in group:
        finish(case, budget_of(case, quick=False), Path())

    exact, filtered = (found(group, method, quick=False) for method in (EXACT, Method(4, 8)))

    assert exact.lost == (0.0,) * SEEDS
    assert exact.mean == pytest.approx(81)
    assert exact.spread == pytest.approx(1)
    assert filtered.mean_lost == pytest.approx(9)
    assert filtered.spread_lost == pytest.approx(0)


@pytest.mark.parametrize(("layers", "filtered"), [(1, 1), (4, 4), (ALL, 20)])
def test_methods_filter_what_the_case_says(layers: int, filtered: int) -> None:
    model = resnet20(10)

    change(Method(4, 8), layers)(model)

    chosen = [layer for layer in model.modules() if isinstance(layer, EdgeConv2d)]
    assert len(chosen) == filtered
    assert {(layer.rule.saved.patch_size, layer.rule.saved.components) for layer in chosen} == {(4, 8)}
    exact = resnet20(10)
    change(EXACT, layers)(exact)
    assert {type(layer) for layer in exact.modules() if isinstance(layer, nn.Conv2d)} == {nn.Conv2d}
    frozen = resnet20(10)
    change(FROZEN, layers)(frozen)
    assert sum(not parameter.requires_grad for parameter in frozen.parameters()) == filtered


def test_the_plan_is_for_the_nodes_of_the_gossip() -> None:
    assert plan().n == NODES
    assert 0 < plan().rho < 1


@pytest.mark.parametrize("missing", [None, "everything", EXACT, FROZEN, DEFAULT])
def test_claims_are_made_where_their_runs_are_complete(
    missing: Method | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, nodes, layers = CLAIMED
    rows = [
        {
            **{"network": network, "nodes": nodes, "layers": f"last {layers}", "method": str(method)},
            **{"accuracy": accuracy, "lost": 80.0 - accuracy, "backward_faster_measured": 6.0},
        }
        for method, accuracy in ((EXACT, 80.0), (FROZEN, 70.0), (DEFAULT, 79.8))
        if missing not in (method, "everything")
    ]
    monkeypatch.setattr(benchmark, "fill", lambda *_: rows)
    bench = Benchmark("gradient_filter_accuracy", quick=False)
    bench.options = Namespace(data=Path(), hours=0.0, device="cpu", plot=None)

    benchmark.main(bench)

    assert len(bench.claims) == (0 if missing else 3)
    assert bench.holds


def test_the_figure_has_a_curve_for_each_patch_size(tmp_path: Path) -> None:
    network, nodes, layers = CLAIMED
    rows = [
        {
            **{"network": network, "nodes": nodes, "layers": f"last {layers}", "method": str(method)},
            **{"accuracy": 70.0 + k, "spread": 0.2, "operations_fewer_counted": 1.0 + k},
        }
        for k, method in enumerate((EXACT, *CURVES))
    ]

    plot(rows, str(tmp_path / "curve.svg"))

    text = (tmp_path / "curve.svg").read_text()
    assert text.count("<svg") == 1
    assert len(text) > 10_000


def test_the_committed_checkpoint_knows_its_five_classes() -> None:
    """A random head would answer with any class, a trained one only with those that it has seen."""
    model = pretrained("resnet20").eval()

    with torch.inference_mode():
        outputs = model(torch.randn(64, 3, 32, 32))

    assert set(outputs.argmax(1).tolist()) <= set(range(5))
