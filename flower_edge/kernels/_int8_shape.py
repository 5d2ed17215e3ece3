"""Sizes of a convolution in 8 bits, checked once for each layer and batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

LONGEST_KERNEL, LONGEST_STRIDE, LONGEST_SIDE = 15, 8, 16384
"""The largest kernel, stride and map, along a side, that the kernels serve."""

MOST_PRODUCTS = 66_311
"""Products of 255 and 127 whose sum an int32 is sure to hold: ``2**31 / (255 * 127)``."""

# Pixels of a row into which those of pointwise convolutions are counted.
_LONGEST_ROW, _SHORTEST_ROW = 256, 32


@dataclass(frozen=True, slots=True)
class ConvShape:
    """A convolution and its maps; pairs are along height and width.

    Attributes
    ----------
    x_shape, y_shape, weight_shape : tuple of int
        Shapes of input, output and weight, ``(N, C_in, H, W)`` and so on.
    stride, padding, dilation : tuple of int
    groups : int
    numbers : tuple of int
        What the extension takes, in its order.
    """

    x_shape: tuple[int, int, int, int]
    y_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    numbers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        images, inputs, height, width = self.x_shape
        kernel = self.weight_shape[2:]
        if kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
            # Pixels are all alike, and long rows of them are served best.
            width = _row_length(images * height * width)
            images, height = images * height * self.x_shape[3] // width, 1
        geometry = (*kernel, *self.stride, *self.padding, *self.dilation, self.groups)
        numbers = (images, inputs, self.weight_shape[0], height, width, *geometry)
        object.__setattr__(self, "numbers", numbers)


@lru_cache(maxsize=4096)
def conv_shape(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> ConvShape:
    """Check the sizes of a convolution.

    Parameters
    ----------
    x_shape : tuple of int
        ``(N, C_in, H, W)``, none of them 0.
    weight_shape : tuple of int
        ``(C_out, C_in / groups, kh, kw)``.
    stride, padding, dilation : tuple of int, optional
        Along height and width. Default: 1, 0, 1.
    groups : int, optional
        Default: 1.

    Returns
    -------
    ConvShape
        The same one for the same sizes.

    Raises
    ------
    ValueError
        If sizes do not fit together, or are none that the kernels serve.
    """
    if len(x_shape) != 4 or len(weight_shape) != 4 or min(*x_shape, *weight_shape) < 1:
        raise ValueError(
            f"x has shape {tuple(x_shape)} and weight {tuple(weight_shape)}, expected (N, C_in, H, W) and "
            "(C_out, C_in / groups, kh, kw) with nothing empty"
        )
    if groups < 1 or x_shape[1] != weight_shape[1] * groups or weight_shape[0] % groups:
        raise ValueError(
            f"x has {x_shape[1]} channels and weight shape {tuple(weight_shape)} with groups={groups}: "
            "they do not fit together"
        )
    check_geometry(weight_shape, stride, groups)
    sizes = []
    for axis in range(2):
        reach = dilation[axis] * (weight_shape[2 + axis] - 1) + 1
        length = x_shape[2 + axis] + 2 * padding[axis]
        if length < reach or min(padding) < 0 or min(dilation) < 1:
            raise ValueError(
                f"the kernel reaches over {reach} cells with dilation {tuple(dilation)}, expected at most "
                f"the {length} of the map with padding {tuple(padding)}"
            )
        if max(length, reach) > LONGEST_SIDE:
            raise ValueError(f"a side of the map has {length} cells, expected at most {LONGEST_SIDE}")
        sizes.append((length - reach) // stride[axis] + 1)
    return ConvShape(
        (x_shape[0], x_shape[1], x_shape[2], x_shape[3]),
        (x_shape[0], weight_shape[0], sizes[0], sizes[1]),
        (weight_shape[0], weight_shape[1], weight_shape[2], weight_shape[3]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        (dilation[0], dilation[1]),
        groups,
    )


def check_geometry(weight_shape: Sequence[int], stride: Sequence[int], groups: int) -> None:
    """Refuse what no map of whatever size could be served with.

    Raises
    ------
    ValueError
        If kernel or stride are too large, or so many products are summed that an int32 might overflow.
    """
    if max(weight_shape[2:]) > LONGEST_KERNEL or not 1 <= min(stride) <= max(stride) <= LONGEST_STRIDE:
        raise ValueError(
            f"its kernel is {tuple(weight_shape[2:])} and its stride {tuple(stride)}, expected kernels of at "
            f"most {LONGEST_KERNEL} and strides of at most {LONGEST_STRIDE}"
        )
    products = max(weight_shape[1], weight_shape[0] // groups) * weight_shape[2] * weight_shape[3]
    if products > MOST_PRODUCTS:
        raise ValueError(
            f"it sums {products} products of 8 bits, expected at most {MOST_PRODUCTS}, which 32 bits hold"
        )


def _row_length(pixels: int) -> int:
    """Find the longest row that pixels can be counted in without a rest, not too short and not too long."""
    divisors = [d for d in range(1, int(pixels**0.5) + 1) if pixels % d == 0]
    divisors += [pixels // d for d in divisors]
    short = [d for d in divisors if d <= _LONGEST_ROW]
    if max(short) >= min(pixels, _SHORTEST_ROW):
        # Whole groups of pixels are multiplied at a time.
        return max(short, key=lambda d: (d % 8 == 0 and d >= _SHORTEST_ROW, d))
    return min((d for d in divisors if _LONGEST_ROW < d <= LONGEST_SIDE), default=max(short))
