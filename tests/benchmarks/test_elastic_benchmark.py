"""What the benchmark of an elastic step measures, and what it says about it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import elastic as benchmark
from benchmarks.elastic import INTERVAL, LEAST_SPEEDUP, SETTINGS, SHARES, Found, Setting, claim, findings, row
from benchmarks.harness import Benchmark, Timing
from benchmarks.networks import resnet18
from benchmarks.step_times import StepTiming
from flower_edge.training import Choice, saved_bytes

SMALL = Setting(small_images=True, side=32)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(setting: Setting) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, padding=1)),
        *(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
    )


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[float, Found]:
    monkeypatch.setattr(benchmark, "network", tiny)
    return findings(SMALL, repeats=7)


def test_every_share_is_chosen_counted_and_measured(found: dict[float, Found]) -> None:
    assert tuple(found) == SHARES
    for share, part in found.items():
        assert 0 < part.predicted_share <= share
        assert part.choice.names
        assert len(part.timing.backward.seconds) == 7
        model = tiny(SMALL)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in part.choice.names)
        assert part.saved_bytes == saved_bytes(model, benchmark.images(32), cross_entropy).total
        assert part.choice.probe_seconds > 0


def timing(forward: float, backward: float, optimizer: float) -> StepTiming:
    return StepTiming(*(Timing((seconds,) * 7) for seconds in (forward, backward, optimizer)))


def predicting_1000_bytes(choice: Choice, backward_seconds: float) -> Choice:
    """Return it as if it had been made in 3 seconds."""
    cost = replace(choice.selection.cost, saved_bytes=1000)
    selection = replace(choice.selection, cost=cost)
    times = {"backward_seconds": backward_seconds, "probe_seconds": 2.5, "solve_seconds": 0.5}
    return replace(choice, selection=selection, **times)


def test_errors_and_gains_are_ratios(found: dict[float, Found]) -> None:
    choice = predicting_1000_bytes(found[0.5].choice, backward_seconds=1.0)
    part = Found(choice, 0.5, timing(1.0, 1.1, 0.0), timing(1.0, 2.0, 0.3), saved_bytes=900)

    assert part.measured_share == pytest.approx(0.55)
    assert part.time_error == pytest.approx(0.1)
    assert part.memory_error == pytest.approx(0.1)
    assert part.speedup == pytest.approx(3.3 / 2.1)
    assert part.overhead == pytest.approx(3 / (3 + INTERVAL * 2.1))


def test_claims_have_the_bounds_of_the_shares(found: dict[float, Found]) -> None:
    made = {
        share: Found(
            predicting_1000_bytes(found[0.5].choice, backward_seconds=2 * share),
            share,
            timing(1.0, 2 * share, 0.0),
            timing(1.0, 2.0, 0.1),
            saved_bytes=1000,
        )
        for share in SHARES
    }
    small, large = (Benchmark("elastic", quick=False) for _ in range(2))

    claim(small, SMALL, made)
    claim(large, Setting(True, 64), made)

    speedups = [entry for entry in small.claims if "faster" in entry["text"]]
    assert [entry["bound"] for entry in speedups] == list(LEAST_SPEEDUP.values())
    assert [entry["value"] for entry in speedups] == pytest.approx([3.1 / (1 + 2 * s) for s in SHARES])
    assert len(small.claims) - len(large.claims) == len(SHARES)
    assert large.holds
    assert row(SMALL, 0.5, made[0.5])["backward_share_measured"] == 0.5


def test_settings_are_both_stems_at_both_sizes() -> None:
    assert len({str(setting) for setting in SETTINGS}) == 4
    small, large = resnet18(10, small_images=True), resnet18(10)
    x = torch.randn(2, 3, 32, 32)

    assert nn.Sequential(*list(small.children())[:-3])(x).shape[2:] == (4, 4)
    assert nn.Sequential(*list(large.children())[:-3])(x).shape[2:] == (1, 1)
