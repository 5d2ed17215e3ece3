"""Gradient filtering in the Fourier basis, as operators of torch like those of `_ops.py`.

With :math:`\\hat g` and :math:`\\hat x` the transforms of a tile of the output's gradient and of the window that its
taps read, both about their centres, and :math:`\\theta_t = \\omega \\cdot (t - \\text{centre})`,

.. math::
    \\nabla W_t = \\frac{1}{n^2} \\sum_\\omega \\overline{\\hat g} \\hat x e^{-i \\theta_t}, \\qquad
    \\widehat{\\nabla x} = \\hat g \\sum_t W_t e^{i \\theta_t}

are exact over all frequencies of a window of :math:`n \\times n` cells. Only the lowest are kept. A product of
complex numbers takes three of real ones: those with the cosine parts, with the sine parts, and with sums.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from flower_edge import kernels
from flower_edge.kernels._spectra import map_of_products, tile_spectra
from flower_edge.kernels._tiling import WIDEST_WINDOW, Tiling, low_frequencies, tiling
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    from flower_edge.training._filtered_conv import ConvFilter

SLAB_BYTES = 4 << 20
"""Of the gradient of the output that goes through all steps at a time: what is made of it stays in the cache."""

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How tiles lie on input and output of a convolution.

    Attributes
    ----------
    x, y : Tiling
        Windows of the input and tiles of the output.
    """

    x: Tiling
    y: Tiling

    @property
    def frequencies(self) -> int:
        """Number of frequencies beside the constant."""
        return len(self.x.frequencies)


@lru_cache(maxsize=1024)
def geometry(
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    patch_size: int,
    components: int,
) -> Geometry:
    """Cut input and output into as few tiles of at most `patch_size` cells as cover it, all of about one size.

    Parameters
    ----------
    x_shape, y_shape : tuple of int
        ``(N, C, H, W)`` of input and output.
    kernel_size, stride, padding, dilation : tuple of int
        Of the convolution, along height and width.
    patch_size : int
        Cells of the output along a side of the largest tile.
    components : int
        Rows of a spectrum to keep: 1 and 2 for each frequency.
    """
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    # A window is bounded by what kernels serve, and a tile with it.
    most = [
        max(1, min(patch_size, (WIDEST_WINDOW - 1 - far) // s + 1)) for far, s in zip(reach, stride, strict=True)
    ]
    tiles = [max(1, -(-cells // size)) for cells, size in zip(y_shape[2:], most, strict=True)]
    sizes = [max(1, -(-cells // count)) for cells, count in zip(y_shape[2:], tiles, strict=True)]
    window = tuple(s * (size - 1) + far + 1 for s, size, far in zip(stride, sizes, reach, strict=True))
    number, tile, period = (tiles[0], tiles[1]), (sizes[0], sizes[1]), (window[0], window[1])
    frequencies = low_frequencies(period, components)
    step = (stride[0] * tile[0], stride[1] * tile[1])
    return Geometry(
        x=tiling(x_shape, number, step, padding, period, (1, 1), period, frequencies),
        y=tiling(y_shape, number, tile, (0, 0), tile, stride, period, frequencies),
    )


class Symbols(NamedTuple):
    """What each tap of a kernel does to each frequency.

    Attributes
    ----------
    of_weight : Tensor
        Shape ``(1 + 3 * frequencies, kh * kw)``: turns a weight into its spectrum, for products with that of the
        gradient; the factor with which a map is put together from its spectrum is in it.
    of_gram : Tensor
        Likewise: turns products of spectra, summed over tiles, into the gradient of the weight.
    """

    of_weight: Tensor
    of_gram: Tensor


@lru_cache(maxsize=256)
def tap_waves(
    cut: Tiling, kernel_size: Pair, dilation: Pair, dtype: torch.dtype, device: torch.device
) -> Symbols:
    """Evaluate the waves of a window at the taps of a kernel, about its centre."""
    offsets = [
        d * (torch.arange(k, dtype=torch.float64) - (k - 1) / 2)
        for d, k in zip(dilation, kernel_size, strict=True)
    ]
    turns = torch.tensor(cut.frequencies, dtype=torch.float64).reshape(-1, 2) / torch.tensor(cut.period)
    angles = turns[:, :1, None] * offsets[0][:, None] + turns[:, 1:, None] * offsets[1]
    cos, sin = (wave(2 * math.pi * angles).flatten(1) for wave in (torch.cos, torch.sin))
    constant = torch.full((1, kernel_size[0] * kernel_size[1]), 0.5, dtype=torch.float64)
    # A frequency stands for its opposite, too; the constant does not.
    part = 2 / (cut.period[0] * cut.period[1])
    of_weight = torch.cat([constant, cos, sin, cos + sin]) * part
    of_gram = torch.cat([constant, cos + sin, cos - sin, sin]) * part
    return Symbols(of_weight.to(device, dtype), of_gram.to(device, dtype))


def spectra(x: Tensor, y_shape: Sequence[int], kernel_size: Sequence[int], conv: "ConvFilter") -> Tensor:
    """Find the low frequencies of a convolution's input: all that is saved of it.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``.
    y_shape : sequence of int
        Shape of the output.
    kernel_size : sequence of int
        Along height and width.
    conv : ConvFilter
        The convolution.

    Returns
    -------
    Tensor
        Shape ``(components, N * tiles, C_in)``.
    """
    return tile_spectra(x, _geometry(x.shape, y_shape, kernel_size, conv).x)


def backward(
    grad: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    x_shape: Sequence[int],
    conv: "ConvFilter",
    channels_last: bool,
    needs_x: bool,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Form the gradients of a filtered convolution.

    Parameters
    ----------
    grad, weight, x_shape, conv, channels_last, needs_x, scale
        As in `_ops.backward`.
    saved : Tensor, optional
        Result of :func:`spectra`; without it there is no gradient of the weight.

    Returns
    -------
    tuple of Tensor
        Gradients of input, weight and scale; one that is not wanted is an empty tensor.
    """
    kernel_size = (weight.shape[2], weight.shape[3])
    cut = _geometry(x_shape, grad.shape, kernel_size, conv)
    symbols = tap_waves(cut.x, kernel_size, _pair(conv.dilation), weight.dtype, weight.device)
    spectrum = None
    if needs_x:
        spectrum = kernels.collapse_taps(weight, symbols.of_weight)
        spectrum = spectrum if scale is None else spectrum * scale[:, None]
    slabs = _Slabs(grad, spectrum, saved, tuple(x_shape), kernel_size, conv)
    grad_x, gram = slabs.gradients(channels_last)
    grad_weight = grad_scale = None
    if gram is not None:
        grad_weight = kernels.spread_taps(gram, symbols.of_gram, weight)
        if scale is not None:
            grad_scale = (grad_weight * weight).sum((1, 2, 3))
            grad_weight = grad_weight * scale[:, None, None, None]
    empty = grad.new_empty(0)
    return (
        empty if grad_x is None else grad_x,
        empty if grad_weight is None else grad_weight,
        empty if grad_scale is None else grad_scale,
    )


class _Slabs:
    """A backward pass, some images at a time, so that what is made on the way stays in the cache."""

    def __init__(
        self,
        grad: Tensor,
        spectrum: Tensor | None,
        saved: Tensor | None,
        x_shape: tuple[int, ...],
        kernel_size: Pair,
        conv: "ConvFilter",
    ) -> None:
        self.grad, self.spectrum, self.saved = grad, spectrum, saved
        self.x_shape, self.kernel_size, self.conv = x_shape, kernel_size, conv

    def gradients(self, channels_last: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return grad_x in a memory format, and the products of both spectra, summed over the tiles."""
        images = self.grad.shape[0]
        slab = max(1, min(images, SLAB_BYTES * images // max(1, self.grad.nbytes)))
        parts: list[Tensor] = []
        grad_x, gram = None, None
        if self.spectrum is not None and slab < images:
            grad_x = _empty_map(self.grad, self.x_shape, channels_last)
        for first in range(0, images, slab):
            part = self.grad[first : first + slab]
            cut = _geometry((len(part), *self.x_shape[1:]), part.shape, self.kernel_size, self.conv)
            of_grad = tile_spectra(part, cut.y, sums=True)
            if self.spectrum is not None:
                made = map_of_products(_through(of_grad, self.spectrum, self.conv.groups), cut.x)
                parts.append(made)
                if grad_x is not None:
                    grad_x[first : first + slab] = parts.pop()
            if self.saved is not None:
                begin = first * (cut.x.points // max(1, len(part)))
                of_x = self.saved[:, begin : begin + cut.x.points]
                gram = _gram(of_grad, of_x, cut.frequencies, self.conv.groups, gram)
        if grad_x is None and parts:
            grad_x = parts[0].contiguous(memory_format=_layout(channels_last))
        return grad_x, gram


def _through(of_grad: Tensor, spectrum: Tensor, groups: int) -> Tensor:
    """Multiply each tile's spectrum with that of the transposed weight."""
    rows, points, outputs = of_grad.shape
    if groups > 1:
        by_group = spectrum.reshape(rows, groups, outputs // groups, spectrum.shape[2])
        return torch.einsum("kmgo,kgoi->kmgi", _grouped(of_grad, groups), by_group).flatten(2)
    return torch.bmm(of_grad, spectrum, out=_scratch(of_grad, (rows, points, spectrum.shape[2])))


def _gram(of_grad: Tensor, of_x: Tensor, frequencies: int, groups: int, gram: Tensor | None) -> Tensor:
    """Multiply the spectra of gradient and input of each tile, sum over the tiles, and add to `gram`."""
    real, imaginary = of_x[1 : 1 + frequencies], of_x[1 + frequencies :]
    rows = 1 + 2 * frequencies
    if groups > 1:
        whole = torch.cat([of_x, imaginary - real])
        made = torch.einsum("kmgo,kmgi->kgoi", _grouped(of_grad, groups), _grouped(whole, groups)).flatten(1, 2)
        return made if gram is None else gram.add_(made)
    begun = gram is not None
    if gram is None:
        gram = _scratch(of_grad, (len(of_grad), of_grad.shape[2], of_x.shape[2]))
    left = of_grad.mT
    torch.baddbmm(gram[:rows], left[:rows], of_x, beta=int(begun), out=gram[:rows])
    if frequencies:
        torch.baddbmm(gram[rows:], left[rows:], imaginary - real, beta=int(begun), out=gram[rows:])
    return gram


def _grouped(rows: Tensor, groups: int) -> Tensor:
    return rows.reshape(*rows.shape[:2], groups, rows.shape[2] // groups)


def _scratch(like: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if like.dtype != torch.float32 or like.device.type != "cpu":
        return like.new_empty(shape)
    return workspace().empty(shape, (shape[1] * shape[2], shape[2], 1))


def _empty_map(like: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    if like.dtype != torch.float32 or like.device.type != "cpu":
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_layout(channels_last))
    _, channels, height, width = shape
    image = channels * height * width
    strides = (image, 1, width * channels, channels) if channels_last else (image, height * width, width, 1)
    return workspace().empty((shape[0], channels, height, width), strides)


def _geometry(
    x_shape: Sequence[int], y_shape: Sequence[int], kernel_size: Sequence[int], conv: "ConvFilter"
) -> Geometry:
    return geometry(
        tuple(x_shape),
        tuple(y_shape),
        _pair(kernel_size),
        _pair(conv.stride),
        _pair(conv.padding),
        _pair(conv.dilation),
        conv.patch_size,
        conv.components,
    )


def _pair(values: Sequence[int]) -> Pair:
    return values[0], values[1]


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
