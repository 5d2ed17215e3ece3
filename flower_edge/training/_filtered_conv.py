"""A convolution whose backward pass sees one value, or a few, for each patch."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flower_edge.training import _filter_ops, _ops
from flower_edge.training._folded_conv import scaled


@dataclass(frozen=True)
class PatchFilter:
    """What gradient filtering does to a layer: the parts of its rule but the forward pass.

    Attributes
    ----------
    patch_size, components : int
        As in :class:`flower_edge.training.GradientFilter`.
    measured : bool
        Whether the exact backward pass is used where it is measured to be faster.
    basis : {"walsh", "fourier"}
        Likewise.
    """

    patch_size: int
    components: int
    measured: bool
    basis: str = "walsh"

    def __str__(self) -> str:
        numbers = f"patch_size={self.patch_size}, components={self.components}"
        return f"GradientFilter({numbers}, basis={self.basis!r})"


class ConvFilter(NamedTuple):
    """A convolution, in torch's own terms, and its filter."""

    stride: tuple[int, ...]
    padding: tuple[int, int]
    dilation: tuple[int, ...]
    groups: int
    patch_size: int
    components: int
    basis: str = "walsh"

    # Not a property, which torch 2.10 cannot compile.
    def numbers(self) -> tuple[tuple[int, ...], tuple[int, int], tuple[int, ...], int, int, int]:
        """All but the basis, as torch's operators take them."""
        return self[:-1]


def filtered_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvFilter, scale: Tensor | None = None
) -> Tensor:
    """Convolve exactly, and have both gradients filtered; that of the bias is exact.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``.
    weight : Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, dtype of `x`.
    bias : Tensor, optional
        Shape ``(C_out,)``.
    conv : ConvFilter
        Everything else.
    scale : Tensor, optional
        Shape ``(C_out,)``, dtype of `x`: convolves with ``weight * scale``, which is not kept for the
        backward pass. Default: 1.

    Returns
    -------
    Tensor
        As of :func:`torch.conv2d`.
    """
    y: Tensor = _FilteredConv2d.apply(x, weight, bias, scale, conv)  # type: ignore[no-untyped-call]
    return y


class _FilteredConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, conv: ConvFilter
    ) -> Tensor:
        y = torch.conv2d(
            x, scaled(weight, scale), bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )
        sums = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            sums = _filter_ops.saved(x, y.shape, weight.shape, conv)
        ctx.save_for_backward(weight, sums, scale)
        ctx.conv, ctx.x_shape = conv, x.shape
        # Torch gives the exact grad_x the layout that it has chosen for y.
        ctx.channels_last = _ops.is_channels_last(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "gradient filtering has no second derivative, and create_graph=True asks for one; "
                "use create_graph=False, or flower_edge.training.restore_(model) for exact gradients"
            )
        weight, sums, scale = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_scale, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_scale = None
        if needs_x or sums is not None:
            grad_x, grad_weight, grad_scale = _filter_ops.backward(
                grad, weight, sums, ctx.x_shape, ctx.conv, ctx.channels_last, needs_x, scale
            )
        return (
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
            grad_scale if needs_scale else None,
            None,
        )
