"""Steps of an optimizer that move copies of a model's tensors, one after the other."""

from collections.abc import Callable, Iterable, MutableMapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flower_edge.training._optimizer_state import group_of, take_step, without_tensors


class TrialSteps:
    """What an optimizer's next step would do to each tensor.

    The copies share memory that is made once, of the size of the largest tensor: new memory for each of them
    would take longer than the step.

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

    def change(
        self, parameter: Tensor, before_step: Callable[[MutableMapping[str, Any]], None]
    ) -> tuple[Tensor, bool]:
        """Return what a step with the present gradient would add to a parameter.

        Parameters
        ----------
        parameter : Tensor
            Has a gradient; stays as it is.
        before_step : callable
            Changes a copy of the tensor's optimizer state before the step.

        Returns
        -------
        Tensor
            Of the parameter's shape and dtype; its memory is used again by the next call.
        bool
            Whether the optimizer climbs.

        Raises
        ------
        ValueError
            If the optimizer cannot step on this tensor alone.
        """
        group = group_of(self._optimizer, parameter)
        settings = deepcopy({name: value for name, value in group.items() if name != "params"})
        stand_in = self._copy(("parameter",), parameter).requires_grad_()
        # Some optimizers add the weight decay to the gradient itself.
        stand_in.grad = None if parameter.grad is None else self._copy(("gradient",), parameter.grad)
        trial = without_tensors(self._optimizer)
        trial.param_groups = [{**settings, "params": [stand_in]}]
        state = {
            name: self._copy(("state", name), value) if isinstance(value, Tensor) else deepcopy(value)
            for name, value in self._optimizer.state.get(parameter, {}).items()
        }
        before_step(state)
        if state:
            trial.state[stand_in] = state
        take_step(trial)
        return stand_in.detach().sub_(parameter.detach()), bool(settings.get("maximize", False))

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
