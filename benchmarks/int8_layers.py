"""Convolutions that are timed in 8 bits, and the ways to compute them: forward pass and both gradients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from flower_edge.training import _int8_ops
from flower_edge.training._int8_ops import Geometry

Step = Callable[[], tuple[Tensor, ...]]


class Layer(NamedTuple):
    """A convolution with stride 1 that keeps the size of its square map."""

    inputs: int
    outputs: int
    side: int
    batch: int
    kernel_size: int = 3

    def __str__(self) -> str:
        kind = f"{self.kernel_size}×{self.kernel_size} {self.inputs}→{self.outputs}"
        return f"{kind} @{self.side}×{self.side}, batch {self.batch}"


RESNET20 = (Layer(16, 16, 32, 32), Layer(32, 32, 16, 32), Layer(64, 64, 8, 32))
"""CIFAR-10."""
RESNET18_SMALL = (
    *(Layer(64, 64, 32, 16), Layer(128, 128, 16, 16)),
    *(Layer(256, 256, 8, 16), Layer(512, 512, 4, 16)),
)
"""Images of 32×32."""
RESNET18 = (
    *(Layer(64, 64, 56, 16), Layer(128, 128, 28, 16)),
    *(Layer(256, 256, 14, 16), Layer(512, 512, 7, 16)),
)
"""Images of 224×224."""
MOBILENET = (
    *(Layer(24, 144, 56, 16, 1), Layer(144, 24, 56, 16, 1), Layer(32, 192, 28, 16, 1)),
    *(Layer(192, 32, 28, 16, 1), Layer(64, 384, 14, 16, 1), Layer(384, 64, 14, 16, 1)),
    *(Layer(160, 960, 7, 16, 1), Layer(960, 160, 7, 16, 1)),
)
"""MobileNetV2, images of 224×224."""


class Problem(NamedTuple):
    """A layer and tensors for it with random values."""

    x: Tensor
    grad: Tensor
    weight: Tensor

    @classmethod
    def of(cls, layer: Layer, layout: torch.memory_format, dtype: torch.dtype = torch.float32) -> "Problem":
        """Make the tensors."""
        torch.manual_seed(0)
        size = (layer.side, layer.side)
        x = torch.relu(torch.randn(layer.batch, layer.inputs, *size))
        grad = torch.randn(layer.batch, layer.outputs, *size)
        kernel = (layer.kernel_size, layer.kernel_size)
        weight = torch.randn(layer.outputs, layer.inputs, *kernel) / (layer.inputs * kernel[0] ** 2) ** 0.5
        x, grad = (tensor.to(dtype).contiguous(memory_format=layout) for tensor in (x, grad))
        return cls(x, grad, weight.contiguous(memory_format=layout))

    @property
    def padding(self) -> int:
        """Cells on each side."""
        return self.weight.shape[2] // 2

    def exact(self) -> Step:
        """Bind torch's own convolution in the dtype of the maps, to which it casts the weight."""

        def step() -> tuple[Tensor, ...]:
            weight, padding = self.weight.to(self.x.dtype), [self.padding] * 2
            y = torch.conv2d(self.x, weight, None, 1, padding)
            rest = ([1, 1], padding, [1, 1], False, [0, 0], 1, [True, True, False])
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                self.grad, self.x, weight, None, *rest
            )
            return y, grad_x, grad_weight.float()

        return step

    def ours(self, error_bits: int) -> Step:
        """Bind what a layer with :class:`flower_edge.training.Int8Training` runs."""
        geometry, seed = Geometry((1, 1), (self.padding,) * 2, (1, 1), 1), torch.tensor(1)

        def step() -> tuple[Tensor, ...]:
            y, *saved = _int8_ops.forward(self.x, self.weight, None, geometry)
            saved_input = (saved[0], saved[1], seed)
            gradients = _int8_ops.backward(
                self.grad, self.weight, saved_input, geometry, error_bits, True, (True, True)
            )
            return y, *gradients

        return step

    def with_int_mm(self) -> Step:
        """Bind 8 bits out of torch's own operators: unfolded maps and `torch._int_mm`."""

        def step() -> tuple[Tensor, ...]:
            x, x_scale = _to_bytes(self.x)
            weight, weight_scale = _to_bytes(self.weight)
            grad, grad_scale = _to_bytes(self.grad)
            columns = _unfolded(x, self.weight.shape[2])
            taps = weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0]).contiguous()
            y = _as_map(torch._int_mm(columns, taps), x_scale * weight_scale, self.grad)
            errors = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
            flipped = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, weight.shape[1]).contiguous()
            back = torch._int_mm(_unfolded(grad, self.weight.shape[2]), flipped)
            grad_x = _as_map(back, grad_scale * weight_scale, self.x)
            sums = torch._int_mm(columns.t().contiguous(), errors).float() * (x_scale * grad_scale)
            kernel = self.weight.shape[2:]
            return y, grad_x, sums.view(*kernel, x.shape[1], grad.shape[1]).permute(3, 2, 0, 1)

        return step


def _to_bytes(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax() / 127
    return (x / scale).round_().to(torch.int8), scale


def _unfolded(x: Tensor, side: int) -> Tensor:
    """Lay the cells of each pixel's window side by side, channels innermost."""
    padded = pad(x.permute(0, 2, 3, 1), (0, 0, side // 2, side // 2, side // 2, side // 2)).contiguous()
    batch, channels, height, width = x.shape
    stride = padded.stride()
    windows = padded.as_strided((batch, height, width, side, side, channels), (*stride[:3], *stride[1:]))
    return windows.reshape(batch * height * width, side * side * channels)


def _as_map(products: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    return (products.float() * scale).view(batch, height, width, channels).permute(0, 3, 1, 2)
