"""How much each tensor's next update would lower the loss, without taking a step."""

import math
from collections.abc import Callable, Collection, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flower_edge.training._measurement import check_loss
from flower_edge.training._passes import Step
from flower_edge.training._recorder import Loss, Recorder
from flower_edge.training._trial_steps import TrialSteps
from flower_edge.training._untouched import untouched
from flower_edge.training.profile import Profile


def importances(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss: Loss,
    optimizer: Optimizer,
    names: Collection[str],
    before_step: Callable[[str, MutableMapping[str, Any]], None],
    unchecked: Profile | None = None,
) -> dict[str, float]:
    """Return the importance of every tensor that the loss depends on.

    Parameters
    ----------
    model : Module
        In the mode in which it is trained; as before afterwards.
    batch : tuple of (inputs, targets)
    loss : callable
    optimizer : Optimizer
        As before afterwards.
    names : collection of str
        Of the parameters to be probed.
    before_step : callable
        Changes a copy of a tensor's optimizer state as it would be changed before its next step.
    unchecked : Profile, optional
        Has to be of a model that makes the same calls.

    Returns
    -------
    dict of str to float
        By name, without the tensors that get no gradient.

    Raises
    ------
    ValueError
        If the loss is not a finite scalar or depends on no tensor, a gradient or an update is not finite, the
        model changes its input in place, the optimizer cannot step on one tensor alone, or the model is not
        that of `unchecked`.
    """
    with untouched(model):
        step = Step(model, batch, loss)
        step.train_only(names)
        versions = [value._version for value in step.inputs if isinstance(value, Tensor)]
        value = step.forward() if unchecked is None else _checked_forward(step, unchecked)
        if versions != [value._version for value in step.inputs if isinstance(value, Tensor)]:
            raise ValueError("the model changes its input in place, expected one that leaves its batch alone")
        check_loss(value)
        torch.autograd.backward(value)
        found: dict[str, float] = {}
        parameters = {name: model.get_parameter(name) for name in names}
        trials = TrialSteps(optimizer, parameters.values())
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                found[name] = trials.fall(parameter, partial(before_step, name))
                _check_finite(name, found[name], parameter.grad)
    return found


def _checked_forward(step: Step, profile: Profile) -> Tensor:
    """Return the loss, and refuse a profile whose operations are not all there, or a checkpoint."""
    recorder = Recorder(step.module_names)
    with recorder.watching(), recorder.recording():
        value = step.forward()
    made = {(call.module, call.kind) for call in recorder.calls}
    for operation in profile.operations:
        if (operation.module, operation.kind) not in made:
            raise ValueError(
                f"the profile has an operation {operation.name!r}, which the model does not call: it is the "
                "profile of another model; profile this one"
            )
    return value


def _check_finite(name: str, fall: float, gradient: Tensor) -> None:
    if not math.isfinite(fall):
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        what = "optimizer's update" if torch.isfinite(values).all() else "gradient"
        raise ValueError(
            f"the {what} of {name!r} is not finite in the probe, expected a batch, a loss and an optimizer "
            "that a step can be taken with"
        )
