"""Timed training steps are training steps, each timed as often as the others."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.harness import Timing
from benchmarks.step_times import StepTiming, TrainingStep, interleaved_steps

BATCH = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def step(rate: float) -> TrainingStep:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return TrainingStep(model, torch.optim.SGD(model.parameters(), rate), cross_entropy, BATCH)


def test_a_timed_step_trains() -> None:
    timed = step(0.1)
    expected = copy.deepcopy(timed.model)
    for _ in range(2):
        loss = cross_entropy(expected(BATCH[0]), BATCH[1])
        for parameter, grad in zip(
            expected.parameters(), torch.autograd.grad(loss, list(expected.parameters())), strict=True
        ):
            parameter.data -= 0.1 * grad

    assert all(seconds > 0 for _ in range(2) for seconds in timed.seconds())

    for found, wanted in zip(timed.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)
        assert found.grad is None


def test_every_step_has_its_turn_in_every_round() -> None:
    timings = interleaved_steps({"one": step(0.1), "other": step(0.0)}, repeats=9)

    assert list(timings) == ["one", "other"]
    for timing in timings.values():
        assert {len(part.seconds) for part in (timing.forward, timing.backward, timing.optimizer)} == {9}


def test_a_step_is_all_of_its_parts() -> None:
    timing = StepTiming(Timing((1.0, 2.0)), Timing((10.0, 20.0)), Timing((0.5, 0.25)))

    assert timing.whole.seconds == (11.5, 22.25)


def test_what_says_little_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats is 6"):
        interleaved_steps({"one": step(0.1)}, repeats=6)
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="2 threads"):
        interleaved_steps({"one": step(0.1)})
