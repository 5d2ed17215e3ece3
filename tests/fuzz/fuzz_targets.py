"""What reads bytes from others: each target takes any bytes, and lets nothing escape but what it documents.

A target that has read something checks what its reader promises. Where a checksum would keep random changes
out, a second target of the same reader puts the right one in."""

import json
import ssl
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from flower_edge.gossip import (
    ChocoCopies,
    ChocoSGD,
    CompressedMixer,
    DeepSqueeze,
    GossipPlan,
    Int4,
    Int8,
    LinkChoco,
    PlainQuantised,
    SignNorm,
    TopK,
)
from flower_edge.gossip._messages import Letter, seal, unseal
from flower_edge.gossip.codec import Layout, is_finite
from flower_edge.gossip.compressor import BFloat16, Codec, CodecError, Float32
from flower_edge.gossip.delta import TapDelta
from flower_edge.peer import (
    Fp32,
    FrameError,
    Identity,
    Member,
    PayloadError,
    PeerSession,
    PeerSettings,
    fingerprint,
    rows_of,
)
from flower_edge.peer.frames import (
    CHUNK_BYTES,
    HEADER_BYTES,
    LARGEST_ROUND,
    Frame,
    Kind,
    decode,
    hello,
    model_frames,
)
from flower_edge.peer.identity import server_name, subject
from flower_edge.peer.inbox import MOST_SPARE, Inbox
from flower_edge.peer.neighbour import Neighbour
from flower_edge.peer.part import run_id

RUN = run_id("fuzz")
ELEMENTS = 97
LAST_ROUND = 9
ARRAYS = {
    "conv": np.linspace(-1, 1, 72, dtype=np.float32).reshape(4, 2, 3, 3),
    "bias": np.zeros(5, np.float32),
    "fc": np.ones((4, 5), np.float32),
}
LAYOUT = Layout.of(ARRAYS)
assert LAYOUT.size == ELEMENTS
VECTOR = LAYOUT.flatten(ARRAYS)[0]


@dataclass(frozen=True)
class Target:
    """Something that reads bytes.

    `read` says whether nothing was refused; `seeds` are good inputs, from which changes start."""

    read: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]


# -------------------------------------------------------------------- frames

CONTROLS = (
    hello(RUN, 1, 3, "fp32").encode(),
    *(Frame(kind, RUN, 1, 3).encode() for kind in Kind if kind is not Kind.MODEL),
)
MODEL = next(model_frames(RUN, 1, 3, "fp32", Fp32().encode(VECTOR)))


def read_frame(data: bytes) -> bool:
    try:
        frame = decode(data)
    except FrameError:
        return False
    assert frame.offset + len(frame.chunk) <= frame.size or not frame.size
    assert frame.round <= LARGEST_ROUND
    assert len(frame.chunk) <= CHUNK_BYTES
    assert decode(frame.encode()).encode() == frame.encode()
    return True


def read_frame_with_right_checksum(data: bytes) -> bool:
    """The length, too."""
    if len(data) >= HEADER_BYTES:
        header = data[: HEADER_BYTES - 8] + (len(data) - HEADER_BYTES).to_bytes(4, "little")
        checksum = zlib.crc32(data[HEADER_BYTES:], zlib.crc32(header))
        data = header + checksum.to_bytes(4, "little") + data[HEADER_BYTES:]
    return read_frame(data)


# -------------------------------------------------------------------- models and what is said between them

RECORD = 8
"""Kind, round, codec, size (2), offset (2), length of the chunk; what follows is cut into such records."""

CODECS = ("fp32", "bf16", "")


def records(data: bytes) -> list[Frame]:
    """Frames as a neighbour could send them who knows the format and has the key."""
    frames = []
    while len(data) >= RECORD:
        kind, round_, codec = data[0] % 8, data[1] % 16, CODECS[data[2] % 3]
        size, offset = int.from_bytes(data[3:5], "little"), int.from_bytes(data[5:7], "little")
        chunk, data = data[RECORD : RECORD + 2 * data[7]], data[RECORD + 2 * data[7] :]
        frames.append(Frame(kind, RUN, 1, round_, codec, size, offset, chunk))  # type: ignore[arg-type]
    return frames


def record(kind: int, round_: int, offset: int = 0, chunk: bytes = b"", size: int = 0) -> bytes:
    header = (
        bytes([kind, round_, 0 if kind == Kind.MODEL else 2])
        + size.to_bytes(2, "little")
        + offset.to_bytes(2, "little")
    )
    return header + bytes([len(chunk) // 2]) + chunk


def model_of(round_: int) -> bytes:
    payload = bytes(Fp32().encode(VECTOR))
    return record(2, round_, 0, payload[:200], 4 * ELEMENTS) + record(
        2, round_, 200, payload[200:], 4 * ELEMENTS
    )


def read_into_inbox(data: bytes) -> bool:
    inbox, refused = Inbox(Fp32(), ELEMENTS, largest=1e8), 0
    for frame in records(data):
        try:
            whole = inbox.add(decode(frame.encode()))
        except (FrameError, PayloadError):
            refused += 1
            continue
        if whole:
            model = inbox.model_of(frame.round)
            assert model is not None
            assert is_finite(model)
            assert len(model) == ELEMENTS
            assert np.abs(model).max() <= 1e8
        if frame.round % 3 == 0:
            inbox.release()
        buffers = [inbox._payload, *inbox._spare, *inbox._handed]
        assert all(len(buffer) <= 4 * ELEMENTS for buffer in buffers)
        assert len(inbox._spare) <= MOST_SPARE
    return not refused


ROWS = rows_of(GossipPlan.from_matrix(np.full((2, 2), 0.5)), 0)


def neighbour() -> Neighbour:
    """The near end of a link, node 0's, that nothing is connected to."""
    session = PeerSession(
        0,
        ROWS,
        [Member(1, "127.0.0.1:9")],
        VECTOR,
        lambda model, round_: (model, {}),
        run="fuzz",
        listen="127.0.0.1:0",
        identity=None,
        settings=PeerSettings(insecure=True),
    )
    return session._neighbours(LAST_ROUND)[1]


def hear_from_neighbour(data: bytes) -> bool:
    """Frames in any order; kind 7 is the near end, which goes on to the next round."""
    near, refused = neighbour(), 0
    counted = set()
    for frame in records(data):
        if frame.kind == 7:
            if near.link.round < LAST_ROUND:
                near.enter(near.link.round + 1)
                near.link.settled = None
                near.link.begin(near.link.round + 1)
                near.link.sent()
        else:
            try:
                near.take(frame.encode())
            except FrameError:
                refused += 1
                continue
        if near.link.outcome.value == "counted":
            counted.add(near.link.round)
    assert near.their_round <= LAST_ROUND
    assert all(1 <= round_ <= LAST_ROUND for round_ in counted)
    return not refused


# -------------------------------------------------------------------- codecs and messages

COMPRESSORS = {
    "fp32": Float32(),
    "bf16": BFloat16(),
    "int8": Int8(),
    "int4": Int4(),
    "sign": SignNorm(),
    "top-k": TopK(0.1),
}


def read_codec(codec: Codec, data: bytes) -> bool:
    try:
        vector = codec.decode(data)
    except CodecError:
        return False
    assert vector.shape == (ELEMENTS,)
    assert is_finite(vector)
    return True


def read_body(codec: Codec, data: bytes) -> bool:
    """What follows the right header."""
    return read_codec(codec, codec._header + data)


def read_letter(data: bytes) -> bool:
    try:
        letter = unseal(data, "choco")
    except CodecError:
        return False
    assert len(letter.catch_up) + len(letter.payload) < len(data)
    assert seal(letter) == data
    return True


TWO = GossipPlan.from_matrix(np.full((2, 2), 0.5))
TWO_ROWS = [TWO.row(node, 0) for node in range(2)]
INT8 = Int8().codec(LAYOUT)
MIXERS = (ChocoSGD, ChocoCopies, LinkChoco, DeepSqueeze, PlainQuantised)


def mixer_of(kind: type[CompressedMixer], node: int) -> CompressedMixer:
    return kind(node, TWO, INT8, gamma=0.5)


def mix_message(kind: type[CompressedMixer], data: bytes) -> bool:
    """What is read may be mixed; the first byte says in which exchange of the link it arrives."""
    mixer, other = mixer_of(kind, 0), mixer_of(kind, 1)
    for _ in range(data[0] % 3 if data else 0):
        received = {1: other.outgoing(VECTOR, [0])[0]}
        sent = {0: mixer.outgoing(VECTOR, [1])[1]}
        mixer.mix(VECTOR, TWO_ROWS[0], received)
        other.mix(VECTOR, TWO_ROWS[1], sent)
    mixer.outgoing(VECTOR, [1])
    try:
        vectors = mixer.read(data[1:])
    except ValueError:
        return False
    assert all(is_finite(vector) and len(vector) == ELEMENTS for vector in vectors)
    if all(np.abs(vector).max() <= 1e8 for vector in vectors):
        assert is_finite(mixer.mix(VECTOR, TWO_ROWS[0], {1: data[1:]}))
    return True


def read_payload(data: bytes) -> bool:
    try:
        vector = Fp32().decode(memoryview(data), ELEMENTS)
    except ValueError:
        return False
    assert vector.shape == (ELEMENTS,)
    return True


DELTA = TapDelta(LAYOUT)


def read_delta(data: bytes) -> bool:
    try:
        moved = DELTA.apply(VECTOR, data)
    except ValueError:
        return False
    assert is_finite(moved)
    return True


def read_delta_with_right_checksum(data: bytes) -> bool:
    return read_delta(data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little"))


# -------------------------------------------------------------------- plans and certificates

PLAN = GossipPlan.from_matrix(np.full((3, 3), 1 / 3))
CERTIFICATE = Identity.temporary().certificate


def read_plan(data: bytes) -> bool:
    text = "{" + data.decode("utf-8", "replace")
    try:
        plan = GossipPlan.from_json(text)
    except ValueError:
        return False
    assert GossipPlan.from_json(json.dumps(json.loads(text))).digest() == plan.digest()
    return True


def read_certificate(data: bytes) -> bool:
    refused = 0
    for reader in (fingerprint, subject, server_name):
        try:
            reader(data)
        except ValueError:
            refused += 1
    return not refused


def read_certificate_in_der(data: bytes) -> bool:
    """Whose base64 is right."""
    return read_certificate(ssl.DER_cert_to_PEM_cert(data).encode())


def codec_targets() -> dict[str, Target]:
    targets = {}
    for name, compressor in COMPRESSORS.items():
        codec = compressor.codec(LAYOUT)
        message = codec.encode(VECTOR)
        targets[f"codec {name}"] = Target(partial(read_codec, codec), (message,))
        targets[f"body {name}"] = Target(partial(read_body, codec), (message[len(codec._header) :],))
    return targets


TARGETS = {
    "frame": Target(read_frame, (*CONTROLS, MODEL)),
    "frame, checksum right": Target(read_frame_with_right_checksum, (*CONTROLS, MODEL)),
    "inbox": Target(read_into_inbox, (model_of(1) + model_of(2), model_of(3))),
    "neighbour": Target(
        hear_from_neighbour,
        (
            record(1, 1)
            + record(7, 0)
            + model_of(1)
            + record(3, 1)
            + record(7, 0)
            + model_of(2)
            + record(3, 2),
            record(7, 0) + record(4, 1) + record(5, 1) + record(6, 9),
        ),
    ),
    **codec_targets(),
    **{
        f"message of {kind.__name__}": Target(
            partial(mix_message, kind), (b"\0" + mixer_of(kind, 1).outgoing(VECTOR, [0])[0],)
        )
        for kind in MIXERS
    },
    "letter": Target(read_letter, (seal(Letter("choco", 1, 2, b"catch up", b"payload")),)),
    "payload": Target(read_payload, (bytes(Fp32().encode(VECTOR)),)),
    "delta": Target(read_delta, (DELTA.encode(VECTOR + 1, VECTOR),)),
    "delta, checksum right": Target(read_delta_with_right_checksum, (DELTA.encode(VECTOR + 1, VECTOR),)),
    "plan": Target(read_plan, (json.dumps(json.loads(PLAN.to_json())).encode()[1:],)),
    "certificate": Target(read_certificate, (CERTIFICATE,)),
    "certificate, base64 right": Target(
        read_certificate_in_der, (ssl.PEM_cert_to_DER_cert(CERTIFICATE.decode()),)
    ),
}
