"""The delta format: one number per kernel where training moved all taps alike, and nothing lost."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.networks import resnet20
from flower_edge.gossip import Layout
from flower_edge.gossip.codec import Vector
from flower_edge.gossip.delta import TapDelta
from flower_edge.training import GradientFilter, prepare_

pytestmark = pytest.mark.board

HEADER_BYTES, CHECKSUM_BYTES = 26, 4
KERNELS = {"0.weight", "3.weight", "6.weight"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ulps(kernels: np.ndarray) -> np.ndarray:
    """Units in the last place of the largest of each row, by the definition: 2^(exponent - 23)."""
    _, exponent = np.frexp(np.abs(kernels.astype(np.float64)).max(axis=1))
    return np.exp2(np.maximum(exponent - 1, -126) - 23.0)


def resealed(payload: bytes) -> bytes:
    content = payload[:-CHECKSUM_BYTES]
    return content + struct.pack("<I", zlib.crc32(content))


# -------------------------------------------------------------------- any numbers

SHAPES = st.one_of(
    hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
)
FLOATS = st.floats(-1e6, 1e6, width=32)


@st.composite
def models(draw: st.DrawFn) -> tuple[Layout, Vector, Vector]:
    """A layout, and a reference and a model that is moved from it in every way that there is."""
    old, new = {}, {}
    for number, shape in enumerate(draw(st.lists(SHAPES, min_size=1, max_size=5))):
        reference = draw(hnp.arrays(np.float32, shape, elements=FLOATS))
        way = draw(st.sampled_from(["kept", "kernels", "factor", "taps"]))
        moved = reference.copy()
        if way in ("kernels", "factor") and len(shape) == 4:
            factor = np.float32(draw(st.floats(0.5, 1.5, width=32))) if way == "factor" else np.float32(1)
            moves = draw(hnp.arrays(np.float32, (*shape[:2], 1, 1), elements=FLOATS))
            moved = reference * factor + moves
        elif way != "kept":
            moved = draw(hnp.arrays(np.float32, shape, elements=FLOATS))
        old[f"array{number}"], new[f"array{number}"] = reference, moved
    old["always"] = new["always"] = np.ones(1, np.float32)
    old["steps"], new["steps"] = np.int64(1), np.int64(2)
    layout = Layout.of(old)
    return layout, layout.flatten(old)[0], layout.flatten(new)[0]


@settings(max_examples=150, deadline=None)
@given(models())
def test_the_reference_becomes_the_model(drawn: tuple[Layout, Vector, Vector]) -> None:
    layout, reference, model = drawn
    delta = TapDelta(layout)

    payload = delta.encode(model, reference)
    ours, theirs = delta.apply(reference, payload), delta.apply(reference.copy(), bytes(payload))

    assert ours.tobytes() == theirs.tobytes()
    assert len(payload) <= HEADER_BYTES + CHECKSUM_BYTES + len(layout.specs) + layout.nbytes
    by_kernel = delta.moved_by_kernel(payload)
    arrays, old, expected = (layout.unflatten(v, {"steps": np.int64(0)}) for v in (ours, reference, model))
    for name in arrays:
        if name in by_kernel:
            taps = int(np.prod(arrays[name].shape[2:]))
            rows = [each[name].reshape(-1, taps) for each in (arrays, old, expected)]
            rest = np.abs(rows[0].astype(np.float64) - rows[2]).max(axis=1)
            assert (rest <= 64 * np.maximum(ulps(rows[1]), ulps(rows[2]))).all()
        elif name != "steps":
            assert arrays[name].tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("factor", [1.0, 0.9995, 0.5])
def test_kernels_that_move_alike_are_one_number_each(factor: float) -> None:
    rng = np.random.default_rng(0)
    shapes = {"conv": (7, 5, 3, 3), "depthwise": (9, 1, 5, 5), "point": (6, 7, 1, 1), "bias": (7,)}
    old = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    new = {name: value + rng.normal(0, 0.01, value.shape).astype(np.float32) for name, value in old.items()}
    for name in ("conv", "depthwise"):
        moves = rng.normal(0, 0.01, (*shapes[name][:2], 1, 1)).astype(np.float32)
        new[name] = old[name] * np.float32(factor) + moves
    layout = Layout.of(old)
    delta = TapDelta(layout)

    payload = delta.encode(layout.flatten(new)[0], layout.flatten(old)[0])

    numbers = 7 * 5 + 9 + 6 * 7 + 7 + (2 if factor != 1 else 0)
    assert delta.moved_by_kernel(payload) == ("conv", "depthwise")
    assert len(payload) == HEADER_BYTES + len(shapes) + 4 * numbers + CHECKSUM_BYTES


def test_what_is_frozen_takes_no_bytes() -> None:
    layout = Layout.of(resnet20(10).state_dict())
    model = np.linspace(-1, 1, layout.size, dtype=np.float32)
    delta = TapDelta(layout)
    mixed = sum(spec.mixed for spec in layout.specs)

    payload = delta.encode(model, model.copy())

    assert len(payload) == HEADER_BYTES + mixed + CHECKSUM_BYTES
    assert delta.apply(model, payload).tobytes() == model.tobytes()


@pytest.mark.parametrize("tap", [None, 17, -1], ids=["none", "early", "last"])
def test_one_tap_that_moved_otherwise_is_not_lost(tap: int | None) -> None:
    layout = Layout.of({"conv": np.zeros((50, 100, 3, 3), np.float32)})
    reference = np.full(layout.size, 0.1, np.float32)
    model = reference + np.float32(0.01)
    if tap is not None:
        model[tap] += np.float32(1e-6)  # 134 units in the last place
    delta = TapDelta(layout)

    payload = delta.encode(model, reference)

    assert delta.moved_by_kernel(payload) == (("conv",) if tap is None else ())
    assert delta.apply(reference, payload).tobytes() == model.tobytes()


def test_rounding_counts_at_the_larger_of_old_and_new() -> None:
    """A weight that has shrunk keeps what was rounded while it was large; one that has grown, since."""
    layout = Layout.of({"conv": np.zeros((1, 1, 3, 3), np.float32)})
    delta = TapDelta(layout)
    rounding = np.arange(9, dtype=np.float32) * np.float32(2.0**-23)  # units in the last place of 1
    small, large = np.full(9, 0.001, np.float32), np.ones(9, np.float32)

    for model, reference in [(small + rounding, large), (large + rounding, small)]:
        payload = delta.encode(model, reference)

        assert delta.moved_by_kernel(payload) == ("conv",)
        assert np.abs(delta.apply(reference, payload) - model).max() <= 64 * 2.0**-23


# -------------------------------------------------------------------- real training


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 8, (5, 3), stride=2, padding=(2, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class Node:
    """A model that trains on data of its own, and its state as a vector."""

    def __init__(self, optimizer: Callable, seed: int = 0, filtered: bool = True) -> None:
        torch.manual_seed(0)
        self.model = net()
        if filtered:
            prepare_(self.model, GradientFilter(where=lambda *_: True, fallback="never", basis="walsh"))
        self.optimizer = optimizer(self.model.parameters())
        self.generator = torch.Generator().manual_seed(seed)
        self.layout = Layout.of(self.model.state_dict())

    def train(self, steps: int) -> Vector:
        for _ in range(steps):
            inputs = torch.randn(4, 3, 7, 7, generator=self.generator)
            targets = torch.randint(4, (4,), generator=self.generator)
            self.optimizer.zero_grad()
            cross_entropy(self.model(inputs), targets).backward()
            self.optimizer.step()
        return self.vector()

    def vector(self) -> Vector:
        return self.layout.flatten(self.model.state_dict())[0]

    def load(self, vector: Vector) -> None:
        _, carried = self.layout.flatten(self.model.state_dict())
        self.model.load_state_dict(self.layout.unflatten_torch(vector, carried))


def worst_rest(layout: Layout, reference: Vector, model: Vector, before: Vector) -> float:
    """The largest |x - x̂| of a tap, in units in the last place; infinite where an array should be equal."""
    carried = {spec.name: np.zeros(spec.shape) for spec in layout.specs if not spec.mixed}
    arrays, expected, old = (layout.unflatten(vector, carried) for vector in (reference, model, before))
    worst = 0.0
    for name in expected:
        if name not in KERNELS:
            worst = max(worst, np.inf * (not np.array_equal(arrays[name], expected[name])))
            continue
        rows = [each[name].reshape(-1, np.prod(each[name].shape[2:])) for each in (arrays, expected, old)]
        rest = np.abs(rows[0].astype(np.float64) - rows[1]).max(axis=1)
        worst = max(worst, (rest / np.maximum(ulps(rows[1]), ulps(rows[2]))).max())
    return worst


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "momentum and decay": lambda parameters: torch.optim.SGD(
        parameters, lr=0.05, momentum=0.9, weight_decay=5e-3
    ),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_rounding_is_carried_and_never_adds_up(optimizer: Callable) -> None:
    """40 messages after 5 steps each: the receiver is never further off than one message may be."""
    node = Node(optimizer)
    delta = TapDelta(node.layout)
    sender = receiver = node.vector()
    begin = sender

    for _ in range(40):
        model, before = node.train(steps=5), sender
        payload = delta.encode(model, sender)
        sender, receiver = delta.apply(sender, payload), delta.apply(receiver, payload)

        assert set(delta.moved_by_kernel(payload)) == KERNELS
        assert receiver.tobytes() == sender.tobytes()
        assert worst_rest(node.layout, receiver, model, before) <= delta.ulps
    assert np.abs(sender - begin).max() > 1000 * np.abs(sender - model).max()


def test_an_array_that_rounding_has_spread_too_far_is_sent_whole_and_begins_anew() -> None:
    node = Node(OPTIMIZERS["momentum"])
    delta = TapDelta(node.layout, ulps=2)
    reference = node.vector()
    by_kernel = []

    for _ in range(60):
        model, before = node.train(steps=1), reference
        payload = delta.encode(model, reference)
        reference = delta.apply(reference, payload)

        assert worst_rest(node.layout, reference, model, before) <= 2
        by_kernel.append("6.weight" in delta.moved_by_kernel(payload))
    whole = [message for message, kernels in enumerate(by_kernel) if not kernels]
    assert whole
    assert all(by_kernel[message + 1] for message in whole if message + 1 < len(by_kernel))


def test_exact_gradients_are_sent_whole_and_bit_for_bit() -> None:
    node = Node(OPTIMIZERS["momentum"], filtered=False)
    delta = TapDelta(node.layout)
    reference = node.vector()

    for _ in range(5):
        model = node.train(steps=3)
        payload = delta.encode(model, reference)
        reference = delta.apply(reference, payload)

        assert delta.moved_by_kernel(payload) == ()
        assert reference.tobytes() == model.tobytes()


def test_gossip_keeps_kernels_together() -> None:
    """CHOCO-SGD on a ring of four that begin as one model; nodes have data of their own, one has decay."""
    optimizers = [*(["momentum"] * 3), "momentum and decay"]
    nodes = [Node(OPTIMIZERS[name], seed) for seed, name in enumerate(optimizers)]
    delta = TapDelta(nodes[0].layout)
    start = nodes[0].vector()
    # public[i][j]: node i's copy of what node j has told of its model.
    public = [{j % 4: start.copy() for j in (i - 1, i, i + 1)} for i in range(4)]

    for _ in range(15):
        payloads = []
        for i, node in enumerate(nodes):
            payloads.append(delta.encode(node.train(steps=3), public[i][i]))
            assert set(delta.moved_by_kernel(payloads[i])) == KERNELS
        for i, node in enumerate(nodes):
            for j in public[i]:
                public[i][j] = delta.apply(public[i][j], payloads[j])
            pull = sum((public[i][j] - public[i][i]) / 3 for j in public[i])
            node.load(node.vector() + pull.astype(np.float32))

    for i in range(4):
        for j in public[i]:
            assert public[i][j].tobytes() == public[j][j].tobytes()


def test_a_network_of_3x3_kernels_takes_a_seventh_or_less() -> None:
    """ResNet-20, all convolutions filtered; 1x1 shortcuts, normalisation and the last layer stay whole."""
    torch.manual_seed(0)
    model = resnet20(10)
    prepare_(model, GradientFilter(where=lambda *_: True, fallback="never", basis="walsh"))
    layout = Layout.of(model.state_dict())
    before, _ = layout.flatten(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(torch.randn(2, 3, 16, 16)), torch.tensor([1, 7])).backward()
        optimizer.step()

    payload = TapDelta(layout).encode(layout.flatten(model.state_dict())[0], before)

    mixed = [spec for spec in layout.specs if spec.mixed]
    kernels = sum(spec.size for spec in mixed if spec.shape[2:] == (3, 3)) // 9
    others = sum(spec.size for spec in mixed if spec.shape[2:] != (3, 3))
    assert len(payload) == HEADER_BYTES + len(mixed) + 4 * (kernels + others) + CHECKSUM_BYTES
    assert len(payload) < layout.nbytes / 7


# -------------------------------------------------------------------- messages that nobody vouches for


@pytest.fixture
def message() -> tuple[TapDelta, Vector, bytes]:
    """One array of each way: scaled and moved (5 numbers), moved (4), values (3), kept."""
    rng = np.random.default_rng(1)
    old = {
        "scaled": rng.normal(size=(2, 2, 3, 3)).astype(np.float32),
        "moved": rng.normal(size=(2, 2, 3, 3)).astype(np.float32),
        "values": np.ones(3, np.float32),
        "kept": np.ones((5, 5), np.float32),
    }
    new = old | {
        "scaled": old["scaled"] * np.float32(0.9) + np.float32(0.25),
        "moved": old["moved"] + np.float32(0.25),
        "values": np.zeros(3, np.float32),
    }
    layout = Layout.of(old)
    reference, _ = layout.flatten(old)
    delta = TapDelta(layout)
    payload = delta.encode(layout.flatten(new)[0], reference)
    assert list(payload[HEADER_BYTES : HEADER_BYTES + 4]) == [2, 1, 3, 0]
    assert len(payload) == HEADER_BYTES + 4 + 4 * (5 + 4 + 3) + CHECKSUM_BYTES
    return delta, reference, payload


def test_every_truncation_and_every_flipped_bit_is_refused(message: tuple[TapDelta, Vector, bytes]) -> None:
    delta, reference, payload = message

    for length in range(len(payload)):
        with pytest.raises(ValueError, match="the message"):
            delta.apply(reference, payload[:length])
    with pytest.raises(ValueError, match=f"has {len(payload) + 1} bytes, expected {len(payload)}"):
        delta.apply(reference, payload + b"\0")
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="the message"):
            delta.apply(reference, bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_noise_is_refused(noise: bytes, seal: bool) -> None:
    delta = TapDelta(Layout.of({"a": np.zeros((1, 1, 2, 2), np.float32), "b": np.zeros(2, np.float32)}))
    reference = np.zeros(6, np.float32)
    genuine = delta.encode(reference + 1, reference)
    body = resealed(genuine[:HEADER_BYTES] + noise + b"\0\0\0\0") if seal else noise

    try:
        moved = delta.apply(reference, body)
    except ValueError:
        return
    assert seal  # whoever knows the format can say what they like, but only finite models
    assert np.isfinite(moved).all()


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_no_number_may_be_nan_or_infinite(
    message: tuple[TapDelta, Vector, bytes], number: int, poison: float
) -> None:
    delta, reference, payload = message
    begin = HEADER_BYTES + 4 + 4 * number
    poisoned = resealed(payload[:begin] + struct.pack("<f", poison) + payload[begin + 4 :])

    with pytest.raises(ValueError, match="NaN or infinite numbers"):
        delta.apply(reference, poisoned)


def test_finite_numbers_that_overflow_are_refused(message: tuple[TapDelta, Vector, bytes]) -> None:
    delta, reference, payload = message
    begin = HEADER_BYTES + 4
    huge = resealed(payload[:begin] + struct.pack("<f", 3e38) + payload[begin + 4 :])
    before = reference.copy()

    with pytest.raises(ValueError, match="overflow"):
        delta.apply(reference, huge)
    np.testing.assert_array_equal(reference, before)


@pytest.mark.parametrize(("array", "code"), [(2, 1), (2, 2), (3, 1), (0, 4), (1, 255)])
def test_a_way_that_an_array_cannot_be_sent_is_named(
    message: tuple[TapDelta, Vector, bytes], array: int, code: int
) -> None:
    delta, reference, payload = message
    forged = bytearray(payload)
    forged[HEADER_BYTES + array] = code

    with pytest.raises(ValueError, match=f"in way {code}, which there is not"):
        delta.apply(reference, resealed(bytes(forged)))


def test_another_version_model_or_reference_is_named(message: tuple[TapDelta, Vector, bytes]) -> None:
    delta, reference, payload = message
    other = TapDelta(Layout.of({"values": np.zeros(reference.size, np.float32)}))

    with pytest.raises(ValueError, match="version 2; expected b'FE-delta', 1"):
        delta.apply(reference, resealed(payload[:8] + struct.pack("<H", 2) + payload[10:]))
    with pytest.raises(ValueError, match="another model, of 4 arrays"):
        other.apply(reference, payload)
    with pytest.raises(ValueError, match="another reference"):
        delta.apply(delta.apply(reference, payload), payload)
    with pytest.raises(ValueError, match="another model"):
        other.moved_by_kernel(payload)


def test_a_bad_message_takes_no_memory() -> None:
    delta = TapDelta(Layout.of({"conv": np.zeros((512, 512, 3, 3), np.float32)}))
    reference = np.zeros(delta.layout.size, np.float32)
    payload = delta.encode(reference + 1, reference)

    messages = [payload[: len(payload) // 2], payload[:40], b""]

    tracemalloc.start()
    try:
        for bad in messages:
            tracemalloc.reset_peak()
            with pytest.raises(ValueError, match="bytes, expected"):
                delta.apply(reference, bad)
            assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(4, np.float64), "float64 .4,., expected float32 .4,."),
        (np.zeros(5, np.float32), "float32 .5,., expected float32 .4,."),
        (np.zeros((2, 2), np.float32), "float32 .2, 2., expected"),
        (np.array([0, np.nan, 0, 0], np.float32), "NaN or infinite"),
    ],
    ids=["dtype", "size", "shape", "nan"],
)
def test_what_is_no_vector_of_the_model_is_refused(vector: np.ndarray, message: str) -> None:
    delta, good = TapDelta(Layout.of({"a": np.zeros(4, np.float32)})), np.zeros(4, np.float32)

    with pytest.raises(ValueError, match=f"model (is|has) {message}"):
        delta.encode(vector, good)
    with pytest.raises(ValueError, match=f"reference (is|has) {message}"):
        delta.encode(good, vector)
    with pytest.raises(ValueError, match=f"reference (is|has) {message}"):
        delta.apply(vector, delta.encode(good, good))


@pytest.mark.parametrize("ulps", [0, -1, np.nan, np.inf])
def test_a_bound_that_is_none_is_refused(ulps: float) -> None:
    with pytest.raises(ValueError, match="ulps is"):
        TapDelta(Layout.of({"a": np.zeros(4, np.float32)}), ulps)
