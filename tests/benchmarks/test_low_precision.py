"""What the accuracy benchmark of low precision runs, keeps, and says about it."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import low_precision_accuracy as benchmark
from benchmarks.cifar import Images, label_split
from benchmarks.evonorm import EvoNorm
from benchmarks.fine_tuning import Budget
from benchmarks.harness import Benchmark
from benchmarks.low_precision_accuracy import (
    LATER,
    SEEDS,
    budget_of,
    cases,
    claim_losses,
    finish,
    found,
    kept_at,
    plot,
    seeds_of,
)
from benchmarks.low_precision_runs import EXCHANGES, Outcome, Run, network, plan_of, train
from flower_edge.training import RangeEvoNorm

CORE = Run(0.0, "Range-EvoNorm", "fp32", "fp32", "ring", 8, 0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_every_combination_is_run_the_most_important_first() -> None:
    every = cases(quick=False)

    assert len(set(every)) == len(every) == np.prod([len(choices) for choices in LATER.values()])
    core = {(run.norm, run.exchange, run.topology, run.nodes) for run in every[:6]}
    assert core == {("Range-EvoNorm", "fp32", "ring", 8)}
    assert {run.skew for run in every[:6]} == {0.0, 0.8, 1.0}
    assert {run.arithmetic for run in every[:6]} == {"fp32", "int8"}
    assert every[-1].nodes == 16
    assert [run.seed for run in seeds_of(CORE, quick=False)] == list(range(SEEDS))


def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Let runs take no time; int8 arithmetic loses 2 points, exchanges lose 1, and seeds differ by 1."""
    done: list[Run] = []

    def no_time(run: Run, budget: Budget, images: object, test: object) -> Outcome:
        done.append(run)
        reached = 0.7 + 0.01 * run.seed - 0.02 * (run.arithmetic == "int8") - 0.01 * (run.exchange != "fp32")
        return Outcome(reached, reached - 0.05, 100.0 if run.exchange == "fp32" else 25.0)

    monkeypatch.setattr(benchmark, "train", no_time)
    monkeypatch.setattr(benchmark, "cifar10", lambda folder: (None, None))
    return done


def test_a_run_is_done_once_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    done = outcomes(monkeypatch)
    budget = budget_of(CORE, quick=False)

    finish(CORE, budget, Path(), until=0.0)
    assert not done
    finish(CORE, budget, Path(), until=time.time() + 60)
    finish(CORE, budget, Path(), until=time.time() + 60)

    assert done == [CORE]
    kept = json.loads(kept_at(CORE, budget).read_text())
    assert (kept["run"]["skew"], kept["consensus"], kept["megabytes"]) == (0.0, 0.7, 100.0)


def test_everything_that_decides_an_outcome_names_it() -> None:
    others = [
        replace(CORE, **change)
        for change in (
            {"skew": 1.0}, {"norm": "BatchNorm"}, {"arithmetic": "int8"}, {"exchange": "int8 CHOCO"},
            {"topology": "optimised"}, {"nodes": 16}, {"seed": 1},
        )
    ]  # fmt: skip
    names = {kept_at(run, budget) for run in (CORE, *others) for budget in (Budget(), Budget(epochs=1))}

    assert len(names) == 2 * (1 + len(others))


def test_a_run_that_was_kept_in_another_process_is_found_again() -> None:
    """Its name must have nothing of a process in it, such as the address of a function."""
    gathered = Path(benchmark.__file__).parent / "results" / "runs" / "low_precision_accuracy.jsonl"
    kept = [json.loads(line) for line in gathered.read_text().splitlines()]
    assert kept
    for name, outcome in kept:
        run = Run(**outcome["run"])
        assert kept_at(run, budget_of(run, quick=False)).stem == name


def test_only_complete_cases_are_reported_and_losses_are_against_the_same_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes(monkeypatch)
    int8, choco = replace(CORE, arithmetic="int8"), replace(CORE, exchange="int8 CHOCO")
    for case in (CORE, int8, choco):
        for run in seeds_of(case, quick=False):
            finish(run, budget_of(run, quick=False), Path(), until=time.time() + 60)
    partial = replace(CORE, skew=1.0)
    finish(partial, budget_of(partial, quick=False), Path(), until=time.time() + 60)

    complete = {case: outcome for case in cases(quick=False) if (outcome := found(case, quick=False))}
    bench = Benchmark("low_precision_accuracy", quick=False)
    claim_losses(bench, complete)

    assert set(complete) == {CORE, int8, choco}
    assert complete[CORE].mean == pytest.approx(71)
    assert complete[CORE].spread == pytest.approx(1)
    claims = {claim["text"]: (claim["value"], claim["holds"]) for claim in bench.claims}
    where = "skew 0, ring of 8"
    assert claims == {
        f"points lost by int8 arithmetic, Range-EvoNorm, int8, {where} (measured): at most": (
            pytest.approx(2), False
        ),
        f"points lost by int8 CHOCO, Range-EvoNorm, fp32, {where} (measured): at most": (
            pytest.approx(1), False
        ),
        f"times fewer bytes by int8 CHOCO, Range-EvoNorm, fp32, {where} (counted): at least": (4.0, True),
    }  # fmt: skip


@pytest.mark.parametrize("skew", [0.0, 0.6, 1.0])
def test_labels_are_skewed_as_much_as_is_said(skew: float) -> None:
    labels = torch.arange(10).repeat_interleave(100)[torch.randperm(1000)]

    owned = label_split(labels, 8, skew, seed=0)

    assert sorted(np.concatenate(owned).tolist()) == list(range(1000))
    sizes = [len(rows) for rows in owned]
    assert max(sizes) - min(sizes) <= 2
    # With all of it dealt out by label a piece of 125 images has at most three of ten classes.
    classes = [len(torch.unique(labels[torch.from_numpy(rows)])) for rows in owned]
    assert (max(classes) <= 3) == (skew == 1.0)
    most = np.mean([torch.bincount(labels[torch.from_numpy(rows)]).max().item() for rows in owned])
    assert most > 125 * (0.1 + 0.5 * skew)
    with pytest.raises(ValueError, match=r"skew is 1.5, expected 0 to 1"):
        label_split(labels, 8, 1.5, seed=0)


def test_networks_differ_in_their_normalisation_alone() -> None:
    batch, range_, evonorm = (network(norm, 3) for norm in ("BatchNorm", "Range-EvoNorm", "EvoNorm"))

    counts = [
        sum(isinstance(module, kind) for module in model.modules())
        for model, kind in ((batch, nn.BatchNorm2d), (range_, RangeEvoNorm), (evonorm, EvoNorm))
    ]
    assert counts == [21, 21, 21]
    for model in (range_, evonorm):
        assert torch.equal(model.layer3[2].conv2.weight, batch.layer3[2].conv2.weight)
    assert set(range_.state_dict()) == set(evonorm.state_dict())


def test_evonorm_is_its_formula() -> None:
    norm = EvoNorm(RangeEvoNorm(16, 4))
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)

    deviation = x.view(2, 4, -1).var(-1, unbiased=False).add(1e-5).sqrt().repeat_interleave(4, 1)
    torch.testing.assert_close(norm.double()(x), x * torch.sigmoid(x) / deviation[:, :, None, None])


def test_plans_are_for_the_nodes_of_the_gossip() -> None:
    assert plan_of("ring", 8).n == plan_of("optimised", 8).n == 8
    assert len(plan_of("ring", 8).row(0, 0)) == 3


@pytest.mark.parametrize("exchange", list(EXCHANGES))
def test_nodes_train_and_come_together(exchange: str) -> None:
    images = Images(torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8), torch.arange(10).repeat(7)[:64])
    budget = Budget(images=48, epochs=2, batch=6, rate=0.05, test_images=8)

    outcome = train(replace(CORE, nodes=3, exchange=exchange), budget, images, images)

    elements = sum(value.numel() for name, value in network("Range-EvoNorm", 0).state_dict().items())
    # Two neighbours in a ring of three.
    full = budget.steps * 2 * 4 * elements / 1e6
    least = {"fp32": 1.0, "int8 CHOCO": 3.5, "int4 CHOCO": 6.5, "top-k CHOCO": 5.0}[exchange]
    assert full / outcome.megabytes == pytest.approx(1.0) if exchange == "fp32" else True
    assert full / outcome.megabytes >= least * (1 - 1e-9)
    assert 0 <= outcome.consensus <= 1


def test_the_figure_has_a_panel_for_each_skew(tmp_path: Path) -> None:
    rows = [
        {
            **{"skew": skew, "topology": "ring", "nodes": 8, "norm": norm, "arithmetic": "fp32"},
            **{"accuracy_of_consensus": 70.0, "spread": 0.3, "megabytes_sent_a_node_counted": size},
        }
        for skew in (0.0, 1.0)
        for norm in ("BatchNorm", "Range-EvoNorm")
        for size in (100.0, 400.0)
    ]

    plot(rows, str(tmp_path / "figure.svg"))

    assert len((tmp_path / "figure.svg").read_text()) > 10_000
    with pytest.raises(SystemExit, match="nothing to draw"):
        plot([], str(tmp_path / "none.svg"))
