"""Gradient filtering as its authors published it, in operations of torch: what ours is measured against.

Written anew from the description in Yang, Li, Marculescu, "Efficient On-device Training via Gradient
Filtering", CVPR 2023. As there, gradients of convolutions with stride 2 are four times too large.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d


def pooled_input(x: Tensor, window: int) -> Tensor:
    """Return the sums of x over windows: all that is kept for the backward pass."""
    return avg_pool2d(x, window, ceil_mode=True, divisor_override=1)


def backward(
    grad: Tensor,
    sums: Tensor,
    weight: Tensor,
    x_size: tuple[int, int],
    patch_size: int,
    window: int,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of input and weight, both filtered.

    Parameters
    ----------
    grad : Tensor
        Gradient of the output, shape (N, C_out, H, W).
    sums : Tensor
        Result of `pooled_input`.
    weight : Tensor
        Shape (C_out, C_in / groups, kh, kw).
    x_size : tuple of int
        Height and width of the input.
    patch_size, window : int
        Cells along a side of a patch of the output, and of the part of the input that it stands for.
    groups : int
        Of the convolution: 1, or as many as channels.
    """
    means = avg_pool2d(grad, patch_size, ceil_mode=True, count_include_pad=False)
    taps = weight.sum((2, 3), keepdim=True)
    if groups == 1:
        pooled = conv2d(means, taps.transpose(0, 1))
        gram = torch.einsum("nohw,nihw->oi", means, sums)
    else:
        pooled = means * taps.view(1, -1, 1, 1)
        gram = (means * sums).sum((0, 2, 3))[:, None]
    grad_x = pooled.repeat_interleave(window, 2).repeat_interleave(window, 3)[..., : x_size[0], : x_size[1]]
    return grad_x, gram[:, :, None, None].expand_as(weight).contiguous()


class _PublishedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: nn.Conv2d, patch_size: int) -> Tensor:
        ctx.window, ctx.patch_size, ctx.groups = patch_size * layer.stride[0], patch_size, layer.groups
        ctx.x_size = (x.shape[2], x.shape[3])
        ctx.save_for_backward(pooled_input(x, ctx.window), weight)
        return conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        sums, weight = ctx.saved_tensors
        gradients = backward(grad, sums, weight, ctx.x_size, ctx.patch_size, ctx.window, ctx.groups)
        return (*gradients, None, None)


class PublishedConv2d(nn.Conv2d):
    """A convolution without bias that trains in the published way."""

    patch_size = 2

    def forward(self, input: Tensor) -> Tensor:
        """Convolve exactly."""
        y: Tensor = _PublishedConv.apply(input, self.weight, self, self.patch_size)  # type: ignore[no-untyped-call]
        return y


def use_published_(model: nn.Module, patch_size: int) -> nn.Module:
    """Let all convolutions but the first train in the published way."""
    for layer in [module for module in model.modules() if type(module) is nn.Conv2d][1:]:
        layer.__class__ = PublishedConv2d
        assert isinstance(layer, PublishedConv2d)
        layer.patch_size = patch_size
    return model
