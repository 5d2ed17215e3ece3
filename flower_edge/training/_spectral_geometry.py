"""How tiles lie on a convolution, and what filtering in the Fourier basis costs there."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from flower_edge.kernels._tiling import (
    HIGHEST_FREQUENCY,
    WIDEST_WINDOW,
    Tiling,
    low_frequencies,
    tiling,
)

if TYPE_CHECKING:
    from flower_edge.training._filtered_conv import ConvFilter

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


def layer_of(
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    patch_size: int,
    components: int,
) -> Layer:
    """Take what torch's operators hand over, where pairs are lists."""
    return Layer(
        _pair(kernel_size),
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        groups,
        patch_size,
        components,
    )


def _pair(values: Sequence[int]) -> Pair:
    return values[0], values[1]


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
    axes = [tiles_along(cells, layer, axis) for axis, cells in enumerate(y_shape[2:])]
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


def tiles_along(cells: int, layer: Layer, axis: int) -> tuple[int, int, int]:
    """Cut an axis of the output into tiles.

    Parameters
    ----------
    cells : int
        Of the output along this axis.
    layer : Layer
        Convolution and filter.
    axis : int
        0 for height, 1 for width.

    Returns
    -------
    tuple of int
        The number of tiles, the cells of one, and those of the input that it is made from.
    """
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
    windows_suffice : bool
        Whether a window has as many frequencies as are to be kept.
    """

    exact: int
    filtered: int
    windows_suffice: bool

    # Not a property, which torch 2.10 cannot compile.
    def pay(self) -> bool:
        """Whether filtering saves more than half, and a window is large enough to choose low frequencies.

        Otherwise it costs accuracy for next to nothing.
        """
        return self.windows_suffice and 2 * self.filtered < self.exact


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
    layer = layer_of(weight_shape[2:], *conv.numbers())
    kernel_size = layer.kernel_size
    y_size = [
        (x_shape[2 + axis] + 2 * p - d * (k - 1) - 1) // s + 1
        for axis, (k, s, p, d) in enumerate(
            zip(kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
        )
    ]
    (rows, height, x_height), (columns, width, x_width) = (
        tiles_along(cells, layer, axis) for axis, cells in enumerate(y_size)
    )
    tiles = x_shape[0] * rows * columns
    waves = [2 * min(HIGHEST_FREQUENCY, (cells - 1) // 2) + 1 for cells in (x_height, x_width)]
    asked, there_are = (conv.components - 1) // 2, (waves[0] * waves[1] - 1) // 2
    frequencies = min(asked, there_are)
    # Half of the waves of a low-pass are about as many along each axis as the square root of all of them. Of
    # those asked for, since a compiler may not know how many a window has; they bound it all the same.
    along = min(*waves, 1 + 2 * math.isqrt(asked))

    def transform(height: int, width: int) -> int:
        return along * (height * width + along * height) // 2

    matrix = weight_shape[0] * weight_shape[1]
    made_of_x = 2 * x_shape[1] * transform(x_height, x_width)
    return Operations(
        exact=2 * x_shape[0] * y_size[0] * y_size[1] * matrix * kernel_size[0] * kernel_size[1],
        filtered=tiles
        * (2 * (1 + 3 * frequencies) * matrix + made_of_x + weight_shape[0] * transform(height, width)),
        windows_suffice=there_are >= asked,
    )
