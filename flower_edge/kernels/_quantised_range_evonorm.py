"""Range-EvoNorm of maps of bytes: the definition is in `_range_evonorm.py`."""

import math
from typing import TYPE_CHECKING

from flower_edge.kernels._int8_quantise import meaning_of, quantise
from flower_edge.kernels._int8_reference import value_range_reference
from flower_edge.kernels._maps import check_map, empty_map, new_bytes
from flower_edge.kernels._quantised import QuantisedTensor
from flower_edge.kernels._range_evonorm_calls import (
    Map,
    Norm,
    NormGradients,
    channels_last,
    check_norm,
    check_shapes,
    extremes_shape,
    run_backward,
    run_extremes,
    run_forward,
    run_normalise,
    serves,
    with_bounds,
)
from flower_edge.kernels._range_evonorm_reference import normalised, normalised_backward, quantised

if TYPE_CHECKING:
    import torch


def quantised_range_evonorm(
    x: QuantisedTensor,
    weight: "torch.Tensor | None",
    bias: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
    output: tuple[float, int] | None = None,
) -> "tuple[torch.Tensor | QuantisedTensor, torch.Tensor, tuple[float, float]]":
    """Normalise a map of bytes, to floats or to bytes again.

    Parameters
    ----------
    x : QuantisedTensor
        A map, channels last.
    weight, bias, v, groups, eps
        As in :func:`range_evonorm`; parameters are float32.
    output : (float, int), optional
        Scale and zero point of a quantised result; rounding is to the nearest, halves to even, and what lies
        outside is cut off. Default: the result is float32.

    Returns
    -------
    y : torch.Tensor or QuantisedTensor
        Of the shape of `x`, channels last.
    extremes : torch.Tensor
        Bytes, as of :func:`range_evonorm`.
    bounds : (float, float)
        Least and greatest of `y` and of 0, before rounding: from them the next scale can be chosen. One is
        not finite where `y` is not.

    Raises
    ------
    TypeError
        If `x` is not a QuantisedTensor, or parameters are not floating point numbers.
    ValueError
        If shapes do not fit, the map is not channels last, a group has a single element, a tensor requires
        gradients in grad mode, or what is to be quantised is not finite.
    """
    import torch

    values = _bytes(x, "x")
    norm = Norm(weight, bias, v, groups, eps)
    shape = check_norm(tuple(values.shape), norm)
    norm = norm.to(torch.float32)
    if output is not None:
        QuantisedTensor(values, *output)  # refuses a scale or zero point that is none
    if not (values.is_cpu and serves(shape)):
        floats, extremes = normalised(_floats(x), *norm)
        # Back from numbers to the bytes that they stand for, which is exact.
        extremes = (extremes / x.scale + x.zero_point).round().to(torch.uint8)
        bounds = value_range_reference(floats)
        if output is None:
            return floats, extremes, bounds
        _check_finite(*bounds)
        return quantised(floats, *output), extremes, bounds
    extremes = new_bytes(*extremes_shape(shape, groups))
    y = empty_map(shape, True) if output is None else torch.empty_like(values)
    bounds = run_forward(_map(x), Map(y) if output is None else Map(y, *output), extremes, norm)
    if output is None:
        return y, extremes, bounds
    _check_finite(*bounds)
    return QuantisedTensor(y, *output), extremes, bounds


def fitted_range_evonorm(
    x: QuantisedTensor,
    weight: "torch.Tensor | None",
    bias: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
) -> "tuple[QuantisedTensor, torch.Tensor]":
    """Normalise a map of bytes to bytes whose 256 levels lie between the least and the greatest result.

    These are known before any result is: they follow from the least and the greatest byte of each channel.

    Parameters
    ----------
    x, weight, bias, v, groups, eps
        As in :func:`quantised_range_evonorm`.

    Returns
    -------
    y : QuantisedTensor
        Of the shape of `x`, channels last.
    extremes : torch.Tensor
        Bytes, as of :func:`quantised_range_evonorm`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`quantised_range_evonorm`; also if a result is not finite.
    """
    import torch

    values = _bytes(x, "x")
    norm = Norm(weight, bias, v, groups, eps)
    shape = check_norm(tuple(values.shape), norm)
    if not (values.is_cpu and serves(shape)):
        floats, extremes, _ = quantised_range_evonorm(x, *norm)
        if not isinstance(floats, torch.Tensor):
            raise TypeError("quantised_range_evonorm returned bytes, expected float32 without an output")
        return quantise(floats), extremes
    norm = norm.to(torch.float32)
    extremes = new_bytes(*extremes_shape(shape, groups))
    low, high = run_extremes(_map(x), extremes, norm)
    _check_finite(low, high)
    y = QuantisedTensor(torch.empty_like(values), *meaning_of(low, high))
    run_normalise(_map(x), _map(y), extremes, norm)
    return y, extremes


def quantised_range_evonorm_backward(
    grad: "torch.Tensor | QuantisedTensor",
    x: QuantisedTensor,
    extremes: "torch.Tensor",
    weight: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
) -> NormGradients:
    """Form the gradients of :func:`quantised_range_evonorm`, as if nothing had been rounded in it.

    Parameters
    ----------
    grad : torch.Tensor or QuantisedTensor
        Gradient of `y`, of its shape: floating point numbers, or bytes with channels last.
    x, weight, v, groups, eps
        As they were.
    extremes : torch.Tensor
        What :func:`quantised_range_evonorm` returned.

    Returns
    -------
    NormGradients
        In float32, of `x` channels last.

    Raises
    ------
    TypeError, ValueError
        As in :func:`quantised_range_evonorm`; also if `grad` or `extremes` do not fit.
    """
    import torch

    values = _bytes(x, "x")
    norm = Norm(weight, None, v, groups, eps)
    shape = check_norm(tuple(values.shape), norm)
    norm = norm.to(torch.float32)
    if isinstance(grad, QuantisedTensor):
        _bytes(grad, "grad")
        source = _map(grad)
    else:
        check_map(grad, "grad")
        source = Map(channels_last(grad.to(torch.float32)))
    check_shapes(source.values, shape, extremes, groups)
    if extremes.dtype != torch.uint8:
        raise TypeError(f"extremes is {extremes.dtype}, expected torch.uint8, since x has bytes")
    if all(tensor.is_cpu for tensor in (values, source.values, extremes)) and serves(shape):
        return run_backward(_map(x), extremes.contiguous(), source, norm)
    floats = _floats(grad) if isinstance(grad, QuantisedTensor) else source.values
    return with_bounds(normalised_backward(floats, _floats(x), norm.weight, norm.v, groups, eps))


def _check_finite(low: float, high: float) -> None:
    if not high - low < math.inf:
        raise ValueError(
            f"the normalised map reaches from {low} to {high}, expected finite numbers to quantise; "
            "lower the learning rate, or look for the step where a parameter ceased to be finite"
        )


def _bytes(x: QuantisedTensor, name: str) -> "torch.Tensor":
    import torch

    if not isinstance(x, QuantisedTensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a QuantisedTensor")
    if x.values.ndim != 4 or not x.values.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"{name} has shape {tuple(x.values.shape)} and strides {x.values.stride()}, "
            "expected (N, C, H, W) with channels last"
        )
    return x.values


def _map(x: QuantisedTensor) -> Map:
    return Map(x.values, x.scale, x.zero_point)


def _floats(x: QuantisedTensor) -> "torch.Tensor":
    import torch

    return (x.values.to(torch.float32) - x.zero_point) * x.scale
