"""A convolution that computes a frozen normalisation too, through scaled weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, eq=False)
class Fold:
    """The forward pass of a convolution that computes the frozen normalisation after it, too.

    Attributes
    ----------
    norm : torch.nn.BatchNorm2d
        Read at every step, since its weight and bias may be trained.
    """

    norm: nn.BatchNorm2d

    def scale_and_shift(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give what the weight is multiplied with, and the bias that takes up all else.

        Parameters
        ----------
        bias : Tensor, optional
            Of the convolution, shape ``(C_out,)``.

        Returns
        -------
        scale, shift : Tensor
            Shape ``(C_out,)``; differentiable in `bias` and in weight and bias of the normalisation.
        """
        scale, shift = scale_and_shift(self.norm)
        return scale, shift if bias is None else shift + bias * scale

    def __str__(self) -> str:
        return "FrozenNorm()"


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    r"""Give the two numbers per channel that a normalisation with frozen statistics comes down to.

    :math:`\gamma / \sigma` and :math:`\beta - \mu \gamma / \sigma`, where :math:`\sigma^2` is the running
    variance plus eps: Ioffe, Szegedy, "Batch Normalization", ICML 2015, algorithm 2.

    Parameters
    ----------
    norm : BatchNorm2d
        With running statistics.

    Returns
    -------
    scale, shift : Tensor
        Shape ``(C,)``.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError(
            "a normalisation has lost its running statistics, expected those that it was frozen with"
        )
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    return scale, shift + norm.bias if norm.affine else shift


def scaled_conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Convolve with ``weight * scale`` and `shift` for a bias; the product is not kept for the backward pass.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``.
    weight : Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, dtype of `x`.
    scale, shift : Tensor
        Shape ``(C_out,)``, dtype of `x`.
    stride, padding, dilation, groups
        As of :func:`torch.conv2d`, in numbers.

    Returns
    -------
    Tensor
        As of :func:`torch.conv2d`.
    """
    y: Tensor = _ScaledConv2d.apply(x, weight, scale, shift, stride, padding, dilation, groups)  # type: ignore[no-untyped-call]
    return y


def scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Multiply every filter with its channel's number."""
    return weight if scale is None else weight * scale.view(-1, 1, 1, 1)


class _ScaledConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, *conv: Any) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.conv = conv
        return torch.conv2d(x, scaled(weight, scale), shift, *conv)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.conv
        needs_x, needs_weight, needs_scale, needs_shift, *_ = ctx.needs_input_grad
        grad_x, grad_scaled, grad_shift = torch.ops.aten.convolution_backward(
            grad,
            x,
            scaled(weight, scale),
            [len(scale)],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [needs_x, needs_weight or needs_scale, needs_shift],
        )
        return (
            grad_x,
            grad_scaled * scale.view(-1, 1, 1, 1) if needs_weight else None,
            (grad_scaled * weight).sum((1, 2, 3)) if needs_scale else None,
            grad_shift,
            *(None,) * len(ctx.conv),
        )
