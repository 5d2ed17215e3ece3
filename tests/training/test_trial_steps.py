"""What a step would gain, by formula and on copies, against the step itself."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from flower_edge.training._trial_steps import TrialSteps

OPTIONS: list[dict[str, Any]] = [
    {"lr": 0.1},
    {"lr": torch.tensor(0.1)},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2, "maximize": True},
    {"lr": 0.1, "weight_decay": 0.2, "maximize": True},
]


class ByItself(torch.optim.SGD):
    """One that nothing is known of but its steps."""


def taken(optimizer: torch.optim.Optimizer, parameter: Tensor) -> float:
    """Take the step, of a copy, and return what it gains."""
    optimizer = copy.deepcopy(optimizer)
    (other,) = optimizer.param_groups[0]["params"]
    other.grad = parameter.grad
    optimizer.step()
    gain = -float(((other - parameter) * parameter.grad).sum().detach())
    return -gain if optimizer.param_groups[0]["maximize"] else gain


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, ByItself])
@pytest.mark.parametrize("layouts", ["contiguous", "channels last", "mixed", "strided"])
def test_what_a_step_gains_is_what_the_step_would_do(
    options: dict[str, Any], optimizer: type[torch.optim.SGD], layouts: str
) -> None:
    torch.manual_seed(0)

    def random() -> Tensor:
        made = torch.randn(7, 5, 3, 3, dtype=torch.float64)
        if layouts == "strided":
            return torch.randn(7, 5, 3, 6, dtype=torch.float64)[..., ::2]
        return made if layouts == "contiguous" else made.to(memory_format=torch.channels_last)

    parameter = random().requires_grad_()
    stepping = optimizer([parameter], **options)
    for _ in range(3):  # the first has no state yet
        gradient = torch.randn_like(parameter) if layouts == "mixed" else random()
        parameter.grad = gradient.contiguous() if layouts == "mixed" else gradient
        before = copy.deepcopy((parameter, stepping.state_dict()))
        found = TrialSteps(stepping, [parameter]).fall(parameter, lambda state: None)
        assert found == pytest.approx(taken(stepping, parameter), rel=1e-12)
        torch.testing.assert_close((parameter, stepping.state_dict()), before, rtol=0, atol=0)
        stepping.step()


def test_state_changed_before_the_step_is_a_copy() -> None:
    parameter = torch.ones(33, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.5)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    def halve(state: Any) -> None:
        state["momentum_buffer"].mul_(0.5)

    trials = TrialSteps(optimizer, [parameter])
    # Momentum of 1, halved or not, times 0.5, and the gradient of 1.
    assert trials.fall(parameter, halve) == pytest.approx(0.1 * 1.25 * 33)
    assert trials.fall(parameter, lambda state: None) == pytest.approx(0.1 * 1.5 * 33)
    assert trials.fall(parameter, lambda state: state.clear()) == pytest.approx(0.1 * 33)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_do_not_underflow(dtype: torch.dtype) -> None:
    parameter = torch.zeros(100, dtype=dtype, requires_grad=True)
    parameter.grad = torch.full_like(parameter, 1e-4)
    found = TrialSteps(torch.optim.SGD([parameter], 1.0), [parameter]).fall(parameter, lambda state: None)
    assert found == pytest.approx(100 * 1e-8, rel=0.02)
