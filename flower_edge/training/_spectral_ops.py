r"""Gradient filtering in the Fourier basis, as operators of torch like those of `_ops.py`.

With :math:`\hat g` and :math:`\hat x` the transforms of a tile of the output's gradient and of the window
that its taps read, both about their centres, and :math:`\theta_t = \omega \cdot (t - \text{centre})`,

.. math::
    \nabla W_t = \frac{1}{n^2} \sum_\omega \overline{\hat g} \hat x e^{-i \theta_t}, \qquad
    \widehat{\nabla x} = \hat g \sum_t W_t e^{i \theta_t}

are exact over all frequencies of a window of :math:`n \times n` cells. Only the lowest are kept. A product of
complex numbers takes three of real ones: of the cosine parts, of the sine parts, and of sums of both.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from flower_edge import kernels
from flower_edge.kernels._spectra import map_of_products, tile_spectra
from flower_edge.kernels._tiling import (
    HIGHEST_FREQUENCY,
    WIDEST_WINDOW,
    Tiling,
    low_frequencies,
    tiling,
)
from flower_edge.kernels._workspace import workspace
from flower_edge.training._ops import fake_gradients, is_eager, library, without_autocast

if TYPE_CHECKING:
    from flower_edge.training._filtered_conv import ConvFilter

library.define(  # type: ignore[no-untyped-call]
    "conv2d_tile_spectra(Tensor x, SymInt[] y_size, int[] kernel_size, int[] stride, int[] padding, "
    "int[] dilation, int groups, int patch_size, int components) -> Tensor"
)
library.define(  # type: ignore[no-untyped-call]
    "conv2d_spectral_backward(Tensor grad, Tensor weight, Tensor? saved, SymInt[] x_shape, int[] stride, "
    "int[] padding, int[] dilation, int groups, int patch_size, int components, bool channels_last, "
    "bool needs_x, Tensor? scale=None) -> (Tensor, Tensor, Tensor)"
)

SLAB_BYTES = 4 << 20
"""Of the output's gradient that goes through all steps at a time: what is made of it stays in the cache."""

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


class Layer(NamedTuple):
    """A convolution, in torch's own terms along height and width, and its filter."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    patch_size: int
    components: int


@lru_cache(maxsize=1024)
def geometry(x_shape: tuple[int, ...], y_shape: tuple[int, ...], layer: Layer) -> Geometry:
    """Cut input and output into as few tiles as cover it, all of about one size.

    Parameters
    ----------
    x_shape, y_shape : tuple of int
        ``(N, C, H, W)`` of input and output.
    layer : Layer
        Its patch size bounds the cells along a side of a tile, as do the largest windows that kernels serve.
    """
    axes = [_tiles_along(cells, layer, axis) for axis, cells in enumerate(y_shape[2:])]
    (rows, height, x_height), (columns, width, x_width) = axes
    period, stride = (x_height, x_width), layer.stride
    frequencies = low_frequencies(period, layer.components)
    step = (stride[0] * height, stride[1] * width)
    return Geometry(
        x=tiling(x_shape, (rows, columns), step, layer.padding, period, (1, 1), period, frequencies),
        y=tiling(
            y_shape, (rows, columns), (height, width), (0, 0), (height, width), stride, period, frequencies
        ),
    )


def _tiles_along(cells: int, layer: Layer, axis: int) -> tuple[int, int, int]:
    """Return the number of tiles, the cells of one, and those of the input that it is made from."""
    stride, reach = layer.stride[axis], layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    most = max(1, min(layer.patch_size, (WIDEST_WINDOW - 1 - reach) // stride + 1))
    count = max(1, -(-cells // most))
    size = max(1, -(-cells // count))
    return count, size, stride * (size - 1) + reach + 1


class Operations(NamedTuple):
    """Multiplications with additions of both gradients of a convolution: counted.

    Attributes
    ----------
    exact : int
        As torch forms them.
    filtered : int
        Products of spectra and transforms, that of the input in the forward pass included.
    """

    exact: int
    filtered: int

    @property
    def pay(self) -> bool:
        """Whether filtering saves more than half, below which it costs accuracy for next to nothing."""
        return 2 * self.filtered < self.exact


def operations(x_shape: Sequence[int], weight_shape: Sequence[int], conv: "ConvFilter") -> Operations:
    """Count what a backward pass takes with exact and with filtered gradients.

    Parameters
    ----------
    x_shape : sequence of int
        ``(N, C_in, H, W)``.
    weight_shape : sequence of int
        ``(C_out, C_in / groups, kh, kw)``.
    conv : ConvFilter
        The convolution.
    """
    kernel_size = (weight_shape[2], weight_shape[3])
    axes = (_pair(conv.stride), _pair(conv.padding), _pair(conv.dilation))
    layer = Layer(kernel_size, *axes, conv.groups, conv.patch_size, conv.components)
    y_size = [
        (x_shape[2 + axis] + 2 * p - d * (k - 1) - 1) // s + 1
        for axis, (k, s, p, d) in enumerate(zip(kernel_size, *axes, strict=True))
    ]
    (rows, height, x_height), (columns, width, x_width) = (
        _tiles_along(cells, layer, axis) for axis, cells in enumerate(y_size)
    )
    tiles = x_shape[0] * rows * columns
    waves = [2 * min(HIGHEST_FREQUENCY, (cells - 1) // 2) + 1 for cells in (x_height, x_width)]
    frequencies = min((conv.components - 1) // 2, (waves[0] * waves[1] - 1) // 2)
    # Half of the waves of a low-pass are about as many along each axis as the square root of all of them. Of
    # those asked for, since a compiler may not know how many a window has; they bound it all the same.
    along = min(*waves, 1 + 2 * math.isqrt((conv.components - 1) // 2))

    def transform(height: int, width: int) -> int:
        return along * (height * width + along * height) // 2

    matrix = weight_shape[0] * weight_shape[1]
    made_of_x = 2 * x_shape[1] * transform(x_height, x_width)
    return Operations(
        exact=2 * x_shape[0] * y_size[0] * y_size[1] * matrix * kernel_size[0] * kernel_size[1],
        filtered=tiles
        * (2 * (1 + 3 * frequencies) * matrix + made_of_x + weight_shape[0] * transform(height, width)),
    )


class Symbols(NamedTuple):
    """What each tap of a kernel does to each frequency.

    Attributes
    ----------
    of_weight : Tensor
        Shape ``(1 + 3 * frequencies, kh * kw)``: turns a weight into its spectrum, for products with that of
        the gradient; the factor with which a map is put together from its spectrum is in it.
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


def spectra(x: Tensor, y_shape: Sequence[int], weight_shape: Sequence[int], conv: "ConvFilter") -> Tensor:
    """Find the low frequencies of a convolution's input: all that is saved of it.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``.
    y_shape, weight_shape : sequence of int
        Shapes of output and weight.
    conv : ConvFilter
        The convolution.

    Returns
    -------
    Tensor
        Shape ``(components, N * tiles, C_in)``.
    """
    run = _spectra if is_eager(x) else torch.ops.flower_edge.conv2d_tile_spectra.default
    found: Tensor = run(x, y_shape[2:], weight_shape[2:], *conv.numbers)
    return found


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
    run = _backward if is_eager(grad) else torch.ops.flower_edge.conv2d_spectral_backward.default
    with without_autocast(grad.device.type):
        gradients: tuple[Tensor, Tensor, Tensor] = run(
            grad, weight, saved, x_shape, *conv.numbers, channels_last, needs_x, scale
        )
    return gradients


def _spectra(
    x: Tensor,
    y_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    patch_size: int,
    components: int,
) -> Tensor:
    layer = Layer(
        _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), groups, patch_size, components
    )
    # The number of output channels has no part in it.
    return tile_spectra(x, geometry(tuple(x.shape), (len(x), 1, *y_size), layer).x)


def _backward(
    grad: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    x_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    patch_size: int,
    components: int,
    channels_last: bool,
    needs_x: bool,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel_size = (weight.shape[2], weight.shape[3])
    layer = Layer(kernel_size, _pair(stride), _pair(padding), _pair(dilation), groups, patch_size, components)
    cut = geometry(tuple(x_shape), tuple(grad.shape), layer)
    symbols = tap_waves(cut.x, kernel_size, layer.dilation, weight.dtype, weight.device)
    spectrum = None
    if needs_x:
        spectrum = kernels.collapse_taps(weight, symbols.of_weight)
        spectrum = spectrum if scale is None else spectrum * scale[:, None]
    grad_x, gram = _Slabs(grad, spectrum, saved, tuple(x_shape), layer).gradients(channels_last)
    grad_weight = grad_scale = None
    if gram is not None:
        grad_weight = kernels.spread_taps(gram, symbols.of_gram, weight)
        if scale is not None:
            grad_scale = (grad_weight * weight).sum((1, 2, 3))
            grad_weight = grad_weight * scale[:, None, None, None]
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        grad.new_empty(0) if grad_weight is None else grad_weight,
        grad.new_empty(0) if grad_scale is None else grad_scale,
    )


class _Slabs:
    """A backward pass, some images at a time, so that what is made on the way stays in the cache."""

    def __init__(
        self,
        grad: Tensor,
        spectrum: Tensor | None,
        saved: Tensor | None,
        x_shape: tuple[int, ...],
        layer: Layer,
    ) -> None:
        self.grad, self.spectrum, self.saved = grad, spectrum, saved
        self.x_shape, self.layer = x_shape, layer

    def gradients(self, channels_last: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return grad_x in a memory format, and the products of both spectra, summed over the tiles."""
        images = self.grad.shape[0]
        slab = max(1, min(images, SLAB_BYTES * images // max(1, self.grad.nbytes)))
        parts: list[Tensor] = []
        grad_x, gram = None, None
        if self.spectrum is not None and slab < images:
            grad_x = _empty_map(self.grad, self.x_shape, channels_last)
        # Without images, one slab of none gives both gradients their shapes.
        for first in range(0, max(1, images), slab):
            part = self.grad[first : first + slab]
            cut = geometry((len(part), *self.x_shape[1:]), tuple(part.shape), self.layer)
            of_grad = tile_spectra(part, cut.y, sums=True)
            if self.spectrum is not None:
                made = map_of_products(_through(of_grad, self.spectrum, self.layer.groups), cut.x)
                parts.append(made)
                if grad_x is not None:
                    grad_x[first : first + slab] = parts.pop()
            if self.saved is not None:
                begin = first * (cut.x.points // max(1, len(part)))
                of_x = self.saved[:, begin : begin + cut.x.points]
                gram = _gram(of_grad, of_x, cut.frequencies, self.layer.groups, gram)
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


def _pair(values: Sequence[int]) -> Pair:
    return values[0], values[1]


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _fake_spectra(
    x: Tensor,
    y_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    patch_size: int,
    components: int,
) -> Tensor:
    layer = Layer(
        _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), groups, patch_size, components
    )
    axes = [_tiles_along(cells, layer, axis) for axis, cells in enumerate(y_size)]
    rows = 1 + 2 * len(low_frequencies((int(axes[0][2]), int(axes[1][2])), components))
    return x.new_empty(rows, x.shape[0] * axes[0][0] * axes[1][0], x.shape[1])


def _fake_backward(
    grad: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    x_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    patch_size: int,
    components: int,
    channels_last: bool,
    needs_x: bool,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(grad, weight, saved, x_shape, channels_last, needs_x, scale)


for _name, _run, _fake in (
    ("conv2d_tile_spectra", _spectra, _fake_spectra),
    ("conv2d_spectral_backward", _backward, _fake_backward),
):
    library.impl(_name, _run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"flower_edge::{_name}", _fake, lib=library)
