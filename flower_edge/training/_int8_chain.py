"""Convolutions and normalisations that hand bytes to each other."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _len_torch_dispatch_stack  # type: ignore[attr-defined]

from flower_edge.kernels._int8_conv import int8_conv, int8_conv_with_ends, int8_grad_weight, pack_weight
from flower_edge.kernels._int8_quantise import QuantisedError, quantise, quantise_error
from flower_edge.kernels._int8_shape import conv_shape
from flower_edge.kernels._quantised import QuantisedTensor
from flower_edge.kernels._quantised_range_evonorm import (
    fitted_range_evonorm,
    quantised_range_evonorm_backward,
)
from flower_edge.kernels._range_evonorm_reference import range_factor
from flower_edge.training._int8_ops import Geometry, refuse_second_derivatives
from flower_edge.training._quantised_map import Cells, Ends, ErrorFormat, QuantisedMap


def hands_bytes(x: Tensor) -> bool:
    """Tell whether layers may hand bytes on here: on the CPU, and where no tracer or profiler listens."""
    return (
        type(x) in (Tensor, torch.nn.Parameter, QuantisedMap)
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and not _len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
    )


def chained_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, error_bits: int, stochastic: bool
) -> Tensor:
    """Convolve bytes, and have both gradients formed in 8 bits, as :func:`int8_conv2d` does.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``; what is not a QuantisedMap is quantised.
    weight, bias, geometry
        As of :func:`int8_conv2d`.
    error_bits : int
        8 or 16, of the gradient of the output, for the gradient of the weight.
    stochastic : bool
        How its 8 bits are rounded.

    Returns
    -------
    Tensor
        A QuantisedMap, which is quantised when somebody wants bytes, and whose gradient may come in bytes.

    Raises
    ------
    ValueError
        If something is not finite.
    """
    # Drawn here, so that a recomputed forward pass draws it again.
    seed = int(torch.randint(-(2**63), 2**63 - 1, ())) if stochastic else None
    y: Tensor = _Conv2d.apply(x, weight, bias, geometry, error_bits, seed)  # type: ignore[no-untyped-call]
    return y


def chained_range_evonorm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, v: Tensor | None, groups: int, eps: float
) -> Tensor:
    """Normalise bytes to bytes.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C, H, W)``; what is not a QuantisedMap is quantised.
    weight, bias, v, groups, eps
        As of :func:`flower_edge.kernels.quantised_range_evonorm`.

    Returns
    -------
    Tensor
        A QuantisedMap with 256 levels between its least and its greatest value.

    Raises
    ------
    ValueError
        If something is not finite.
    """
    y: Tensor = _RangeEvoNorm.apply(x, weight, bias, v, groups, eps)  # type: ignore[no-untyped-call]
    return y


def _bytes(x: Tensor) -> QuantisedTensor:
    return x.cells.quantised() if isinstance(x, QuantisedMap) else quantise(x)


def _floats(x: Tensor) -> Tensor:
    return x.cells.floats() if isinstance(x, QuantisedMap) else x


class _Conv2d(torch.autograd.Function):
    """Saves the bytes that it reads."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        error_bits: int,
        seed: int | None,
    ) -> Tensor:
        cells = _bytes(x)
        shape = conv_shape(tuple(x.shape), tuple(weight.shape), *geometry)
        y, ends = int8_conv_with_ends(cells, pack_weight(weight, shape), bias)
        _, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        errors = ErrorFormat(error_bits if needs_weight else 8, seed)
        ctx.save_for_backward(weight, cells.values)
        ctx.meaning = cells.scale, cells.zero_point
        ctx.shape, ctx.errors, ctx.dtype = shape, errors, x.dtype
        # The gradient of a bias is the sum of floats.
        return QuantisedMap(Cells(Ends(y, ends)), y.shape, None if needs_bias else errors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        weight, values = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        error = grad.cells.content if isinstance(grad, QuantisedMap) else None
        if not isinstance(error, QuantisedError):
            grad = _floats(grad)
            error = quantise_error(grad, ctx.errors.bits, ctx.errors.seed)
        grad_x = grad_weight = None
        if needs_x:
            grad_x = int8_conv(error.values, pack_weight(weight, ctx.shape, transposed=True)).to(ctx.dtype)
        if needs_weight:
            grad_weight = int8_grad_weight(QuantisedTensor(values, *ctx.meaning), error, ctx.shape)
        return (grad_x, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None, None, None, None)


class _RangeEvoNorm(torch.autograd.Function):
    """Saves the bytes that it reads, and max and min of their chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        v: Tensor | None,
        groups: int,
        eps: float,
    ) -> Tensor:
        cells = _bytes(x)
        # A range of bytes is known to a step: a quiet group of equal bytes must not be multiplied by 1 / eps.
        eps += cells.scale * range_factor(x.shape[1] // groups * x.shape[2] * x.shape[3])
        y, extremes = fitted_range_evonorm(cells, weight, bias, v, groups, eps)
        ctx.save_for_backward(cells.values, extremes, weight, v)
        ctx.meaning, ctx.numbers = (cells.scale, cells.zero_point), (groups, eps)
        ctx.errors, ctx.dtype = (x.errors if isinstance(x, QuantisedMap) else None), x.dtype
        return QuantisedMap(Cells(y), x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        values, extremes, weight, v = ctx.saved_tensors
        x = QuantisedTensor(values, *ctx.meaning)
        found = quantised_range_evonorm_backward(_floats(grad), x, extremes, weight, v, *ctx.numbers)
        needed = ctx.needs_input_grad
        grad_x: Tensor | None = None
        if needed[0] and ctx.errors is None:
            grad_x = found.x.to(ctx.dtype)
        elif needed[0]:
            # Here its ends are known, and its floats are still near.
            error = quantise_error(found.x, ctx.errors.bits, ctx.errors.seed, found.bounds)
            grad_x = QuantisedMap(Cells(error), found.x.shape)
        rest = (part if wanted else None for part, wanted in zip(found[1:4], needed[1:4], strict=True))
        return (grad_x, *rest, None, None)
