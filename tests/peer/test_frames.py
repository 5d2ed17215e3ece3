"""Frames and models from the network: read back as sent, or refused before memory is taken."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flower_edge.peer import Fp32, FrameError, PayloadError
from flower_edge.peer.frames import (
    CHUNK_BYTES,
    HEADER_BYTES,
    LARGEST_FRAME,
    LARGEST_ROUND,
    LARGEST_TERMS,
    Frame,
    Kind,
    decode,
    hello,
    model_frames,
)
from flower_edge.peer.inbox import Inbox

pytestmark = pytest.mark.board

RUN = bytes(range(16))

controls = st.builds(
    Frame,
    kind=st.sampled_from([kind for kind in Kind if kind is not Kind.MODEL]),
    run=st.binary(min_size=16, max_size=16),
    node=st.integers(0, 2**32 - 1),
    round=st.integers(0, LARGEST_ROUND),
)
names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=16)


@st.composite
def model_chunks(draw: st.DrawFn) -> Frame:
    chunk = draw(st.binary(min_size=1, max_size=200))
    offset = draw(st.integers(0, 2**40))
    size = offset + len(chunk) + draw(st.integers(0, 2**40))
    control = draw(controls)
    return Frame(Kind.MODEL, control.run, control.node, control.round, draw(names), size, offset, chunk)


def frame_of(chunk: bytes, **fields: object) -> Frame:
    values = {"kind": Kind.MODEL, "codec": "fp32", "size": len(chunk), "offset": 0, **fields}
    return Frame(run=RUN, node=1, round=values.pop("round", 3), chunk=chunk, **values)


@settings(deadline=None)
@given(controls | model_chunks())
def test_frames_read_back(frame: Frame) -> None:
    received = decode(frame.encode())

    assert bytes(received.chunk) == bytes(frame.chunk)
    assert received.encode() == frame.encode()


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=LARGEST_TERMS + 50))
def test_terms_are_short(terms: str) -> None:
    frame = hello(RUN, 3, 7, terms)
    if len(terms) <= LARGEST_TERMS:
        received = decode(frame.encode())
        assert (received.kind, bytes(received.chunk).decode()) == (Kind.HELLO, terms)
    else:
        with pytest.raises(FrameError, match="bytes of terms, expected at most 256"):
            decode(frame.encode())


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.MODEL, Kind.HELLO)])
def test_other_frames_have_no_payload(kind: Kind) -> None:
    with pytest.raises(FrameError, match=f"received a {kind.name} with a payload"):
        decode(Frame(kind, RUN, 3, 7, size=1, chunk=b"x").encode())


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=4 * HEADER_BYTES) | st.binary().map(lambda rest: b"FEDG\x01\x02" + rest))
def test_noise_is_refused(message: bytes) -> None:
    with pytest.raises(FrameError):
        decode(message)


@settings(deadline=None, max_examples=300)
@given(controls | model_chunks(), st.data())
def test_a_changed_byte_is_noticed(frame: Frame, data: st.DataObject) -> None:
    message = bytearray(frame.encode())
    where = data.draw(st.integers(0, len(message) - 1))
    message[where] ^= data.draw(st.integers(1, 255))

    with pytest.raises(FrameError):
        decode(bytes(message))


@settings(deadline=None)
@given(controls | model_chunks(), st.data())
def test_a_truncated_frame_is_noticed(frame: Frame, data: st.DataObject) -> None:
    message = frame.encode()

    with pytest.raises(FrameError):
        decode(message[: data.draw(st.integers(0, len(message) - 1))])


@settings(deadline=None)
@given(
    *(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=16)),
    *(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=64)),
)
@example(kind=2, round_=0, codec=b"\xff", size=1, offset=0, chunk=b"x")
@example(kind=2, round_=0, codec=b"fp32", size=1, offset=2**64 - 1, chunk=b"x")
def test_whatever_knows_the_format_gets_no_further_than_a_frame_error(
    kind: int, round_: int, codec: bytes, size: int, offset: int, chunk: bytes
) -> None:
    """Fields that no encoder here writes, under a checksum that is right."""

    class Raw(bytes):
        def encode(self, _: str) -> bytes:
            return bytes(self)

    message = Frame(kind, RUN, 1, round_, Raw(codec), size, offset, chunk).encode()  # type: ignore[arg-type]

    try:
        frame = decode(message)
    except FrameError:
        return
    assert frame.offset + len(frame.chunk) <= max(frame.size, 0)
    assert frame.round <= LARGEST_ROUND


def test_a_frame_that_is_too_long_is_refused() -> None:
    with pytest.raises(FrameError, match=f"{LARGEST_FRAME + 1} bytes, expected {HEADER_BYTES} to"):
        decode(bytes(LARGEST_FRAME + 1))


def test_a_control_frame_with_a_payload_is_refused() -> None:
    with pytest.raises(FrameError, match="READY with a payload"):
        decode(frame_of(b"x", kind=Kind.READY).encode())


@pytest.mark.parametrize("elements", [1, 7, 97, CHUNK_BYTES // 4, CHUNK_BYTES // 4 + 1, CHUNK_BYTES])
def test_a_model_in_frames_arrives_as_it_was(elements: int) -> None:
    model = np.random.default_rng(elements).standard_normal(elements).astype(np.float32)
    inbox = Inbox(Fp32(), elements, largest=1e8)

    whole = [
        inbox.add(decode(frame))
        for frame in model_frames(RUN, 1, 5, "fp32", memoryview(Fp32().encode(model)))
    ]

    assert whole == [False] * (len(whole) - 1) + [True]
    assert all(inbox.model_of(round_) is None for round_ in (4, 6))
    np.testing.assert_array_equal(inbox.model_of(5), model)


def test_a_model_stays_what_it_was_when_the_next_one_arrives() -> None:
    inbox = Inbox(Fp32(), 3, largest=1e8)
    for round_, value in ((1, 1.0), (2, 2.0)):
        inbox.add(frame_of(np.full(3, value, "<f4").tobytes(), round=round_))
        if round_ == 1:
            first = inbox.model_of(1)

    np.testing.assert_array_equal(first, np.ones(3))
    np.testing.assert_array_equal(inbox.model_of(2), 2 * np.ones(3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codec": "bf16"}, "received codec 'bf16', expected 'fp32'"),
        ({"size": 2**40}, "payload of 1099511627776 bytes, expected at most 400"),
        ({"size": 400, "offset": 8}, "received bytes from 8 of 400 of round 3, expected those from 0"),
    ],
)
def test_a_payload_is_refused_before_memory_is_taken(fields: dict, message: str) -> None:
    inbox = Inbox(Fp32(), 100, largest=1e8)
    frame = frame_of(b"12345678", **fields)

    tracemalloc.start()
    with pytest.raises(FrameError, match=message):
        inbox.add(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 20_000


def test_a_replayed_chunk_is_refused() -> None:
    inbox = Inbox(Fp32(), 4, largest=1e8)
    inbox.add(frame_of(bytes(8), size=16))

    with pytest.raises(FrameError, match="bytes from 0 of 16 of round 3, expected those from 8"):
        inbox.add(frame_of(bytes(8), size=16))


def test_a_replayed_model_of_an_earlier_round_is_refused() -> None:
    inbox = Inbox(Fp32(), 4, largest=1e8)
    inbox.add(frame_of(bytes(16), round=3))

    for round_ in (3, 2):
        with pytest.raises(FrameError, match="expected those from 16"):
            inbox.add(frame_of(bytes(16), round=round_))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.1e8, -2e30])
def test_a_model_that_would_harm_is_refused(bad: float) -> None:
    inbox = Inbox(Fp32(), 7, largest=1e8)
    model = np.zeros(7, "<f4")
    model[3] = bad

    with pytest.raises(PayloadError, match="expected finite ones of at most 1e\\+08"):
        inbox.add(frame_of(model.tobytes()))
    assert inbox.model_of(3) is None


def test_a_short_payload_is_no_model() -> None:
    inbox = Inbox(Fp32(), 7, largest=1e8)

    with pytest.raises(PayloadError, match="received 8 bytes, expected 28"):
        inbox.add(frame_of(bytes(8)))


def test_memory_is_used_again_once_it_is_given_back() -> None:
    inbox = Inbox(Fp32(), 5000, largest=1e8)

    def arrives(round_: int) -> np.ndarray:
        inbox.add(frame_of(np.full(5000, round_, "<f4").tobytes(), round=round_))
        return inbox.model_of(round_)

    first = arrives(1)
    second = arrives(2)
    assert not np.shares_memory(first, second)
    inbox.release()
    third = arrives(3)
    assert np.shares_memory(first, third)
    fourth = arrives(4)
    np.testing.assert_array_equal(third, np.full(5000, 3.0))
    np.testing.assert_array_equal(second, np.full(5000, 2.0))
    assert not any(np.shares_memory(fourth, other) for other in (second, third))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["arrive", "take", "release", "clear"]), max_size=40))
def test_a_model_that_is_held_is_never_written_over(events: list[str]) -> None:
    inbox, round_, held = Inbox(Fp32(), 16, largest=1e8), 0, []
    for event in events:
        if event == "arrive":
            round_ += 1
            inbox.add(frame_of(np.full(16, round_, "<f4").tobytes(), round=round_))
        elif event == "take" and (model := inbox.model_of(round_)) is not None:
            held.append((round_, model))
        elif event == "release":
            held = []
            inbox.release()
        elif event == "clear":
            inbox.clear()
        for number, model in held:
            np.testing.assert_array_equal(model, np.full(16, number))
