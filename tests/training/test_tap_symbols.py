import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_filter import basis, symbol

from flower_edge.training import tap_symbols

axis = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=50, deadline=None)
@given(axis, axis, st.sampled_from([(1, 1), (3, 1), (2, 4), (4, 5), (4, 16), (8, 3)]))
def test_is_the_definition(rows, columns, patch) -> None:
    kernel, stride, dilation = zip(rows, columns, strict=True)
    taps = list(itertools.product(range(kernel[0]), range(kernel[1])))

    found = tap_symbols(kernel, stride, dilation, *patch)

    expected = [[symbol(b, tap, kernel, stride, dilation) for tap in taps] for b in basis(*patch)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("stride", [1, 2])
def test_every_tap_passes_the_mean(stride) -> None:
    symbols = tap_symbols((3, 5), (stride, stride), (1, 1), 4, 6)

    assert symbols.shape == (6, 15)
    assert torch.equal(symbols[0], torch.ones(15, dtype=torch.float64))


def test_of_patches_of_2x2_cells_see_differences_in_the_middle_alone() -> None:
    across, along, both = tap_symbols((3, 3), (1, 1), (1, 1), 2, 4)[1:].reshape(3, 3, 3)

    middle = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    assert torch.equal(across, torch.outer(ones, middle))
    assert torch.equal(along, torch.outer(middle, ones))
    assert torch.equal(both, torch.outer(middle, middle))


def test_default_device_does_not_matter() -> None:
    with torch.device("meta"):
        assert tap_symbols((3, 3), (1, 1), (1, 1), 2, 4).device.type == "cpu"


def test_without_a_basis() -> None:
    with pytest.raises(ValueError, match="components is 5"):
        tap_symbols((3, 3), (1, 1), (1, 1), 2, 5)
