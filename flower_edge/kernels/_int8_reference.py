"""Slow twins of the 8-bit kernels, in plain torch on any device: the same bytes and the same sums."""

from typing import TYPE_CHECKING

import numpy as np

from flower_edge.kernels._int8_shape import ConvShape
from flower_edge.kernels._quantised import ERROR_ZERO, QuantisedTensor
from flower_edge.kernels._random import random_words

if TYPE_CHECKING:
    import torch

# Elements whose random numbers come from 16 counters.
_RUN = 32


def value_range_reference(x: "torch.Tensor") -> tuple[float, float]:
    """Return the least and the greatest of `x` and 0; NaN where it has one."""
    if not x.numel():
        return 0.0, 0.0
    low, high = x.aminmax()
    ends = float(low), float(high)
    return ends if ends[0] != ends[0] else (min(ends[0], 0.0), max(ends[1], 0.0))


def round_reference(
    x: "torch.Tensor", inverse: float, zero_point: int, least: int, most: int, seed: int | None
) -> "torch.Tensor":
    """Round ``x * inverse`` to bytes: to nearest, or stochastically where there is a seed.

    Parameters
    ----------
    x : torch.Tensor
        Without gaps in memory.
    inverse : float
        Steps of 1, taken as float32.
    zero_point, least, most : int
        The byte that means 0, and the ends that others are cut to.
    seed : int or None
        Of the random numbers.

    Returns
    -------
    torch.Tensor
        uint8, layout of `x`.
    """
    import torch

    steps = (x.float() * float(np.float32(inverse))).clamp(least - zero_point, most - zero_point)
    if seed is None:
        steps = steps.round()
    else:
        chances = torch.empty_like(x, dtype=torch.float32)
        chances.as_strided((x.numel(),), (1,)).copy_(_chances(x.numel(), seed, x.device))
        steps = (steps + chances).floor()
    return torch.empty_like(x, dtype=torch.uint8).copy_(steps + zero_point)


def quantise_halves_reference(x: "torch.Tensor", inverse: float) -> "tuple[torch.Tensor, torch.Tensor]":
    """Round ``x * inverse`` to nearest, as ``255 * (high - 128) + (low - 128)``."""
    import torch

    most = 127 * 255 + 127
    whole = (x.float() * float(np.float32(inverse))).clamp(-most, most).round()
    high = (whole / 255).round()
    low = whole - 255 * high
    like = torch.empty_like(x, dtype=torch.uint8)
    return torch.empty_like(like).copy_(high + ERROR_ZERO), like.copy_(low + ERROR_ZERO)


def dequantise_reference(x: QuantisedTensor) -> "torch.Tensor":
    """Return ``scale * (values - zero_point)`` in float32."""
    return (x.values.float() - x.zero_point) * float(np.float32(x.scale))


def quantise_weight_reference(
    weight: "torch.Tensor", groups: int, transposed: bool
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Quantise a weight to +-127, with a scale for each channel of the result.

    Parameters
    ----------
    weight : torch.Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, finite.
    groups : int
        Of the convolution.
    transposed : bool
        Whether the channels of the result are those of the input.

    Returns
    -------
    values : torch.Tensor
        float32, whole numbers, shape of `weight`.
    scales : torch.Tensor
        float32, shape ``(C_out,)`` or ``(C_in,)``.
    """
    import torch

    grouped = weight.detach().float().reshape(groups, -1, *weight.shape[1:])
    largest = grouped.abs().amax((1, 3, 4) if transposed else (2, 3, 4), keepdim=True)
    scales = torch.where(largest > 0, (largest / 127).clamp_min(1.2e-38), 1.0)
    return (grouped * (1 / scales)).round().flatten(0, 1), scales.flatten()


def int8_conv_reference(
    x: QuantisedTensor,
    values: "torch.Tensor",
    scales: "torch.Tensor",
    bias: "torch.Tensor | None",
    shape: ConvShape,
    transposed: bool,
) -> "torch.Tensor":
    """Convolve bytes with a quantised weight, or the other way round.

    Parameters
    ----------
    x : QuantisedTensor
        The input, or the gradient of the output.
    values, scales : torch.Tensor
        From :func:`quantise_weight_reference`.
    bias : torch.Tensor or None
        Shape of `scales`.
    shape : ConvShape
        The convolution.
    transposed : bool
        Whether the gradient of the input is wanted.

    Returns
    -------
    torch.Tensor
        float32, channels last.
    """
    import torch
    from torch.nn.grad import conv2d_input

    # Sums of whole numbers are exact in float64.
    cells = x.values.double() - x.zero_point
    geometry = (shape.stride, shape.padding, shape.dilation)
    if transposed:
        of = (shape.x_shape, values.double(), cells, *geometry, shape.groups)
        sums = conv2d_input(*of)  # type: ignore[no-untyped-call]
    else:
        sums = torch.conv2d(cells, values.double(), None, *geometry, shape.groups)
    factors = scales * float(np.float32(x.scale))
    y: torch.Tensor = sums.float() * factors[:, None, None]
    if bias is not None:
        y = y + bias[:, None, None]
    return y.contiguous(memory_format=torch.channels_last)


def int8_grad_weight_reference(
    x: QuantisedTensor, high: "torch.Tensor", low: "torch.Tensor | None", scale: float, shape: ConvShape
) -> "torch.Tensor":
    """Sum the products of input and gradient over all pixels.

    Parameters
    ----------
    x : QuantisedTensor
        The input.
    high, low : torch.Tensor
        The gradient of the output in 8 bits, or the halves of 16.
    scale : float
        Of a step of the input times one of the gradient.
    shape : ConvShape
        The convolution.

    Returns
    -------
    torch.Tensor
        float32, shape of the weight, channels last.
    """
    import torch
    from torch.nn.grad import conv2d_weight

    errors = high.double() - ERROR_ZERO
    if low is not None:
        errors = 255 * errors + (low.double() - ERROR_ZERO)
    cells = x.values.double() - x.zero_point
    geometry = (shape.stride, shape.padding, shape.dilation, shape.groups)
    of = (cells, shape.weight_shape, errors, *geometry)
    sums: torch.Tensor = conv2d_weight(*of)  # type: ignore[no-untyped-call]
    return (sums * float(np.float32(scale))).float().contiguous(memory_format=torch.channels_last)


def _chances(count: int, seed: int, device: "torch.device") -> "torch.Tensor":
    """Random numbers in (0, 1), in steps of ``2**-16``, for elements in the order of memory."""
    import torch

    bits = random_words(torch.arange(-(-count // _RUN) * (_RUN // 2), device=device), seed)
    halves = torch.stack((bits & 0xFFFF, bits >> 16)).reshape(2, -1, _RUN // 2)
    chances: torch.Tensor = halves.transpose(0, 1).reshape(-1)[:count].float() * 2**-16 + 2**-17
    return chances
