"""What the accuracy benchmark of sign feedback compares, keeps, and says about it."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import sign_feedback_accuracy as benchmark
from benchmarks.cifar import Images
from benchmarks.fine_tuning import Budget, FineTuning
from benchmarks.harness import Benchmark
from benchmarks.sign_feedback_accuracy import (
    BOTH,
    BOTH_RISING,
    EXACT,
    FEEDBACK_ONLY,
    METHODS,
    PRUNED,
    PUBLISHED,
    SEEDS,
    Case,
    Method,
    budget_of,
    claim,
    default,
    fill,
    finish,
    found,
    kept_at,
    plot,
    start,
    todo,
    trained,
)
from flower_edge.kernels import prune
from flower_edge.training import SignFeedback
from flower_edge.training.pruning import PrunedFeedback, pruners

CASE = Case("fine-tuning", 0)
BUDGET = Budget(images=64, epochs=2, batch=16, rate=0.1, test_images=40)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(n: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    return Images(
        torch.from_numpy(rng.integers(0, 256, (n, 3, 8, 8), np.uint8)),
        torch.from_numpy(rng.integers(0, 10, n)),
    )


@pytest.fixture
def task() -> FineTuning:
    torch.manual_seed(5)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )
    return FineTuning(
        network, lambda model: list(model.children()), None, images(80, 0), images(50, 1), BUDGET, 0
    )


def test_every_run_has_an_exact_one_beside_it_and_comes_in_order() -> None:
    runs = todo(quick=False)

    assert len(runs) == len(set(runs)) == 2 * SEEDS * len(METHODS)
    for case, method in runs:
        assert runs.index((case, EXACT)) <= runs.index((case, method))
    # Whatever is cut off, the default's runs are among the first.
    assert {method for _, method in runs[: 4 * SEEDS]} == {EXACT, default()}
    for method in (PRUNED, BOTH, FEEDBACK_ONLY, PUBLISHED):
        assert (Case("from scratch", SEEDS - 1), method) in runs
    assert {method.sparsity for method in METHODS if method.feedback == "exact"} == {0.0, 0.8, 0.9, 0.95}
    assert budget_of("from scratch", quick=False).epochs >= 15


@pytest.mark.parametrize("method", [method for method in METHODS if method != EXACT], ids=str)
def test_methods_prune_as_they_say(method: Method, task: FineTuning) -> None:
    made = method.of(task.budget)

    outcome = trained(task, method)

    assert made.fallback == "never"
    assert made.feedback == method.feedback
    assert 0 <= outcome["accuracy"] <= 1
    assert outcome["skipped"] == pytest.approx(outcome["sparsity"])
    if method.published:
        assert 0.3 < outcome["sparsity"] < method.sparsity - 0.1
    elif method.start is None:
        assert outcome["sparsity"] == pytest.approx(method.sparsity, abs=0.02)
    else:
        assert method.start < outcome["sparsity"] < method.sparsity
    assert 0 < outcome["angle_first"] < 90
    assert 0 < outcome["angle_last"] < 120


def test_exact_gradients_are_left_alone(task: FineTuning) -> None:
    outcome = trained(task, EXACT)

    assert outcome["accuracy"] == task.alone(lambda model: None)
    assert {outcome[name] for name in ("sparsity", "skipped", "angle_first", "angle_last")} == {0.0}


def test_the_published_rule_is_a_gaussian_fit() -> None:
    """A Gaussian's share P is below the threshold, and some 54 % of it are zeros for P = 0.9."""
    part = PUBLISHED.of(BUDGET).rule(nn.Conv2d(1, 1, 1)).grad_weight
    assert isinstance(part, PrunedFeedback)
    grad = 3e-4 * torch.randn(8, 16, 32, 32, generator=torch.Generator().manual_seed(0))

    threshold = part.pruner.threshold(grad)

    assert float((grad.abs() < threshold).float().mean()) == pytest.approx(0.9, abs=0.005)
    assert prune(grad, threshold, 1).zero_fraction == pytest.approx(0.54, abs=0.01)


def test_what_decides_an_outcome_names_it() -> None:
    names = {
        kept_at(case, method, budget)
        for case in (CASE, Case("fine-tuning", 1), Case("from scratch", 0))
        for method in METHODS
        for budget in (BUDGET, Budget())
    }
    assert len(names) == 3 * len(METHODS) * 2


def test_networks_begin_alike_for_all_methods() -> None:
    first, again = (start(Case("from scratch", 3)).state_dict() for _ in range(2))
    other = start(Case("from scratch", 4)).state_dict()

    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert start(CASE).state_dict().keys() == first.keys()


def test_a_run_is_done_once_and_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Method] = []

    def train(task: object, method: Method) -> dict[str, float]:
        done.append(method)
        return {"accuracy": 0.5, "sparsity": 0.8, "skipped": 0.8, "angle_first": 30.0, "angle_last": 40.0}

    monkeypatch.setattr(benchmark, "cifar10", lambda folder: (images(80, 0), images(50, 1)))
    monkeypatch.setattr(benchmark, "trained", train)

    finish(CASE, BOTH, BUDGET, Path(), until=0.0)
    assert done == []
    for _ in range(2):
        finish(CASE, BOTH, BUDGET, Path(), until=float("inf"))

    assert done == [BOTH]
    kept = json.loads(kept_at(CASE, BOTH, BUDGET).read_text())
    assert kept["accuracy"] == 0.5
    assert Method(*(kept[name] for name in asdict(BOTH))) == BOTH


def keep(task: benchmark.Task, method: Method, accuracies: list[float]) -> None:
    for seed, accuracy in enumerate(accuracies):
        path = kept_at(Case(task, seed), method, budget_of(task, quick=False))
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = {"sparsity": 0.8, "skipped": 0.79, "angle_first": 30.0, "angle_last": 50.0}
        path.write_text(json.dumps({"accuracy": accuracy, **figures}))


def test_losses_are_against_the_same_seed_and_only_of_what_is_complete() -> None:
    keep("fine-tuning", EXACT, [0.70, 0.72, 0.74])
    keep("fine-tuning", BOTH, [0.69, 0.72, 0.73])
    keep("fine-tuning", PRUNED, [0.69])

    outcome = found("fine-tuning", BOTH, quick=False)

    assert outcome is not None
    assert outcome.lost == pytest.approx((1.0, 0.0, 1.0))
    assert outcome.mean_lost == pytest.approx(2 / 3)
    assert (outcome.sparsity, outcome.angle_last) == pytest.approx((80, 50))
    assert found("fine-tuning", PRUNED, quick=False) is None
    assert found("from scratch", BOTH, quick=False) is None


class NoPool:
    """Does at once what is submitted."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "NoPool":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function, *arguments):
        function(*arguments)
        return self

    def result(self) -> None: ...


def test_the_table_the_claims_and_the_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "runners", NoPool)
    for task, lost in (("fine-tuning", 0.004), ("from scratch", 0.02)):
        keep(task, EXACT, [0.70, 0.72, 0.74])
        keep(task, default(), [0.70 - lost, 0.72 - lost, 0.74 - lost])
    bench = Benchmark("sign_feedback_accuracy", quick=False)

    complete = fill(bench, Path(), hours=-1.0, device="cpu")
    claim(bench, complete)
    plot(bench.rows, str(tmp_path / "losses.svg"))

    assert [(row["task"], row["method"]) for row in bench.rows] == [
        (task, str(method))
        for task in ("fine-tuning", "from scratch")
        for method in METHODS
        if method in (EXACT, default())
    ]
    assert [claim["value"] for claim in bench.claims] == pytest.approx([0.4, 2.0])
    assert [claim["holds"] for claim in bench.claims] == [True, False]
    assert (tmp_path / "losses.svg").read_text().count("<svg") == 1


def test_the_default_is_among_the_methods() -> None:
    assert default() in METHODS
    assert default().of(Budget()).sparsity == SignFeedback().sparsity


def test_a_rising_sparsity_rises_over_a_third_of_the_steps(task: FineTuning) -> None:
    model = task.model(lambda model: benchmark.prepare_(model, BOTH_RISING.of(Budget())))
    (_, pruner), *_ = pruners(model)
    pruner.tally.passes = Budget().steps // 3
    assert pruner.sparsity_now() == BOTH_RISING.sparsity
    pruner.tally.passes -= 1
    assert pruner.sparsity_now() < BOTH_RISING.sparsity
