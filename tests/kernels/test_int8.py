"""Kernels of 8 bits: bit for bit their twins, and the twins against sums of whole numbers in numpy."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge import kernels
from flower_edge.kernels import _dispatch
from flower_edge.kernels._int8_conv import (
    int8_conv,
    int8_conv_to_bytes,
    int8_conv_with_ends,
    int8_grad_weight,
    pack_weight,
)
from flower_edge.kernels._int8_quantise import QuantisedError, dequantise, quantise, quantise_error
from flower_edge.kernels._int8_reference import quantise_weight_reference
from flower_edge.kernels._int8_shape import MOST_PRODUCTS, ConvShape, conv_shape
from flower_edge.kernels._quantised import QuantisedTensor

pytestmark = pytest.mark.board

ISAS = kernels.available_isas()
CHANNELS = [1, 2, 7, 15, 16, 31, 33, 97]
LENGTHS = [0, 1, 7, 15, 31, 32, 33, 97, 4097]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(_dispatch, "extension", None)


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    def pair(least: int, most: int) -> tuple[int, int]:
        one = st.integers(least, most)
        return draw(st.tuples(one, one))

    groups = draw(st.sampled_from([1, 1, 1, 2, 5]))
    inputs, outputs = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(CHANNELS))
    if draw(st.booleans()) and groups > 1:
        inputs = outputs = 1
    kernel, dilation, padding = pair(1, 4), pair(1, 2), pair(0, 3)
    least = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(max(1, cells) + extra for cells, extra in zip(least, pair(0, 9), strict=True))
    x_shape = (draw(st.integers(1, 3)), inputs * groups, *size)
    weight_shape = (outputs * groups, inputs, *kernel)
    return conv_shape(x_shape, weight_shape, pair(1, 3), padding, dilation, groups)


def random_bytes(shape: tuple[int, ...], generator: torch.Generator, extreme: bool) -> torch.Tensor:
    if extreme:
        return 255 * torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def problem(
    shape: ConvShape, seed: int, extreme: bool
) -> tuple[QuantisedTensor, QuantisedError, torch.Tensor, torch.Tensor]:
    """Bytes of all values, or only of the least and the greatest."""
    generator = torch.Generator().manual_seed(seed)
    x = QuantisedTensor(random_bytes(shape.x_shape, generator, extreme), 0.03, seed % 256)
    grads = [random_bytes(shape.y_shape, generator, extreme) for _ in range(2)]
    error = QuantisedError(QuantisedTensor(grads[0], 0.01, 128), grads[0], grads[1], 0.002)
    weight = torch.randn(shape.weight_shape, generator=generator)
    weight = weight.sign() if extreme else weight
    return x, error, weight, torch.randn(shape.weight_shape[0], generator=generator)


def everything(
    shape: ConvShape, x: QuantisedTensor, error: QuantisedError, weight: torch.Tensor, bias: torch.Tensor
) -> list[torch.Tensor]:
    short = QuantisedError(error.values)
    return [
        int8_conv(x, pack_weight(weight, shape), bias),
        int8_conv(x, pack_weight(weight, shape)),
        int8_conv(error.values, pack_weight(weight, shape, transposed=True)),
        int8_grad_weight(x, error, shape),
        int8_grad_weight(x, short, shape),
    ]


@settings(deadline=None, max_examples=80)
@given(shapes(), st.integers(0, 2**31), st.booleans())
def test_kernels_are_their_twins_bit_for_bit(shape: ConvShape, seed: int, extreme: bool) -> None:
    given_to_all = problem(shape, seed, extreme)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(_dispatch, "extension", None)
        expected = everything(shape, *given_to_all)

    for isa in ISAS:
        with kernels.use_isa(isa):
            received = everything(shape, *given_to_all)
        for ours, theirs in zip(received, expected, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.is_contiguous(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=20)
@given(shapes(), st.integers(0, 2**31), st.booleans())
def test_results_in_bytes_are_quantised_floats(shape: ConvShape, seed: int, transposed: bool) -> None:
    x, error, weight, bias = problem(shape, seed, extreme=False)
    source, shift = (error.values, None) if transposed else (x, bias)
    for isa in (*ISAS, None):
        with pytest.MonkeyPatch.context() as without, kernels.use_isa(isa or ISAS[0]):
            if isa is None:
                without.setattr(_dispatch, "extension", None)
            packed = pack_weight(weight, shape, transposed=transposed)
            floats = int8_conv(source, packed, shift)
            expected = quantise(floats)
            y, ends = int8_conv_to_bytes(source, packed, shift, expected.scale, expected.zero_point)
        assert torch.equal(y.values, expected.values)
        assert ends == (min(0.0, float(floats.min())), max(0.0, float(floats.max())))


@settings(deadline=None, max_examples=15)
@given(shapes(), st.integers(0, 2**31), st.booleans())
def test_the_twins_are_sums_of_whole_numbers(shape: ConvShape, seed: int, extreme: bool) -> None:
    x, error, weight, bias = problem(shape, seed, extreme)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(_dispatch, "extension", None)
        y, _, grad_x, grad_weight, _ = everything(shape, x, error, weight, bias)
    cells = x.values.numpy().astype(np.int64) - x.zero_point
    errors = error.values.values.numpy().astype(np.int64) - 128
    longer = 255 * errors + error.low.numpy().astype(np.int64) - 128
    (forward, scales), (back, back_scales) = (
        (values.numpy().astype(np.int64), found.numpy())
        for values, found in (quantise_weight_reference(weight, shape.groups, t) for t in (False, True))
    )
    sums = [np.zeros(s, np.int64) for s in (shape.y_shape, shape.x_shape, shape.weight_shape)]
    inputs, outputs = shape.weight_shape[1], shape.weight_shape[0] // shape.groups
    for p, q, i, j in product(*map(range, (*shape.y_shape[2:], *shape.weight_shape[2:]))):
        h = p * shape.stride[0] - shape.padding[0] + i * shape.dilation[0]
        w = q * shape.stride[1] - shape.padding[1] + j * shape.dilation[1]
        if not (0 <= h < shape.x_shape[2] and 0 <= w < shape.x_shape[3]):
            continue
        for g in range(shape.groups):
            ins, outs = slice(g * inputs, (g + 1) * inputs), slice(g * outputs, (g + 1) * outputs)
            sums[0][:, outs, p, q] += cells[:, ins, h, w] @ forward[outs, :, i, j].T
            sums[1][:, ins, h, w] += errors[:, outs, p, q] @ back[outs, :, i, j]
            sums[2][outs, :, i, j] += longer[:, outs, p, q].T @ cells[:, ins, h, w]
    factors = [
        (np.float32(scale) * by)[:, None, None]
        for scale, by in ((x.scale, scales), (error.values.scale, back_scales))
    ]
    assert np.array_equal(y.numpy(), sums[0].astype(np.float32) * factors[0] + bias.numpy()[:, None, None])
    assert np.array_equal(grad_x.numpy(), sums[1].astype(np.float32) * factors[1])
    scale = float(np.float32(x.scale * error.half_scale))
    assert np.array_equal(grad_weight.numpy(), (sums[2] * scale).astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_the_longest_sums_do_not_overflow(isa: str) -> None:
    shape = conv_shape((1, MOST_PRODUCTS, 1, 1), (1, MOST_PRODUCTS, 1, 1))
    x = QuantisedTensor(torch.full(shape.x_shape, 255, dtype=torch.uint8), 1.0, 0)
    wide = conv_shape((1, 1, 300, 300), (1, 1, 1, 1))
    cells = QuantisedTensor(torch.full(wide.x_shape, 255, dtype=torch.uint8), 1.0, 0)
    lowest = QuantisedTensor(torch.zeros(wide.y_shape, dtype=torch.uint8), 1.0, 128)

    with kernels.use_isa(isa):
        y = int8_conv(x, pack_weight(torch.ones(shape.weight_shape), shape))
        grad = int8_grad_weight(cells, QuantisedError(lowest), wide)

    total = np.float32(255 * 127 * MOST_PRODUCTS)
    assert float(y) == float(total * (np.float32(1.0) / np.float32(127.0)))
    assert float(grad) == float(np.float32(-255 * 128 * 300 * 300))


@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (16, 16), (144, 2), (80, 4), (128, 32)])
def test_results_larger_than_caches_are_the_same(channels: int, groups: int) -> None:
    """They are written past the caches, where an instruction set can and groups are whole cache lines."""
    side = math.isqrt((7 << 18) // channels)
    shape = conv_shape(
        (1, channels, side, side), (channels, channels // groups, 1, 3), (1, 1), (0, 1), (1, 1), groups
    )
    x, error, weight, bias = problem(shape, 5, extreme=False)
    results = []
    for isa in ISAS:
        with kernels.use_isa(isa):
            packed = pack_weight(weight, shape), pack_weight(weight, shape, transposed=True)
            results.append((int8_conv(x, packed[0], bias), int8_conv(error.values, packed[1])))

    assert results[0][0].numel() * 4 > 6 << 20
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_torchs_own_products_find_no_trace() -> None:
    """Where a CPU has tiles, torch multiplies bf16 with them, too."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(130, 130, generator=generator).bfloat16() for _ in range(2))
    shape = conv_shape((2, 70, 9, 8), (40, 70, 3, 3), (1, 1), (1, 1))
    given_to_all = problem(shape, 8, extreme=False)
    expected, ours = left @ right, everything(shape, *given_to_all)

    for _ in range(3):
        again = everything(shape, *given_to_all)
        assert torch.equal(left @ right, expected)
        assert all(torch.equal(a, b) for a, b in zip(again, ours, strict=True))


def test_gradients_larger_than_caches_are_the_same() -> None:
    shape = conv_shape((1, 384, 2, 3), (320, 384, 3, 3), (1, 1), (1, 1))
    x, error, _, _ = problem(shape, 6, extreme=False)
    results = []
    for isa in ISAS[-3:]:
        with kernels.use_isa(isa):
            results.append([int8_grad_weight(x, e, shape) for e in (error, QuantisedError(error.values))])

    assert results[0][0].numel() * 4 > 4 << 20
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([2, 7, 16, 33]),
    st.integers(1, 5),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 2**31),
)
def test_depthwise_convolutions_are_their_twins(
    channels: int, side: int, stride: int, dilation: int, seed: int
) -> None:
    shape = conv_shape(
        (2, channels, 13, 11),
        (channels, 1, side, side),
        (stride,) * 2,
        (side // 2,) * 2,
        (dilation,) * 2,
        channels,
    )
    given_to_all = problem(shape, seed, extreme=bool(seed % 2))
    with pytest.MonkeyPatch.context() as without:
        without.setattr(_dispatch, "extension", None)
        expected = everything(shape, *given_to_all)
    for isa in ISAS:
        with kernels.use_isa(isa):
            received = everything(shape, *given_to_all)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(received, expected, strict=True))


@pytest.mark.usefixtures("_threads")
def test_bits_do_not_depend_on_threads() -> None:
    cases = [
        conv_shape((5, 48, 33, 31), (70, 48, 3, 3), (1, 1), (1, 1)),
        conv_shape((5, 48, 9, 11), (48, 1, 3, 3), (2, 1), (1, 1), (1, 1), 48),
        conv_shape((3, 130, 5, 5), (140, 130, 3, 3), (1, 1), (1, 1)),
    ]
    problems = [problem(shape, 3, extreme=False) for shape in cases]
    x = torch.randn(100_003)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        rounded = quantise_error(x, 16, seed=9)
        results.append([rounded.values.values, rounded.high, rounded.low])
        for shape, given_to_all in zip(cases, problems, strict=True):
            results[-1] += everything(shape, *given_to_all)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("length", LENGTHS)
def test_rounding_is_its_twins(isa: str, length: int, twins: Callable[[], None]) -> None:
    x = 3 * torch.randn(length, generator=torch.Generator().manual_seed(length))
    x[: length // 3] = 0.5 * torch.arange(length // 3)
    with kernels.use_isa(isa):
        found, errors = quantise(x), [quantise_error(x, 16, seed) for seed in (None, 5, -7)]
        restored = dequantise(found)
    twins()
    expected = quantise(x)

    assert torch.equal(found.values, expected.values)
    assert (found.scale, found.zero_point) == (expected.scale, expected.zero_point)
    assert torch.equal(restored, dequantise(expected))
    for error, seed in zip(errors, (None, 5, -7), strict=True):
        twin = quantise_error(x, 16, seed)
        assert torch.equal(error.values.values, twin.values.values)
        assert torch.equal(error.high, twin.high)
        assert torch.equal(error.low, twin.low)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40), st.sampled_from([None, 1])
)
def test_no_number_is_further_off_than_a_step(values: list[float], seed: int | None) -> None:
    x = torch.tensor(values)
    nearest, error = quantise(x), quantise_error(x, 16, seed)

    assert (dequantise(nearest) - x).abs().max() <= 0.51 * nearest.scale + 1e-30
    assert (dequantise(error.values) - x).abs().max() <= 1.01 * error.values.scale + 1e-30
    assert int(error.values.values.min()) >= 1
    high, low = (half.double() - 128 for half in (error.high, error.low))
    restored = (255 * high + low) * error.half_scale
    assert (restored - x.double()).abs().max() <= 0.52 * error.half_scale + 1e-30


def test_stochastic_rounding_is_unbiased_and_repeatable() -> None:
    fractions = torch.linspace(-3, 3, 41)[:, None].expand(41, 20_000).contiguous()
    fractions[0, 0] = 127.0

    rounded = quantise_error(fractions, seed=11)

    assert rounded.values.scale == 1.0
    steps = rounded.values.values.double() - 128
    chance = (fractions - fractions.floor())[:, 1].double()
    deviation = (chance * (1 - chance) / 20_000).sqrt()
    off = (steps[:, 1:].mean(1) - fractions[:, 1].double()).abs()
    assert (off <= 4 * deviation + 1e-4).all()
    again = quantise_error(fractions, seed=11)
    assert torch.equal(rounded.values.values, again.values.values)
    assert not torch.equal(rounded.values.values, quantise_error(fractions, seed=12).values.values)


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0, 1e-40])
def test_constant_tensors_are_defined(value: float) -> None:
    x = torch.full((2, 3, 4, 5), value)

    found, error = quantise(x), quantise_error(x, 16)

    torch.testing.assert_close(dequantise(found), x, rtol=1e-6, atol=1e-38)
    torch.testing.assert_close(dequantise(error.values), x, rtol=1e-6, atol=1e-38)
    assert found.values.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("served", [True, False])
def test_what_is_not_finite_is_refused(strange: float, served: bool, twins: Callable[[], None]) -> None:
    if not served:
        twins()
    shape = conv_shape((1, 40, 2, 2), (3, 40, 1, 1))
    for place in (0, 17, 119):
        x = torch.ones(120)
        x[place] = strange
        for call in (quantise, quantise_error):
            with pytest.raises(ValueError, match="NaN or an infinity"):
                call(x)
        for transposed in (False, True):
            with pytest.raises(ValueError, match="weight has a NaN or an infinity"):
                pack_weight(x.view(3, 40, 1, 1), shape, transposed=transposed)


@pytest.mark.parametrize("way", [*ISAS, "twin"])
@pytest.mark.parametrize("groups", [1, 33])
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_a_bias_that_is_not_finite_is_not_hidden(
    way: str, groups: int, strange: float, twins: Callable[[], None]
) -> None:
    shape = conv_shape((2, 33, 5, 5), (33, 33 // groups, 3, 3), (1, 1), (1, 1), (1, 1), groups)
    x, _, weight, bias = problem(shape, 4, extreme=False)
    bias[31] = strange
    if way == "twin":
        twins()
    with nullcontext() if way == "twin" else kernels.use_isa(way):
        packed = pack_weight(weight, shape)
        y, ends = int8_conv_with_ends(x, packed, bias)
        assert not y[:, 31].isfinite().any()
        assert not all(map(math.isfinite, ends))
        with pytest.raises(ValueError, match="has a NaN or an infinity"):
            int8_conv_to_bytes(x, packed, bias, 0.1, 7)


def test_other_dtypes_and_strides_are_served() -> None:
    x = torch.randn(2, 5, 6, 7)
    for view in (x.double(), x.bfloat16(), torch._neg_view(x), x[:, ::2, 1:], x.transpose(2, 3)):
        found = quantise(view)
        expected = quantise(view.float().clone())
        assert torch.equal(found.values, expected.values)
        assert found.values.is_contiguous(memory_format=torch.channels_last)


def test_without_the_extension_the_twins_run(twins: Callable[[], None]) -> None:
    twins()
    assert kernels.explain().versions["int8"] == "torch"


SHAPE = conv_shape((1, 4, 5, 5), (6, 4, 3, 3))
CELLS = QuantisedTensor(torch.zeros(1, 4, 5, 5, dtype=torch.uint8), 1.0, 0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: QuantisedTensor(torch.zeros(2), 1.0, 0), TypeError, "values is torch.float32"),
        (lambda: QuantisedTensor(CELLS.values, 0.0, 0), ValueError, "scale is 0.0"),
        (lambda: QuantisedTensor(CELLS.values, 1e-46, 0), ValueError, "scale is 1e-46.*normal in float32"),
        (lambda: QuantisedTensor(CELLS.values, 1e-38, 0), ValueError, "scale is 1e-38.*normal in float32"),
        (
            lambda: QuantisedTensor(CELLS.values, 3.5e38, 0),
            ValueError,
            r"scale is 3.5e\+38.*normal in float32",
        ),
        (lambda: QuantisedTensor(CELLS.values, 1.0, 256), ValueError, "zero_point is 256"),
        (lambda: quantise(torch.zeros(3).int()), TypeError, "x is a torch.int32"),
        (lambda: quantise(torch.zeros(3, requires_grad=True)), ValueError, "x requires gradients"),
        (lambda: quantise_error(torch.zeros(3), 12), ValueError, "bits is 12, expected 8 or 16"),
        (lambda: pack_weight(torch.zeros(6, 4, 3, 2), SHAPE), ValueError, "weight has shape"),
        (
            lambda: int8_conv(CELLS, pack_weight(torch.zeros(6, 4, 3, 3), SHAPE), torch.zeros(5)),
            ValueError,
            r"bias has shape \(5,\)",
        ),
        (
            lambda: int8_conv(CELLS, pack_weight(torch.zeros(6, 4, 3, 3), SHAPE, transposed=True)),
            ValueError,
            r"x has shape \(1, 4, 5, 5\), expected \(1, 6, 3, 3\)",
        ),
        (lambda: conv_shape((1, 4, 5, 5), (6, 3, 3, 3)), ValueError, "do not fit together"),
        (lambda: conv_shape((1, 4, 2, 5), (6, 4, 3, 3)), ValueError, "reaches over 3 cells"),
        (lambda: conv_shape((1, 4, 20, 20), (6, 4, 16, 3)), ValueError, "kernels of at most 15"),
        (lambda: conv_shape((1, 7400, 3, 3), (6, 7400, 3, 3)), ValueError, "66600 products"),
        (lambda: conv_shape((0, 4, 5, 5), (6, 4, 3, 3)), ValueError, "with nothing empty"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("pixels", [1, 2, 49, 97, 256, 997, 16 * 49, 32 * 1024, 3 * 12544])
def test_pointwise_convolutions_count_all_pixels(pixels: int) -> None:
    shape = conv_shape((pixels, 8, 1, 1), (5, 8, 1, 1))
    images, _, _, height, width, *_ = shape.numbers
    assert images * height * width == pixels
