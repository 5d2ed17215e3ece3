"""Activations and max pooling that save little for the backward pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flower_edge.training._activated import is_handed_over
from flower_edge.training._lean_ops import one_bit_relu
from flower_edge.training._lean_pool import lean_max_pool2d
from flower_edge.training._quantised_map import QuantisedMap
from flower_edge.training.rule import Rule
from flower_edge.training.where import Where, check_where


def _everywhere(name: str, layer: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class LeanActivations:
    """Let ReLU and ReLU6 save one bit per element for the backward pass, and MaxPool2d a byte per output.

    The bit tells whether the gradient passes, the byte which cell of the window it goes to; on maps wider
    than about 120 cells it is two bytes.

    Torch saves an activation's whole output, 32 bits, and input and int64 indices of a pooling. That costs
    nothing where the next layer saves the same tensor anyway; where it does not, as after
    :class:`GradientFilter`, these are what is left in memory. Outputs and gradients are those of torch, bit
    for bit. The gradient of a NaN passes, as in torch's ReLU; in its ReLU6 that depends on where in memory it
    lies. Second derivatives are refused.

    On the CPU float32 runs a compiled kernel; other dtypes and devices take several operations of torch,
    which save as much memory but are slower than its own ReLU. Small inputs, below 65536 elements, are left
    to torch: there the call takes longer than the work.

    Parameters
    ----------
    where : callable, Last or AllButStem
        Which layers: a callable takes name and module. Default: all.

    Raises
    ------
    TypeError
        If `where` is none of these.
    """

    where: Where = _everywhere

    def __post_init__(self) -> None:
        check_where(self.where)

    def __str__(self) -> str:
        return "LeanActivations()"

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """ReLU, ReLU6 and MaxPool2d."""
        return {nn.ReLU: LeanReLU, nn.ReLU6: LeanReLU6, nn.MaxPool2d: LeanMaxPool2d}

    def rule(self, layer: nn.Module) -> Rule:
        """Set what is saved.

        Parameters
        ----------
        layer : Module
            An activation or a max pooling.

        Returns
        -------
        Rule
            Its part `saved`.
        """
        return Rule(saved=self)


class LeanReLU(nn.ReLU):
    """A ReLU that saves bits; :func:`prepare_` makes it out of `nn.ReLU`."""

    original = nn.ReLU

    rule: Rule = Rule()

    def forward(self, input: Tensor) -> Tensor:
        """Do what `nn.ReLU` does."""
        if is_handed_over(input):
            return input
        if self.rule.saved is not None and _saves(input):
            return one_bit_relu(input, None, self.inplace)
        return super().forward(input)


class LeanReLU6(nn.ReLU6):
    """A ReLU6 that saves bits; :func:`prepare_` makes it out of `nn.ReLU6`."""

    original = nn.ReLU6

    rule: Rule = Rule()

    def forward(self, input: Tensor) -> Tensor:
        """Do what `nn.ReLU6` does."""
        if is_handed_over(input):
            return input
        if self.rule.saved is not None and _saves(input):
            return one_bit_relu(input, 6.0, self.inplace)
        return super().forward(input)


class LeanMaxPool2d(nn.MaxPool2d):
    """A max pooling that saves places within windows; :func:`prepare_` makes it out of `nn.MaxPool2d`."""

    original = nn.MaxPool2d

    rule: Rule = Rule()

    def forward(self, input: Tensor) -> Any:
        """Do what `nn.MaxPool2d` does; one that returns indices is left to torch."""
        if self.return_indices or not _saves(input):
            return super().forward(input)
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        kernel_size, stride, padding, dilation = (_pair(size) for size in sizes)
        return lean_max_pool2d(input, kernel_size, stride, padding, dilation, self.ceil_mode)


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


_LEAST_ELEMENTS = 65536


def _saves(x: Tensor) -> bool:
    # Bytes that layers hand to each other are what the next one saves in any case.
    is_large = x.numel() >= _LEAST_ELEMENTS and not isinstance(x, QuantisedMap)
    return torch.is_grad_enabled() and x.requires_grad and is_large
