"""Sizes of a convolution with a pruned gradient, checked once for each layer and batch."""

from dataclasses import dataclass, field
from functools import lru_cache

from flower_edge.kernels._grid import Pair, pair

MOST = 1 << 31
"""No map and no weight may have so many elements: places in them are counted in 31 bits."""


@dataclass(frozen=True, slots=True)
class SparseConv:
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
        geometry = (*self.weight_shape[2:], *self.stride, *self.padding, *self.dilation, self.groups)
        numbers = (images, inputs, self.weight_shape[0], height, width, *geometry)
        object.__setattr__(self, "numbers", numbers)


def sparse_conv(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    pruned_shape: tuple[int, ...],
) -> SparseConv:
    """Check the sizes of a convolution against those of the gradient of its output.

    Parameters
    ----------
    x_shape : tuple of int
        ``(N, C_in, H, W)``, none of them 0.
    weight_shape : tuple of int
        ``(C_out, C_in / groups, kh, kw)``.
    stride, padding, dilation : int or (int, int)
        Along height and width.
    groups : int
    pruned_shape : tuple of int
        Of the gradient of the output.

    Returns
    -------
    SparseConv
        The same one for the same sizes.

    Raises
    ------
    TypeError
        If a size is not a whole number.
    ValueError
        If sizes do not fit together, or maps are too large.
    """
    steps = (pair(stride, "stride"), pair(padding, "padding"), pair(dilation, "dilation"))
    conv = _sparse_conv(tuple(x_shape), tuple(weight_shape), *steps, groups)
    if tuple(pruned_shape) != conv.y_shape:
        raise ValueError(
            f"the pruned gradient has shape {tuple(pruned_shape)}, expected the output's, {conv.y_shape}"
        )
    return conv


@lru_cache(maxsize=4096)
def _sparse_conv(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> SparseConv:
    if len(x_shape) != 4 or len(weight_shape) != 4 or min(*x_shape, *weight_shape) < 1:
        raise ValueError(
            f"x has shape {x_shape} and weight {weight_shape}, expected (N, C_in, H, W) and "
            "(C_out, C_in / groups, kh, kw) with nothing empty"
        )
    if groups < 1 or x_shape[1] != weight_shape[1] * groups or weight_shape[0] % groups:
        raise ValueError(
            f"x has {x_shape[1]} channels and weight shape {weight_shape} with groups={groups}: "
            "they do not fit together"
        )
    if min(stride) < 1 or min(padding) < 0 or min(dilation) < 1:
        raise ValueError(
            f"stride is {stride}, padding {padding} and dilation {dilation}, expected at least 1, 0 and 1"
        )
    sizes = []
    for axis in range(2):
        reach = dilation[axis] * (weight_shape[2 + axis] - 1) + 1
        length = x_shape[2 + axis] + 2 * padding[axis]
        if length < reach:
            raise ValueError(
                f"the kernel reaches over {reach} cells with dilation {dilation}, expected at most the "
                f"{length} of the map with padding"
            )
        sizes.append((length - reach) // stride[axis] + 1)
    y_shape = (x_shape[0], weight_shape[0], sizes[0], sizes[1])
    padded = (x_shape[2] + 2 * padding[0]) * (x_shape[3] + 2 * padding[1])
    for name, count in (
        ("x with its padding", x_shape[0] * x_shape[1] * padded),
        ("its output", y_shape[0] * y_shape[1] * sizes[0] * sizes[1]),
        ("its weight", weight_shape[0] * weight_shape[1] * weight_shape[2] * weight_shape[3]),
    ):
        if count >= MOST:
            raise ValueError(f"{name} has {count} elements, expected fewer than {MOST}; divide the batch")
    return SparseConv(
        (x_shape[0], x_shape[1], x_shape[2], x_shape[3]),
        y_shape,
        (weight_shape[0], weight_shape[1], weight_shape[2], weight_shape[3]),
        stride,
        padding,
        dilation,
        groups,
    )
