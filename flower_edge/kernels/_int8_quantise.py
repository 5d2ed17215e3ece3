"""Numbers to 8 bits and back: feature maps, and gradients with their random rounding."""

import math
from typing import TYPE_CHECKING, NamedTuple

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._int8_reference import (
    dequantise_reference,
    quantise_halves_reference,
    round_reference,
    value_range_reference,
)
from flower_edge.kernels._maps import check_floating, check_no_gradient, is_served
from flower_edge.kernels._quantised import ERROR_ZERO, LEVELS, QuantisedTensor
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch

# Steps of a gradient on either side of 0, in 8 and in 16 bits.
_STEPS, _HALF_STEPS = 127, 127 * 255 + 127
# The least scale whose inverse is finite in float32.
_LEAST_SCALE = 1.2e-38


class QuantisedError(NamedTuple):
    """A gradient in 8 bits, and in 16 where its weight's gradient asks for them.

    Attributes
    ----------
    values : QuantisedTensor
        In 8 bits, 127 steps on either side of the byte that means 0.
    high, low : torch.Tensor or None
        The 16 bits, ``255 * (high - 128) + (low - 128)`` steps; both None where there are only 8.
    half_scale : float
        What a step of the 16 bits means.
    """

    values: QuantisedTensor
    high: "torch.Tensor | None" = None
    low: "torch.Tensor | None" = None
    half_scale: float = 1.0


def quantise(x: "torch.Tensor", ends: tuple[float, float] | None = None) -> QuantisedTensor:
    """Quantise a tensor to the 256 levels between its least and its greatest value.

    Zero is one of them, so the range is widened to it where all values lie on one side. Rounds to the nearest
    level, half to even. A tensor of zeros becomes zeros of scale 1.

    Parameters
    ----------
    x : torch.Tensor
        A floating dtype, dense. float32 on the CPU runs the kernel, all else the slow twin. A feature map of
        four dimensions is brought to channels last.
    ends : tuple of float, optional
        The least and the greatest of `x` and 0, where whoever made it knows them. Default: they are found.

    Returns
    -------
    QuantisedTensor
        Shape and layout of `x`.

    Raises
    ------
    TypeError
        If `x` is not a dense tensor of floating point numbers.
    ValueError
        If it has a NaN or an infinity, or requires gradients in grad mode.
    """
    x = _laid_out(x, "x")
    scale, zero_point = meaning_of(*(_value_range(x) if ends is None else finite_ends(x, *ends)))
    return QuantisedTensor(_rounded(x, 1 / scale, zero_point, 0, LEVELS, None), scale, zero_point)


def meaning_of(low: float, high: float) -> tuple[float, int]:
    """Give scale and zero point of the 256 levels from `low`, at most 0, to `high`, at least 0."""
    scale = max((high - low) / LEVELS, _LEAST_SCALE) if high > low else 1.0
    return scale, min(LEVELS, max(0, round(-low / scale)))


def quantise_error(
    grad: "torch.Tensor", bits: int = 8, seed: int | None = None, ends: tuple[float, float] | None = None
) -> QuantisedError:
    """Quantise a gradient symmetrically about 0.

    Parameters
    ----------
    grad : torch.Tensor
        As `x` of :func:`quantise`.
    bits : {8, 16}, default 8
        Whether its 16 bits are wanted as well; these are rounded to nearest.
    seed : int, optional
        The 8 bits are rounded up with a probability that keeps the mean: by random numbers that are a
        function of this seed, of which 64 bits count, and of the place in memory alone. Default: to nearest.
    ends : tuple of float, optional
        As of :func:`quantise`; they may be somewhat wider than `grad` is.

    Returns
    -------
    QuantisedError
        Shape and layout of `grad`.

    Raises
    ------
    TypeError, ValueError
        As :func:`quantise`; also if `bits` is neither 8 nor 16.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits is {bits}, expected 8 or 16")
    grad = _laid_out(grad, "grad")
    largest = max(map(abs, _value_range(grad) if ends is None else finite_ends(grad, *ends)))
    scale = max(largest / _STEPS, _LEAST_SCALE) if largest else 1.0
    bounds = (ERROR_ZERO - _STEPS, ERROR_ZERO + _STEPS)
    rounding = (1 / scale, ERROR_ZERO, *bounds, seed)
    if bits == 8:
        return QuantisedError(QuantisedTensor(_rounded(grad, *rounding), scale, ERROR_ZERO))
    half_scale = max(largest / _HALF_STEPS, _LEAST_SCALE) if largest else 1.0
    values, high, low = _rounded_twice(grad, rounding, 1 / half_scale)
    return QuantisedError(QuantisedTensor(values, scale, ERROR_ZERO), high, low, half_scale)


def dequantise(x: QuantisedTensor) -> "torch.Tensor":
    """Return what bytes mean.

    Parameters
    ----------
    x : QuantisedTensor
        Any.

    Returns
    -------
    torch.Tensor
        float32, shape and layout of the bytes.
    """
    extension = _dispatch.extension
    if extension is None or not x.values.is_cpu or not x.values.numel():
        return dequantise_reference(x)
    _threads.connect(extension)
    # Their layout has no gaps, whichever it is.
    out = workspace().empty(tuple(x.values.shape), x.values.stride())
    addresses = out.data_ptr(), x.values.data_ptr()
    extension.dequantise(_dispatch.ceiling(), *addresses, out.numel(), x.scale, x.zero_point)
    return out


def dequantise_error(error: QuantisedError) -> "torch.Tensor":
    """Return what a quantised gradient means: in 16 bits, where it has them.

    Parameters
    ----------
    error : QuantisedError
        Any.

    Returns
    -------
    torch.Tensor
        float32, shape and layout of the bytes.
    """
    if error.high is None or error.low is None:
        return dequantise(error.values)
    whole = LEVELS * (error.high.float() - ERROR_ZERO) + (error.low.float() - ERROR_ZERO)
    return whole * error.half_scale


def _laid_out(x: "torch.Tensor", name: str) -> "torch.Tensor":
    import torch

    check_floating(x, name)
    check_no_gradient(x, name)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


def _value_range(x: "torch.Tensor") -> tuple[float, float]:
    extension = _dispatch.extension
    if extension is None or not is_served(x):
        low, high = value_range_reference(x)
    elif not x.numel():
        return 0.0, 0.0
    else:
        _threads.connect(extension)
        try:
            ends = extension.value_range(_dispatch.ceiling(), x.data_ptr(), x.numel())
            return float(ends[0]), float(ends[1])
        except FloatingPointError:
            low = high = math.nan
    return finite_ends(x, low, high)


def finite_ends(x: "torch.Tensor", low: float, high: float) -> tuple[float, float]:
    """Return the ends of a tensor that is to be quantised; refuse those that are not finite."""
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(
            f"a tensor of shape {tuple(x.shape)} has a NaN or an infinity, expected finite numbers to "
            "quantise; lower the learning rate, or look for the step where it came up"
        )
    return low, high


def bytes_like(x: "torch.Tensor") -> "torch.Tensor":
    """Make bytes of the shape and layout of a tensor without gaps, without setting their values."""
    return workspace().empty_bytes(x.shape, x.stride())


def _rounded(
    x: "torch.Tensor", inverse: float, zero_point: int, least: int, most: int, seed: int | None
) -> "torch.Tensor":
    extension = _dispatch.extension
    if extension is None or not is_served(x):
        return round_reference(x, inverse, zero_point, least, most, seed)
    out = bytes_like(x)
    if x.numel():
        addresses = out.data_ptr(), x.data_ptr()
        rounding = (inverse, zero_point, least, most, seed)
        extension.quantise(_dispatch.ceiling(), *addresses, x.numel(), *rounding)
    return out


def _rounded_twice(
    x: "torch.Tensor", rounding: tuple[float, int, int, int, int | None], half_inverse: float
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return 8 bits and the halves of 16, for which `x` passes through memory once."""
    extension = _dispatch.extension
    if extension is None or not is_served(x):
        return round_reference(x, *rounding), *quantise_halves_reference(x, half_inverse)
    out, high, low = bytes_like(x), bytes_like(x), bytes_like(x)
    if x.numel():
        addresses = out.data_ptr(), high.data_ptr(), low.data_ptr(), x.data_ptr()
        extension.quantise_error(_dispatch.ceiling(), *addresses, x.numel(), *rounding, half_inverse)
    return out, high, low
