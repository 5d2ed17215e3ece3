"""Gradient filtering in float64 and in loops, written from its definition and from nothing else."""

import itertools

import numpy as np
import torch
from torch import Tensor


def walsh(side: int) -> list[np.ndarray]:
    """Products of all Walsh functions on a square, by sign changes: sum, then larger, then row-major."""
    matrix = np.ones((1, 1))
    while len(matrix) < side:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    functions = sorted(matrix, key=lambda row: np.count_nonzero(np.diff(row)))
    pairs = sorted(itertools.product(range(side), repeat=2), key=lambda uv: (uv[0] + uv[1], max(uv), uv))
    return [np.outer(functions[u], functions[v]) for u, v in pairs]


def basis(patch_size: int, components: int) -> list[np.ndarray]:
    return [np.ones((patch_size, patch_size))] if components == 1 else walsh(patch_size)[:components]


def symbol(b: np.ndarray, tap: tuple[int, int], kernel, stride, dilation) -> float:
    """How much of `b` is left when the tap reads it, the patch being continued by its mirror image."""
    side = len(b)
    total = 0.0
    for i, j in itertools.product(range(side), repeat=2):
        place = []
        for axis, cell in enumerate((i, j)):
            displacement = dilation[axis] * tap[axis] - dilation[axis] * (kernel[axis] - 1) // 2
            window = side * stride[axis]
            cells = [*range(window), *reversed(range(window))]
            place.append(cells[(stride[axis] * cell + displacement) % len(cells)] // stride[axis])
        total += b[i, j] * b[place[0], place[1]]
    return total / side**2


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride, padding, dilation, groups, patch_size, components
) -> tuple[Tensor, Tensor]:
    """Filtered gradients of input and weight."""
    g, x, w = (tensor.detach().double().numpy() for tensor in (grad, x, weight))
    (_, outputs, rows, columns), (height, width) = g.shape, x.shape[2:]
    kernel = w.shape[2:]
    r, area = patch_size, stride[0] * stride[1]
    offset = [padding[a] - dilation[a] * (kernel[a] - 1) // 2 for a in (0, 1)]
    grad_x, grad_w = np.zeros_like(x), np.zeros_like(w)
    taps = list(itertools.product(range(kernel[0]), range(kernel[1])))
    inputs_of_group, outputs_of_group = w.shape[1], outputs // groups

    for b in basis(r, components):
        constant = bool((b == 1).all())
        symbols = {tap: symbol(b, tap, kernel, stride, dilation) for tap in taps}
        collapsed = sum(symbols[tap] * w[:, :, tap[0], tap[1]] for tap in taps)
        wide = b.repeat(stride[0], axis=0).repeat(stride[1], axis=1)
        for p, q in itertools.product(range(-(-rows // r)), range(-(-columns // r))):
            patch = g[:, :, p * r : (p + 1) * r, q * r : (q + 1) * r]
            mean = patch.mean(axis=(2, 3))
            here = b[: patch.shape[2], : patch.shape[3]]
            coefficient = mean if constant else ((patch * here).sum(axis=(2, 3)) - mean * here.sum()) / r**2

            top, left = p * r * stride[0] - offset[0], q * r * stride[1] - offset[1]
            inside = [
                (i, j, wide[i - top, j - left])
                for i in range(max(top, 0), min(top + r * stride[0], height))
                for j in range(max(left, 0), min(left + r * stride[1], width))
            ]
            sums = np.zeros(x.shape[:2])
            for i, j, value in inside:
                sums += value * x[:, :, i, j]
            for group in range(groups):
                ins = slice(group * inputs_of_group, (group + 1) * inputs_of_group)
                outs = slice(group * outputs_of_group, (group + 1) * outputs_of_group)
                back = coefficient[:, outs] @ collapsed[outs] / area
                for i, j, value in inside:
                    grad_x[:, ins, i, j] += value * back
                gram = coefficient[:, outs].T @ sums[:, ins] / area
                for tap in taps:
                    grad_w[outs, :, tap[0], tap[1]] += symbols[tap] * gram
    return torch.from_numpy(grad_x), torch.from_numpy(grad_w)
