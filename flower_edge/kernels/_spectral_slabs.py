"""What `_spectral_conv.py` does in one pass, step by step: for groups, other dtypes and devices."""

import math
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from flower_edge.kernels._constants import made_once
from flower_edge.kernels._maps import empty_map, inputs_are_innermost, is_served
from flower_edge.kernels._spectra import map_of_products, tile_spectra
from flower_edge.kernels._tiling import Tiling
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch

    from flower_edge.kernels._spectral_conv import Tilings

SLAB_BYTES = 32 << 20
"""Of the output's gradient that goes through all steps at a time: bounds the memory for spectra and products.

Smaller slabs are slower, since each reads the whole spectrum of the weight again.
"""


def spectral_slabs(
    grad: "torch.Tensor",
    weight: "torch.Tensor",
    spectra: "torch.Tensor | None",
    cut: "Tilings",
    groups: int,
    channels_last: bool,
    needs_x: bool,
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """Do what :func:`spectral_conv_backward` does, some images at a time.

    Parameters
    ----------
    grad, weight, spectra, cut, groups, channels_last, needs_x
        As there, and checked; any floating dtype and device.

    Returns
    -------
    grad_x, grad_weight : torch.Tensor or None
        As there.
    """
    symbols = tap_waves(cut.taps, weight.dtype, weight.device)
    of_weight = _spectrum_of(weight, symbols.of_weight) if needs_x else None
    grad_x, gram = _slab_gradients(grad, of_weight, spectra, cut, groups, channels_last)
    return grad_x, None if gram is None else _gradient_of(gram, symbols.of_gram, weight)


class Symbols(NamedTuple):
    """What each tap of a kernel does to each frequency.

    Attributes
    ----------
    of_weight : torch.Tensor
        Shape ``(1 + 3 * frequencies, kh * kw)``: turns a weight into its spectrum, for products with that of
        the gradient; the factor with which a map is put together from its spectrum is in it.
    of_gram : torch.Tensor
        Likewise: turns products of spectra, summed over tiles, into the gradient of the weight.
    """

    of_weight: "torch.Tensor"
    of_gram: "torch.Tensor"


@made_once
def tap_waves(taps: Tiling, dtype: "torch.dtype", device: "torch.device") -> Symbols:
    """Evaluate the waves of a window at the taps of a kernel, about its centre."""
    import torch

    offsets = [torch.from_numpy(taps.places(axis)) for axis in range(2)]
    frequencies = torch.tensor(taps.frequencies, dtype=torch.float64, device="cpu").reshape(-1, 2)
    turns = frequencies / torch.tensor(taps.period, device="cpu")
    angles = turns[:, :1, None] * offsets[0][:, None] + turns[:, 1:, None] * offsets[1]
    cos, sin = (wave(2 * math.pi * angles).flatten(1) for wave in (torch.cos, torch.sin))
    constant = torch.full((1, taps.window[0] * taps.window[1]), 0.5, dtype=torch.float64, device="cpu")
    # A frequency stands for its opposite, too; the constant does not.
    part = 2 / (taps.period[0] * taps.period[1])
    of_weight = torch.cat([constant, cos, sin, cos + sin]) * part
    of_gram = torch.cat([constant, cos + sin, cos - sin, sin]) * part
    return Symbols(of_weight.to(device, dtype), of_gram.to(device, dtype))


def _spectrum_of(weight: "torch.Tensor", symbols: "torch.Tensor") -> "torch.Tensor":
    """Weight the taps with each row of symbols, shape ``(rows, C_out, C_in / groups)``.

    As products of small matrices: with so many rows they are faster than `kernels.collapse_taps`, which reads
    its weight again for each.
    """
    import torch

    outputs, inputs = weight.shape[:2]
    if inputs_are_innermost(weight):
        taps_first = weight.permute(0, 2, 3, 1).reshape(outputs, symbols.shape[1], inputs)
        return torch.bmm(symbols.expand(outputs, *symbols.shape), taps_first).transpose(0, 1)
    return torch.mm(symbols, weight.reshape(outputs * inputs, symbols.shape[1]).mT).reshape(
        len(symbols), outputs, inputs
    )


def _gradient_of(gram: "torch.Tensor", symbols: "torch.Tensor", like: "torch.Tensor") -> "torch.Tensor":
    """Spread products of spectra over the taps: the transpose, in the memory format of `like`."""
    import torch

    outputs, inputs, height, width = like.shape
    if inputs_are_innermost(like):
        taps_first = torch.bmm(symbols.mT.expand(outputs, *symbols.mT.shape), gram.transpose(0, 1))
        return taps_first.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2)
    taps_first = torch.mm(symbols.mT, gram.reshape(len(gram), outputs * inputs))
    return taps_first.mT.contiguous().reshape(like.shape)


@lru_cache(maxsize=256)
def _of_images(cut: Tiling, images: int) -> Tiling:
    return replace(cut, shape=(images, *cut.shape[1:]))


def _slab_gradients(
    grad: "torch.Tensor",
    of_weight: "torch.Tensor | None",
    spectra: "torch.Tensor | None",
    cut: "Tilings",
    groups: int,
    channels_last: bool,
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """Return grad_x, and the products of both spectra, summed over the tiles."""
    images, tiles = grad.shape[0], cut.x.tiles[0] * cut.x.tiles[1]
    slab = max(1, min(images, SLAB_BYTES * images // max(1, grad.nbytes)))
    parts: list[torch.Tensor] = []
    grad_x, gram = None, None
    if of_weight is not None and slab < images:
        grad_x = _empty_map(grad, cut.x.shape, channels_last)
    # Without images, one slab of none gives both gradients their shapes.
    for first in range(0, max(1, images), slab):
        part = grad[first : first + slab]
        of_grad = tile_spectra(part, _of_images(cut.y, len(part)), sums=True)
        if of_weight is not None:
            products = _through(of_grad, of_weight, groups)
            parts.append(map_of_products(products, _of_images(cut.x, len(part))))
            if grad_x is not None:
                grad_x[first : first + slab] = parts.pop()
        if spectra is not None:
            of_x = spectra[:, first * tiles : (first + len(part)) * tiles]
            gram = _gram(of_grad, of_x, len(cut.x.frequencies), groups, gram)
    if grad_x is None and parts:
        grad_x = parts[0].contiguous(memory_format=_layout(channels_last))
    return grad_x, gram


def _through(of_grad: "torch.Tensor", of_weight: "torch.Tensor", groups: int) -> "torch.Tensor":
    """Multiply each tile's spectrum with that of the transposed weight."""
    import torch

    rows, points, outputs = of_grad.shape
    if groups > 1:
        by_group = of_weight.reshape(rows, groups, outputs // groups, of_weight.shape[2])
        return torch.einsum("kmgo,kgoi->kmgi", _grouped(of_grad, groups), by_group).flatten(2)
    return torch.bmm(of_grad, of_weight, out=_scratch(of_grad, (rows, points, of_weight.shape[2])))


def _gram(
    of_grad: "torch.Tensor",
    of_x: "torch.Tensor",
    frequencies: int,
    groups: int,
    gram: "torch.Tensor | None",
) -> "torch.Tensor":
    """Multiply the spectra of gradient and input of each tile, sum over the tiles, and add to `gram`."""
    import torch

    real, imaginary = of_x[1 : 1 + frequencies], of_x[1 + frequencies :]
    rows = 1 + 2 * frequencies
    if groups > 1:
        whole = torch.cat([of_x, imaginary - real])
        made = torch.einsum("kmgo,kmgi->kgoi", _grouped(of_grad, groups), _grouped(whole, groups)).flatten(
            1, 2
        )
        return made if gram is None else gram.add_(made)
    begun = gram is not None
    if gram is None:
        gram = _scratch(of_grad, (len(of_grad), of_grad.shape[2], of_x.shape[2]))
    left = of_grad.mT
    torch.baddbmm(gram[:rows], left[:rows], of_x, beta=int(begun), out=gram[:rows])
    if frequencies:
        torch.baddbmm(gram[rows:], left[rows:], imaginary - real, beta=int(begun), out=gram[rows:])
    return gram


def _grouped(rows: "torch.Tensor", groups: int) -> "torch.Tensor":
    return rows.reshape(*rows.shape[:2], groups, rows.shape[2] // groups)


def _scratch(like: "torch.Tensor", shape: tuple[int, int, int]) -> "torch.Tensor":
    if not is_served(like):
        return like.new_empty(shape)
    return workspace().empty(shape, (shape[1] * shape[2], shape[2], 1))


def _empty_map(like: "torch.Tensor", shape: tuple[int, int, int, int], channels_last: bool) -> "torch.Tensor":
    import torch

    if not is_served(like):
        layout = _layout(channels_last)
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    return empty_map(shape, channels_last)


def _layout(channels_last: bool) -> "torch.memory_format":
    import torch

    return torch.channels_last if channels_last else torch.contiguous_format
