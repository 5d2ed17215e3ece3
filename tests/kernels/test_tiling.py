"""How maps are cut into windows, and which frequencies are kept of them."""

import itertools
from typing import Any

import numpy as np
import pytest

from flower_edge.kernels._tiling import HIGHEST_FREQUENCY, low_frequencies, tiling

pytestmark = pytest.mark.board

GOOD = {
    "shape": (2, 3, 9, 10),
    "tiles": (2, 2),
    "step": (5, 5),
    "offset": (0, 0),
    "window": (5, 5),
    "spacing": (1, 1),
    "period": (5, 5),
    "frequencies": ((0, 1), (1, -1)),
}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"shape": (3, 9, 10)}, r"shape \(3, 9, 10\), expected \(images, channels, height, width\)"),
        ({"shape": (2, -3, 9, 10)}, r"shape \(2, -3, 9, 10\)"),
        ({"tiles": (0, 2)}, r"tiles is \(0, 2\), expected positive numbers"),
        ({"step": (5, -1)}, r"step is \(5, -1\)"),
        ({"window": (0, 5)}, r"window is \(0, 5\)"),
        ({"spacing": (0, 1)}, r"spacing is \(0, 1\)"),
        ({"period": (5, 0)}, r"period is \(5, 0\)"),
        ({"window": (5, 33)}, r"window is \(5, 33\), expected at most 32 cells"),
        ({"offset": (1 << 50, 0)}, "would overflow an address"),
        ({"tiles": (1 << 40, 2)}, "would overflow an address"),
        ({"frequencies": ((0, 3),)}, r"frequency \(0, 3\) is too high for a period of \(5, 5\) cells"),
        ({"period": (6, 6), "frequencies": ((3, 0),)}, r"frequency \(3, 0\) is too high"),
        ({"period": (99, 99), "frequencies": ((8, 0),)}, r"frequency \(8, 0\) is too high"),
        ({"frequencies": ((0, 0),)}, r"frequency \(0, 0\) comes before \(0, 1\)"),
        ({"frequencies": ((0, -1),)}, r"frequency \(0, -1\) comes before \(0, 1\)"),
        ({"frequencies": ((-1, 1),)}, r"frequency \(-1, 1\) comes before \(0, 1\)"),
        ({"frequencies": ((0, 1), (0, 1))}, "has one twice"),
    ],
)
def test_a_tiling_that_does_not_fit_together_is_refused(wrong: dict[str, Any], match: str) -> None:
    assert tiling(**GOOD).rows == 5
    with pytest.raises(ValueError, match=match):
        tiling(**(GOOD | wrong))


def test_the_lowest_frequencies_come_first() -> None:
    assert low_frequencies((9, 9), 21) == (
        *((1, 0), (0, 1), (1, -1), (1, 1), (2, 0), (0, 2)),
        *((2, -1), (2, 1), (1, -2), (1, 2)),
    )
    # A long side has the slower waves.
    assert low_frequencies((5, 15), 7) == ((0, 1), (0, 2), (1, 0))


@pytest.mark.parametrize("period", [(9, 9), (10, 10), (4, 7), (15, 6), (1, 8), (31, 17)])
def test_frequencies_are_chosen_by_their_distance_from_0(period: tuple[int, int]) -> None:
    everything = low_frequencies(period, 9999)
    distances = [(f / period[0]) ** 2 + (g / period[1]) ** 2 for f, g in everything]

    np.testing.assert_allclose(distances, sorted(distances), rtol=1e-12)
    for components in range(1, 40, 2):
        chosen = low_frequencies(period, components)
        assert chosen == everything[: (components - 1) // 2]
        assert len(chosen) == min((components - 1) // 2, len(everything))


@pytest.mark.parametrize("period", list(itertools.product((1, 2, 3, 8, 9, 15), repeat=2)))
def test_of_all_frequencies_there_is_one_of_each_pair_of_opposites(period: tuple[int, int]) -> None:
    everything = set(low_frequencies(period, 9999))
    opposites = {(-f, -g) for f, g in everything}

    # Without the fastest of an even period, which has no sine.
    axes = [range(-((cells - 1) // 2), (cells - 1) // 2 + 1) for cells in period]
    assert everything | opposites | {(0, 0)} == set(itertools.product(*axes))
    assert not everything & opposites


@pytest.mark.parametrize("components", [1, 5, 9, 13, 21])
def test_of_whole_rings_the_choice_is_symmetric(components: int) -> None:
    chosen = low_frequencies((10, 10), components)
    both = {*chosen, *((-f, -g) for f, g in chosen)}

    assert both == {(g, f) for f, g in both} == {(f, -g) for f, g in both}


def test_no_frequency_is_higher_than_kernels_serve() -> None:
    highest = max(max(f, abs(g)) for f, g in low_frequencies((32, 32), 9999))

    assert highest == HIGHEST_FREQUENCY
