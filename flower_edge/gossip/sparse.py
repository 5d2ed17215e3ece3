"""Top-k and signs: little of a vector, for links that carry little."""

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import Layout, Vector, is_finite
from flower_edge.gossip.compressor import (
    Blocks,
    Body,
    CodecError,
    Compressor,
    Per,
    check_length,
    read_scales,
)
from flower_edge.gossip.quantise import quantised

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

_LEVELS = 127
_POSITIONS = struct.Struct("<BQ")
"""How positions are written, and in how many bytes."""

_BITMAP = 0
_GAP_TYPES: dict[int, np.dtype[np.unsignedinteger]] = {1: np.dtype("<u1"), 2: np.dtype("<u2")}
"""Bytes a gap → its type. What is all ones skips as many elements and keeps none."""


@dataclass(frozen=True)
class SignNorm(Compressor):
    r"""A bit an element, its sign, and the mean of :math:`|x|` of each block: :math:`\|x\|_1 / d · sign(x)`.

    Zero counts as positive.

    Parameters
    ----------
    per : {"channel", "array"}, default "channel"
        Who shares a mean: an output channel (a row of an array with two or more dimensions; other arrays have
        one) or an array.
    small : {"whole", "compressed"}, default "whole"
        As for `Compressor`.

    Raises
    ------
    ValueError
        If `per` is neither.
    """

    per: Per = "channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("channel", "array"):
            raise ValueError(f"per is {self.per!r}, expected 'channel' or 'array'")

    @property
    def name(self) -> str:
        """``sign/channel`` or ``sign/array``."""
        return f"sign/{self.per}"

    def blocks(self, layout: Layout) -> Blocks:
        """Return what shares a mean."""
        return Blocks.of(layout, self.per)

    def largest(self, size: int, blocks: Blocks) -> int:
        """Return the bytes of the means and the bits."""
        return 4 * blocks.count + (size + 7) // 8

    def pack(self, vector: Vector, blocks: Blocks, draw: int) -> list[npt.NDArray[np.generic]]:
        """Return the means, and a bit for each element that is negative."""
        sums = np.add.reduceat(np.abs(vector), blocks.starts, dtype=np.float64)
        return [(sums / blocks.lengths).astype("<f4"), np.packbits(vector < 0, bitorder="little")]

    def unpack(self, body: Body, size: int, blocks: Blocks) -> Vector:
        """Return the means with their elements' signs."""
        check_length(body, self.largest(size, blocks), self.name)
        means = read_scales(body, blocks.count, 1)
        bits = np.frombuffer(body[4 * blocks.count :], np.uint8)
        vector = blocks.spread(means)
        # Into the sign bit, whose place is the top one.
        signs = np.unpackbits(bits, count=size, bitorder="little").astype(np.uint32)
        np.bitwise_or(vector.view(np.uint32), signs << 31, out=vector.view(np.uint32))
        return vector


@dataclass(frozen=True)
class TopK(Compressor):
    """The elements of the largest absolute value; the others are zero.

    Positions are written as a bitmap, or as the gaps between them in one or two bytes each, whichever is the
    smallest for the vector at hand.

    Parameters
    ----------
    share : float, default 0.1
        How many of a vector's elements: above 0, at most 1. One at least.
    values : {"int8", "fp32"}, default "int8"
        How they are sent: as a byte each with one scale for all, rounded to nearest, or whole.
    small : {"whole", "compressed"}, default "whole"
        As for `Compressor`; an array that travels whole takes no part in the choice.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    share: float = 0.1
    values: Literal["int8", "fp32"] = "int8"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}, expected a number above 0, at most 1")
        if self.values not in ("int8", "fp32"):
            raise ValueError(f"values is {self.values!r}, expected 'int8' or 'fp32'")

    @property
    def name(self) -> str:
        """Such as ``top0.1/int8``: the share, to three digits, and the values."""
        return f"top{self.share:.3g}/{self.values}"

    def count(self, size: int) -> int:
        """Return how many of so many elements are sent."""
        return min(size, max(1, round(self.share * size)))

    def largest(self, size: int, blocks: Blocks) -> int:
        """Return the bytes with a bitmap, which is the longest that is ever chosen."""
        return _POSITIONS.size + (size + 7) // 8 + self._value_bytes(self.count(size))

    def pack(self, vector: Vector, blocks: Blocks, draw: int) -> list[npt.NDArray[np.generic]]:
        """Return the positions and the values."""
        positions = _largest_positions(vector, self.count(len(vector)))
        kind, written = _smallest(positions, len(vector))
        header = np.frombuffer(_POSITIONS.pack(kind, written.nbytes), np.uint8)
        return [header, written, *self._packed(vector[positions])]

    def unpack(self, body: Body, size: int, blocks: Blocks) -> Vector:
        """Return zeros with the values at their positions."""
        kept = self.count(size)
        if len(body) < _POSITIONS.size:
            raise CodecError(f"the body of a message in {self.name} is cut off after {len(body)} bytes")
        kind, written = _POSITIONS.unpack_from(body)
        check_length(body, _POSITIONS.size + written + self._value_bytes(kept), self.name)
        end = _POSITIONS.size + written
        positions = _positions(kind, np.frombuffer(body[_POSITIONS.size : end], np.uint8), size, kept)
        vector = np.zeros(size, np.float32)
        vector[positions] = self._unpacked(body[end:])
        return vector

    def _value_bytes(self, kept: int) -> int:
        return 4 + kept if self.values == "int8" else 4 * kept

    def _packed(self, values: Vector) -> list[npt.NDArray[np.generic]]:
        if self.values == "fp32":
            return [values.astype("<f4", copy=False)]
        scale, integers = quantised(values, Blocks(np.array([len(values)])), _LEVELS)
        return [scale.astype("<f4", copy=False), integers]

    def _unpacked(self, body: Body) -> Vector:
        if self.values == "int8":
            scale = read_scales(body, 1, _LEVELS + 1)
            values: Vector = np.frombuffer(body[4:], np.int8).astype(np.float32)
            values *= scale
            return values
        values = np.frombuffer(body, "<f4").astype(np.float32, copy=False)
        if not is_finite(values):
            raise CodecError("the message has NaN or infinite elements, expected finite ones")
        return values


def _largest_positions(vector: Vector, kept: int) -> Indices:
    """Return where the largest absolute values are, ascending; of equal ones, the first."""
    magnitudes = np.abs(vector)
    least = np.partition(magnitudes, len(vector) - kept)[len(vector) - kept]
    positions = np.flatnonzero(magnitudes >= least)
    if surplus := len(positions) - kept:
        ties = np.flatnonzero(magnitudes[positions] == least)
        positions = np.delete(positions, ties[len(ties) - surplus :])
    return positions


def _smallest(positions: Indices, size: int) -> tuple[int, npt.NDArray[np.unsignedinteger]]:
    """Return ascending positions in the way that takes the fewest bytes, and which one that is."""
    skipped = np.diff(positions, prepend=-1) - 1
    lengths = {
        width: width * (len(skipped) + int((skipped // np.iinfo(dtype).max).sum()))
        for width, dtype in _GAP_TYPES.items()
    }
    width = min(lengths, key=lambda key: lengths[key])
    if (size + 7) // 8 <= lengths[width]:
        marks = np.zeros(size, bool)
        marks[positions] = True
        return _BITMAP, np.packbits(marks, bitorder="little")
    most = np.iinfo(_GAP_TYPES[width]).max
    jumps, rest = np.divmod(skipped, most)
    gaps = np.full(lengths[width] // width, most, _GAP_TYPES[width])
    gaps[np.cumsum(jumps + 1) - 1] = rest
    return width, gaps


def _positions(kind: int, written: Bytes, size: int, kept: int) -> Indices:
    """Return the ascending positions that were written, exactly so many; a `CodecError` if they are not."""
    if kind == _BITMAP and len(written) == (size + 7) // 8:
        bits = np.unpackbits(written, bitorder="little")
        positions = np.flatnonzero(bits)
    elif kind in _GAP_TYPES and len(written) % kind == 0 and len(written) < (size + 7) // 8:
        gaps = written.view(_GAP_TYPES[kind]).astype(np.int64)
        keeps = gaps < np.iinfo(_GAP_TYPES[kind]).max
        positions = (np.cumsum(gaps + keeps) - 1)[keeps]
    else:
        raise CodecError(
            f"the message has its positions in way {kind} in {len(written)} bytes, which there is not for "
            f"{size} elements"
        )
    if len(positions) != kept or positions[-1] >= size:
        raise CodecError(
            f"the message has {len(positions)} positions up to "
            f"{positions[-1] if len(positions) else 'none'}, expected {kept} below {size}"
        )
    return positions
