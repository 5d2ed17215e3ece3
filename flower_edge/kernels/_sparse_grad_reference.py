"""Slow twins of the kernels of pruned gradients, in plain torch on any device."""

from typing import TYPE_CHECKING

import numpy as np

from flower_edge.kernels._grid import Pair
from flower_edge.kernels._pruned import PackedSigns, PrunedGradient
from flower_edge.kernels._random import random_words
from flower_edge.kernels._sparse_grad_shape import sparse_conv

if TYPE_CHECKING:
    import torch

# Channels whose random numbers come from 16 counters.
_RUN = 32


def pruning_threshold_reference(grad: "torch.Tensor", sparsity: float) -> float:
    """Find what :func:`pruning_threshold` estimates, exactly: by sorting.

    Parameters
    ----------
    grad, sparsity
        As of :func:`pruning_threshold`; any floating dtype and device.

    Returns
    -------
    float
        A float32.
    """
    import torch

    magnitudes = grad.detach().double().abs().flatten()
    magnitudes = magnitudes[magnitudes.isfinite()].sort().values
    count, wanted = len(magnitudes), sparsity * len(magnitudes)
    if not count or int((magnitudes == 0).sum()) >= wanted:
        return 0.0
    # With m elements below tau, m - sum / tau of all are expected to become zeros.
    sums = torch.cat((magnitudes.new_zeros(1), magnitudes.cumsum(0)))
    below = torch.arange(count, device=grad.device)
    reached = below - sums[:-1] / magnitudes >= wanted
    reached &= magnitudes > 0
    m = int(reached.int().argmax()) if bool(reached.any()) else count
    return float(np.float32(min(float(sums[m]) / (m - wanted), float(np.finfo(np.float32).max))))


def prune_reference(grad: "torch.Tensor", threshold: float, seed: int) -> PrunedGradient:
    """Do what :func:`prune` does, with the same zeros.

    Parameters
    ----------
    grad, threshold, seed
        As of :func:`prune`; any floating dtype and device, taken as float32.

    Returns
    -------
    PrunedGradient
        On the device of `grad`.
    """
    import torch

    grad = grad.detach().float().contiguous(memory_format=torch.channels_last)
    threshold = float(np.float32(threshold))
    images, channels, height, width = grad.shape
    # Channels innermost, as the random numbers count them.
    elements = grad.permute(0, 2, 3, 1)
    runs = -(-channels // _RUN)
    shape = (images, height, width, runs, _RUN // 2)
    counters = torch.arange(images * height * width * runs * (_RUN // 2), device=grad.device).view(shape)
    words = random_words(counters, seed)
    halves = torch.cat((words & 0xFFFF, words >> 16), -1).flatten(3)[..., :channels]
    chances = halves.float() * 2**-16 + 2**-17
    magnitudes = elements.abs()
    rounded = torch.where(magnitudes < threshold, elements.sign() * threshold, elements)
    # A NaN is not at most anything.
    values = torch.where(magnitudes <= chances * threshold, 0.0, rounded).permute(0, 3, 1, 2)
    nonzeros = int(values.count_nonzero())
    return PrunedGradient((images, channels, height, width), threshold, nonzeros, values)


def pack_signs_reference(weight: "torch.Tensor") -> PackedSigns:
    """Do what :func:`pack_signs` does.

    Parameters
    ----------
    weight : torch.Tensor
        As of :func:`pack_signs`; any floating dtype and device.

    Returns
    -------
    PackedSigns
        On the device of `weight`.
    """
    import torch

    weight = weight.detach()
    outputs, inputs, rows, columns = weight.shape
    scales = weight.double().abs().mean((1, 2, 3)).float()
    negative = (weight < 0).permute(0, 2, 3, 1)
    width = -(-inputs // 8)
    bits = torch.zeros((outputs, rows, columns, 8 * width), dtype=torch.uint8, device=weight.device)
    bits[..., :inputs] = negative
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=weight.device)
    octets = (bits.view(outputs, rows, columns, width, 8) * powers).sum(-1, dtype=torch.uint8)
    # A kernel reads the last byte of a row together with the one after it.
    octets = torch.cat((octets.flatten(), octets.new_zeros(1)))
    return PackedSigns((outputs, inputs, rows, columns), octets, scales)


def sparse_grad_input_reference(
    pruned: PrunedGradient,
    weight: "torch.Tensor | PackedSigns",
    input_shape: "tuple[int, ...]",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> "torch.Tensor":
    """Do what :func:`sparse_grad_input` does, with a dense gradient.

    Parameters
    ----------
    pruned, weight, input_shape, stride, padding, dilation, groups
        As of :func:`sparse_grad_input`.

    Returns
    -------
    torch.Tensor
        float32, shape `input_shape`, channels last.
    """
    import torch

    shape = tuple(weight.shape)
    conv = sparse_conv(input_shape, shape, stride, padding, dilation, groups, pruned.shape)
    weight = weight.unpacked() if isinstance(weight, PackedSigns) else weight.detach()
    grad = pruned.dense()
    x = grad.new_empty((1,)).expand(conv.x_shape)
    rest = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, (True, False, False))
    grad_x, _, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)
    found: torch.Tensor = grad_x.contiguous(memory_format=torch.channels_last)
    return found


def sparse_grad_weight_reference(
    pruned: PrunedGradient,
    x: "torch.Tensor",
    weight_shape: "tuple[int, ...]",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> "torch.Tensor":
    """Do what :func:`sparse_grad_weight` does, with a dense gradient.

    Parameters
    ----------
    pruned, x, weight_shape, stride, padding, dilation, groups
        As of :func:`sparse_grad_weight`.

    Returns
    -------
    torch.Tensor
        float32, shape `weight_shape`, channels last.
    """
    import torch

    conv = sparse_conv(tuple(x.shape), weight_shape, stride, padding, dilation, groups, pruned.shape)
    grad = pruned.dense()
    weight = grad.new_empty((1,)).expand(conv.weight_shape)
    rest = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, (False, True, False))
    _, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x.detach(), weight, None, *rest)
    found: torch.Tensor = grad_weight.contiguous(memory_format=torch.channels_last)
    return found
