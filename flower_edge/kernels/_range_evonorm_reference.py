"""The slow twins of `_range_evonorm.py`, in plain torch, for any floating dtype and device."""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from flower_edge.kernels._quantised import LEVELS, QuantisedTensor

if TYPE_CHECKING:
    import torch

CHUNKS = 16


@lru_cache(maxsize=1024)
def range_factor(elements: int) -> float:
    r"""Give :math:`c = 0.175\, (1 + \sqrt{\pi \ln 4}) / \sqrt{2 \ln m}`.

    It turns the range of normally distributed numbers into about their standard deviation.

    Parameters
    ----------
    elements : int
        m, of a group of one sample; at least 2.
    """
    return 0.175 * (1.0 + math.sqrt(math.pi * math.log(4.0))) / math.sqrt(2.0 * math.log(elements))


def chunk_bounds(pixels: int) -> list[tuple[int, int]]:
    """Cut pixels into chunks: give the first of each, and the one after its last."""
    chunks = min(CHUNKS, pixels)
    return [(k * pixels // chunks, (k + 1) * pixels // chunks) for k in range(chunks)]


def normalised(
    x: "torch.Tensor",
    weight: "torch.Tensor | None",
    bias: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Do what :func:`range_evonorm` does, slowly; torch can differentiate it.

    Where several elements are extreme, torch's gradient goes to the first, as that of the kernels does.

    Parameters
    ----------
    x, weight, bias, v, groups, eps
        As in :func:`range_evonorm`, all of one dtype, on any device.

    Returns
    -------
    tuple of torch.Tensor
        As from :func:`range_evonorm`.
    """
    import torch

    pixels = x.shape[2] * x.shape[3]
    by_pixel = _by_pixel(x, groups)
    most, least = (
        torch.stack([end(by_pixel[:, :, a:b].flatten(2), -1).values for a, b in chunk_bounds(pixels)], 1)
        if pixels
        else x.new_zeros(len(x), 0, groups)
        for end in (torch.max, torch.min)
    )
    scale = _scale(most - least, x, groups, eps)
    y = _activated(x, v) * scale
    y = y if weight is None else y * _per_channel(weight)
    return y if bias is None else y + _per_channel(bias), torch.stack([most, least], -1)


def normalised_backward(
    grad: "torch.Tensor",
    x: "torch.Tensor",
    weight: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]":
    """Do what :func:`range_evonorm_backward` does, slowly.

    Parameters
    ----------
    grad, x, weight, v, groups, eps
        As in :func:`range_evonorm_backward`, all of one dtype, on any device.

    Returns
    -------
    tuple of torch.Tensor
        Gradients of `x`, weight, bias and v.
    """
    import torch

    pixels = x.shape[2] * x.shape[3]
    bounds = chunk_bounds(pixels)
    by_pixel = _by_pixel(x, groups)
    places = [
        [end(by_pixel[:, :, a:b].flatten(2), -1, keepdim=True) for end in (torch.max, torch.min)]
        for a, b in bounds
    ]
    ranges = [(top.values - bottom.values).squeeze(-1) for top, bottom in places]
    scale = _scale(torch.stack(ranges, 1) if ranges else x.new_zeros(len(x), 0, groups), x, groups, eps)
    inner = torch.zeros_like(x) if v is None else x * _per_channel(v) / 6
    u = torch.ones_like(x) if v is None else inner + 0.5
    gate, inside = u.clamp(0, 1), (u > 0) & (u < 1)
    activated, weighted = x * gate, grad if weight is None else grad * _per_channel(weight)
    dx = _by_pixel(weighted * scale * (gate + inner * inside), groups).contiguous()
    through = _by_pixel(weighted * activated, groups).sum((2, 3))
    for (a, b), (top, bottom) in zip(bounds, places, strict=True):
        factor = range_factor(by_pixel.shape[3] * pixels) / len(bounds)
        share = -through * _by_pixel(scale, groups)[:, :, 0, 0] ** 2 * factor
        # In a chunk of equals both come to one element, where they cancel: but for their rounding.
        share = share.masked_fill((top.indices == bottom.indices).squeeze(-1), 0)
        chunk = dx[:, :, a:b].flatten(2)
        for found, sign in ((top, 1), (bottom, -1)):
            chunk = chunk.scatter_add(-1, found.indices, sign * share[..., None])
        dx[:, :, a:b] = chunk.view_as(dx[:, :, a:b])
    over = (0, 2, 3)
    return (
        dx.permute(0, 1, 3, 2).reshape(x.shape),
        (grad * activated * scale).sum(over),
        grad.sum(over),
        (weighted * x * x * inside * scale / 6).sum(over),
    )


def quantised(x: "torch.Tensor", scale: float, zero_point: int) -> QuantisedTensor:
    """Round to the nearest byte, halves to even, and cut off what lies outside."""
    import torch

    values = (x / scale + zero_point).round().clamp(0, LEVELS).to(torch.uint8)
    return QuantisedTensor(values.contiguous(memory_format=torch.channels_last), scale, zero_point)


def _by_pixel(x: "torch.Tensor", groups: int) -> "torch.Tensor":
    """View a map as (N, groups, pixel, channel of the group): the order in which elements are first."""
    samples, channels, height, width = x.shape
    return x.reshape(samples, groups, channels // groups, height * width).transpose(2, 3)


def _per_channel(parameter: "torch.Tensor") -> "torch.Tensor":
    return parameter.view(-1, 1, 1)


def _activated(x: "torch.Tensor", v: "torch.Tensor | None") -> "torch.Tensor":
    return x if v is None else x * (x * _per_channel(v) / 6 + 0.5).clamp(0, 1)


def _scale(ranges: "torch.Tensor", x: "torch.Tensor", groups: int, eps: float) -> "torch.Tensor":
    """Give each element the s of its group, from the ranges of shape (N, chunks, groups)."""
    samples, channels, height, width = x.shape
    elements = channels // groups * height * width
    factor = range_factor(elements) if elements > 1 else 0.0
    scale = 1 / (ranges.mean(1) * factor + eps)
    return scale[:, :, None].expand(-1, -1, channels // groups).reshape(samples, channels, 1, 1).expand_as(x)
