"""Vectors ↔ few bytes: what a link carries in place of fp32."""

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import ArraySpec, Layout, Vector, is_finite

Per: TypeAlias = Literal["channel", "array"]
Body: TypeAlias = memoryview
Payload: TypeAlias = bytes | bytearray | memoryview

VERSION = 1
LARGEST = np.finfo(np.float32).max
_MAGIC = b"FEcx"
_HEADER = struct.Struct("<4sBB8sQ")
_LONGEST_NAME = 16
_SAMPLE = 65536


class CodecError(ValueError):
    """Bytes that are no vector of this codec: damaged, cut off, of another codec or another model."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Stretches of a vector that have a scale each.

    Parameters
    ----------
    lengths : ndarray of int64, shape (m,)
        Elements of each stretch, 1 or more; they follow each other.
    """

    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, layout: Layout, per: Per) -> "Blocks":
        """Cut at arrays, or at output channels: the rows of arrays that have two dimensions or more."""
        lengths: list[int] = []
        for spec in layout.specs:
            if spec.mixed and spec.size:
                rows = spec.shape[0] if per == "channel" and len(spec.shape) > 1 else 1
                lengths += [spec.size // rows] * rows
        return cls(np.array(lengths, np.int64))

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each stretch begins."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    @property
    def count(self) -> int:
        """Number of stretches."""
        return len(self.lengths)

    def spread(self, numbers: npt.NDArray[np.float32]) -> Vector:
        """Repeat each stretch's number for all of its elements."""
        return np.repeat(numbers, self.lengths)


@dataclass(frozen=True)
class Compressor(ABC):
    """How a vector becomes few bytes, whatever its model; `codec` makes what works on a model's vectors.

    Parameters
    ----------
    small : {"whole", "compressed"}, default "whole"
        Whether arrays of fewer than two dimensions (biases, what belongs to a norm) travel as fp32. They are
        few, and a variance that is guessed from a neighbour's sign may become negative.
    """

    small: Literal["whole", "compressed"] = field(default="whole", kw_only=True)

    def __post_init__(self) -> None:
        if self.small not in ("whole", "compressed"):
            raise ValueError(f"small is {self.small!r}, expected 'whole' or 'compressed'")

    @property
    @abstractmethod
    def name(self) -> str:
        """What both ends of a link have to agree on; at most 16 ASCII characters."""

    @abstractmethod
    def largest(self, size: int, blocks: Blocks) -> int:
        """Return the most bytes that `pack` makes of a vector of so many elements."""

    @abstractmethod
    def pack(self, vector: Vector, blocks: Blocks, draw: int) -> list[npt.NDArray[np.generic]]:
        """Return the parts of a finite vector's body, in their order; see `Codec.encode`."""

    @abstractmethod
    def unpack(self, body: Body, size: int, blocks: Blocks) -> Vector:
        """Return a body's vector, finite; a `CodecError` if it is none of so many elements."""

    def blocks(self, layout: Layout) -> Blocks:
        """Return which elements of a model share a scale; those of an array, unless overridden."""
        return Blocks.of(layout, "array")

    def codec(self, layout: Layout | int) -> "Codec":
        """Return the codec of a model's vectors.

        Parameters
        ----------
        layout : Layout or int
            The model's, equal at both ends; or the number of elements of a vector without arrays.
        """
        if isinstance(layout, int):
            layout = Layout((ArraySpec("vector", (1, layout), "float32"),))
        return Codec(self, layout)


@dataclass(frozen=True, eq=False)
class Codec:
    """Turns the vectors of one model into bytes and back.

    A message has a header (magic, version, the codec's name, a fingerprint of the layout, the number of
    elements), and a body: small arrays in fp32, if they travel whole, and what the compressor makes of the
    others, its scales included. Numbers are little-endian. All
    machines read the same vector from a message, to the bit.

    Parameters
    ----------
    compressor : Compressor
    layout : Layout
        The model's. What it mixes is what a vector holds.

    Raises
    ------
    ValueError
        If the layout mixes nothing.
    """

    compressor: Compressor
    layout: Layout

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("the layout mixes no elements, expected at least one")
        if not self.name.isascii() or not 0 < len(self.name) <= _LONGEST_NAME:
            raise ValueError(
                f"the codec's name is {self.name!r}, expected 1 to {_LONGEST_NAME} ASCII characters"
            )

    @property
    def name(self) -> str:
        """The compressor's: what a neighbour has to use, too."""
        return self.compressor.name

    @property
    def size(self) -> int:
        """Elements of a vector."""
        return self.layout.size

    @cached_property
    def largest_message(self) -> int:
        """The most bytes that a vector takes; more need not be received."""
        longest = self.compressor.largest(self._rest.size, self._blocks) if self._rest.size else 0
        return len(self._header) + 4 * (self.size - self._rest.size) + longest

    def encode(self, vector: Vector, draw: int = 0) -> bytes:
        """Compress a vector.

        Parameters
        ----------
        vector : ndarray of float32, shape (size,)
            Finite.
        draw : int, default 0
            Which random numbers are drawn, if the compressor draws any: the same of the same number.

        Returns
        -------
        bytes
            For :meth:`decode`.

        Raises
        ------
        ValueError
            For another shape or dtype, NaN or infinity.
        """
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise ValueError(
                f"received a vector of {vector.dtype} {vector.shape}, expected float32 ({self.size},)"
            )
        if not is_finite(vector):
            raise ValueError("the vector has NaN or infinite elements, expected finite ones")
        small, rest = ([vector[here] for here in places] for places in self._places)
        parts: list[npt.NDArray[np.generic]] = [part.astype("<f4", copy=False) for part in small]
        if rest:
            joined = rest[0] if len(rest) == 1 else np.concatenate(rest)
            parts += self.compressor.pack(joined, self._blocks, draw)
        return b"".join([self._header, *(part.data for part in parts)])

    def decode(self, message: Payload) -> Vector:
        """Return what a message says.

        Parameters
        ----------
        message : bytes-like
            From :meth:`encode` of a neighbour, and not trusted: sizes are compared with what is expected
            before memory is taken.

        Returns
        -------
        ndarray of float32, shape (size,)
            Finite; read-only where it is a view of the message.

        Raises
        ------
        CodecError
            If it is damaged, cut off, or of another version, codec or model; the message says which.
        """
        view = memoryview(message)
        self._check_header(view)
        if len(view) > self.largest_message:
            raise CodecError(
                f"the message has {len(view)} bytes, expected at most {self.largest_message} for "
                f"{self.size} elements in {self.name}"
            )
        body, whole = view[len(self._header) :], 4 * (self.size - self._rest.size)
        if not whole:
            return self.compressor.unpack(body, self.size, self._blocks)
        if not self._rest.size or len(body) < whole:
            check_length(body, whole, self.name)
        vector = np.empty(self.size, np.float32)
        _scatter(np.frombuffer(body, "<f4", whole // 4), self._places[0], vector)
        if self._rest.size:
            rest = self.compressor.unpack(body[whole:], self._rest.size, self._blocks)
            _scatter(rest, self._places[1], vector)
        if not is_finite(vector):
            raise CodecError("the message has NaN or infinite elements, expected finite ones")
        return vector

    @cached_property
    def contraction(self) -> float:
        r"""δ of :math:`\|C(x) - x\|^2 = (1 - δ) \|x\|^2` for normally distributed numbers; *measured*.

        How much of a vector one message brings: 1 is all of it. Rounded to what is the same on every
        machine.
        """
        rng = np.random.default_rng(0)
        sample = np.resize(rng.standard_normal(min(self.size, _SAMPLE), np.float32), self.size)
        lost = self.decode(self.encode(sample)) - sample
        share = np.square(lost, dtype=np.float64).sum() / np.square(sample, dtype=np.float64).sum()
        return round(1.0 - float(f"{share:.2g}"), 9)

    @cached_property
    def _rest(self) -> Layout:
        """The arrays that are compressed."""
        mixed = [spec for spec in self.layout.specs if spec.mixed]
        return Layout(tuple(spec for spec in mixed if not self._whole(spec)))

    @cached_property
    def _blocks(self) -> Blocks:
        return self.compressor.blocks(self._rest)

    @cached_property
    def _places(self) -> tuple[list[slice], list[slice]]:
        """Where the arrays are that travel whole, and where the others; neighbours are joined."""
        places: tuple[list[slice], list[slice]] = [], []
        end = 0
        for spec in self.layout.specs:
            if not spec.mixed or not spec.size:
                continue
            begin, end = end, end + spec.size
            kind = places[0 if self._whole(spec) else 1]
            if kind and kind[-1].stop == begin:
                kind[-1] = slice(kind[-1].start, end)
            else:
                kind.append(slice(begin, end))
        return places

    def _whole(self, spec: ArraySpec) -> bool:
        return self.compressor.small == "whole" and len(spec.shape) < 2

    @cached_property
    def _header(self) -> bytes:
        name = self.name.encode("ascii")
        return _HEADER.pack(_MAGIC, VERSION, len(name), self._fingerprint, self.size) + name

    @cached_property
    def _fingerprint(self) -> bytes:
        specs = [(spec.name, spec.shape, self._whole(spec)) for spec in self.layout.specs if spec.mixed]
        return blake2b(repr(specs).encode(), digest_size=8).digest()

    def _check_header(self, view: memoryview) -> None:
        if len(view) < _HEADER.size:
            raise CodecError(f"the message has {len(view)} bytes, expected {len(self._header)} at least")
        magic, version, name_bytes, fingerprint, size = _HEADER.unpack_from(view)
        if magic != _MAGIC or version != VERSION:
            raise CodecError(
                f"the message begins with {magic!r}, version {version}; expected {_MAGIC!r}, {VERSION}"
            )
        # Never more than the byte before says: 255.
        name = bytes(view[_HEADER.size : _HEADER.size + name_bytes]).decode("ascii", "replace")
        if name != self.name:
            raise CodecError(
                f"the message is in codec {name!r}, expected {self.name!r}: both ends of a link need the "
                "same compressor"
            )
        if size != self.size or fingerprint != self._fingerprint:
            raise CodecError(
                f"the message is about another model, of {size} elements; expected one of {self.size} with "
                "the arrays of this layout, of which the same travel whole"
            )


def _scatter(values: Vector, places: list[slice], out: Vector) -> None:
    begin = 0
    for here in places:
        end = begin + here.stop - here.start
        out[here] = values[begin:end]
        begin = end


def check_length(body: Body, expected: int, name: str) -> None:
    """Raise a `CodecError` unless a body has so many bytes."""
    if len(body) != expected:
        raise CodecError(f"the body of a message in {name} has {len(body)} bytes, expected {expected}")


def read_scales(body: Body, count: int, levels: int) -> npt.NDArray[np.float32]:
    """Return a body's leading scales; a `CodecError` if one is negative or `levels` times it not finite."""
    scales = np.frombuffer(body, "<f4", count).astype(np.float32, copy=False)
    if not ((scales >= 0) & (scales <= LARGEST / levels)).all():
        raise CodecError(f"the message has scales outside 0 to {LARGEST / levels:.3g}, expected finite ones")
    return scales


@dataclass(frozen=True)
class Float32(Compressor):
    """All of a vector: 4 bytes an element, nothing lost."""

    @property
    def name(self) -> str:
        """``fp32``."""
        return "fp32"

    def largest(self, size: int, blocks: Blocks) -> int:
        """Return 4 bytes an element."""
        return 4 * size

    def pack(self, vector: Vector, blocks: Blocks, draw: int) -> list[npt.NDArray[np.generic]]:
        """Return the vector."""
        return [np.ascontiguousarray(vector, "<f4")]

    def unpack(self, body: Body, size: int, blocks: Blocks) -> Vector:
        """Return a view of the body."""
        check_length(body, 4 * size, self.name)
        vector = np.frombuffer(body, "<f4").astype(np.float32, copy=False)
        if not is_finite(vector):
            raise CodecError("the message has NaN or infinite elements, expected finite ones")
        return vector


@dataclass(frozen=True)
class BFloat16(Compressor):
    """The upper half of each fp32 number, rounded to nearest, ties to even: 2 bytes an element."""

    @property
    def name(self) -> str:
        """``bf16``."""
        return "bf16"

    def largest(self, size: int, blocks: Blocks) -> int:
        """Return 2 bytes an element."""
        return 2 * size

    def pack(self, vector: Vector, blocks: Blocks, draw: int) -> list[npt.NDArray[np.generic]]:
        """Return the upper halves; what would round to infinity becomes the largest number that is finite."""
        bits = vector.view(np.uint32)
        halves = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
        overflown = (halves & 0x7FFF) == 0x7F80
        halves[overflown] -= 1
        return [halves]

    def unpack(self, body: Body, size: int, blocks: Blocks) -> Vector:
        """Return the halves with zeros below."""
        check_length(body, 2 * size, self.name)
        vector = (np.frombuffer(body, "<u2").astype(np.uint32) << 16).view(np.float32)
        if not is_finite(vector):
            raise CodecError("the message has NaN or infinite elements, expected finite ones")
        return vector
