"""Gradient filtering in the Fourier basis by numpy's FFT in float64, written from its definition."""

import itertools

import numpy as np
import torch
from torch import Tensor

from flower_edge.kernels._tiling import low_frequencies


def tiles_along(cells: int, kernel: int, stride: int, dilation: int, patch_size: int) -> tuple[int, int, int]:
    """Give the number of tiles of an axis of the output, the cells of one, and those that its taps read."""
    reach = dilation * (kernel - 1)
    most = max(
        size for size in range(1, patch_size + 1) if size == 1 or stride * (size - 1) + reach + 1 <= 32
    )
    count = -(-cells // most)
    size = -(-cells // count)
    return count, size, stride * (size - 1) + reach + 1


def low_pass(window: tuple[int, int], components: int) -> np.ndarray:
    """Which coefficients of a window's transform are kept: real waves need opposite frequencies."""
    kept = np.zeros(window, bool)
    kept[0, 0] = True
    for f, g in low_frequencies(window, components):
        kept[f, g] = kept[-f, -g] = True
    return kept


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride, padding, dilation, groups, patch_size, components
) -> tuple[Tensor, Tensor]:
    """Filtered gradients of input and weight."""
    g, x, w = (tensor.detach().double().numpy() for tensor in (grad, x, weight))
    axes = [tiles_along(g.shape[2 + a], w.shape[2 + a], stride[a], dilation[a], patch_size) for a in range(2)]
    (counts, sizes, window) = zip(*axes, strict=True)
    kept = low_pass(window, components)
    # Room for windows that begin before the input or end behind it.
    margin = [40 + padding[a] for a in range(2)]
    room = ((0, 0), (0, 0), *((m, m + 40) for m in margin))
    wide_x, wide_grad_x = np.pad(x, room), np.zeros_like(np.pad(x, room))
    grad_w = np.zeros_like(w)
    inputs, outputs = w.shape[1], w.shape[0] // groups

    for p, q in itertools.product(*map(range, counts)):
        tile = g[:, :, p * sizes[0] : (p + 1) * sizes[0], q * sizes[1] : (q + 1) * sizes[1]]
        # A cell of the output lies where its first tap reads.
        spread = np.zeros((*g.shape[:2], *window))
        spread[:, :, : tile.shape[2] * stride[0] : stride[0], : tile.shape[3] * stride[1] : stride[1]] = tile
        top = p * sizes[0] * stride[0] - padding[0] + margin[0]
        left = q * sizes[1] * stride[1] - padding[1] + margin[1]
        here = (..., slice(top, top + window[0]), slice(left, left + window[1]))
        of_grad, of_x = np.fft.fft2(spread) * kept, np.fft.fft2(wide_x[here]) * kept
        of_x = of_x.reshape(len(g), groups, inputs, *window)
        for t in itertools.product(range(w.shape[2]), range(w.shape[3])):
            # Another tap reads the same, shifted.
            turns = [np.arange(window[a]) * dilation[a] * t[a] / window[a] for a in range(2)]
            shifted = of_grad * np.exp(-2j * np.pi * (turns[0][:, None] + turns[1]))
            by_group = shifted.reshape(len(g), groups, outputs, *window)
            products = np.einsum("nzohw,nzihw->zoi", by_group.conj(), of_x)
            grad_w[:, :, t[0], t[1]] += products.reshape(w.shape[:2]).real / (window[0] * window[1])
            taps = w[:, :, t[0], t[1]].reshape(groups, outputs, inputs)
            back = np.einsum("nzohw,zoi->nzihw", np.fft.ifft2(by_group).real, taps)
            wide_grad_x[here] += back.reshape(len(g), groups * inputs, *window)
    inner = tuple(slice(m, m + length) for m, length in zip(margin, x.shape[2:], strict=True))
    return torch.from_numpy(wide_grad_x[(..., *inner)].copy()), torch.from_numpy(grad_w)
