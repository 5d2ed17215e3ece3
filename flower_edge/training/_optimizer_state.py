"""What an optimizer holds and takes, found out on tensors that are not the model's."""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flower_edge.training._recorder import clock


def state_bytes(optimizer: Optimizer, parameter: Tensor) -> int:
    """Return the bytes of state that `optimizer` holds for `parameter` once it has stepped.

    Raises
    ------
    ValueError
        If the optimizer cannot step on a tensor of this shape alone.
    """
    state = optimizer.state.get(parameter)
    if not state:
        trial = torch.zeros_like(parameter, requires_grad=True)
        state = _stepped(optimizer, group_of(optimizer, parameter), trial).state[trial]
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor))


def step_seconds(optimizer: Optimizer, parameters: Sequence[Tensor], repeats: int) -> float:
    """Return the least time of a step for `parameters`, on copies of them."""
    stand_ins = {parameter: torch.zeros_like(parameter, requires_grad=True) for parameter in parameters}
    trial = without_tensors(optimizer)
    trial.param_groups = [
        {**group, "params": [stand_ins[p] for p in group["params"] if p in stand_ins]}
        for group in optimizer.param_groups
    ]
    for stand_in in stand_ins.values():
        stand_in.grad = torch.zeros_like(stand_in)
    least = float("inf")
    # The first step makes the state.
    for repeat in range(repeats + 1):
        begun = clock()
        trial.step()
        if repeat:
            least = min(least, clock() - begun)
    return least


def group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """Return the group of the optimizer that holds a parameter.

    Raises
    ------
    ValueError
        If none does.
    """
    for group in optimizer.param_groups:
        if any(parameter is other for other in group["params"]):
            return group
    raise ValueError(f"the optimizer does not hold a parameter of shape {tuple(parameter.shape)}")


def _stepped(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> Optimizer:
    """Return an optimizer of the same kind after one step on `parameter` alone."""
    trial = without_tensors(optimizer)
    trial.param_groups = [{**group, "params": [parameter]}]
    parameter.grad = torch.zeros_like(parameter)
    take_step(trial)
    return trial


def without_tensors(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer of the same kind that holds nothing; its own hooks and schedulers stay behind."""
    trial = type(optimizer).__new__(type(optimizer))
    # As a copy would, but without going through all tensors of the original.
    trial.__setstate__({"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": []})
    return trial


def take_step(trial: Optimizer) -> None:
    """Take a step that nobody but the optimizer itself hears of.

    Raises
    ------
    ValueError
        If it cannot.
    """
    step = type(trial).step
    if getattr(step, "hooked", False):
        # Hooks for the steps of every optimizer count real steps.
        step = inspect.unwrap(step, stop=lambda wrapped: not getattr(wrapped, "hooked", False))
    try:
        step(trial)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{type(trial).__name__} cannot step on one tensor alone ({error}), expected an optimizer that "
            "can, so that its state and its steps are known"
        ) from error
