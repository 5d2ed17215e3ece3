"""Vectors ↔ the bytes that a link carries."""

from typing import Protocol

import numpy as np

from flower_edge.gossip.codec import Vector


class PayloadError(ValueError):
    """A neighbour's payload that is no vector of this model, or one that would harm it."""


class Codec(Protocol):
    """How what a mixer sends becomes bytes.

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

    def encode(self, vector: Vector) -> bytes | memoryview:
        """Return the vector as bytes, which may be a view of it."""

    def decode(self, payload: memoryview, elements: int) -> Vector:
        """Return the vector of so many elements, which may be a view of the payload.

        Raises
        ------
        ValueError
            If the payload is not one of such a vector.
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


def check_vector(vector: Vector, largest: float) -> None:
    """Raise a `PayloadError` if an element is NaN, or larger than `largest` in absolute value."""
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
