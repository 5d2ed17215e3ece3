"""What a model, its batch and its optimizer have to be like before anything is measured."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer


def check_batch(batch: Any) -> None:
    """Raise a ValueError if a batch is no pair."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch is a {type(batch).__name__}, expected a tuple of inputs and targets")


def check_trainable(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise a ValueError if no parameter is."""
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(
            f"none of the model's {len(parameters)} parameters requires a gradient, expected one to train"
        )


def check_hooks(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise a ValueError if something may step on a parameter in the backward pass."""
    for name, parameter in parameters.items():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"parameter {name!r} has a hook that runs after its gradient and could change it, expected a "
                "model whose optimizer steps after the backward pass"
            )


def check_optimizer(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise a ValueError if the optimizer does not hold a trainable parameter."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in parameters.items():
        if parameter.requires_grad and id(parameter) not in held:
            raise ValueError(f"the optimizer does not hold parameter {name!r}, which requires a gradient")
