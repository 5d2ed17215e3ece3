"""What the accuracy benchmark of elastic training compares, keeps, and says about it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import elastic_accuracy as benchmark
from benchmarks.cifar import Images
from benchmarks.elastic_accuracy import (
    FULL,
    NETWORKS,
    NORM_AND_BIAS,
    SEEDS,
    SHARES,
    Case,
    Found,
    cases,
    claim,
    finish,
    found,
    groups,
    kept_at,
    measured_shares,
    methods,
    plot,
    rivals,
)
from benchmarks.elastic_methods import TRACKED, Method, choosing, fixed_choice, share_of, train_only
from benchmarks.fine_tuning import Budget, FineTuning
from benchmarks.harness import Benchmark, Timing
from benchmarks.step_times import StepTiming, TrainingStep
from flower_edge.training import Profile, profile

BUDGET = Budget(images=64, epochs=2, batch=16, rate=0.1, test_images=40)
HEAD = ("6.weight", "6.bias")


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


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


@pytest.fixture
def task() -> FineTuning:
    return FineTuning(
        network(), lambda model: list(model.children()), None, images(80, 0), images(50, 1), BUDGET, 0
    )


@pytest.fixture
def its_profile(task: FineTuning) -> Profile:
    model = task.model(lambda model: None).train()
    return profile(model, task.batches[0], cross_entropy, optimizer=task.optimizer(model), repeats=3)


def test_the_fixed_choices_are_what_their_names_say(its_profile: Profile) -> None:
    graph, model = its_profile.graph, network()

    def chosen(method: Method) -> set[str]:
        return set(fixed_choice(method, graph, model))

    norms_and_biases = {"0.bias", "1.weight", "1.bias", "3.bias", *HEAD}
    assert chosen(FULL) == {name for name, _ in model.named_parameters()}
    assert chosen(Method("last layer")) == set(HEAD)
    assert chosen(NORM_AND_BIAS) == norms_and_biases
    with pytest.raises(ValueError, match="by importance"):
        chosen(Method("ours", 0.5))
    for kind, candidates in (("last k", set(graph.tensor_names)), ("norm + bias", norms_and_biases)):
        for share in SHARES:
            names = chosen(Method(kind, share))
            in_order = [name for name in graph.tensor_names if name in candidates]
            assert names == set(in_order[len(in_order) - len(names) :]), "the last ones"
            assert share_of(graph, names) <= share
            longer = in_order[len(in_order) - len(names) - 1 :]
            assert share_of(graph, longer) > share or len(names) == len(in_order)


@pytest.mark.parametrize(
    "method", [FULL, Method("last k", 0.5), Method("published", 0.6), Method("ours", 0.6)]
)
def test_only_what_is_chosen_moves(method: Method, task: FineTuning, its_profile: Profile) -> None:
    chosen: list[tuple[str, ...]] = []
    seen: list[nn.Module] = []

    task.alone(seen.append, choosing(method, its_profile, 3, chosen))

    before = network().state_dict()
    after = dict(seen[0].named_parameters())
    moved = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    assert moved == {name for names in chosen for name in names}
    assert len(chosen) == (3 if method.kind in TRACKED else 1), "8 steps, an interval of 3"
    assert all(share_of(its_profile.graph, names) <= method.share * (1 + 1e-9) for names in chosen)


def test_ours_is_at_least_as_important_as_the_published_choice(
    task: FineTuning, its_profile: Profile
) -> None:
    """The first choices of both come from the same importances."""
    from flower_edge.training import ElasticTrainer, Time

    model = task.model(lambda model: None).train()
    trainer = ElasticTrainer(model, task.optimizer(model), cross_entropy, Time(0.6), profile=its_profile)
    importance = trainer.importance(task.batches[0])
    totals = {}
    for kind in TRACKED:
        chosen: list[tuple[str, ...]] = []
        task.alone(lambda model: None, choosing(Method(kind, 0.6), its_profile, 100, chosen))
        totals[kind] = sum(importance[name] for name in chosen[0])

    assert totals["ours"] >= totals["published"] > 0


def test_what_is_not_trained_has_no_gradient() -> None:
    model = network()
    model(torch.randn(2, 3, 8, 8)).sum().backward()

    train_only(model, HEAD)

    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in HEAD)
        assert (parameter.grad is not None) == (name in HEAD)


def test_every_network_has_its_seeds_and_every_share_its_rivals() -> None:
    every = dict(groups(quick=False))

    assert tuple(every) == NETWORKS
    assert all([case.seed for case in group] == list(range(SEEDS)) for group in every.values())
    assert sum(map(len, every.values())) == len(set(cases(quick=False)))
    compared = methods(quick=False)
    assert len(set(compared)) == len(compared)
    for share in SHARES:
        assert {*rivals(share), Method("ours", share), Method("published", share), FULL} <= set(compared)
        assert {method.kind for method in rivals(share)} == {"last k", "norm + bias"}


def test_a_run_is_done_once(task: FineTuning, its_profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Case] = []
    monkeypatch.setattr(benchmark, "fine_tuning", lambda case, *_: prepared.append(case) or task)
    case, todo = Case("resnet20", 0), [FULL, Method("ours", 0.6)]
    kept_at(case, FULL, BUDGET).parent.mkdir(parents=True)
    kept_at(case, FULL, BUDGET).write_text(json.dumps({"accuracy": 0.5, "chosen": [["6.weight"]]}))

    for _ in range(2):
        finish(case, todo, BUDGET, its_profile, Path())

    assert prepared == [case]
    outcome = found([case], Method("ours", 0.6), BUDGET)
    assert found([case], FULL, BUDGET).accuracy == (50.0,)
    assert share_of(its_profile.graph, outcome.chosen[0][0]) <= 0.6
    assert 0 <= outcome.mean <= 100
    names = {kept_at(Case("resnet20", seed), method, BUDGET) for seed in (0, 1) for method in methods(False)}
    assert len(names) == 2 * len(methods(False))


def test_shares_are_measured_of_the_first_seed(task: FineTuning, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts the tensors that are trained."""

    def counted(steps: dict[str, TrainingStep], repeats: int) -> dict[str, StepTiming]:
        trained = {
            name: float(sum(parameter.requires_grad for parameter in step.model.parameters()))
            for name, step in steps.items()
        }
        return {name: StepTiming(*3 * [Timing((seconds,) * repeats)]) for name, seconds in trained.items()}

    monkeypatch.setattr(benchmark, "interleaved_steps", counted)
    everything = tuple(name for name, _ in network().named_parameters())
    outcomes = {
        FULL: Found((50.0,), ((everything,),)),
        Method("last layer"): Found((50.0, 60.0), ((HEAD,), (everything,))),
        Method("ours", 0.5): Found((50.0,), ((HEAD, everything),)),
    }

    shares = measured_shares(task, outcomes)

    assert shares == {FULL: 1.0, Method("last layer"): 2 / 8, Method("ours", 0.5): (2 / 8 + 1) / 2}


def outcomes(ours: float) -> dict[Method, Found]:
    other = {method: Found((79.0, 81.0), ()) for method in methods(quick=False)}
    return other | {Method("ours", share): Found((ours - 1, ours + 1), ()) for share in SHARES}


def test_claims_are_about_differences_with_the_same_seed() -> None:
    better, worse = (Benchmark("elastic_accuracy", quick=False) for _ in range(2))

    claim(better, "resnet20", outcomes(80.3))
    claim(worse, "resnet20", outcomes(79.4))

    assert better.holds
    assert not any(entry["holds"] for entry in worse.claims)
    assert [entry["value"] for entry in worse.claims] == pytest.approx([0.6, *[-0.6] * 7])
    assert Found((50.0, 52.0), ()).spread == pytest.approx(2**0.5)


def test_the_figure_has_a_panel_for_each_network(tmp_path: Path) -> None:
    rows = [
        {
            **{"network": network, "method": str(method), "spread": 0.2},
            **{"accuracy": 70.0 + k, "backward_share_predicted": method.share},
        }
        for network in NETWORKS
        for k, method in enumerate(methods(quick=False))
    ]

    plot(rows, str(tmp_path / "curves.svg"))

    text = (tmp_path / "curves.svg").read_text()
    assert text.count('id="axes_') == len(NETWORKS)
