"""The slow twins of `_spectra.py`, in plain torch, for any floating dtype and device."""

import math
from typing import TYPE_CHECKING

from flower_edge.kernels._constants import made_once
from flower_edge.kernels._tiling import Tiling

if TYPE_CHECKING:
    import torch


def tile_spectra_reference(x: "torch.Tensor", cut: Tiling, *, sums: bool = False) -> "torch.Tensor":
    """Do what :func:`tile_spectra` does, in plain torch.

    Parameters
    ----------
    x, cut, sums
        As in :func:`tile_spectra`; `x` may have any floating dtype and device.

    Returns
    -------
    torch.Tensor
        Of the dtype of `x`.
    """
    import torch

    images, channels = cut.shape[:2]
    covered = _framed(x, (-cut.offset[0], -cut.offset[1]), _reach(cut))
    windows = covered.unfold(2, cut.window[0], cut.step[0]).unfold(3, cut.window[1], cut.step[1])
    spectra = torch.einsum("ncpqij,kij->knpqc", windows, _waves(cut, x.dtype, x.device))
    spectra = spectra.reshape(cut.rows, images * cut.tiles[0] * cut.tiles[1], channels).contiguous()
    count = len(cut.frequencies)
    if sums:
        return torch.cat([spectra, spectra[1 : 1 + count] + spectra[1 + count :]])
    return spectra


def map_of_products_reference(products: "torch.Tensor", cut: Tiling) -> "torch.Tensor":
    """Do what :func:`map_of_products` does, in plain torch.

    Parameters
    ----------
    products, cut
        As in :func:`map_of_products`; `products` may have any floating dtype and device.

    Returns
    -------
    torch.Tensor
        Of the dtype of `products`.
    """
    import torch
    from torch.nn.functional import fold

    images, channels, height, width = cut.shape
    count = len(cut.frequencies)
    u, w, s = (products[1 + i * count : 1 + (i + 1) * count] for i in range(3))
    spectra = torch.cat([products[:1], u - w, s - u - w])
    tiles = cut.tiles[0] * cut.tiles[1]
    by_tile = spectra.reshape(cut.rows, images, tiles, channels)
    cells = torch.einsum("kntc,kij->ncijt", by_tile, _waves(cut, products.dtype, products.device))
    # Each channel for itself, since `fold` wants at least one.
    columns = cells.reshape(images * channels, cut.window[0] * cut.window[1], tiles)
    covered = fold(columns, _reach(cut), cut.window, stride=cut.step).reshape(images, channels, *_reach(cut))
    return _framed(covered, cut.offset, (height, width)).contiguous(memory_format=torch.channels_last)


def _reach(cut: Tiling) -> tuple[int, int]:
    """Count the cells from the first of all windows to the last."""
    rows, columns = (cut.step[axis] * (cut.tiles[axis] - 1) + cut.window[axis] for axis in range(2))
    return rows, columns


def _framed(x: "torch.Tensor", first: tuple[int, int], size: tuple[int, int]) -> "torch.Tensor":
    """Look at a map through a frame that begins at the cell `first`, and see 0 outside the map."""
    from torch.nn.functional import pad

    for axis in range(2):
        room = max(0, -first[axis]), max(0, first[axis] + size[axis] - x.shape[2 + axis])
        padded = pad(x, (0, 0, *room) if axis == 0 else room)
        x = padded.narrow(2 + axis, max(0, first[axis]), size[axis])
    return x


@made_once
def _waves(cut: Tiling, dtype: "torch.dtype", device: "torch.device") -> "torch.Tensor":
    """Give the waves on a window: shape (rows, height, width)."""
    import torch

    places = [torch.from_numpy(cut.places(axis)) for axis in range(2)]
    frequencies = torch.tensor(cut.frequencies, dtype=torch.float64, device="cpu").reshape(-1, 2)
    turns = frequencies / torch.tensor(cut.period, dtype=torch.float64, device="cpu")
    angles = 2 * math.pi * (turns[:, :1, None] * places[0][:, None] + turns[:, 1:, None] * places[1])
    constant = torch.ones(1, *cut.window, dtype=torch.float64, device="cpu")
    return torch.cat([constant, angles.cos(), angles.sin()]).to(device, dtype)
