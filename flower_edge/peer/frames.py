"""What travels over a link: frames of a fixed header and at most one chunk of a model."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"FEDG"
VERSION = 1

_HEADER = struct.Struct("<4sBB2x16sIQ16sQQII")
"""Magic, version, kind, run, node, round, codec, size, offset, length, checksum; little-endian."""

_CHECKSUM = struct.Struct("<I")

HEADER_BYTES = _HEADER.size
CHUNK_BYTES = 1 << 20
LARGEST_FRAME = HEADER_BYTES + CHUNK_BYTES

RUN_BYTES, CODEC_BYTES = 16, 16
LARGEST_TERMS = 256
LARGEST_NODE, LARGEST_ROUND = 2**32 - 1, 2**63 - 1


class FrameError(ValueError):
    """A frame that is damaged, or that nobody who keeps the rules would send."""


class TermsError(FrameError):
    """A neighbour that uses another codec, or mixes in another way."""


class Kind(IntEnum):
    """What a frame says; `round` is the round that it speaks of."""

    HELLO = 1
    """The sender is in this round; the chunk says which codec and algorithm it uses, none that it is fp32."""
    MODEL = 2
    """A chunk of what the sender's mixer gives to its neighbours in this round."""
    READY = 3
    """The sender has the other end's model and has sent its own: is the link to be counted?"""
    COMMIT = 4
    """Both ends count the link in this round."""
    ABORT = 5
    """Neither end counts the link in this round."""
    BYE = 6
    """The sender has done its last round and will exchange no more models."""


@dataclass(frozen=True)
class Frame:
    """One message of a link.

    Parameters
    ----------
    kind : Kind
    run : bytes
        16 bytes that name the run.
    node : int
        Who sends it: its index in the plan.
    round : int
        Which round it speaks of.
    codec : str
        Name of the codec of the payload that the chunk is a part of; at most 16 ASCII characters. Empty
        unless the kind is ``MODEL``.
    size : int
        Bytes of the whole payload.
    offset : int
        Where the chunk begins in it.
    chunk : bytes or memoryview
        At most `CHUNK_BYTES`; of a ``HELLO``, at most `LARGEST_TERMS`; of others, none.
    """

    kind: Kind
    run: bytes
    node: int
    round: int
    codec: str = ""
    size: int = 0
    offset: int = 0
    chunk: bytes | memoryview = b""

    @property
    def is_last(self) -> bool:
        """Whether the payload ends with this chunk."""
        return self.offset + len(self.chunk) == self.size

    def encode(self) -> bytes:
        """Return the frame as bytes; `decode` reads them back."""
        fields = (
            *(MAGIC, VERSION, self.kind, self.run, self.node, self.round),
            *(self.codec.encode("ascii"), self.size, self.offset, len(self.chunk)),
        )
        header = _HEADER.pack(*fields, 0)[: -_CHECKSUM.size]
        return b"".join([header, _CHECKSUM.pack(_checksum(header, self.chunk)), self.chunk])


def decode(message: bytes) -> Frame:
    """Read a frame that came over the network.

    Its chunk is a view of `message`: nothing is allocated by what the frame claims.

    Raises
    ------
    FrameError
        If it is no frame, has another length than it says, was damaged on its way, or its fields contradict
        each other.
    """
    if not HEADER_BYTES <= len(message) <= LARGEST_FRAME:
        raise FrameError(
            f"received a frame of {len(message)} bytes, expected {HEADER_BYTES} to {LARGEST_FRAME}"
        )
    magic, version, kind, run, node, round_, codec, size, offset, length, checksum = _HEADER.unpack_from(
        message
    )
    if (magic, version) != (MAGIC, VERSION):
        raise FrameError(f"received {magic!r}, version {version}; expected {MAGIC!r}, version {VERSION}")
    chunk = memoryview(message)[HEADER_BYTES:]
    if length != len(chunk):
        raise FrameError(f"received a frame with {len(chunk)} bytes after its header, expected {length}")
    if checksum != _checksum(message[: HEADER_BYTES - _CHECKSUM.size], chunk):
        raise FrameError(f"received a damaged frame: its checksum is not {checksum:#010x}")
    # The rest was sent as it is here, by somebody who knows the format.
    try:
        frame = Frame(Kind(kind), run, node, round_, codec.rstrip(b"\0").decode("ascii"), size, offset, chunk)
    except ValueError as error:
        raise FrameError(f"received a frame of kind {kind}, codec {codec!r}: {error}") from None
    _check(frame)
    return frame


def hello(run: bytes, node: int, round: int, terms: str) -> Frame:
    """Return what a node says first: its round, and what it wants both ends to agree on."""
    chunk = terms.encode("ascii")
    return Frame(Kind.HELLO, run, node, round, size=len(chunk), chunk=chunk)


def model_frames(
    run: bytes, node: int, round: int, codec: str, payload: bytes | memoryview
) -> Iterator[bytes]:
    """Cut a payload into encoded ``MODEL`` frames; the first has offset 0.

    Parameters
    ----------
    run, node, round, codec
        As in `Frame`.
    payload : bytes or memoryview of bytes
        What the codec made of the vector; at least one byte.
    """
    view = memoryview(payload).cast("B")
    for offset in range(0, len(view), CHUNK_BYTES):
        chunk = view[offset : offset + CHUNK_BYTES]
        yield Frame(Kind.MODEL, run, node, round, codec, len(view), offset, chunk).encode()


def _check(frame: Frame) -> None:
    if frame.round > LARGEST_ROUND:
        raise FrameError(f"received a frame of round {frame.round}, expected at most {LARGEST_ROUND}")
    if frame.kind == Kind.HELLO:
        if frame.codec or not len(frame.chunk) == frame.size <= LARGEST_TERMS or frame.offset:
            raise FrameError(
                f"received a HELLO with {len(frame.chunk)} bytes of terms, expected at most {LARGEST_TERMS}"
            )
        return
    if frame.kind != Kind.MODEL:
        if frame.codec or frame.size or frame.offset or len(frame.chunk):
            raise FrameError(f"received a {frame.kind.name} with a payload, expected none")
        return
    if not frame.codec or not len(frame.chunk):
        raise FrameError("received a MODEL frame without codec or chunk, expected both")
    if frame.offset + len(frame.chunk) > frame.size:
        raise FrameError(
            f"received bytes {frame.offset} to {frame.offset + len(frame.chunk)} of a payload of {frame.size}"
        )


def _checksum(header: bytes, chunk: bytes | memoryview) -> int:
    return zlib.crc32(chunk, zlib.crc32(header))
