"""Convolutions and normalisations that hand bytes to each other."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _len_torch_dispatch_stack  # type: ignore[attr-defined]

from flower_edge.kernels._chain import Fitted, conv_backward, conv_forward, norm_backward, norm_forward
from flower_edge.kernels._int8_quantise import QuantisedError, quantise, quantise_error
from flower_edge.kernels._int8_shape import conv_shape
from flower_edge.kernels._quantised import QuantisedTensor
from flower_edge.kernels._range_evonorm_calls import Norm
from flower_edge.training._int8_ops import Geometry, refuse_second_derivatives
from flower_edge.training._quantised_map import Cells, Ends, ErrorFormat, QuantisedMap


def hands_bytes(x: Tensor) -> bool:
    """Tell whether layers may hand bytes on here: on the CPU, where nothing traces or transforms."""
    return (
        type(x) in (Tensor, torch.nn.Parameter, QuantisedMap)
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and not _len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not torch._C._are_functorch_transforms_active()
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
    seed = torch.randint(-(2**63), 2**63 - 1, (), device="cpu").item() if stochastic else None
    y: Tensor = _convolved(x, weight, bias, geometry, error_bits, seed)
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
    y: Tensor = _normalised(x, weight, bias, v, groups, eps)
    return y


def _bytes(x: Tensor) -> QuantisedTensor:
    return x.cells.quantised() if isinstance(x, QuantisedMap) else quantise(x)


def _bytes_or_floats(x: Tensor) -> QuantisedTensor | Fitted:
    """Leave floats whose ends are known to whoever can make bytes of them on the way."""
    content = x.cells.content if isinstance(x, QuantisedMap) else None
    if isinstance(content, Ends) and content.ends is not None:
        return Fitted(content.floats, content.ends)
    return _bytes(x)


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
        shape = conv_shape(x.shape, weight.shape, *geometry)
        y = conv_forward(cells, weight, bias, shape)
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        errors = ErrorFormat(error_bits if needs_weight else 8, seed)
        ctx.save_for_backward(weight, cells.values)
        ctx.meaning = cells.scale, cells.zero_point
        ctx.shape, ctx.errors, ctx.dtype = shape, errors, x.dtype
        # The gradient of a bias is the sum of floats.
        return QuantisedMap(Cells(Ends(*y)), shape.y_shape, None if needs_bias else errors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        weight, values = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        error = grad.cells.content if isinstance(grad, QuantisedMap) else None
        if not isinstance(error, QuantisedError):
            grad = _floats(grad)
            error = quantise_error(grad, ctx.errors.bits, ctx.errors.seed)
        x = QuantisedTensor._make((values, *ctx.meaning))
        grad_x, grad_weight = conv_backward(x, error, weight, ctx.shape, (needs_x, needs_weight))
        if grad_x is not None and ctx.dtype != grad_x.dtype:
            grad_x = grad_x.to(ctx.dtype)
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
        norm = Norm(weight, bias, v, groups, eps)
        made = norm_forward(_bytes_or_floats(x), norm)
        if isinstance(x, QuantisedMap):
            x.cells.become(made.x)
        ctx.save_for_backward(made.x.values, made.extremes, weight, v)
        ctx.meaning, ctx.numbers = (made.x.scale, made.x.zero_point), (groups, eps)
        ctx.errors, ctx.dtype = (x.errors if isinstance(x, QuantisedMap) else None), x.dtype
        return QuantisedMap(Cells(made.y), x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        values, extremes, weight, v = ctx.saved_tensors
        x, needed = QuantisedTensor._make((values, *ctx.meaning)), ctx.needs_input_grad
        errors = None if ctx.errors is None or not needed[0] else (ctx.errors.bits, ctx.errors.seed)
        found = norm_backward(_floats(grad), x, extremes, Norm(weight, None, v, *ctx.numbers), errors)
        grad_x: Tensor | None = None
        if isinstance(found.x, QuantisedError):
            grad_x = QuantisedMap(Cells(found.x), values.shape)
        elif needed[0]:
            grad_x = found.x.to(ctx.dtype)
        rest = (part if wanted else None for part, wanted in zip(found[1:], needed[1:4], strict=True))
        return (grad_x, *rest, None, None)


# Function.apply looks at each argument for wrappers of torch.func first, which hands_bytes has ruled out.
_convolved: Any = super(torch.autograd.Function, _Conv2d).apply
_normalised: Any = super(torch.autograd.Function, _RangeEvoNorm).apply
