"""What the benchmark of sign feedback times and counts, and what it claims."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks import sign_feedback as benchmark
from benchmarks.harness import Benchmark
from benchmarks.sign_feedback import (
    EXACT_FEEDBACK,
    OURS,
    SPARSITIES,
    TRAINED,
    claim_feedback,
    claim_layers,
    dense_counts,
    energy_ratio,
    layer_rows,
    model_counts,
    ours,
    pruned_counts,
    step_rows,
    total,
)
from benchmarks.sparse_grad_layers import RESNET18_SMALL, Layer, Problem
from flower_edge.energy import Counts
from flower_edge.kernels import pack_signs
from flower_edge.training import SignFeedback, prepare_, pruning_report
from flower_edge.training.pruning import PrunedFeedback, Pruner

SMALL = Layer(8, 16, 6, batch=2)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(benchmark, "BATCH", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layer", [SMALL, Layer(8, 16, 7, 3, 2, 2), Layer(16, 8, 5, 1, 2, 2)], ids=str)
def test_all_ways_form_the_same_gradients_on_average(layer: Layer) -> None:
    problem = Problem.of(layer, torch.channels_last)
    expected = problem.dense()()
    step = ours(problem, PrunedFeedback(False, False, Pruner(0.5)))
    draws = [step() for _ in range(300)]

    for place, wanted in enumerate(expected):
        mean = torch.stack([draw[place] for draw in draws]).mean(0)
        assert mean.shape == wanted.shape
        assert float((mean - wanted).norm() / wanted.norm()) < 0.15
    contiguous = Problem.of(layer, torch.contiguous_format).dense()()
    for received, wanted in zip(contiguous, expected, strict=True):
        torch.testing.assert_close(received, wanted, rtol=1e-4, atol=1e-4)


def test_counts_are_those_of_the_layer() -> None:
    _, *tensors = Problem.of(SMALL, torch.channels_last)
    cells = 2 * 36
    dense, pruned, signs = (
        dense_counts(*tensors),
        pruned_counts(*tensors, 0.75, signs=False),
        pruned_counts(*tensors, 0.75, signs=True),
    )

    assert dense.multiply_adds == 2 * cells * 16 * 8 * 9
    assert pruned.multiply_adds == dense.multiply_adds // 4
    weight = 16 * 8 * 9
    assert dense.memory_bytes == 4 * (cells * 16 + 2 * cells * 8 + 2 * weight)
    assert pruned.memory_bytes - dense.memory_bytes == 5 * 8 * cells * 16 // 4
    assert pruned.memory_bytes - signs.memory_bytes == 4 * weight - pack_signs(tensors[2]).nbytes
    assert energy_ratio(Counts(100, 0), Counts(25, 0)) == pytest.approx(4)
    assert energy_ratio(Counts(100, 100), Counts(25, 100)) < 4
    assert total([Counts(1, 2), Counts(3, 4)]) == Counts(4, 6)


def test_a_row_for_every_way() -> None:
    bench = Benchmark("sign_feedback", quick=False)

    ratios = layer_rows(bench, SMALL, 0.8, threads=1)

    assert {key[2] for key in ratios} == {OURS, EXACT_FEEDBACK, TRAINED}
    rows = {row["method"].partition(":")[0]: row for row in bench.rows}
    assert rows[OURS]["macs_skipped_counted"] == pytest.approx(0.8, abs=0.05)
    assert rows["torch, exact"]["macs_skipped_counted"] == 0
    assert rows[OURS]["times_faster_than_exact"] == ratios[SMALL, 0.8, OURS]
    assert rows[OURS]["method"].endswith(": sparse")


def test_what_a_model_skips_is_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    prepare_(model, SignFeedback(0.8, schedule=None, fallback="never"))
    dense, pruned = model_counts(model)
    assert dense == pruned, "nothing is pruned before the first step"

    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    (report,) = pruning_report(model).layers
    dense, pruned = model_counts(model)

    assert dense.multiply_adds == 2 * 2 * 1024 * (4 * 27 + 4 * 4)
    assert dense.multiply_adds - pruned.multiply_adds == pytest.approx(report.skipped_macs, rel=1e-6)


def test_whole_steps_are_compared_and_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(classes: int, small_images: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(8, classes)),
        )

    monkeypatch.setattr(benchmark, "resnet18", small)
    bench = Benchmark("sign_feedback", quick=False)

    step_rows(bench, threads=1)

    assert len(bench.rows) == 4
    (claim,) = bench.claims
    assert claim["value"] == next(
        row["times_faster_than_exact"] for row in bench.rows if row["method"].startswith(TRAINED)
    )


@pytest.mark.parametrize(("ratio", "holds"), [(6.5, [True] * 4), (0.97, [False] * 4)])
def test_claims_hold_where_ratios_reach_their_bounds(ratio: float, holds: list[bool]) -> None:
    bench = Benchmark("sign_feedback", quick=False)
    ratios = {
        (layer, sparsity, name): ratio
        for layer in RESNET18_SMALL
        for sparsity in SPARSITIES
        for name in (EXACT_FEEDBACK, TRAINED)
    }

    claim_layers(bench, ratios, threads=1)

    assert [claim["holds"] for claim in bench.claims] == holds
    assert all(claim["value"] == pytest.approx(ratio) for claim in bench.claims)


def test_a_slow_layer_is_named() -> None:
    bench = Benchmark("sign_feedback", quick=False)
    ratios = {(layer, 0.5, TRAINED): 1.0 for layer in RESNET18_SMALL}
    ratios[RESNET18_SMALL[7], 0.9, TRAINED] = 0.9

    benchmark.worst_layer(bench, ratios, 2, 0.98)

    assert f"({RESNET18_SMALL[7]}, 90%)" in bench.claims[0]["text"]
    assert not bench.claims[0]["holds"]


def test_one_bit_feedback_needs_a_thirtieth() -> None:
    bench = Benchmark("sign_feedback", quick=False)

    claim_feedback(bench)

    assert bench.claims[0]["holds"]
    assert 30 <= bench.claims[0]["value"] < 32
