"""Low frequencies of the tiles of feature maps: what gradient filtering in the Fourier basis is made of.

A map is cut into windows, which may overlap. Of each, the constant and a few low frequencies are kept, every
one as a cosine and a sine part about the window's centre. A shift of the map turns them into each other, so
that convolutions act on each frequency alone.
"""

from typing import TYPE_CHECKING, Any

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._maps import check_floating, check_no_gradient, is_served
from flower_edge.kernels._spectra_reference import map_of_products_reference, tile_spectra_reference
from flower_edge.kernels._tiling import Tiling
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch


def tile_spectra(x: "torch.Tensor", cut: Tiling, *, sums: bool = False) -> "torch.Tensor":
    r"""Find the low frequencies of each window of a map.

    With :math:`v` a cell's place from the centre of its window, rows are :math:`\sum x`, then for each
    frequency :math:`\sum x \cos(\omega v)`, then for each :math:`\sum x \sin(\omega v)`.

    Parameters
    ----------
    x : torch.Tensor
        Of the tiling's shape, ``(N, C, H, W)``. Cells outside of it count as 0.
    cut : Tiling
        Windows and frequencies.
    sums : bool, default False
        Whether rows follow that hold, for each frequency, the sum of its two parts.

    Returns
    -------
    torch.Tensor
        Shape ``(cut.rows, N * tiles, C)``, contiguous; with `sums`, one row more for each frequency.

    Raises
    ------
    TypeError
        If `x` is not a dense tensor of floating point numbers.
    ValueError
        If it is not of the tiling's shape, or requires gradients in grad mode.
    """
    _check(x, "x", cut.shape)
    if not _runs(x):
        return tile_spectra_reference(x, cut, sums=sums)
    x = _channels_last(x)
    rows = cut.rows + (len(cut.frequencies) if sums else 0)
    out = workspace().empty((rows, cut.points, x.shape[1]), (cut.points * x.shape[1], x.shape[1], 1))
    if x.numel() == 0:
        return out.zero_()
    addresses = out.data_ptr(), x.data_ptr()
    _extension().analyse(_dispatch.ceiling(), *addresses, sums, *cut.tables, *cut.numbers)
    return out


def map_of_products(products: "torch.Tensor", cut: Tiling) -> "torch.Tensor":
    r"""Put a map together from its windows: the transpose of :func:`tile_spectra`.

    Rows of `products` are the constants; then, for each frequency, what three real products leave of a
    complex one: first all :math:`u`, then all :math:`w`, then all :math:`s`. A window's value at place
    :math:`v` is the constant plus :math:`\sum (u - w) \cos(\omega v) + (s - u - w) \sin(\omega v)`; where
    windows overlap, values add up.

    Parameters
    ----------
    products : torch.Tensor
        Shape ``(1 + 3 * frequencies, N * tiles, C)``.
    cut : Tiling
        Windows and frequencies, and the shape of the map.

    Returns
    -------
    torch.Tensor
        Of the tiling's shape, channels last; 0 in no window.

    Raises
    ------
    TypeError
        If `products` is not a dense tensor of floating point numbers.
    ValueError
        If its shape does not fit, or it requires gradients in grad mode.
    """
    _check(products, "products", (1 + 3 * len(cut.frequencies), cut.points, cut.shape[1]))
    if not _runs(products):
        return map_of_products_reference(products, cut)
    products = products.contiguous()
    _, channels, height, width = cut.shape
    out = workspace().empty(cut.shape, (channels * height * width, 1, width * channels, channels))
    if out.numel() == 0:
        return out
    if products.numel() == 0:
        return out.zero_()
    addresses = out.data_ptr(), products.data_ptr()
    _extension().synthesise(_dispatch.ceiling(), *addresses, *cut.tables, *cut.numbers)
    return out


def _check(tensor: "torch.Tensor", name: str, shape: tuple[int, ...]) -> None:
    check_floating(tensor, name)
    check_no_gradient(tensor, name)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape} as the tiling says")


def _runs(tensor: "torch.Tensor") -> bool:
    return _dispatch.extension is not None and is_served(tensor)


def _extension() -> Any:
    if _dispatch.extension is not None:
        _threads.connect(_dispatch.extension)
    return _dispatch.extension


def _channels_last(x: "torch.Tensor") -> "torch.Tensor":
    import torch

    return x.contiguous(memory_format=torch.channels_last)
