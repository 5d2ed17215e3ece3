"""How a feature map is cut into windows that may overlap, and the low frequencies that are kept of each."""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Frequencies: TypeAlias = tuple[tuple[int, int], ...]

WIDEST_WINDOW = 32
"""Cells along a side of the largest window."""

HIGHEST_FREQUENCY = 7
"""Periods of the fastest wave along an axis."""

# Cells along an axis, far from any overflow of 64 bits.
_FARTHEST = 1 << 40


@dataclass(frozen=True, slots=True)
class Tiling:
    """A map cut into windows, and the waves on a window.

    Window p along an axis covers cells ``[p * step - offset, p * step - offset + window)``. Everything is
    given along height and width.

    Attributes
    ----------
    shape : tuple of int
        Of the map: images, channels, height, width.
    tiles, step, offset, window : tuple of int
        Number of windows, cells from one to the next, cells by which the first begins before the map, and
        cells of one.
    spacing, period : tuple of int
        The distance between neighbouring cells, and that after which the wave of frequency 1 repeats.
    frequencies : tuple of (int, int)
        Beside the constant; of a frequency and its opposite, one.
    highest : tuple of int
        Of the frequencies, without their sign.
    rows : int
        1 + 2 * number of frequencies: the constant, their cosine and their sine parts.
    points : int
        Windows of all images.
    tables : tuple of bytes
        What the extension takes: float32 cosines and sines along height and along width, for each of the
        first half of a window's cells; and the frequencies as signed bytes.
    numbers : tuple of int
        What else it takes, in its order.
    """

    shape: tuple[int, int, int, int]
    tiles: tuple[int, int]
    step: tuple[int, int]
    offset: tuple[int, int]
    window: tuple[int, int]
    spacing: tuple[int, int]
    period: tuple[int, int]
    frequencies: Frequencies
    highest: tuple[int, int] = field(init=False)
    rows: int = field(init=False)
    points: int = field(init=False)
    tables: tuple[bytes, bytes, bytes] = field(init=False)
    numbers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        highest = tuple(max((abs(f[axis]) for f in self.frequencies), default=0) for axis in range(2))
        object.__setattr__(self, "highest", highest)
        object.__setattr__(self, "rows", 1 + 2 * len(self.frequencies))
        object.__setattr__(self, "points", self.shape[0] * self.tiles[0] * self.tiles[1])
        encoded = np.array(self.frequencies, np.int8).tobytes()
        object.__setattr__(self, "tables", (self._half_wave(0), self._half_wave(1), encoded))
        numbers = (*self.shape, *self.tiles, *self.step, *self.offset, *self.window, *highest)
        object.__setattr__(self, "numbers", numbers)

    def places(self, axis: int) -> npt.NDArray[np.float64]:
        """Return the cells' places along an axis from the window's centre, in cells of period."""
        cells = self.window[axis]
        centred = np.arange(cells, dtype=np.float64) - (cells - 1) / 2
        return np.multiply(self.spacing[axis], centred)

    def _half_wave(self, axis: int) -> bytes:
        half = (self.window[axis] + 1) // 2
        angles = (2 * math.pi / self.period[axis]) * np.outer(
            np.arange(self.highest[axis] + 1), self.places(axis)[:half]
        )
        return np.concatenate([np.cos(angles), np.sin(angles[1:])]).T.astype(np.float32).tobytes()


@lru_cache(maxsize=4096)
def tiling(
    shape: tuple[int, ...],
    tiles: tuple[int, int],
    step: tuple[int, int],
    offset: tuple[int, int],
    window: tuple[int, int],
    spacing: tuple[int, int],
    period: tuple[int, int],
    frequencies: Frequencies,
) -> Tiling:
    """Check that windows and waves fit together; return the tiling.

    Raises
    ------
    ValueError
        If a size is not positive, a window has more than 32 cells along a side, or a frequency is 0, higher
        than 7, no lower than half a period, or the opposite of a kept one.
    """
    if len(shape) != 4 or min(shape) < 0:
        raise ValueError(f"the map has shape {tuple(shape)}, expected (images, channels, height, width)")
    for name, values in (
        *(("tiles", tiles), ("step", step), ("window", window)),
        *(("spacing", spacing), ("period", period)),
    ):
        if min(values) < 1:
            raise ValueError(f"{name} is {values}, expected positive numbers")
    if max(window) > WIDEST_WINDOW:
        raise ValueError(f"window is {window}, expected at most {WIDEST_WINDOW} cells along a side")
    for axis in range(2):
        if tiles[axis] * step[axis] + abs(offset[axis]) >= _FARTHEST:
            raise ValueError(
                f"{tiles[axis]} windows {step[axis]} cells apart with offset {offset[axis]} would overflow "
                "an address"
            )
    _check_frequencies(frequencies, period)
    images, channels, height, width = map(int, shape)
    return Tiling(
        (images, channels, height, width), tiles, step, offset, window, spacing, period, frequencies
    )


def _check_frequencies(frequencies: Frequencies, period: tuple[int, int]) -> None:
    for f in frequencies:
        highest = [min(HIGHEST_FREQUENCY, (cells - 1) // 2) for cells in period]
        if abs(f[0]) > highest[0] or abs(f[1]) > highest[1]:
            raise ValueError(f"frequency {f} is too high for a period of {period} cells: expected {highest}")
        if f < (0, 1):
            raise ValueError(
                f"frequency {f} comes before (0, 1): expected its opposite, and not the constant"
            )
    if len(set(frequencies)) < len(frequencies):
        raise ValueError(f"frequencies {frequencies} has one twice")


@lru_cache
def low_frequencies(period: tuple[int, int], components: int) -> Frequencies:
    """Choose the lowest frequencies of a window, so many that each with its two parts makes `components`.

    Parameters
    ----------
    period : tuple of int
        Cells after which the wave of frequency 1 repeats, along height and width.
    components : int
        Odd: 1 for the constant, and 2 for each frequency. Where a window has fewer, all of them are chosen.

    Returns
    -------
    tuple of (int, int)
        The ``(components - 1) / 2`` that are nearest to 0, in cycles per cell; of equal ones, those along one
        axis come first.
    """
    highest = [min(HIGHEST_FREQUENCY, (cells - 1) // 2) for cells in period]
    all_of_them = [
        (f, g) for f in range(highest[0] + 1) for g in range(-highest[1], highest[1] + 1) if (f, g) >= (0, 1)
    ]

    def order(frequency: tuple[int, int]) -> tuple[int, bool, tuple[int, int]]:
        f, g = frequency
        # In whole numbers, so that equal distances are equal.
        distance = (f * period[1]) ** 2 + (g * period[0]) ** 2
        return distance, f != 0 and g != 0, (-f, g)

    return tuple(sorted(all_of_them, key=order)[: (components - 1) // 2])
