"""Convolutions in 8 bits as operators of torch, so that compilers see through to the shapes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flower_edge.kernels._int8_conv import int8_conv, int8_grad_weight, pack_weight
from flower_edge.kernels._int8_quantise import quantise, quantise_error
from flower_edge.kernels._int8_shape import conv_shape
from flower_edge.kernels._quantised import QuantisedTensor
from flower_edge.training._ops import is_eager

# Any: torch.library is annotated in part.
_library: Any = torch.library.Library("flower_edge", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "int8_conv2d(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
    "int groups) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "int8_conv2d_backward(Tensor grad, Tensor weight, Tensor values, Tensor meaning, Tensor seed, "
    "int[] stride, int[] padding, int[] dilation, int groups, int error_bits, bool stochastic, bool needs_x, "
    "bool needs_weight) -> (Tensor, Tensor)"
)


class Geometry(NamedTuple):
    """Everything of a convolution but its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def refuse_second_derivatives() -> None:
    """Raise, in a backward pass, where derivatives of it are asked for."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "training in 8 bits has no second derivative, and create_graph=True asks for one; "
            "use create_graph=False, or flower_edge.training.restore_(model) for exact gradients"
        )


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, given: QuantisedTensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise input and weight, and convolve.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``, float32.
    weight : Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, float32.
    bias : Tensor, optional
        Shape ``(C_out,)``.
    geometry : Geometry
        Everything else.
    given : QuantisedTensor, optional
        `x` in 8 bits, where it is there already. Default: it is quantised.

    Returns
    -------
    y : Tensor
        The output, channels last.
    values : Tensor
        The input in 8 bits.
    meaning : Tensor
        float64: scale and zero point of `values`.
    """
    if given is not None:
        return _convolved(given, weight, bias, *geometry)
    run = _forward if is_eager(x) else torch.ops.flower_edge.int8_conv2d.default
    found: tuple[Tensor, Tensor, Tensor] = run(x, weight, bias, *geometry)
    return found


def backward(
    grad: Tensor,
    weight: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    geometry: Geometry,
    error_bits: int,
    stochastic: bool,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Form the gradients of input and weight from a quantised gradient.

    Parameters
    ----------
    grad : Tensor
        Gradient of the output, any strides.
    weight : Tensor
        As it was in the forward pass.
    saved : tuple of Tensor
        Values and meaning from :func:`forward`, and an int64 seed.
    geometry : Geometry
        The convolution.
    error_bits : int
        8 or 16, for the gradient of the weight.
    stochastic : bool
        How the gradient's 8 bits are rounded.
    needs : tuple of bool
        Which of the two are wanted; the others are empty tensors.

    Returns
    -------
    tuple of Tensor
        Gradients of input and weight, channels last.
    """
    run: Any = _backward if is_eager(grad) else torch.ops.flower_edge.int8_conv2d_backward.default
    found: tuple[Tensor, Tensor] = run(grad, weight, *saved, *geometry, error_bits, stochastic, *needs)
    return found


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return _convolved(quantise(x), weight, bias, stride, padding, dilation, groups)


def _convolved(
    quantised: QuantisedTensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        x = quantised.values
        shape = conv_shape(x.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation), groups)
        y = int8_conv(quantised, pack_weight(weight, shape), bias)
        meaning = torch.tensor(
            (quantised.scale, float(quantised.zero_point)), dtype=torch.float64, device="cpu"
        )
        return y, quantised.values, meaning


def _backward(
    grad: Tensor,
    weight: Tensor,
    values: Tensor,
    meaning: Tensor,
    seed: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    error_bits: int,
    stochastic: bool,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        shape = conv_shape(values.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation), groups)
        error = quantise_error(grad, error_bits if needs_weight else 8, int(seed) if stochastic else None)
        grad_x = grad_weight = grad.new_empty(0)
        if needs_x:
            grad_x = int8_conv(error.values, pack_weight(weight, shape, transposed=True))
        if needs_weight:
            scale, zero_point = meaning.tolist()
            grad_weight = int8_grad_weight(QuantisedTensor(values, scale, int(zero_point)), error, shape)
        return grad_x, grad_weight


def _fake_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    size = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    y = _channels_last(x, (x.shape[0], weight.shape[0], *size), torch.float32)
    return y, _channels_last(x, x.shape, torch.uint8), torch.empty(2, dtype=torch.float64)


def _fake_backward(
    grad: Tensor,
    weight: Tensor,
    values: Tensor,
    meaning: Tensor,
    seed: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    error_bits: int,
    stochastic: bool,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    return (
        _channels_last(grad, values.shape, torch.float32) if needs_x else grad.new_empty(0),
        _channels_last(grad, weight.shape, torch.float32) if needs_weight else grad.new_empty(0),
    )


def _channels_last(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    # Not by memory_format: kernels give these strides to maps of a single cell or channel, too.
    _, channels, height, width = shape
    return like.new_empty_strided(
        tuple(shape), (channels * height * width, 1, width * channels, channels), dtype=dtype
    )


for _name, _run, _fake in (
    ("int8_conv2d", _forward, _fake_forward),
    ("int8_conv2d_backward", _backward, _fake_backward),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"flower_edge::{_name}", _fake, lib=_library)
