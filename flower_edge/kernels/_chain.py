"""Whole passes of layers that hand bytes to each other, each in one call of the extension.

Where there is none, or it finds something that is not finite, kernels run one by one: they say what is wrong.
"""

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._int8_conv import int8_conv, int8_conv_with_ends, int8_grad_weight, pack_weight
from flower_edge.kernels._int8_quantise import QuantisedError, bytes_like, quantise, quantise_error
from flower_edge.kernels._int8_shape import ConvShape
from flower_edge.kernels._maps import empty_map, floats_like, new_floats
from flower_edge.kernels._quantised import ERROR_ZERO, QuantisedTensor
from flower_edge.kernels._quantised_range_evonorm import (
    fitted_range_evonorm,
    quantised_range_evonorm_backward,
)
from flower_edge.kernels._range_evonorm_calls import Norm, Shape, check_norm, extremes_shape, serves
from flower_edge.kernels._range_evonorm_reference import range_factor
from flower_edge.kernels._workspace import workspace


class Fitted(NamedTuple):
    """A map of floats that can become bytes without another look at it.

    Attributes
    ----------
    floats : Tensor
        float32, channels last.
    ends : tuple of float
        The least and the greatest of them and of 0.
    """

    floats: Tensor
    ends: tuple[float, float]


def conv_forward(x: QuantisedTensor, weight: Tensor, bias: Tensor | None, shape: ConvShape) -> Fitted:
    """Quantise a weight and convolve: :func:`pack_weight` and :func:`int8_conv_with_ends`.

    Parameters
    ----------
    x : QuantisedTensor
        The input, channels last.
    weight, bias : Tensor
        float32; the second may be None.
    shape : ConvShape
        The convolution.

    Returns
    -------
    Fitted
        The output.

    Raises
    ------
    ValueError
        If the weight is not finite.
    """
    extension = _serving(weight, bias)
    if extension is not None:
        laid_out, bias = _inputs_innermost(weight), None if bias is None else bias.contiguous()
        y = empty_map(shape.y_shape, channels_last=True)
        try:
            ends = extension.chain_conv(
                *(_dispatch.ceiling(), y.data_ptr(), *_map(x), laid_out.data_ptr(), _address(bias)),
                *shape.numbers,
            )
            return Fitted(y, ends)
        except FloatingPointError:
            pass  # the kernels that run one by one say what is not finite
    return Fitted(*int8_conv_with_ends(x, pack_weight(weight.detach(), shape), bias))


def conv_backward(
    x: QuantisedTensor,
    error: QuantisedError,
    weight: Tensor,
    shape: ConvShape,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Form the gradients of a convolution: :func:`int8_conv` and :func:`int8_grad_weight`.

    Parameters
    ----------
    x, weight, shape
        As they were.
    error : QuantisedError
        The gradient of the output.
    needs : tuple of bool
        Whether those of input and weight are wanted.

    Returns
    -------
    tuple of Tensor or None
        float32, channels last.

    Raises
    ------
    ValueError
        If the weight is not finite.
    """
    of_x = of_weight = None
    extension = _serving(weight)
    if extension is not None:
        laid_out = _inputs_innermost(weight)
        of_x = empty_map(shape.x_shape, channels_last=True) if needs[0] else None
        of_weight = empty_map(shape.weight_shape, channels_last=True) if needs[1] else None
        try:
            extension.chain_conv_backward(
                *(_dispatch.ceiling(), _address(of_x), _address(of_weight), *_map(x)),
                *(error.values.values.data_ptr(), error.values.scale, _address(error.high)),
                *(_address(error.low), error.half_scale, laid_out.data_ptr(), torch.get_num_threads()),
                *shape.numbers,
            )
            return of_x, of_weight
        except FloatingPointError:
            pass  # the kernels that run one by one say what is not finite
    if needs[0]:
        of_x = int8_conv(error.values, pack_weight(weight.detach(), shape, transposed=True))
    if needs[1]:
        of_weight = int8_grad_weight(x, error, shape)
    return of_x, of_weight


class Normalised(NamedTuple):
    """What the forward pass of a normalisation makes.

    Attributes
    ----------
    x, y : QuantisedTensor
        Input and output.
    extremes : Tensor
        As of :func:`fitted_range_evonorm`.
    """

    x: QuantisedTensor
    y: QuantisedTensor
    extremes: Tensor


def norm_forward(x: QuantisedTensor | Fitted, norm: Norm) -> Normalised:
    """Quantise a map where it still is floats, and normalise it: :func:`fitted_range_evonorm`.

    A range of bytes is known to a step, which is added to it: a quiet group of equal bytes must not be
    multiplied by 1 / eps.

    Parameters
    ----------
    x : QuantisedTensor or Fitted
        Channels last.
    norm : Norm
        Its parameters are float32 and contiguous.

    Returns
    -------
    Normalised
        In bytes.

    Raises
    ------
    ValueError
        If something is not finite.
    """
    source = x.values if isinstance(x, QuantisedTensor) else x.floats
    layout, norm = _layout_of(source, norm), norm.to(torch.float32)
    if layout.elements == 1:
        check_norm(layout.shape, norm)  # which refuses it
    extension = _serving(*norm[:3])
    if extension is not None and layout.is_served:
        if isinstance(x, QuantisedTensor):
            values, given = source, (0, 0.0, 0.0, *_map(x))
        else:
            values = bytes_like(source)
            given = (source.data_ptr(), *x.ends, values.data_ptr(), 1.0, 0)
        y, extremes = bytes_like(source), workspace().empty_bytes(*layout.extremes)
        try:
            scale, zero, y_scale, y_zero = extension.chain_norm(
                *(_dispatch.ceiling(), *given, y.data_ptr(), extremes.data_ptr()),
                *(*_parameters(norm), *layout.numbers),
            )
            made = x if isinstance(x, QuantisedTensor) else QuantisedTensor._make((values, scale, zero))
            return Normalised(made, QuantisedTensor._make((y, y_scale, y_zero)), extremes)
        except FloatingPointError:
            pass  # the kernels that run one by one say what is not finite
    made = x if isinstance(x, QuantisedTensor) else quantise(x.floats, x.ends)
    return Normalised(made, *fitted_range_evonorm(made, *_with_a_step(norm, made)))


class NormErrors(NamedTuple):
    """Gradients of a normalisation of bytes.

    Attributes
    ----------
    x : QuantisedError or Tensor
        As whoever made the input wants it.
    weight, bias, v : Tensor or None
        Shape ``(C,)``.
    """

    x: QuantisedError | Tensor
    weight: Tensor | None
    bias: Tensor | None
    v: Tensor | None


def norm_backward(
    grad: Tensor,
    x: QuantisedTensor,
    extremes: Tensor,
    norm: Norm,
    errors: tuple[int, int | None] | None,
) -> NormErrors:
    """Form the gradients of :func:`norm_forward`, as if nothing had been rounded in it.

    Parameters
    ----------
    grad : Tensor
        Of the result.
    x, extremes, norm
        As they were.
    errors : (int, int or None) or None
        Bits and seed of :func:`quantise_error` for the gradient of `x`; None for floats.

    Returns
    -------
    NormErrors
        Those of weight, bias and v are there where these are.

    Raises
    ------
    ValueError
        If something is not finite where it is to be quantised.
    """
    extension, norm = _serving(grad), norm.to(torch.float32)
    layout = _layout_of(x.values, norm)
    if extension is not None and layout.is_served:
        laid_out = grad.contiguous(memory_format=torch.channels_last)
        dx = floats_like(x.values)
        weight, bias, v = (_new_gradient(p, layout) for p in (norm.weight, norm.weight, norm.v))
        out = high = low = None
        if errors is not None:
            out = bytes_like(x.values)
            high, low = (bytes_like(x.values), bytes_like(x.values)) if errors[0] == 16 else (None, None)
        try:
            scale, half_scale = extension.chain_norm_backward(
                *(_dispatch.ceiling(), laid_out.data_ptr(), dx.data_ptr(), _address(out), _address(high)),
                *(_address(low), errors and errors[1], *_map(x), extremes.data_ptr()),
                *(weight.data_ptr(), bias.data_ptr(), v.data_ptr(), *_parameters(norm), *layout.numbers),
            )
            if out is None:
                return NormErrors(dx, weight, bias, v)
            values = QuantisedTensor._make((out, scale, ERROR_ZERO))
            return NormErrors(QuantisedError(values, high, low, half_scale), weight, bias, v)
        except FloatingPointError:
            pass  # the kernels that run one by one say what is not finite
    stepped = _with_a_step(norm, x)
    found = quantised_range_evonorm_backward(
        grad, x, extremes, norm.weight, norm.v, stepped.groups, stepped.eps
    )
    if errors is None:
        return NormErrors(*found[:4])
    # Here its ends are known, and its floats are still near.
    return NormErrors(quantise_error(found.x, *errors, found.bounds), *found[1:4])


def _serving(*floats: Tensor | None) -> Any:
    """Give the extension, where it can read these tensors."""
    extension = _dispatch.extension
    if extension is None:
        return None
    for tensor in floats:
        if tensor is None:
            continue
        if tensor.dtype is not torch.float32 or not tensor.is_cpu or tensor.is_neg():
            return None
    _threads.connect(extension)
    return extension


class _Layout(NamedTuple):
    """What the shape of a normalised map decides.

    Attributes
    ----------
    shape : tuple of int
        Of the map.
    elements : int
        Of a group.
    is_served : bool
        Whether there are kernels for it.
    extremes : tuple
        Shape and strides of the extremes.
    numbers : tuple
        What the extension takes after the addresses of parameters.
    """

    shape: Shape
    elements: int
    is_served: bool
    extremes: tuple[tuple[int, ...], tuple[int, ...]]
    numbers: tuple[float, ...]


def _layout_of(x: Tensor, norm: Norm) -> _Layout:
    return _layout(x.shape, norm.groups, norm.eps)


@lru_cache(maxsize=1024)
def _layout(shape: Shape, groups: int, eps: float) -> _Layout:
    samples, channels, height, width = shape
    elements, pixels = channels // groups * height * width, height * width
    extremes = extremes_shape((samples, channels, height, width), groups)
    strides = tuple(prod(extremes[k + 1 :]) for k in range(len(extremes)))
    # A group of a single element has no range, and is refused.
    factor = range_factor(elements) if elements > 1 else 0.0
    numbers = (samples, pixels, channels, groups, factor, eps)
    return _Layout((samples, channels, height, width), elements, serves(shape), (extremes, strides), numbers)


def _inputs_innermost(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _new_gradient(like: Tensor | None, layout: _Layout) -> Tensor:
    return new_floats(layout.shape[1]) if like is None else torch.empty_like(like)


def _with_a_step(norm: Norm, x: QuantisedTensor) -> Norm:
    return norm._replace(eps=norm.eps + x.scale * range_factor(_layout_of(x.values, norm).elements))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _parameters(norm: Norm) -> tuple[int, int, int]:
    return _address(norm.weight), _address(norm.bias), _address(norm.v)


def _map(x: QuantisedTensor) -> tuple[int, float, int]:
    return x.values.data_ptr(), x.scale, x.zero_point
