"""int8 and int4: whole numbers, and a scale for each output channel or array."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import Layout, Vector
from flower_edge.gossip.compressor import LARGEST, Blocks, Body, Compressor, Per, check_length, read_scales

Integers = npt.NDArray[np.int8]

_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class _Quantised(Compressor):
    """Symmetric uniform quantisation: x ≈ q · s with whole q of at most `levels`, s = max|x| / levels.

    Parameters
    ----------
    per : {"channel", "array"}, default "channel"
        Who shares a scale: an output channel, that is a row of an array with two or more dimensions (other
        arrays have one scale), or an array.
    rounding : {"nearest", "stochastic"}, default "nearest"
        Stochastic rounding is right in the mean, and twice as far off in the mean square. Its random numbers
        are those of Philox, a counter of the elements with (seed, draw) as its key: the same on every
        machine.
    seed : int, default 0
        From 0 to 2⁶⁴ − 1. Of stochastic rounding.
    small : {"whole", "compressed"}, default "whole"
        As for `Compressor`.

    Raises
    ------
    ValueError
        If an argument is none of these.

    Notes
    -----
    A block whose largest number is below levels · 1.2e-38 is sent as zeros, since its scale would have no
    digits; numbers beyond levels/(levels + 1) of fp32's largest are cut there.
    """

    per: Per = "channel"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = 0

    levels: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("channel", "array"):
            raise ValueError(f"per is {self.per!r}, expected 'channel' or 'array'")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"rounding is {self.rounding!r}, expected 'nearest' or 'stochastic'")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}, expected 0 to 2**64 - 1")

    def blocks(self, layout: Layout) -> Blocks:
        """Return what shares a scale."""
        return Blocks.of(layout, self.per)

    def largest(self, size: int, blocks: Blocks) -> int:
        """Return the bytes of the scales and the integers."""
        return 4 * blocks.count + self._bytes(size)

    def pack(self, vector: Vector, blocks: Blocks, draw: int) -> list[npt.NDArray[np.generic]]:
        """Return the scales and the integers."""
        noise = uniform(len(vector), self.seed, draw) if self.rounding == "stochastic" else None
        scales, integers = quantised(vector, blocks, self.levels, noise)
        return [scales.astype("<f4", copy=False), self._packed(integers)]

    def unpack(self, body: Body, size: int, blocks: Blocks) -> Vector:
        """Return the integers times their scales."""
        check_length(body, self.largest(size, blocks), self.name)
        scales = read_scales(body, blocks.count, self.levels + 1)
        vector: Vector = self._unpacked(body[4 * blocks.count :], size).astype(np.float32)
        vector *= blocks.spread(scales)
        return vector

    @abstractmethod
    def _bytes(self, size: int) -> int:
        """Return the bytes of so many integers."""

    @abstractmethod
    def _packed(self, integers: Integers) -> npt.NDArray[np.generic]:
        """Return the bytes of integers."""

    @abstractmethod
    def _unpacked(self, body: Body, size: int) -> Integers:
        """Return the integers of bytes."""


@dataclass(frozen=True)
class Int8(_Quantised):
    """A byte an element, from −127 to 127.

    With its defaults it is the quantisation of weights in int8 training: symmetric, a scale for each output
    channel, nearest. Weights that are such integers times such scales come back as the same integers.
    """

    levels: ClassVar[int] = 127

    @property
    def name(self) -> str:
        """``int8/channel`` or ``int8/array``."""
        return f"int8/{self.per}"

    def _bytes(self, size: int) -> int:
        return size

    def _packed(self, integers: Integers) -> npt.NDArray[np.generic]:
        return integers

    def _unpacked(self, body: Body, size: int) -> Integers:
        return np.frombuffer(body, np.int8)


@dataclass(frozen=True)
class Int4(_Quantised):
    """Half a byte an element, from −7 to 7: two in a byte, the first one in its lower half."""

    levels: ClassVar[int] = 7

    @property
    def name(self) -> str:
        """``int4/channel`` or ``int4/array``."""
        return f"int4/{self.per}"

    def _bytes(self, size: int) -> int:
        return (size + 1) // 2

    def _packed(self, integers: Integers) -> npt.NDArray[np.generic]:
        halves = integers.view(np.uint8) & 15
        low, high = halves[0::2], halves[1::2]
        packed = low.copy()
        packed[: len(high)] |= high << 4
        return packed

    def _unpacked(self, body: Body, size: int) -> Integers:
        packed = np.frombuffer(body, np.uint8)
        integers = np.empty(2 * len(packed), np.uint8)
        # Shifted to the top and back, which copies the sign.
        integers[0::2] = packed << 4
        integers[1::2] = packed & 0xF0
        signed = integers.view(np.int8)
        signed >>= 4
        return signed[:size]


def quantised(
    vector: Vector, blocks: Blocks, levels: int, noise: Vector | None = None
) -> tuple[Vector, Integers]:
    """Return the scale of each block, and the vector over the scales as whole numbers.

    Parameters
    ----------
    vector : ndarray of float32, shape (d,)
    blocks : Blocks
        Of the d elements.
    levels : int
        The largest whole number, at most 127.
    noise : ndarray of float32, shape (d,), optional
        From 0 to 1, for stochastic rounding; to nearest by default.
    """
    most = np.float32(LARGEST / (levels + 1))
    highest = np.maximum.reduceat(vector, blocks.starts)
    lowest = np.minimum.reduceat(vector, blocks.starts)
    scales: Vector = np.maximum(highest, -lowest)
    scales /= np.float32(levels)
    scales[scales < _SMALLEST] = 0
    if scales.max() > most:
        np.minimum(scales, most, out=scales)
        vector = np.clip(vector, -levels * most, levels * most)
    # What has no scale becomes 0.
    ratios = vector / blocks.spread(np.where(scales > 0, scales, np.float32(np.inf)))
    if noise is None:
        np.rint(ratios, out=ratios)
    else:
        ratios += noise
        np.floor(ratios, out=ratios)
        np.clip(ratios, -levels, levels, out=ratios)
    return scales, ratios.astype(np.int8)


def uniform(size: int, seed: int, draw: int) -> Vector:
    """Return random numbers between 0 and 1, 65536 different ones: element i of key (seed, draw)."""
    # The raw stream of a bit generator is fixed; numpy may change how others are made of it.
    raw = np.random.Philox(key=np.array([seed, draw], np.uint64)).random_raw(-(-size // 4))
    sixteenths = raw.astype("<u8", copy=False).view("<u2")[:size]
    numbers: Vector = sixteenths.astype(np.float32)
    numbers += np.float32(0.5)
    numbers *= np.float32(1 / 65536)
    return numbers
