"""What an optimizer holds and takes, found out on tensors that are not the model's."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
        state = _stepped(optimizer, _group_of(optimizer, parameter), trial).state[trial]
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor))


def step_seconds(optimizer: Optimizer, parameters: Sequence[Tensor], repeats: int) -> float:
    """Return the least time of a step for `parameters`, on copies of them."""
    stand_ins = {parameter: torch.zeros_like(parameter, requires_grad=True) for parameter in parameters}
    trial = _without_tensors(optimizer)
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


def update(optimizer: Optimizer, parameter: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Return what a step would add to a parameter with its present gradient.

    The step is taken on copies. Its memory is that of one tensor and its state, however large the model.

    Parameters
    ----------
    optimizer : Optimizer
        Holds the parameter; stays as it is.
    parameter : Tensor
        Has a gradient; stays as it is.
    state : mapping
        What the optimizer holds for it; empty before its first step. May be changed.

    Returns
    -------
    Tensor
        Of the parameter's shape and dtype.

    Raises
    ------
    ValueError
        If the optimizer cannot step on this tensor alone.
    """
    stand_in = parameter.detach().clone().requires_grad_()
    # Some optimizers add the weight decay to the gradient itself.
    stand_in.grad = None if parameter.grad is None else parameter.grad.detach().clone()
    group = _group_of(optimizer, parameter)
    settings = copy.deepcopy({name: value for name, value in group.items() if name != "params"})
    trial = _without_tensors(optimizer)
    trial.param_groups = [{**settings, "params": [stand_in]}]
    if state:
        trial.state[stand_in] = dict(state)
    _step(trial)
    return stand_in.detach() - parameter.detach()


def maximizes(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether the optimizer climbs."""
    return bool(_group_of(optimizer, parameter).get("maximize", False))


def _group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(parameter is other for other in group["params"]):
            return group
    raise ValueError(f"the optimizer does not hold a parameter of shape {tuple(parameter.shape)}")


def _stepped(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> Optimizer:
    """Return an optimizer of the same kind after one step on `parameter` alone."""
    trial = _without_tensors(optimizer)
    trial.param_groups = [{**group, "params": [parameter]}]
    parameter.grad = torch.zeros_like(parameter)
    _step(trial)
    return trial


def _without_tensors(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer of the same kind that holds nothing; its own hooks and schedulers stay behind."""
    trial = type(optimizer).__new__(type(optimizer))
    # As a copy would, but without going through all tensors of the original.
    trial.__setstate__({"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": []})
    return trial


def _step(trial: Optimizer) -> None:
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
