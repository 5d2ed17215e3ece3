"""A convolution whose forward and backward pass multiply 8-bit integers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from flower_edge.kernels._chain import conv_backward, conv_forward
from flower_edge.kernels._int8_quantise import quantise, quantise_error
from flower_edge.kernels._int8_shape import conv_shape
from flower_edge.training import _choice, _int8_ops, _ops
from flower_edge.training._int8_ops import Geometry
from flower_edge.training._quantised_map import QuantisedMap


@dataclass(frozen=True)
class Int8Arithmetic:
    """What training in 8 bits does to a layer: all parts of its rule.

    Attributes
    ----------
    error_bits : int
        As in :class:`flower_edge.training.Int8Training`.
    stochastic : bool
        Whether gradients are rounded by chance.
    measured : bool
        Whether torch's own way is used where it is measured to be faster.
    chained : bool
        Whether bytes are handed on.
    """

    error_bits: int
    stochastic: bool
    measured: bool
    chained: bool = False

    def __str__(self) -> str:
        rounding = "stochastic" if self.stochastic else "nearest"
        chain = ", chain=True" if self.chained else ""
        return f"Int8Training(error_bits={self.error_bits}, rounding={rounding!r}{chain})"


def int8_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, way: Int8Arithmetic
) -> Tensor:
    """Convolve in 8 bits, and have both gradients formed so; that of the bias is exact.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``.
    weight : Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, float32.
    bias : Tensor, optional
        Shape ``(C_out,)``, float32.
    geometry : Geometry
        Stride, padding, dilation and groups.
    way : Int8Arithmetic
        How gradients are quantised.

    Returns
    -------
    Tensor
        float32, channels last.

    Raises
    ------
    ValueError
        If something is not finite.
    """
    # Drawn here, so that a recomputed forward pass draws it again.
    seed = torch.zeros((), dtype=torch.int64, device="cpu")
    if way.stochastic:
        seed.random_(-(2**63), 2**63 - 1)
    y: Tensor = _Int8Conv2d.apply(x.float(), weight, bias, seed, geometry, way)  # type: ignore[no-untyped-call]
    return y


def measured(
    x: Tensor, weight: Tensor, geometry: Geometry, way: Int8Arithmetic, is_linear: bool = False
) -> _choice.Measurement | None:
    """Measure a whole training step of a layer both ways, or look up what equal layers have shown before.

    Parameters
    ----------
    x, weight, geometry, way
        As in :func:`int8_conv2d`. Under autocast, the exact way is the one in its dtype.
    is_linear : bool, default False
        Whether it is a linear layer on rows that are written as maps of one cell. Torch multiplies these as
        matrices, and they are not handed on in bytes.

    Returns
    -------
    Measurement or None
        None for tensors that hold no data, as in a tracer.
    """
    device, dtype = x.device, x.dtype
    autocast = torch.get_autocast_dtype(device.type) if _ops.autocast_enabled(device.type) else dtype
    key = (
        *(x.shape, x.stride(), x.requires_grad, dtype, device, type(x), autocast, geometry, is_linear),
        *(weight.shape, weight.stride(), weight.requires_grad, torch.get_num_threads()),
        *(way.error_bits, way.stochastic, way.chained),
    )
    return _choice.looked_up(key, x, lambda: _measure(x, weight, geometry, way, autocast, is_linear))


def _measure(
    x: Tensor, weight: Tensor, geometry: Geometry, way: Int8Arithmetic, dtype: torch.dtype, is_linear: bool
) -> _choice.Measurement:
    needs = (x.requires_grad, weight.requires_grad)
    seed = torch.zeros((), dtype=torch.int64)
    with torch.no_grad(), _ops.without_autocast(x.device.type):
        given = x.cells.quantised() if isinstance(x, QuantisedMap) else None
        x = x.cells.floats() if isinstance(x, QuantisedMap) else x
        # Values do not matter to the clock, layouts do: the output stands in for its gradient.
        grad = torch.conv2d(x.to(dtype), weight.to(dtype), None, *geometry)
        exact_grad, quantised_grad = grad, grad.float()

        def exact() -> object:
            cells, taps = x.to(dtype), weight.to(dtype)
            if is_linear:
                rows, matrix, errors = cells.flatten(1), taps.flatten(1), exact_grad.flatten(1)
                linear(rows, matrix)
                return errors @ matrix if needs[0] else None, errors.t() @ rows if needs[1] else None
            torch.conv2d(cells, taps, None, *geometry)
            rest = (*geometry[:3], False, [0, 0], geometry.groups, [*needs, False])
            return torch.ops.aten.convolution_backward(exact_grad, cells, taps, None, *rest)

        def ours() -> object:
            _, values, meaning = _int8_ops.forward(x.float(), weight, None, geometry, given)
            saved = (values, meaning, seed)
            rest = (way.error_bits, way.stochastic, needs)
            return _int8_ops.backward(quantised_grad, weight, saved, geometry, *rest)

        if way.chained and not is_linear:
            # Whoever reads the output hands its gradient over in bytes.
            shape = conv_shape(tuple(x.shape), tuple(weight.shape), *geometry)
            error = quantise_error(quantised_grad, way.error_bits if needs[1] else 8)

            def chained() -> object:
                cells = quantise(x) if given is None else given
                return conv_forward(cells, weight, None, shape), conv_backward(
                    cells, error, weight, shape, needs
                )

            return _choice.timed(exact, chained, x.device)
        return _choice.timed(exact, ours, x.device)


class _Int8Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seed: Tensor,
        geometry: Geometry,
        way: Int8Arithmetic,
    ) -> Tensor:
        y, values, meaning = _int8_ops.forward(x, weight, bias, geometry)
        ctx.save_for_backward(weight, values, meaning, seed)
        ctx.geometry, ctx.way = geometry, way
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _int8_ops.refuse_second_derivatives()
        weight, *saved = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = None
        if needs_x or needs_weight:
            rest = (ctx.way.error_bits, ctx.way.stochastic, (needs_x, needs_weight))
            grad_x, grad_weight = _int8_ops.backward(grad, weight, tuple(saved), ctx.geometry, *rest)
        return (
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
            *(None, None, None),
        )
