"""What an optimizer holds and takes, found out on tensors that are not the model's."""

import copy
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
        state = _stepped(optimizer, _group_of(optimizer, parameter), [trial]).state[trial]
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor))


def step_seconds(optimizer: Optimizer, parameters: Sequence[Tensor], repeats: int) -> float:
    """Return the least time of a step for `parameters`, on copies of them."""
    stand_ins = {parameter: torch.zeros_like(parameter, requires_grad=True) for parameter in parameters}
    trial = _stepped(optimizer, None, [])
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


def _group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any] | None:
    for group in optimizer.param_groups:
        if any(parameter is other for other in group["params"]):
            return group
    return None


def _stepped(optimizer: Optimizer, group: dict[str, Any] | None, parameters: list[Tensor]) -> Optimizer:
    """Return an optimizer of the same kind after one step on `parameters`, if `group` has any."""
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    trial.param_groups = [] if group is None else [{**group, "params": parameters}]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    if trial.param_groups:
        try:
            trial.step()
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{type(optimizer).__name__} cannot step on one tensor alone ({error}), expected an "
                "optimizer that can, so that its state can be counted"
            ) from error
    return trial
