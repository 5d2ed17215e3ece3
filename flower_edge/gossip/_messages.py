"""What a mixer puts around its codec's payloads."""

import struct
from typing import NamedTuple

from flower_edge.gossip.compressor import CodecError, Payload

VERSION = 1
_MAGIC = b"FEmx"
_HEADER = struct.Struct("<4sB7sIIQ")
_LARGEST_COUNT = 2**32


class Letter(NamedTuple):
    """One message of a mixer.

    Attributes
    ----------
    algorithm : str
        Whose it is; at most 7 ASCII characters.
    epoch, exchanges : int
        How often the memories were begun anew, and how many exchanges the link has had since; modulo 2³².
    catch_up : bytes-like
        What the receiver has missed, by a codec of its own; may be empty.
    payload : bytes-like
        What is new, by the mixer's codec.
    """

    algorithm: str
    epoch: int
    exchanges: int
    catch_up: Payload
    payload: Payload


LONGEST_HEADER = _HEADER.size


def seal(letter: Letter) -> bytes:
    """Return the bytes of a message."""
    header = _HEADER.pack(
        _MAGIC,
        VERSION,
        letter.algorithm.encode("ascii"),
        letter.epoch % _LARGEST_COUNT,
        letter.exchanges % _LARGEST_COUNT,
        len(letter.catch_up),
    )
    return b"".join([header, letter.catch_up, letter.payload])


def unseal(message: Payload, algorithm: str) -> Letter:
    """Return a message of an algorithm.

    Raises
    ------
    CodecError
        If it is cut off, or of another version or algorithm.
    """
    view = memoryview(message)
    if len(view) < _HEADER.size:
        raise CodecError(f"the message has {len(view)} bytes, expected {_HEADER.size} at least")
    magic, version, name, epoch, exchanges, catch_up = _HEADER.unpack_from(view)
    if magic != _MAGIC or version != VERSION:
        raise CodecError(
            f"the message begins with {magic!r}, version {version}; expected {_MAGIC!r}, {VERSION}"
        )
    sender = name.rstrip(b"\0").decode("ascii", "replace")
    if sender != algorithm:
        raise CodecError(f"the message is of algorithm {sender!r}, expected {algorithm!r}")
    body = view[_HEADER.size :]
    if catch_up > len(body):
        raise CodecError(f"the message is cut off: {len(body)} bytes after its header, {catch_up} announced")
    return Letter(algorithm, epoch, exchanges, body[:catch_up], body[catch_up:])


def in_step(letter: Letter, counts: tuple[int, int]) -> bool:
    """Whether the other end knows of as many epochs and exchanges of the link."""
    epoch, exchanges = counts
    return (letter.epoch, letter.exchanges) == (epoch % _LARGEST_COUNT, exchanges % _LARGEST_COUNT)
