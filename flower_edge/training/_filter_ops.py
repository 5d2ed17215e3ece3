"""What a filtered convolution saves and how it goes back, in the basis that its filter names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from flower_edge.training import _ops, _spectral_geometry, _spectral_ops

if TYPE_CHECKING:
    from flower_edge.training._filtered_conv import ConvFilter


def saved(x: Tensor, y_shape: Sequence[int], weight_shape: Sequence[int], conv: "ConvFilter") -> Tensor:
    """Form all that is kept of a convolution's input: `_ops.patch_sums` or `_spectral_ops.spectra`."""
    form = _spectral_ops.spectra if conv.basis == "fourier" else _ops.patch_sums
    return form(x, y_shape, weight_shape, conv)


def backward(
    grad: Tensor,
    weight: Tensor,
    kept: Tensor | None,
    x_shape: Sequence[int],
    conv: "ConvFilter",
    channels_last: bool,
    needs_x: bool,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Form the gradients of input, weight and scale: `_ops.backward` or `_spectral_ops.backward`."""
    form = _spectral_ops.backward if conv.basis == "fourier" else _ops.backward
    return form(grad, weight, kept, x_shape, conv, channels_last, needs_x, scale)


def saves_operations(x_shape: Sequence[int], weight_shape: Sequence[int], conv: "ConvFilter") -> bool:
    """Tell whether the filter is worth its loss of accuracy before anything is measured."""
    return conv.basis != "fourier" or _spectral_geometry.operations(x_shape, weight_shape, conv).pay()
