"""The slow twins of the patch kernels: plain torch, for any floating dtype and any device, differentiable."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flower_edge.kernels._constants import made_once
from flower_edge.kernels._grid import Grid, Pair, grid, pair, walsh_basis

if TYPE_CHECKING:
    import torch


def patch_sums_reference(
    x: "torch.Tensor",
    patch_size: Pair,
    offset: Pair,
    patches: Pair,
    components: int = 1,
    upsampling: Pair = 1,
) -> "torch.Tensor":
    """Do what :func:`patch_sums` does, in plain torch.

    Parameters
    ----------
    x, patch_size, offset, patches, components, upsampling
        As in :func:`patch_sums`; `x` may have any floating dtype and device.

    Returns
    -------
    torch.Tensor
        Shape ``(components, N * PH * PW, C)``, of the dtype of `x`.
    """
    cut = grid(
        tuple(x.shape),
        pair(patch_size, "patch_size"),
        pair(offset, "offset"),
        pair(patches, "patches"),
        components,
        pair(upsampling, "upsampling"),
    )
    return _sums(x, cut)


def patch_means_reference(
    grad: "torch.Tensor", patch_size: Pair, patches: Pair, components: int = 1
) -> "torch.Tensor":
    """Do what :func:`patch_means` does, in plain torch.

    Parameters
    ----------
    grad, patch_size, patches, components
        As in :func:`patch_means`; `grad` may have any floating dtype and device.

    Returns
    -------
    torch.Tensor
        Shape ``(components, N * PH * PW, C)``, of the dtype of `grad`.
    """
    import torch

    window, number = pair(patch_size, "patch_size"), pair(patches, "patches")
    cut = grid(tuple(grad.shape), window, (0, 0), number, components, (1, 1))
    sums, real = _sums(grad, cut), _real(cut, grad.dtype, grad.device)
    mean = sums[:1] / real[:1].clamp(min=1)
    if components == 1:
        return mean
    return torch.cat([mean, (sums[1:] - mean * real[1:]) / cut.side**2])


def patch_fill_reference(
    coefficients: "torch.Tensor",
    shape: Sequence[int],
    patch_size: Pair,
    offset: Pair,
    patches: Pair,
    upsampling: Pair = 1,
    scale: float = 1.0,
    *,
    channels_last: bool = True,
) -> "torch.Tensor":
    """Do what :func:`patch_fill` does, in plain torch.

    Parameters
    ----------
    coefficients, shape, patch_size, offset, patches, upsampling, scale, channels_last
        As in :func:`patch_fill`; `coefficients` may have any floating dtype and device.

    Returns
    -------
    torch.Tensor
        Of `shape`, and of the dtype of `coefficients`.
    """
    import torch

    cut = grid(
        tuple(shape),
        pair(patch_size, "patch_size"),
        pair(offset, "offset"),
        pair(patches, "patches"),
        coefficients.shape[0],
        pair(upsampling, "upsampling"),
    )
    images, channels, height, width = cut.shape
    (rows, columns), (window_h, window_w) = cut.patches, cut.window
    spread = (coefficients * scale).reshape(cut.components, images, rows, columns, channels)
    if cut.components == 1:
        cells = spread[0].permute(0, 3, 1, 2)[:, :, :, None, :, None]
        cells = cells.expand(-1, -1, -1, window_h, -1, window_w)
    else:
        cells = torch.einsum(
            "knpqc,kij->ncpiqj", spread, _upsampled_basis(cut, coefficients.dtype, coefficients.device)
        )
    filled = cells.reshape(images, channels, rows * window_h, columns * window_w)
    filled = _shifted(filled, (-cut.offset[0], -cut.offset[1]), (height, width))
    return filled.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def depthwise_filter_backward_reference(
    grad: "torch.Tensor",
    x_sums: "torch.Tensor | None",
    tap_sums: "torch.Tensor | None",
    x_shape: Sequence[int],
    patch_size: Pair,
    offset: Pair,
    patches: Pair,
    upsampling: Pair = 1,
    scale: float = 1.0,
    needs: tuple[bool, bool] = (True, True),
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """Do what :func:`depthwise_filter_backward` does, in plain torch.

    Parameters
    ----------
    grad, x_sums, tap_sums, x_shape, patch_size, offset, patches, upsampling, scale, needs
        As in :func:`depthwise_filter_backward`; the tensors may have any floating dtype and device.

    Returns
    -------
    tuple of torch.Tensor or None
        `grad_x` and `gram`.
    """
    import torch

    grad_x = gram = None
    given = tap_sums if needs[0] else x_sums
    if given is None:
        return None, None
    means = patch_means_reference(grad, patch_size, patches, given.shape[0])
    if needs[0] and tap_sums is not None:
        side, stride = pair(patch_size, "patch_size"), pair(upsampling, "upsampling")
        grad_x = patch_fill_reference(
            means * tap_sums[:, None, :],
            x_shape,
            (side[0] * stride[0], side[1] * stride[1]),
            offset,
            patches,
            stride,
            scale,
            channels_last=grad.is_contiguous(memory_format=torch.channels_last),
        )
    if needs[1] and x_sums is not None:
        gram = (means * x_sums).sum(dim=1) * scale
    return grad_x, gram


def _sums(x: "torch.Tensor", cut: Grid) -> "torch.Tensor":
    import torch

    (rows, columns), (window_h, window_w) = cut.patches, cut.window
    windows = _shifted(x, cut.offset, (rows * window_h, columns * window_w))
    windows = windows.reshape(*cut.shape[:2], rows, window_h, columns, window_w)
    if cut.components == 1:
        sums = windows.sum(dim=(3, 5)).permute(0, 2, 3, 1)[None]
    else:
        sums = torch.einsum("ncpiqj,kij->knpqc", windows, _upsampled_basis(cut, x.dtype, x.device))
    return sums.reshape(cut.components, cut.points, cut.shape[1])


@made_once
def _real(cut: Grid, dtype: "torch.dtype", device: "torch.device") -> "torch.Tensor":
    """Sum the cells of each window that lie on the map: shape (components, points, 1)."""
    import torch

    one_image = Grid((1, 1, *cut.shape[2:]), cut.window, cut.offset, cut.patches, cut.side, cut.slots)
    cells = torch.ones(one_image.shape, dtype=dtype, device=device)
    return _sums(cells, one_image).repeat(1, cut.shape[0], 1)


def _shifted(x: "torch.Tensor", by: tuple[int, int], size: tuple[int, int]) -> "torch.Tensor":
    """Move a map down and to the right, with zeros around it, and cut it to a size."""
    from torch.nn.functional import pad

    if by == (0, 0) and x.shape[2:] == size:
        return x
    before, after, cells = [], [], []
    for shift, length, wanted in zip(by, x.shape[2:], size, strict=True):
        before.append(max(shift, 0))
        after.append(max(wanted - shift - length, 0))
        begin = max(-shift, 0)
        cells.append(slice(begin, begin + wanted))
    padding = (before[1], after[1], before[0], after[0])
    moved = pad(x, padding) if any(padding) else x
    return moved[:, :, cells[0], cells[1]]


@made_once
def _upsampled_basis(cut: Grid, dtype: "torch.dtype", device: "torch.device") -> "torch.Tensor":
    basis = walsh_basis(cut.side, cut.components, dtype, device)
    rows, columns = cut.window[0] // cut.side, cut.window[1] // cut.side
    return basis.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
