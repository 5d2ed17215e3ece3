"""Budgets, and what they allow the backward pass."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_models import BATCH, Chain
from torch.nn import functional

from flower_edge.training import Deadline, Energy, Memory, Profile, Time, profile
from flower_edge.training.budget import check_budgets, limits

pytestmark = pytest.mark.board


@pytest.fixture(scope="module")
def measured() -> Profile:
    model = Chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return profile(model, BATCH, functional.cross_entropy, optimizer=optimizer, repeats=1)


def test_each_budget_limits_its_own(measured: Profile) -> None:
    full, fixed = measured.graph.full_cost, measured.graph.fixed_seconds

    assert limits([Time(0.25)], measured).backward.finite == {"seconds": 0.25 * full.seconds}
    assert limits([Memory(1e5)], measured).backward.finite == {"bytes": 1e5}
    assert limits([Deadline(fixed + 1.0)], measured).backward.seconds == pytest.approx(1.0)
    assert limits([Energy(6 * (fixed + 1.0), 6)], measured).backward.seconds == pytest.approx(1.0)


def test_the_tightest_of_each_kind_counts(measured: Profile) -> None:
    fixed = measured.graph.fixed_seconds
    budgets = [Memory(2e5), Deadline(fixed + 1e3), Time(0.5), Memory(1e5)]

    found = limits(budgets, measured)

    assert found.backward.finite == {"bytes": 1e5, "seconds": 0.5 * measured.graph.full_cost.seconds}
    assert found.named == {"bytes": Memory(1e5), "seconds": Time(0.5)}
    assert not found.note


def test_a_slow_device_has_less_for_the_backward_pass(measured: Profile) -> None:
    seconds = 4 * measured.graph.fixed_seconds

    assert limits([Deadline(seconds)], measured).backward.seconds == pytest.approx(0.75 * seconds)
    assert limits([Deadline(seconds)], measured, 2.0).backward.seconds == pytest.approx(seconds / 4)
    assert limits([Time(0.5)], measured, 2.0) == limits([Time(0.5)], measured)


def test_a_deadline_before_the_backward_pass_begins_leaves_nothing(measured: Profile) -> None:
    found = limits([Deadline(measured.forward_seconds / 2)], measured)

    assert found.backward.seconds == 0
    assert "leave nothing for the backward pass" in found.note


@pytest.mark.parametrize("share", [0, -0.5, 1.0001, math.nan, math.inf])
def test_a_share_out_of_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="expected more than 0 and at most 1"):
        Time(share)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_nothing_is_no_budget(value: float) -> None:
    for make in (Memory, Deadline, lambda v: Energy(v, 1.0), lambda v: Energy(1.0, v)):
        with pytest.raises(ValueError, match="expected a finite number of more than 0"):
            make(value)


@pytest.mark.parametrize("value", ["0.5", None, True, [0.5]])
def test_budgets_are_numbers(value: Any) -> None:
    for make in (Time, Memory, Deadline, lambda v: Energy(v, 1.0)):
        with pytest.raises(TypeError, match="expected a number"):
            make(value)


def test_numbers_of_numpy_are_numbers() -> None:
    assert Time(np.float32(0.5)).share == 0.5
    assert Memory(np.int64(5)).bytes == 5


def test_one_or_several() -> None:
    assert check_budgets(Time(0.5)) == (Time(0.5),)
    assert check_budgets([Time(0.5), Memory(1)]) == (Time(0.5), Memory(1))
    with pytest.raises(ValueError, match="there is no budget"):
        check_budgets([])
    for other in (0.5, "0.5", [0.5], None, [Time(0.5), None]):
        with pytest.raises(TypeError, match="expected Time, Memory, Energy or Deadline"):
            check_budgets(other)  # type: ignore[arg-type]


def test_budgets_read_as_what_they_allow() -> None:
    assert str(Time(0.5)) == "50 % of the backward time"
    assert str(Memory(2_500_000)) == "2.5 MB of memory"
    assert str(Energy(0.2, 5)) == "0.2 J a step at 5 W"
    assert str(Deadline(0.04)) == "40 ms a step"
