"""Max pooling that keeps the place of each maximum within its window, and nothing of its input."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flower_edge.kernels._maps import empty_map, is_channels_last, is_served
from flower_edge.training._ops import is_eager

Pair = tuple[int, int]


def lean_max_pool2d(
    x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> Tensor:
    """Take the maximum over windows, saving a small integer for each of them for the backward pass.

    Torch saves the input, of which its backward pass reads the shape alone, and where in the whole map each
    maximum lies, as an int64.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C, H, W)`` or ``(C, H, W)``, any strides, a floating dtype.
    kernel_size, stride, padding, dilation, ceil_mode
        As of :func:`torch.nn.functional.max_pool2d`, along height and width.

    Returns
    -------
    Tensor
        As of :func:`torch.nn.functional.max_pool2d`, and so is its gradient.
    """
    y: Tensor = _LeanMaxPool2d.apply(x, kernel_size, stride, padding, dilation, ceil_mode)  # type: ignore[no-untyped-call]
    return y


class _LeanMaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> Tensor:
        pooling = (kernel_size, stride, padding, dilation, ceil_mode)
        y: Tensor
        y, places = torch.ops.aten.max_pool2d_with_indices.default(x, *pooling)
        width = x.shape[-1]
        farthest = (kernel_size[0] - 1) * dilation[0] * width + (kernel_size[1] - 1) * dilation[1]
        corners = _corners(places, stride, padding, width)
        ctx.save_for_backward(places.sub_(corners).to(_smallest_dtype(farthest)))
        ctx.pooling, ctx.x_shape, ctx.x_stride = pooling, x.shape, x.stride()
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (within,) = ctx.saved_tensors
        _, stride, padding, _, _ = ctx.pooling
        places = within.to(torch.int64).add_(_corners(within, stride, padding, ctx.x_shape[-1]))
        # Stands in for the input, whose values are not read; memory that is not touched costs nothing.
        x = grad.new_empty_strided(ctx.x_shape, ctx.x_stride)
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        if is_eager(x) and is_served(x) and x.dim() == 4:
            # As large as the input: to touch fresh pages takes longer than the work.
            grad_x = empty_map((x.shape[0], x.shape[1], x.shape[2], x.shape[3]), is_channels_last(x))
            backward.grad_input(grad, x, *ctx.pooling, places, grad_input=grad_x)
        else:
            grad_x = backward.default(grad, x, *ctx.pooling, places)
        return (grad_x, *(None,) * len(ctx.pooling))


def _corners(places: Tensor, stride: Pair, padding: Pair, width: int) -> Tensor:
    """Say where in the map each window begins; with padding that may be before it."""
    rows, columns = (
        torch.arange(count, device=places.device) * step - before
        for count, step, before in zip(places.shape[-2:], stride, padding, strict=True)
    )
    return rows[:, None] * width + columns


def _smallest_dtype(largest: int) -> torch.dtype:
    """Give the dtype for numbers from 0 on."""
    dtypes = (torch.uint8, torch.int16, torch.int32)
    return next((dtype for dtype in dtypes if largest <= torch.iinfo(dtype).max), torch.int64)
