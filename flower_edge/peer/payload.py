"""What mixers send ↔ the bytes that a link carries."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from flower_edge.gossip.codec import Vector
from flower_edge.gossip.compressor import Payload
from flower_edge.gossip.mixer import Mixer


class PayloadError(ValueError):
    """A neighbour's payload that is no vector of this model, or one that would harm it."""


class Codec(Protocol):
    """How what a mixer sends becomes bytes: a vector, unless the mixer makes bytes of its own (`Sealed`).

    Attributes
    ----------
    name : str
        In every frame: a link carries models only if both ends use the codec of the same name. At most 16
        ASCII characters.
    """

    @property
    def name(self) -> str:
        """What frames call it."""

    def largest(self, elements: int) -> int:
        """Return the most bytes that a vector of so many elements can take."""

    def encode(self, vector: Any) -> bytes | memoryview:
        """Return the vector as bytes, which may be a view of it."""

    def decode(self, payload: memoryview, elements: int) -> Any:
        """Return the vector of so many elements, which may be a view of the payload.

        Raises
        ------
        ValueError
            If the payload is not one of such a vector.
        """

    def vectors(self, message: Any) -> Sequence[Vector]:
        """Return the vectors that something decoded consists of, to be looked at.

        Raises
        ------
        ValueError
            If it holds none.
        """


class Fp32:
    """The vector itself, little-endian fp32; nothing is lost."""

    name = "fp32"

    def largest(self, elements: int) -> int:
        """Return 4 bytes an element."""
        return 4 * elements

    def encode(self, vector: Vector) -> memoryview:
        """Return a view of the vector."""
        return np.ascontiguousarray(vector, "<f4").data.cast("B")

    def decode(self, payload: memoryview, elements: int) -> Vector:
        """Return a view of the payload."""
        if len(payload) != 4 * elements:
            raise ValueError(
                f"received {len(payload)} bytes, expected {4 * elements}: fp32, {elements} elements"
            )
        return np.frombuffer(payload, "<f4")

    def vectors(self, message: Vector) -> list[Vector]:
        """Return the vector."""
        return [message]


class Sealed:
    """The bytes that a mixer makes itself.

    Parameters
    ----------
    mixer : Mixer of bytes
        Its `read` says what is good.
    largest_message : callable
        Returns the most bytes that a neighbour's mixer makes, of so many elements.
    """

    def __init__(self, mixer: Mixer[bytes], largest_message: Callable[[int], int]) -> None:
        self.name = mixer.codec_name
        self._mixer = mixer
        self._largest = largest_message

    def largest(self, elements: int) -> int:
        """Return the most bytes that the mixer makes."""
        return self._largest(elements)

    def encode(self, message: bytes) -> bytes:
        """Return the bytes."""
        return message

    def decode(self, payload: memoryview, elements: int) -> Payload:
        """Return the bytes."""
        return payload

    def vectors(self, message: bytes) -> Sequence[Vector]:
        """Return what the mixer reads from the bytes."""
        return self._mixer.read(message)


def check_vector(vector: Vector, elements: int, largest: float) -> None:
    """Raise a `PayloadError` unless it has so many elements, none NaN, none larger in absolute value."""
    if vector.shape != (elements,):
        raise PayloadError(f"received a vector of shape {vector.shape}, expected ({elements},)")
    # No element exceeds the norm. One fast pass tells nearly always; the exact look is for the others.
    with np.errstate(over="ignore", invalid="ignore"):
        if float(np.dot(vector, vector)) <= largest * largest:
            return
    low, high = float(vector.min()), float(vector.max())
    # NaN is neither.
    if not (low >= -largest and high <= largest):
        raise PayloadError(
            f"received a model whose elements lie between {low:g} and {high:g}, "
            f"expected finite ones of at most {largest:g} in absolute value"
        )
