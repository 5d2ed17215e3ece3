"""How a feature map is cut into patches, and the basis that lives on a patch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Pair: TypeAlias = "int | Sequence[int]"
_Signs: TypeAlias = npt.NDArray[np.int64]

LARGEST_BASIS = 16
"""Cells along a side of the largest patch that can have more than one component."""

# Cells along an axis, far from any overflow of 64 bits.
_FARTHEST = 1 << 40


@dataclass(frozen=True, slots=True)
class Grid:
    """A map cut into windows.

    Window p along an axis covers cells ``[p * window - offset, (p + 1) * window - offset)``.

    Attributes
    ----------
    shape : tuple of int
        Of the map: images, channels, height, width.
    window, offset, patches : tuple of int
        Cells of a window, cells by which the first window begins before the map, and number of windows; along
        height and width.
    side : int
        Side of the square on which the basis is defined: the patch size, or 1 where the constant is all.
    slots : bytes
        For each component, where a fast Walsh-Hadamard transform of side x side cells leaves it.
    components, points : int
        Number of components of a patch, and of patches of all images.
    numbers : tuple of int
        All but the slots, in the order in which the extension takes them.
    """

    shape: tuple[int, int, int, int]
    window: tuple[int, int]
    offset: tuple[int, int]
    patches: tuple[int, int]
    side: int
    slots: bytes
    components: int = field(init=False)
    points: int = field(init=False)
    numbers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        numbers = (*self.shape, *self.window, *self.offset, *self.patches, self.side)
        object.__setattr__(self, "components", len(self.slots))
        object.__setattr__(self, "points", self.shape[0] * self.patches[0] * self.patches[1])
        object.__setattr__(self, "numbers", numbers)


def pair(value: Pair, name: str) -> tuple[int, int]:
    """Read an int, or two of them for height and width."""
    if type(value) is int:
        return value, value
    # What layers pass at every step, and the check for sequences below is slow.
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return value
    try:
        if isinstance(value, Sequence):
            rows, columns = value
            return index(rows), index(columns)
        return index(value), index(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} is {value!r:.200}, expected an int, or two of them: height and width"
        ) from None


@lru_cache(maxsize=4096)
def grid(
    shape: tuple[int, ...],
    window: tuple[int, int],
    offset: tuple[int, int],
    patches: tuple[int, int],
    components: int,
    upsampling: tuple[int, int],
) -> Grid:
    """Check that windows and basis fit together; return the grid.

    Raises
    ------
    ValueError
        If a size is not positive, or more than one component is wanted on patches that are not square, no
        power of two, larger than 16, or have fewer cells than components.
    """
    if len(shape) != 4 or min(shape) < 0:
        raise ValueError(f"the map has shape {tuple(shape)}, expected (images, channels, height, width)")
    for name, values in (("patch_size", window), ("patches", patches), ("upsampling", upsampling)):
        if min(values) < 1:
            raise ValueError(f"{name} is {values}, expected positive numbers")
    for axis in range(2):
        if patches[axis] * window[axis] + abs(offset[axis]) >= _FARTHEST:
            raise ValueError(
                f"{patches[axis]} windows of {window[axis]} cells with offset {offset[axis]} "
                "would overflow an address"
            )
    if components < 1:
        raise ValueError(f"components is {components}, expected at least 1")
    images, channels, height, width = map(int, shape)
    side = 1
    if components > 1:
        side = window[0] // upsampling[0]
        if (
            (side * upsampling[0], side * upsampling[1]) != window
            or not 2 <= side <= LARGEST_BASIS
            or side & (side - 1)
        ):
            raise ValueError(
                f"patch_size is {window} with upsampling {upsampling}, expected a square of 2, 4, 8 or "
                f"{LARGEST_BASIS} cells a side, upsampled, where components is more than 1"
            )
        if components > side * side:
            raise ValueError(
                f"components is {components}, expected at most the {side * side} cells of a patch"
            )
    slots = bytes(_slots(side)[:components])
    return Grid((images, channels, height, width), window, offset, patches, side, slots)


def _hadamard(side: int) -> _Signs:
    """Sylvester's matrix: what a fast transform without reordering multiplies with."""
    rows = np.arange(side)
    parity = np.array([bin(number).count("1") & 1 for number in range(side)])
    signs: _Signs = 1 - 2 * parity[rows[:, None] & rows]
    return signs


@lru_cache
def _slots(side: int) -> tuple[int, ...]:
    sign_changes = (np.diff(_hadamard(side), axis=1) != 0).sum(axis=1)
    row_of = np.argsort(sign_changes)
    order = sorted(
        ((a, b) for a in range(side) for b in range(side)), key=lambda ab: (ab[0] + ab[1], max(ab), ab)
    )
    return tuple(int(row_of[a] * side + row_of[b]) for a, b in order)


@lru_cache
def _walsh(side: int, components: int) -> _Signs:
    hadamard = _hadamard(side)
    rows, columns = np.divmod(np.array(_slots(side)[:components]), side)
    basis: _Signs = hadamard[rows][:, :, None] * hadamard[columns][:, None, :]
    return basis


def walsh_basis(
    patch_size: int,
    components: int,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str | None" = None,
) -> "torch.Tensor":
    r"""Give the Walsh-Hadamard functions on a patch that are kept, the smoothest first.

    They are ordered by sequency, the number of sign changes: the sum over both axes first, then the larger
    of the two, then row-major. Yang, Li, Marculescu, "Efficient Low-rank Backpropagation for Vision
    Transformer Adaptation", NeurIPS 2023, section 3, keeps the lowest functions likewise.

    Parameters
    ----------
    patch_size : int
        Cells along a side of a patch: a power of two up to 16 where `components` is more than 1.
    components : int
        How many functions, at most ``patch_size**2``; the first is the constant 1.
    dtype : torch.dtype, optional
        Default: torch's default dtype.
    device : torch.device or str, optional
        Default: torch's default device.

    Returns
    -------
    torch.Tensor
        Shape ``(components, patch_size, patch_size)``; every value is 1 or -1.

    Raises
    ------
    ValueError
        If there is no such basis.
    """
    import torch

    dtype = torch.get_default_dtype() if dtype is None else dtype
    if components == 1 and patch_size >= 1:
        return torch.ones(1, patch_size, patch_size, dtype=dtype, device=device)
    side = grid((0, 0, 0, 0), (patch_size, patch_size), (0, 0), (1, 1), components, (1, 1)).side
    return torch.tensor(_walsh(side, components).tolist(), dtype=dtype, device=device)
