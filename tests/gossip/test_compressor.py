"""Compressors: what they keep, what they refuse, and how many bytes they take."""

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flower_edge.gossip import (
    BFloat16,
    Codec,
    CodecError,
    Compressor,
    Float32,
    Int4,
    Int8,
    Layout,
    SignNorm,
    TopK,
)
from flower_edge.gossip.codec import Vector

pytestmark = pytest.mark.board

SIZES = [1, 7, 15, 31, 33, 97]
HEADER_BYTES = 22
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)

ALL: list[Compressor] = [
    Float32(),
    BFloat16(),
    *(Int8(), Int8(per="array", small="compressed"), Int8(rounding="stochastic", seed=3)),
    *(Int4(), Int4(per="array"), Int4(rounding="stochastic", seed=3)),
    *(SignNorm(), SignNorm(per="array")),
    *(TopK(), TopK(0.01), TopK(0.5, "fp32"), TopK(1.0)),
]


def identity(compressor: Compressor) -> str:
    return f"{compressor.name}-{getattr(compressor, 'rounding', '')}"


every_compressor = pytest.mark.parametrize("compressor", ALL, ids=identity)


def model(seed: int = 0) -> tuple[Layout, Vector]:
    """A small network's arrays: convolutions, a depthwise one, a matrix, biases, an empty one, a counter."""
    rng = np.random.default_rng(seed)
    shapes = {"conv": (8, 3, 3, 3), "depthwise": (8, 1, 3, 3), "bias": (8,), "empty": (0, 4), "head": (5, 33)}
    arrays = {
        name: (rng.normal(0, 10.0 ** rng.integers(-3, 2), shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    layout = Layout.of(arrays | {"steps": np.int64(3), "scalar": np.float32(rng.normal())})
    return layout, layout.flatten(arrays | {"steps": np.int64(3), "scalar": np.float32(rng.normal())})[0]


def rows(layout: Layout, vector: Vector, per: str) -> list[Vector]:
    """The blocks, cut by the definition."""
    arrays = layout.unflatten(vector, {"steps": np.int64(0)})
    found: list[Vector] = []
    for name, array in arrays.items():
        if name != "steps" and array.size:
            found += (
                [*array.reshape(len(array), -1)] if per == "channel" and array.ndim > 1 else [array.ravel()]
            )
    return found


# ---------------------------------------------------------------- what comes back


@every_compressor
@pytest.mark.parametrize("size", SIZES)
def test_a_vector_comes_back_as_near_as_promised(compressor: Compressor, size: int) -> None:
    codec = compressor.codec(size)
    vector = np.random.default_rng(size).standard_normal(size).astype(np.float32)

    message = codec.encode(vector)
    back = codec.decode(message)

    assert back.dtype == np.float32
    assert back.shape == (size,)
    assert len(message) <= codec.largest_message
    lost = float(np.square(back - vector, dtype=np.float64).sum())
    assert lost <= float(np.square(vector, dtype=np.float64).sum())
    if isinstance(compressor, Float32):
        np.testing.assert_array_equal(back, vector)


@pytest.mark.parametrize("per", ["channel", "array"])
@pytest.mark.parametrize(("kind", "levels"), [(Int8, 127), (Int4, 7)])
@pytest.mark.parametrize("seed", range(5))
def test_whole_numbers_times_the_scale_of_their_block(kind: type, levels: int, per: str, seed: int) -> None:
    layout, vector = model(seed)
    codec = kind(per=per, small="compressed").codec(layout)

    back = codec.decode(codec.encode(vector))

    for ours, theirs in zip(rows(layout, back, per), rows(layout, vector, per), strict=True):
        scale = np.abs(theirs).max().astype(np.float64) / levels
        expected = np.rint(theirs / scale) * scale
        # The nearest integer, except that fp32 may see a tie otherwise.
        assert (np.abs(ours - expected) <= scale * 1e-4 + np.abs(expected) * 1e-6).mean() > 0.99
        assert (np.abs(ours - theirs) <= 0.5001 * scale).all()


@pytest.mark.parametrize("kind", [Int8, Int4])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_models_trained_in_whole_numbers_come_back_as_those(kind: type, data: st.DataObject) -> None:
    """Weights that are integers times a scale for each output channel, of which one is the largest."""
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6))
    most = kind.levels
    integers = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-most, most)))
    integers.reshape(shape[0], -1)[:, 0] = data.draw(st.sampled_from([-most, most]))
    largest = data.draw(hnp.arrays(np.float32, shape[0], elements=st.floats(2**-60, 2**60, width=32)))
    scales = (largest / np.float32(most)).reshape(-1, *[1] * (len(shape) - 1))
    layout = Layout.of({"weight": np.zeros(shape, np.float32)})
    codec = kind().codec(layout)
    weights = (integers * scales).astype(np.float32)

    back = codec.decode(codec.encode(weights.ravel())).reshape(shape)

    np.testing.assert_array_equal(np.rint(back / scales).astype(np.int8), integers)
    np.testing.assert_allclose(back, weights, rtol=3e-7)


@pytest.mark.parametrize("kind", [Int8, Int4])
def test_stochastic_rounding_is_right_in_the_mean(kind: type) -> None:
    size, draws = 33, 4000
    vector = np.random.default_rng(1).uniform(-1, 1, size).astype(np.float32)
    codec = kind(rounding="stochastic", seed=5).codec(size)
    scale = np.abs(vector).max() / kind.levels

    samples = np.stack([codec.decode(codec.encode(vector, draw)) for draw in range(draws)])

    # A two-valued variable has at most half a step of standard deviation.
    assert (np.abs(samples.mean(0) - vector) <= 4 * 0.5 * scale / np.sqrt(draws) + 1e-6).all()
    assert (np.abs(samples - vector) <= 1.0001 * scale).all()
    assert np.ptp(samples, axis=0).max() > 0.5 * scale


def test_random_numbers_follow_from_seed_and_draw_alone() -> None:
    """The bytes of one machine are the bytes of all: a fixed sum of what is known to be drawn."""
    from flower_edge.gossip.quantise import uniform

    numbers = uniform(8, 3, 7)

    np.testing.assert_array_equal(numbers, uniform(97, 3, 7)[:8])
    assert not np.array_equal(numbers, uniform(8, 3, 8))
    assert not np.array_equal(numbers, uniform(8, 4, 7))
    raw = np.random.Philox(key=np.array([3, 7], np.uint64)).random_raw(2).astype("<u8").tobytes()
    expected = (np.array(struct.unpack("<8H", raw)) + 0.5) / 65536
    np.testing.assert_array_equal(numbers, expected.astype(np.float32))


@pytest.mark.parametrize("per", ["channel", "array"])
def test_signs_and_the_mean_of_each_block(per: str) -> None:
    layout, vector = model()
    codec = SignNorm(per=per, small="compressed").codec(layout)

    back = codec.decode(codec.encode(vector))

    for ours, theirs in zip(rows(layout, back, per), rows(layout, vector, per), strict=True):
        mean = np.abs(theirs.astype(np.float64)).mean()
        np.testing.assert_allclose(ours, np.where(theirs < 0, -mean, mean), rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    vector=hnp.arrays(
        np.float32, st.integers(1, 2000), elements=st.sampled_from([0.0, 1.0, -1.0, 2.5, -7.0])
    ),
    share=st.sampled_from([1e-3, 0.003, 0.01, 0.1, 0.5, 1.0]),
)
def test_top_k_keeps_the_largest_and_the_first_of_equal_ones(vector: Vector, share: float) -> None:
    codec = TopK(share, "fp32").codec(len(vector))
    kept = min(len(vector), max(1, round(share * len(vector))))
    order = np.argsort(-np.abs(vector), kind="stable")[:kept]
    expected = np.zeros_like(vector)
    expected[order] = vector[order]

    np.testing.assert_array_equal(codec.decode(codec.encode(vector)), expected)


@pytest.mark.parametrize(
    ("share", "bytes_each"),
    [(0.5, 8 / 0.5 / 64), (0.1, 1.02), (0.01, 1.15), (0.001, 2.1)],
)
def test_positions_take_the_way_that_is_shortest(share: float, bytes_each: float) -> None:
    """A bitmap, gaps of one byte, and of two; all of them are a part of the message."""
    size = 100_000
    vector = np.random.default_rng(0).standard_normal(size).astype(np.float32)

    message = TopK(share).codec(size).encode(vector)

    kept = round(share * size)
    positions = len(message) - HEADER_BYTES - len(f"top{share:g}/int8") - 9 - 4 - kept
    assert positions <= bytes_each * kept + 1


def test_positions_far_apart_and_at_the_ends() -> None:
    vector = np.zeros(300_000, np.float32)
    vector[[0, 1, 255, 256, 511, 65_536, 131_073, 299_999]] = np.arange(1, 9)
    codec = TopK(8 / 300_000, "fp32").codec(len(vector))

    np.testing.assert_array_equal(codec.decode(codec.encode(vector)), vector)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=FINITE))
def test_bfloat16_is_torchs(vector: Vector) -> None:
    import torch

    codec = BFloat16().codec(len(vector))

    expected = torch.from_numpy(vector.copy()).to(torch.bfloat16).float().numpy()
    largest = np.float32(np.finfo(np.float32).max).view(np.uint32) & 0xFFFF0000
    expected = np.where(np.isinf(expected), np.copysign(largest.view(np.float32), expected), expected)
    np.testing.assert_array_equal(codec.decode(codec.encode(vector)), expected)


@every_compressor
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-42, -3e-38, 2.5, -1.0, 3.4e38])
def test_constant_vectors(compressor: Compressor, value: float) -> None:
    codec = compressor.codec(33)
    vector = np.full(33, value, np.float32)

    back = codec.decode(codec.encode(vector))

    assert np.isfinite(back).all()
    if isinstance(compressor, TopK):
        assert (np.abs(back) <= np.abs(vector) * 1.000001).all()
    elif abs(value) > 3e38 and not isinstance(compressor, Float32 | BFloat16 | SignNorm):
        levels = compressor.levels
        np.testing.assert_allclose(back, np.float32(3.4028235e38) * (levels / (levels + 1)), rtol=4e-3)
    elif abs(value) > 1e-30 or value == 0:
        np.testing.assert_allclose(back, vector, rtol=4e-3)
    else:
        assert (np.abs(back - vector) <= np.abs(vector)).all()


@every_compressor
@settings(max_examples=60, deadline=None)
@given(vector=hnp.arrays(np.float32, 40, elements=FINITE))
def test_any_finite_numbers(compressor: Compressor, vector: Vector) -> None:
    codec = compressor.codec(40)

    back = codec.decode(codec.encode(vector))

    assert np.isfinite(back).all()
    rounded = 2**-8 if isinstance(compressor, BFloat16) else 1e-6
    assert np.abs(back.astype(np.float64)).max() <= np.abs(vector.astype(np.float64)).max() * (1 + rounded)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("compressor", "fewer"),
    [(Float32(), 1), (BFloat16(), 2), (Int8(), 4), (Int4(), 8), (SignNorm(), 32), (TopK(0.1), 20)],
    ids=lambda value: getattr(value, "name", value),
)
def test_bytes_of_a_real_network(compressor: Compressor, fewer: float) -> None:
    from benchmarks.networks import resnet20

    state = resnet20(10).state_dict()
    layout = Layout.of(state)
    vector, _ = layout.flatten(state)

    everything = replace(compressor, small="compressed").codec(layout)
    small = sum(4 * spec.size for spec in layout.specs if spec.mixed and len(spec.shape) < 2)

    assert 0.85 * fewer <= layout.nbytes / len(everything.encode(vector)) <= 1.05 * fewer
    assert len(compressor.codec(layout).encode(vector)) <= len(everything.encode(vector)) + small
    assert small < 0.012 * layout.nbytes


@every_compressor
def test_small_arrays_travel_whole_unless_told_otherwise(compressor: Compressor) -> None:
    layout, vector = model()
    codec = compressor.codec(layout)
    back = codec.decode(codec.encode(vector))

    arrays, expected = (layout.unflatten(v, {"steps": np.int64(0)}) for v in (back, vector))
    exact = compressor.small == "whole" or isinstance(compressor, Float32)
    assert np.array_equal(arrays["bias"], expected["bias"]) == exact
    assert isinstance(compressor, Float32) or not np.array_equal(arrays["conv"], expected["conv"])
    assert len(codec.encode(vector)) <= codec.largest_message


def test_a_model_of_small_arrays_alone() -> None:
    layout = Layout.of({"bias": np.zeros(7, np.float32)})
    codec = Int8().codec(layout)
    vector = np.linspace(-1, 1, 7, dtype=np.float32)
    message = codec.encode(vector)

    np.testing.assert_array_equal(codec.decode(message), vector)
    for hostile in (message[:-1], message + b"x", message[:-4] + struct.pack("<f", np.nan)):
        with pytest.raises(CodecError):
            codec.decode(hostile)
    with pytest.raises(CodecError, match="of which the same travel whole"):
        Int8(small="compressed").codec(layout).decode(message)


@every_compressor
def test_contraction_is_what_a_message_brings_of_normal_numbers(compressor: Compressor) -> None:
    codec = compressor.codec(Layout.of({"weight": np.zeros((40, 500), np.float32)}))
    vector = np.random.default_rng(5).standard_normal(20_000).astype(np.float32)

    lost = np.square(codec.decode(codec.encode(vector)) - vector).sum() / np.square(vector).sum()

    assert 1 - codec.contraction == pytest.approx(lost, rel=0.1, abs=1e-8)


# ---------------------------------------------------------------- what is refused


@every_compressor
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(compressor: Compressor, bad: float) -> None:
    vector = np.ones(33, np.float32)
    vector[17] = bad

    with pytest.raises(ValueError, match="NaN or infinite"):
        compressor.codec(33).encode(vector)


def test_a_vector_of_another_kind_is_refused() -> None:
    codec = Int8().codec(33)

    with pytest.raises(ValueError, match=r"float64 \(33,\), expected float32 \(33,\)"):
        codec.encode(np.ones(33))
    with pytest.raises(ValueError, match=r"float32 \(32,\), expected float32 \(33,\)"):
        codec.encode(np.ones(32, np.float32))


def test_another_codec_is_refused_by_name() -> None:
    vector = np.ones(33, np.float32)

    with pytest.raises(CodecError, match="in codec 'int4/channel', expected 'int8/channel'"):
        Int8().codec(33).decode(Int4().codec(33).encode(vector))
    with pytest.raises(CodecError, match=r"'top0\.1/int8', expected 'top0\.1/fp32'"):
        TopK(0.1, "fp32").codec(33).decode(TopK(0.1).codec(33).encode(vector))


def test_another_model_is_refused() -> None:
    vector = np.ones(33, np.float32)

    with pytest.raises(CodecError, match="another model, of 33 elements; expected one of 34"):
        Int8().codec(34).decode(Int8().codec(33).encode(vector))
    other = Layout.of({"a": np.zeros((3, 11), np.float32)})
    with pytest.raises(CodecError, match="another model, of 33 elements; expected one of 33 with the arrays"):
        Int8().codec(other).decode(Int8().codec(33).encode(vector))


@every_compressor
def test_every_truncation_and_every_addition_is_refused(compressor: Compressor) -> None:
    codec = compressor.codec(31)
    message = codec.encode(np.linspace(-1, 1, 31, dtype=np.float32))

    for length in range(len(message)):
        with pytest.raises(CodecError):
            codec.decode(message[:length])
    with pytest.raises(CodecError, match=r"bytes, expected|ways? 1|in way"):
        codec.decode(message + b"\0")


def decoded_or_refused(codec: Codec, message: bytes) -> None:
    try:
        vector = codec.decode(message)
    except CodecError:
        return
    assert vector.shape == (codec.size,)
    assert np.isfinite(vector).all()


@every_compressor
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_and_hostile_bytes_are_refused_or_finite(compressor: Compressor, data: st.DataObject) -> None:
    codec = compressor.codec(97)
    message = bytearray(codec.encode(np.random.default_rng(2).standard_normal(97).astype(np.float32)))
    begin = data.draw(st.sampled_from([0, HEADER_BYTES + len(codec.name)]))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(begin, len(message) - 1))] = data.draw(st.integers(0, 255))

    decoded_or_refused(codec, bytes(message))


@every_compressor
@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=200))
def test_any_body_is_refused_or_finite(compressor: Compressor, body: bytes) -> None:
    codec = compressor.codec(97)
    header = codec.encode(np.zeros(97, np.float32))[: HEADER_BYTES + len(codec.name)]

    decoded_or_refused(codec, header + body)
    decoded_or_refused(codec, body)


@pytest.mark.parametrize("compressor", [Float32(), Int8(), TopK()], ids=identity)
def test_sizes_are_checked_before_memory_is_taken(compressor: Compressor) -> None:
    codec = compressor.codec(97)
    hostile = bytearray(codec.encode(np.zeros(97, np.float32)))
    hostile[14:22] = struct.pack("<Q", 2**62)

    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="of 4611686018427387904 elements"):
            codec.decode(hostile)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 3e38])
def test_scales_that_make_no_finite_numbers_are_refused(scale: float) -> None:
    codec = Int8().codec(7)
    message = bytearray(codec.encode(np.ones(7, np.float32)))
    begin = HEADER_BYTES + len(codec.name)
    message[begin : begin + 4] = struct.pack("<f", scale)

    with pytest.raises(CodecError, match="scales outside 0 to"):
        codec.decode(message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Int8(per="row"), "per is 'row', expected 'channel' or 'array'"),
        (lambda: Int4(rounding="up"), "rounding is 'up'"),
        (lambda: Int4(seed=-1), "seed is -1"),
        (lambda: Float32(small="half"), "small is 'half', expected 'whole' or 'compressed'"),
        (lambda: SignNorm(per="block"), "per is 'block'"),
        (lambda: TopK(0.0), "share is 0.0, expected a number above 0"),
        (lambda: TopK(1.5), "share is 1.5"),
        (lambda: TopK(0.1, "int4"), "values is 'int4', expected 'int8' or 'fp32'"),
        (lambda: Int8().codec(0), "mixes no elements"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
