r"""Gradient filtering in the Fourier basis, as operators of torch like those of `_ops.py`.

With :math:`\hat g` and :math:`\hat x` the transforms of a tile of the output's gradient and of the window
that its taps read, both about their centres, and :math:`\theta_t = \omega \cdot (t - \text{centre})`,

.. math::
    \nabla W_t = \frac{1}{n^2} \sum_\omega \overline{\hat g} \hat x e^{-i \theta_t}, \qquad
    \widehat{\nabla x} = \hat g \sum_t W_t e^{i \theta_t}

are exact over all frequencies of a window of :math:`n \times n` cells. Only the lowest are kept. A product of
complex numbers takes three of real ones: of the cosine parts, of the sine parts, and of sums of both.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flower_edge.kernels._spectra import tile_spectra
from flower_edge.kernels._spectral_conv import spectral_conv_backward, tilings
from flower_edge.kernels._tiling import low_frequencies
from flower_edge.training._ops import chosen, fake_gradients, library, seen_through, without_autocast
from flower_edge.training._spectral_geometry import geometry, layer_of, tiles_along

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
    run = chosen(x, _spectra, _seen_spectra, torch.ops.flower_edge.conv2d_tile_spectra.default)
    with without_autocast(x.device.type):
        found: Tensor = run(x, y_shape[2:], weight_shape[2:], *conv.numbers())
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
    run = chosen(grad, _backward, _seen_backward, torch.ops.flower_edge.conv2d_spectral_backward.default)
    with without_autocast(grad.device.type):
        gradients: tuple[Tensor, Tensor, Tensor] = run(
            grad, weight, saved, x_shape, *conv.numbers(), channels_last, needs_x, scale
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
    scaled = weight if scale is None or not needs_x else weight * scale[:, None, None, None]
    grad_x, grad_weight = spectral_conv_backward(
        grad,
        scaled,
        saved,
        tilings(cut.y, cut.x, tuple(weight.shape), layer.dilation),
        groups,
        channels_last=channels_last,
        needs_x=needs_x,
    )
    grad_scale = None
    if grad_weight is not None and scale is not None:
        grad_scale = (grad_weight * weight).sum((1, 2, 3))
        grad_weight = grad_weight * scale[:, None, None, None]
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        grad.new_empty(0) if grad_weight is None else grad_weight,
        grad.new_empty(0) if grad_scale is None else grad_scale,
    )


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

_seen_spectra = seen_through(_spectra, torch.ops.flower_edge.conv2d_tile_spectra.default)
_seen_backward = seen_through(_backward, torch.ops.flower_edge.conv2d_spectral_backward.default)
