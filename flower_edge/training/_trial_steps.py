"""By how much an optimizer's next step would lower the loss, one tensor after the other, without the step."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from flower_edge.training._optimizer_state import group_of, take_step, without_tensors


class TrialSteps:
    """What an optimizer's next step would do to each tensor.

    Plain SGD is a formula of few sums; any other optimizer takes its step on copies. These share memory that
    is made once, of the size of the largest tensor: new memory for each of them would take longer than the
    step.

    Parameters
    ----------
    optimizer : Optimizer
        Stays as it is.
    parameters : iterable of Tensor
        Those that are asked for.
    """

    def __init__(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        self._optimizer = optimizer
        self._most = max((parameter.numel() for parameter in parameters), default=0)
        self._memory: dict[Any, Tensor] = {}

    def fall(self, parameter: Tensor, before_step: Callable[[MutableMapping[str, Any]], None]) -> float:
        """Return by how much a step with the present gradient would lower the loss, to first order.

        Parameters
        ----------
        parameter : Tensor
            Has a gradient; stays as it is.
        before_step : callable
            Changes a copy of the tensor's optimizer state before the step.

        Returns
        -------
        float
            Minus the sum of the gradient times the change; of an optimizer that climbs, plus. Not finite if
            the gradient or the step is not.

        Raises
        ------
        ValueError
            If the optimizer cannot step on this tensor alone.
        """
        group = group_of(self._optimizer, parameter)
        state = {
            name: self._copy(("state", name), value) if isinstance(value, Tensor) else deepcopy(value)
            for name, value in self._optimizer.state.get(parameter, {}).items()
        }
        before_step(state)
        gradient = parameter.grad
        assert gradient is not None  # noqa: S101 - the caller's condition, for the type checker
        # A subclass may step in another way, and products of half precision underflow.
        if type(self._optimizer) is SGD and all(_is_plain(tensor) for tensor in (parameter, gradient)):
            return _fall_by_sgd(parameter.detach(), gradient, state.get("momentum_buffer"), group)
        return self._fall_by_stepping(parameter, gradient, group, state)

    def _fall_by_stepping(
        self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any], state: dict[str, Any]
    ) -> float:
        settings = deepcopy({name: value for name, value in group.items() if name != "params"})
        stand_in = self._copy(("parameter",), parameter).requires_grad_()
        # Some optimizers add the weight decay to the gradient itself.
        stand_in.grad = self._copy(("gradient",), gradient)
        trial = without_tensors(self._optimizer)
        trial.param_groups = [{**settings, "params": [stand_in]}]
        if state:
            trial.state[stand_in] = state
        take_step(trial)
        change = stand_in.detach().sub_(parameter.detach())
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if change.element_size() < torch.float32.itemsize:
            # Products of half precision underflow.
            change, gradient = change.float(), gradient.float()
        product: float = change.mul_(gradient).sum().item()
        return product if settings.get("maximize", False) else -product

    def _copy(self, use: tuple[str, ...], tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        dense = not tensor.is_sparse and (
            tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
        )
        if not dense or tensor.numel() > self._most:
            return tensor.clone()
        key = use, tensor.dtype, tensor.device
        if key not in self._memory:
            self._memory[key] = torch.empty(self._most, dtype=tensor.dtype, device=tensor.device)
        return self._memory[key].as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.element_size() >= torch.float32.itemsize


def _fall_by_sgd(
    parameter: Tensor, gradient: Tensor, momentum_buffer: Tensor | None, group: Mapping[str, Any]
) -> float:
    """Return what SGD's own formula says; a step on copies would go over memory twenty times."""
    sign = -1.0 if group["maximize"] else 1.0
    momentum = group["momentum"]
    # All of it is the sum of the gradient times something: itself, then the direction that SGD makes of it.
    along = sign * _product(gradient, gradient)
    if group["weight_decay"]:
        along += float(group["weight_decay"]) * _product(gradient, parameter)
    if momentum:
        buffered = along
        if momentum_buffer is not None:
            buffered = momentum * _product(gradient, momentum_buffer) + (1 - group["dampening"]) * along
        along = along + momentum * buffered if group["nesterov"] else buffered
    return sign * float(group["lr"]) * along


def _product(a: Tensor, b: Tensor) -> float:
    for layout in (torch.contiguous_format, torch.channels_last):
        if a.dtype == b.dtype and all(tensor.is_contiguous(memory_format=layout) for tensor in (a, b)):
            rows = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in (a, b)]
            return float(torch.dot(*rows))
    return float((a * b).sum())
