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

from flower_edge.kernels._maps import empty_map, inputs_are_innermost, is_served
from flower_edge.kernels._spectra import map_of_products, tile_spectra
from flower_edge.kernels._tiling import Tiling, low_frequencies
from flower_edge.kernels._workspace import workspace
from flower_edge.training._ops import fake_gradients, is_eager, library, without_autocast
from flower_edge.training._spectral_geometry import Layer, Pair, geometry, layer_of, tiles_along

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

SLAB_BYTES = 32 << 20
"""Of the output's gradient that goes through all steps at a time: bounds the memory for spectra and products.

Smaller slabs are slower, since each reads the whole spectrum of the weight again.
"""


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
        d * (torch.arange(k, dtype=torch.float64, device="cpu") - (k - 1) / 2)
        for d, k in zip(dilation, kernel_size, strict=True)
    ]
    frequencies = torch.tensor(cut.frequencies, dtype=torch.float64, device="cpu").reshape(-1, 2)
    turns = frequencies / torch.tensor(cut.period, device="cpu")
    angles = turns[:, :1, None] * offsets[0][:, None] + turns[:, 1:, None] * offsets[1]
    cos, sin = (wave(2 * math.pi * angles).flatten(1) for wave in (torch.cos, torch.sin))
    constant = torch.full((1, kernel_size[0] * kernel_size[1]), 0.5, dtype=torch.float64, device="cpu")
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
    layer = layer_of(kernel_size, stride, padding, dilation, groups, patch_size, components)
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
    layer = layer_of(weight.shape[2:], stride, padding, dilation, groups, patch_size, components)
    cut = geometry(tuple(x_shape), tuple(grad.shape), layer)
    symbols = tap_waves(cut.x, layer.kernel_size, layer.dilation, weight.dtype, weight.device)
    spectrum = None
    if needs_x:
        spectrum = _spectrum_of(weight, symbols.of_weight)
        spectrum = spectrum if scale is None else spectrum * scale[:, None]
    grad_x, gram = _Slabs(grad, spectrum, saved, tuple(x_shape), layer).gradients(channels_last)
    grad_weight = grad_scale = None
    if gram is not None:
        grad_weight = _gradient_of(gram, symbols.of_gram, weight)
        if scale is not None:
            grad_scale = (grad_weight * weight).sum((1, 2, 3))
            grad_weight = grad_weight * scale[:, None, None, None]
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        grad.new_empty(0) if grad_weight is None else grad_weight,
        grad.new_empty(0) if grad_scale is None else grad_scale,
    )


def _spectrum_of(weight: Tensor, symbols: Tensor) -> Tensor:
    """Weight the taps with each row of symbols, shape ``(rows, C_out, C_in / groups)``.

    As products of small matrices: with so many rows they are faster than `kernels.collapse_taps`, which reads
    its weight again for each.
    """
    outputs, inputs = weight.shape[:2]
    if inputs_are_innermost(weight):
        taps_first = weight.permute(0, 2, 3, 1).reshape(outputs, -1, inputs)
        return torch.bmm(symbols.expand(outputs, *symbols.shape), taps_first).transpose(0, 1)
    return torch.mm(symbols, weight.reshape(outputs * inputs, -1).mT).reshape(-1, outputs, inputs)


def _gradient_of(gram: Tensor, symbols: Tensor, like: Tensor) -> Tensor:
    """Spread products of spectra over the taps: the transpose, in the memory format of `like`."""
    outputs, inputs, height, width = like.shape
    if inputs_are_innermost(like):
        taps_first = torch.bmm(symbols.mT.expand(outputs, *symbols.mT.shape), gram.transpose(0, 1))
        return taps_first.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2)
    taps_first = torch.mm(symbols.mT, gram.reshape(len(gram), -1))
    return taps_first.mT.contiguous().reshape(like.shape)


class _Slabs:
    """A backward pass, some images at a time, so that what is made on the way stays small."""

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
    if not is_served(like):
        return like.new_empty(shape)
    return workspace().empty(shape, (shape[1] * shape[2], shape[2], 1))


def _empty_map(like: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    images, channels, height, width = shape
    if not is_served(like):
        layout = _layout(channels_last)
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    return empty_map((images, channels, height, width), channels_last)


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
    layer = layer_of(kernel_size, stride, padding, dilation, groups, patch_size, components)
    axes = [tiles_along(cells, layer, axis) for axis, cells in enumerate(y_size)]
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
