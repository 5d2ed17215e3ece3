"""The one-bit activations as operators of torch, with shapes for the compiler and with gradients."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from flower_edge import kernels
from flower_edge.kernels._maps import is_gapless

# Any: torch.library is annotated in part.
_library: Any = torch.library.Library("flower_edge", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("relu_bits(Tensor x, float? cap) -> (Tensor, Tensor)")
_library.define("relu_bits_(Tensor(a!) x, float? cap) -> Tensor")
_library.define("mask_by_bits(Tensor x, Tensor bits, SymInt[] stride) -> Tensor")


def _fake_bits(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    return x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)


def _fake_relu_bits(x: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), _fake_bits(x, cap)


def _fake_mask(x: torch.Tensor, bits: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    return x.new_empty_strided(x.shape, stride)


for _name, _runs, _fake in (
    ("relu_bits", kernels.relu_bits, _fake_relu_bits),
    ("relu_bits_", kernels.relu_bits_, _fake_bits),
    ("mask_by_bits", kernels.mask_by_bits, _fake_mask),
):
    _library.impl(_name, _runs, "CompositeExplicitAutograd")
    torch.library.register_fake(f"flower_edge::{_name}", _fake, lib=_library)


class OneBitReLU(torch.autograd.Function):
    """``apply(x, cap)``: `x` cut to ``[0, cap]``; saves one bit per element."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cap: float | None) -> torch.Tensor:
        y: torch.Tensor
        y, bits = torch.ops.flower_edge.relu_bits.default(x, cap)
        ctx.save_for_backward(bits)
        ctx.stride = y.stride()
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (bits,) = ctx.saved_tensors
        return torch.ops.flower_edge.mask_by_bits.default(grad, bits, ctx.stride), None


class OneBitReLUInPlace(OneBitReLU):
    """``apply(x, cap)``: the same in place; `x` must have no gaps in memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cap: float | None) -> torch.Tensor:
        bits = torch.ops.flower_edge.relu_bits_.default(x, cap)
        ctx.save_for_backward(bits)
        ctx.stride = x.stride()
        ctx.mark_dirty(x)
        return x


def one_bit_relu(x: torch.Tensor, cap: float | None, inplace: bool) -> torch.Tensor:
    """Cut to ``[0, cap]``, saving one bit per element for the backward pass.

    Parameters
    ----------
    x : Tensor
        Any shape and strides, a floating dtype.
    cap : float or None
        Upper bound; None for none.
    inplace : bool
        Whether `x` is overwritten.

    Returns
    -------
    Tensor
        Shape of `x`; `x` itself where `inplace`.
    """
    if not inplace:
        y: torch.Tensor = OneBitReLU.apply(x, cap)  # type: ignore[no-untyped-call]
        return y
    if is_gapless(x):
        y = OneBitReLUInPlace.apply(x, cap)  # type: ignore[no-untyped-call]
        return y
    return torch.nn.functional.hardtanh_(x, 0.0, cap) if cap else torch.relu_(x)
