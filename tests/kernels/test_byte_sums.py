"""Sums of maps of bytes, and the gradient of a ReLU by its bytes: kernels and slow twins against float64."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flower_edge import kernels
from flower_edge.kernels import _dispatch
from flower_edge.kernels._byte_sums import mask_by_bytes, quantised_relu, quantised_sum
from flower_edge.kernels._quantised import QuantisedTensor

pytestmark = pytest.mark.board

SHAPES = [
    (1, 1, 1, 1),
    (1, 7, 3, 5),
    (2, 15, 1, 1),
    (1, 31, 3, 1),
    (3, 33, 4, 7),
    (2, 97, 5, 9),
    (5, 16, 40, 40),
]


@pytest.fixture(params=[*kernels.available_isas(), "twin"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "twin":
        monkeypatch.setattr(_dispatch, "extension", None)
        yield "twin"
    else:
        with kernels.use_isa(request.param):
            yield request.param


def drawn(shape: tuple[int, ...], seed: int, scale: float, zero_point: int) -> QuantisedTensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return QuantisedTensor(values.contiguous(memory_format=torch.channels_last), scale, zero_point)


def floats(x: QuantisedTensor) -> Tensor:
    return float(np.float32(x.scale)) * (x.values.double() - x.zero_point)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
def test_a_sum_is_within_half_a_step(way: str, shape: tuple[int, ...], relu: bool) -> None:
    for (scale, zero), (other_scale, other_zero) in (
        *(((0.1, 128), (0.03, 7)), ((1e-4, 0), (2.0, 255)), ((0.5, 255), (0.5, 255)), ((3.0, 0), (1.0, 0))),
    ):
        x, y = drawn(shape, 0, scale, zero), drawn(shape, 1, other_scale, other_zero)
        exact = floats(x) + floats(y)
        exact = exact.relu() if relu else exact

        found = quantised_sum(x, y, relu=relu)

        assert found.values.is_contiguous(memory_format=torch.channels_last)
        span = max(0.0, float(exact.max())) - min(0.0, float(exact.min()))
        assert found.scale == (pytest.approx(span / 255, rel=1e-5) if span else 1.0)
        # The level of 0 is one of the levels, so that the ends may be half a step off.
        assert float((floats(found) - exact).abs().max()) <= 1.001 * found.scale


def test_all_ways_agree_bit_for_bit(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn((3, 33, 17, 9), 0, 0.1, 128), drawn((3, 33, 17, 9), 1, 0.03, 7)
    grad = torch.randn(3, 33, 17, 9)
    found = [quantised_sum(x, y), quantised_sum(x, y, relu=True)]
    masked = mask_by_bytes(grad, x)
    monkeypatch.setattr(_dispatch, "extension", None)
    for ours, twin in zip(found, (quantised_sum(x, y), quantised_sum(x, y, relu=True)), strict=True):
        assert torch.equal(ours.values, twin.values)
        assert (ours.scale, ours.zero_point) == (twin.scale, twin.zero_point)
    assert torch.equal(masked, mask_by_bytes(grad, x))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(0, 255), st.integers(1, 3))
def test_a_gradient_passes_where_the_map_is_above_0(
    images: int, channels: int, side: int, zero_point: int, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = drawn((images, channels, side, side), 0, 0.1, zero_point)
        grad = torch.randn(x.values.shape)
        grad[x.values <= zero_point] = float("nan")
        expected = torch.where(x.values > zero_point, grad, 0.0)
        assert torch.equal(mask_by_bytes(grad, x), expected)
        assert torch.equal(mask_by_bytes(grad, quantised_relu(x)), expected)
        assert torch.equal(floats(quantised_relu(x)), floats(x).relu())
    finally:
        torch.set_num_threads(before)


def test_bad_input_is_refused(way: str) -> None:
    x = drawn((2, 3, 4, 5), 0, 0.1, 128)
    with pytest.raises(ValueError, match=r"y has shape \(2, 3, 4, 4\)"):
        quantised_sum(x, drawn((2, 3, 4, 4), 0, 0.1, 128))
    with pytest.raises(ValueError, match="expected finite numbers"):
        quantised_sum(drawn((2, 3, 4, 5), 0, 3e38, 0), drawn((2, 3, 4, 5), 0, 3e38, 0))
    with pytest.raises(ValueError, match=r"grad has shape \(1, 3, 4, 5\)"):
        mask_by_bytes(torch.randn(1, 3, 4, 5), x)
    with pytest.raises(TypeError, match=r"grad is a torch\.int64 tensor"):
        mask_by_bytes(torch.ones(2, 3, 4, 5, dtype=torch.int64), x)
