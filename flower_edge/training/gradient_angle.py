"""How far a model's gradient points away from the exact one."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flower_edge.training._checks import check_batch
from flower_edge.training._untouched import untouched
from flower_edge.training.layers import EdgeConv2d
from flower_edge.training.pruning import pruners

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class GradientAngle:
    """Angles between gradients as a model forms them and exact ones, of one batch; measured.

    Attributes
    ----------
    degrees : float
        Of all trained parameters together, 0 to 180; 0 where both gradients are zero.
    by_tensor : dict of str to float
        Of each of them, in the order of the model.
    """

    degrees: float
    by_tensor: dict[str, float]


def gradient_angle(
    model: nn.Module, batch: tuple[Any, Any], loss: Callable[[Any, Any], Tensor]
) -> GradientAngle:
    """Measure how far the gradient of a batch points away from the exact one.

    Two training steps without an optimizer run, one with :class:`flower_edge.training.SignFeedback` and one
    without it; all else, other methods and dropout's random numbers too, is the same in both. The model is as
    before afterwards.

    Pruning is unbiased, so that its part of the angle shrinks as steps are added up; that of feedback
    through signs does not.

    Parameters
    ----------
    model : Module
        In training mode; prepared with :class:`SignFeedback`.
    batch : tuple of (inputs, targets)
        As it is trained with.
    loss : callable
        ``loss(model(inputs), targets)`` is a scalar.

    Returns
    -------
    GradientAngle
        In all, and by tensor.

    Raises
    ------
    ValueError
        If no layer that is in training mode has the method, or the batch is no pair.
    """
    check_batch(batch)
    if not any(model.get_submodule(name).training for name, _ in pruners(model)):
        raise ValueError(
            f"{type(model).__name__} has no layer in training mode with SignFeedback, expected one; call "
            "prepare_(model, SignFeedback()) and model.train() first"
        )
    with untouched(model):
        ours = _gradients(model, batch, loss)
        with _without_pruning(model):
            exact = _gradients(model, batch, loss)
    names = [name for name in exact if name in ours]
    return GradientAngle(
        _degrees(
            torch.cat([ours[name].flatten() for name in names]),
            torch.cat([exact[name].flatten() for name in names]),
        ),
        {name: _degrees(ours[name].flatten(), exact[name].flatten()) for name in names},
    )


def _gradients(model: nn.Module, batch: tuple[Any, Any], loss: Callable[[Any, Any], Tensor]) -> Gradients:
    inputs, targets = batch
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.autograd.backward(loss(model(inputs), targets))
    found = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    for parameter in model.parameters():
        parameter.grad = None
    return found


@contextmanager
def _without_pruning(model: nn.Module) -> Iterator[None]:
    layers = [model.get_submodule(name) for name, _ in pruners(model)]
    rules = [layer.rule for layer in layers if isinstance(layer, EdgeConv2d)]
    try:
        for layer, rule in zip(layers, rules, strict=True):
            vars(layer)["rule"] = replace(rule, grad_input=None, grad_weight=None)
        yield
    finally:
        for layer, rule in zip(layers, rules, strict=True):
            vars(layer)["rule"] = rule


def _degrees(one: Tensor, other: Tensor) -> float:
    one, other = one.double(), other.double()
    lengths = float(one.norm() * other.norm())
    if lengths == 0:
        return 0.0 if float(one.norm()) == float(other.norm()) else 90.0
    return math.degrees(math.acos(max(-1.0, min(1.0, float(one @ other) / lengths))))
