"""Convolutions whose backward passes are timed, and the ways to get their gradients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import published_filter
from flower_edge.training import _filter_ops, _ops
from flower_edge.training._filtered_conv import ConvFilter

Gradients = Callable[[], tuple[Tensor, ...]]


class Layer(NamedTuple):
    """A convolution and its input; a batch has 32 images."""

    inputs: int
    outputs: int
    height: int
    width: int
    kernel_size: int = 3
    stride: int = 1
    depthwise: bool = False

    @property
    def has_taps(self) -> bool:
        """Whether the Fourier basis is for it."""
        return self.kernel_size > 1 and not self.depthwise

    def __str__(self) -> str:
        kind = f"{self.kernel_size}×{self.kernel_size}{' depthwise' if self.depthwise else ''}"
        channels = self.inputs if self.depthwise else f"{self.inputs}→{self.outputs}"
        return f"{kind} {channels} @{self.height}×{self.width}{' stride 2' if self.stride == 2 else ''}"


PAPER = (
    *(Layer(128, 128, 120, 160), Layer(256, 256, 60, 80), Layer(512, 512, 30, 40)),
    *(Layer(512, 512, 14, 14), Layer(256, 256, 14, 14), Layer(128, 128, 28, 28), Layer(64, 64, 56, 56)),
)
"""The layers whose latency the paper reports."""
DEPTHWISE = Layer(144, 144, 56, 56, depthwise=True)
POINTWISE = Layer(64, 384, 14, 14, kernel_size=1)
MOBILENET = (
    DEPTHWISE,
    POINTWISE,
    Layer(144, 144, 56, 56, stride=2, depthwise=True),
    Layer(24, 144, 56, 56, kernel_size=1),
)
BATCH = 32


class Problem(NamedTuple):
    """A layer, tensors for it with random values, and the ways to get from them to its gradients."""

    layer: Layer
    x: Tensor
    grad: Tensor
    weight: Tensor
    groups: int

    @classmethod
    def of(cls, layer: Layer, device: str, layout: torch.memory_format) -> "Problem":
        """Make the tensors."""
        torch.manual_seed(0)
        groups = layer.inputs if layer.depthwise else 1
        shape = (layer.outputs, layer.inputs // groups, layer.kernel_size, layer.kernel_size)
        size = (-(-layer.height // layer.stride), -(-layer.width // layer.stride))
        x = torch.randn(BATCH, layer.inputs, layer.height, layer.width, device=device)
        grad = torch.randn(BATCH, layer.outputs, *size, device=device)
        weight = torch.randn(shape, device=device) / (shape[1] * shape[2] ** 2) ** 0.5
        x, grad, weight = (tensor.contiguous(memory_format=layout) for tensor in (x, grad, weight))
        return cls(layer, x, grad, weight, groups)

    def exact(self) -> Gradients:
        """Bind torch's own backward pass."""
        stride, padding = [self.layer.stride] * 2, [self.layer.kernel_size // 2] * 2
        rest = (stride, padding, [1, 1], False, [0, 0], self.groups, [True, True, False])

        def gradients() -> tuple[Tensor, ...]:
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                self.grad, self.x, self.weight, None, *rest
            )
            return grad_x, grad_weight

        return gradients

    def published(self, formulation: Callable[..., tuple[Tensor, Tensor]], patch_size: int) -> Gradients:
        """Bind `both_published`, or what it was compiled to."""
        numbers = (patch_size, patch_size * self.layer.stride, self.groups)
        return lambda: formulation(self.x, self.grad, self.weight, *numbers)

    def ours(self, patch_size: int, components: int = 1, basis: str = "walsh") -> Gradients:
        """Bind what a prepared convolution runs beside its exact forward pass."""
        stride, padding = (self.layer.stride,) * 2, (self.layer.kernel_size // 2,) * 2
        conv = ConvFilter(stride, padding, (1, 1), self.groups, patch_size, components, basis)
        channels_last = _ops.is_channels_last(self.x)

        def gradients() -> tuple[Tensor, ...]:
            sums = _filter_ops.saved(self.x, self.grad.shape, self.weight.shape, conv)
            return _filter_ops.backward(
                self.grad, self.weight, sums, self.x.shape, conv, channels_last, needs_x=True
            )

        return gradients


def both_published(
    x: Tensor, grad: Tensor, weight: Tensor, patch_size: int, window: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Pool the input as the forward pass would, and form both gradients."""
    sums = published_filter.pooled_input(x, window)
    size = (x.shape[2], x.shape[3])
    return published_filter.backward(grad, sums, weight, size, patch_size, window, groups)
