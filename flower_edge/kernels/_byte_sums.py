"""Where the paths of a network in 8 bits meet: sums of maps of bytes, and the gradient of a ReLU of them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._int8_quantise import meaning_of
from flower_edge.kernels._int8_reference import value_range_reference
from flower_edge.kernels._maps import check_map, empty_map, is_served
from flower_edge.kernels._quantised import LEVELS, QuantisedTensor

if TYPE_CHECKING:
    import torch


def quantised_sum(x: QuantisedTensor, y: QuantisedTensor, *, relu: bool = False) -> QuantisedTensor:
    """Add two maps of bytes, and quantise the sum to the 256 levels between its ends.

    Parameters
    ----------
    x, y : QuantisedTensor
        Of one shape and layout.
    relu : bool, default False
        Whether what is below 0 becomes 0. Then levels are not spent on it.

    Returns
    -------
    QuantisedTensor
        Shape and layout of `x`; rounded to the nearest level, half to even.

    Raises
    ------
    ValueError
        If their shapes or layouts differ, or the sum overflows float32.
    """
    import torch

    a, b = x.values, y.values
    if a.shape != b.shape or not (a.stride() == b.stride() or (_is_usual(a) and _is_usual(b))):
        raise ValueError(
            f"y has shape {tuple(b.shape)} and strides {b.stride()}, expected those of x, {tuple(a.shape)} "
            f"and {a.stride()}"
        )
    extension = _dispatch.extension
    if extension is None or not (a.is_cpu and b.is_cpu) or not a.numel():
        total = _floats(x) + _floats(y)
        low, high = value_range_reference(total)
        scale, zero_point = _meaning(low, high, relu)
        steps = (total * _rounded(1 / scale)).add_(zero_point).round_().clamp_(0, LEVELS)
        return QuantisedTensor(torch.empty_like(a).copy_(steps), scale, zero_point)
    _threads.connect(extension)
    maps = (*_map(x), *_map(y), a.numel())
    low, high = extension.byte_sum_ends(_dispatch.ceiling(), *maps)
    scale, zero_point = _meaning(low, high, relu)
    out = torch.empty_like(a)
    extension.byte_sum(_dispatch.ceiling(), out.data_ptr(), 1 / scale, zero_point, *maps)
    return QuantisedTensor(out, scale, zero_point)


def quantised_relu(x: QuantisedTensor) -> QuantisedTensor:
    """Let what is below 0 become 0, with the same scale.

    Parameters
    ----------
    x : QuantisedTensor
        Any.

    Returns
    -------
    QuantisedTensor
        Shape and layout of `x`.
    """
    return QuantisedTensor(x.values.clamp(min=x.zero_point), x.scale, x.zero_point)


def mask_by_bytes(grad: "torch.Tensor", x: QuantisedTensor) -> "torch.Tensor":
    """Form the gradient of a ReLU: `grad` where `x` is above 0, else 0.

    Parameters
    ----------
    grad : torch.Tensor
        Floating point numbers, shape of `x`.
    x : QuantisedTensor
        Input or output of the ReLU; a map with channels last.

    Returns
    -------
    torch.Tensor
        Dtype of `grad`, channels last.

    Raises
    ------
    TypeError
        If `grad` has no floating point numbers.
    ValueError
        If shapes differ, or `grad` requires gradients in grad mode.
    """
    import torch

    check_map(grad, "grad")
    if grad.shape != x.values.shape:
        raise ValueError(f"grad has shape {tuple(grad.shape)}, expected {tuple(x.values.shape)}")
    grad = grad.contiguous(memory_format=torch.channels_last)
    values = x.values.contiguous(memory_format=torch.channels_last)
    extension = _dispatch.extension
    if extension is None or not is_served(grad) or not grad.numel():
        return torch.where(values > x.zero_point, grad, torch.zeros((), dtype=grad.dtype, device=grad.device))
    _threads.connect(extension)
    images, channels, height, width = grad.shape
    out = empty_map((images, channels, height, width), channels_last=True)
    addresses = out.data_ptr(), grad.data_ptr(), values.data_ptr()
    extension.mask_by_bytes(_dispatch.ceiling(), *addresses, x.zero_point, grad.numel())
    return out


def _meaning(low: float, high: float, relu: bool) -> tuple[float, int]:
    if not high - low < float("inf"):
        raise ValueError(f"the sum reaches from {low} to {high}, expected finite numbers to quantise")
    return meaning_of(0.0 if relu else low, high)


def _is_usual(x: "torch.Tensor") -> bool:
    """Tell whether a map has channels last, by the order in memory: strides of sides of 1 say nothing."""
    import torch

    return x.is_contiguous(memory_format=torch.channels_last)


def _map(x: QuantisedTensor) -> tuple[int, float, int]:
    return x.values.data_ptr(), x.scale, x.zero_point


def _floats(x: QuantisedTensor) -> Any:
    return (x.values.float() - x.zero_point) * _rounded(x.scale)


def _rounded(scale: float) -> float:
    """Give a number as kernels hold it, in float32."""
    return float(np.float32(scale))
