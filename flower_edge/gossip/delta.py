"""What a model has moved by since its neighbours last heard of it, in as few bytes as its training left.

Gradient filtering gives a convolution one gradient per kernel, the same for each of its taps. Then so is
every update that SGD, momentum or Adam make of it, and a k × k kernel moves by one number, not by k².
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from hashlib import blake2b
from math import inf, prod
from typing import NamedTuple

import numpy as np

from flower_edge.gossip.codec import ArraySpec, Layout, Vector, is_finite

VERSION = 1
_MAGIC = b"FE-delta"
_HEADER = struct.Struct("<8sHII8s")
_CHECKSUM = struct.Struct("<I")
_KERNELS_AT_ONCE = 4096


class _Kind(IntEnum):
    """How an array is sent."""

    KEPT = 0
    """Nothing: it has not changed."""
    MOVED = 1
    """A number for each kernel, to be added to all of its taps."""
    SCALED_AND_MOVED = 2
    """The same after a factor for the whole array, which weight decay leaves."""
    VALUES = 3
    """All of its new values."""


_BY_KERNEL = (_Kind.MOVED, _Kind.SCALED_AND_MOVED)


class _Part(NamedTuple):
    """A mixed array in the flat vector; `taps` is 1 for what is no convolution's weight."""

    spec: ArraySpec
    where: slice
    taps: int

    def numbers(self, kind: _Kind) -> int:
        kernels = self.spec.size // self.taps
        return {
            _Kind.KEPT: 0,
            _Kind.MOVED: kernels,
            _Kind.SCALED_AND_MOVED: 1 + kernels,
            _Kind.VALUES: self.spec.size,
        }[kind]


class _Message(NamedTuple):
    kinds: list[_Kind]
    numbers: Vector
    reference_checksum: int


@dataclass(frozen=True)
class TapDelta:
    r"""Encode how a model differs from a reference that sender and receivers hold, and move the reference.

    As in CHOCO-SGD (Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms
    with Compressed Communication", ICML 2019, algorithm 2), a node keeps a public copy :math:`\hat x` of its
    model :math:`x`, and so does every neighbour. A message moves all of these copies alike, to the bit. What
    it leaves out, :math:`x - \hat x`, is part of the next difference, so that nothing is ever lost and
    nothing adds up.

    Each array is sent in the smallest way that says it, found from the numbers alone:

    ========================================  ===========================  ==================================
    the array                                 is sent as                   and the reference is then
    ========================================  ===========================  ==================================
    equals its reference                      nothing                      the model's, to the bit
    4-D, all taps of a kernel moved alike     a number for each kernel     within `ulps` of the model's
    the same, after a factor for all of it    the same, and the factor     within `ulps` of the model's
    any other                                 its values                   the model's, to the bit
    ========================================  ===========================  ==================================

    The second row is what :class:`flower_edge.training.GradientFilter` with ``basis="walsh"`` and one
    component makes of :math:`k \times k` convolutions, depthwise ones too, under SGD, momentum or Adam:
    :math:`k^2` times fewer bytes. The third is the same with weight decay, decoupled or as part of SGD's
    gradient: it pulls each weight in proportion to itself, so that the array is its reference times one
    factor, plus a number per kernel. Adam with decay as part of its gradient keeps neither. Averaging models
    that began as one keeps both, for then what they differ by is of that kind. More components and the
    Fourier basis give a kernel more numbers than one, and its values are sent.

    Parameters
    ----------
    layout : Layout
        The model's, equal at sender and receivers. Only what it mixes is sent.
    ulps : float, default 64
        How far a tap may lie from its kernel's common move and still count as rounded, in units in the last
        place of the kernel's largest weight, old or new. A step of training rounds each weight by half a unit
        at most, at random: 64 units, 4e-6 to 8e-6 of a weight, are what the worst of ten million weights is
        away after some two thousand steps. Then the array's values are sent once, and its count begins anew.

    Raises
    ------
    ValueError
        If `ulps` is not a positive finite number.

    Examples
    --------
    >>> delta = TapDelta(Layout.of(model.state_dict()))
    >>> payload = delta.encode(trained, reference)
    >>> reference = delta.apply(reference, payload)  # here, and at every neighbour
    """

    layout: Layout
    ulps: float = 64.0

    def __post_init__(self) -> None:
        if not 0 < self.ulps < inf:
            raise ValueError(f"ulps is {self.ulps}, expected a positive finite number")

    def encode(self, model: Vector, reference: Vector) -> bytes:
        """Say how a model differs from the reference.

        Parameters
        ----------
        model : ndarray of float32, shape (layout.size,)
            What the reference shall become.
        reference : ndarray of float32, shape (layout.size,)
            What all receivers hold.

        Returns
        -------
        bytes
            For :meth:`apply`. About as long as the model at worst.

        Raises
        ------
        ValueError
            If a vector has another dtype or shape, NaN or infinity.
        """
        self._check_vector("model", model)
        self._check_vector("reference", reference)
        kinds = bytearray()
        numbers: list[Vector] = []
        for part in self._parts():
            kind, those = self._smallest(part, model[part.where], reference[part.where])
            kinds.append(kind)
            numbers += those
        header = _HEADER.pack(_MAGIC, VERSION, len(kinds), _checksum(reference), self._fingerprint())
        content = b"".join([header, kinds, *(array.astype("<f4").tobytes() for array in numbers)])
        return content + _CHECKSUM.pack(zlib.crc32(content))

    def apply(self, reference: Vector, payload: bytes) -> Vector:
        """Move the reference as a message says.

        Every node that applies a message to equal references gets equal ones, to the bit. A message that is
        lost, doubled or out of order shows in the next one, whose checksum of the reference does not match:
        sender and receiver then have to agree on a reference again, for example by sending the model whole.
        The checksums find accidents, not forgers: those are up to the link.

        Parameters
        ----------
        reference : ndarray of float32, shape (layout.size,)
            What the sender's :meth:`encode` had; stays as it is.
        payload : bytes
            From the sender, and not trusted: its sizes are checked before memory is taken, and NaN or
            infinity is refused.

        Returns
        -------
        ndarray of float32, shape (layout.size,)
            The next reference.

        Raises
        ------
        ValueError
            If the message is damaged, of another version, layout or reference, or not finite; or the
            reference is no vector of this layout.
        """
        self._check_vector("reference", reference)
        message = self._parse(payload)
        if message.reference_checksum != _checksum(reference):
            raise ValueError(
                "the message is about another reference: one before it was lost or applied twice. Agree on a "
                "reference with the sender again"
            )
        moved = np.empty_like(reference)
        begin = 0
        with np.errstate(over="ignore"):
            for part, kind in zip(self._parts(), message.kinds, strict=True):
                end = begin + part.numbers(kind)
                _move(part, kind, message.numbers[begin:end], reference[part.where], moved[part.where])
                begin = end
        if not is_finite(moved):
            raise ValueError("the message makes parameters overflow, expected finite ones")
        return moved

    def moved_by_kernel(self, payload: bytes) -> tuple[str, ...]:
        """Name the arrays of which a message has one number per kernel.

        Parameters
        ----------
        payload : bytes
            From :meth:`encode`.

        Raises
        ------
        ValueError
            If it is damaged, or of another version or layout.
        """
        ways = zip(self._parts(), self._parse(payload).kinds, strict=True)
        return tuple(part.spec.name for part, kind in ways if kind in _BY_KERNEL)

    # ---------------------------------------------------------------- what to send

    def _smallest(self, part: _Part, model: Vector, reference: Vector) -> tuple[_Kind, list[Vector]]:
        if np.array_equal(model.view(np.uint32), reference.view(np.uint32)):
            return _Kind.KEPT, []
        if part.taps > 1:
            new, old = model.reshape(-1, part.taps), reference.reshape(-1, part.taps)
            if (moves := self._moves(new, old, np.ones(1, np.float32))) is not None:
                return _Kind.MOVED, [moves]
            factor = _factor(new, old)
            if (moves := self._moves(new, old, factor)) is not None:
                return _Kind.SCALED_AND_MOVED, [factor, moves]
        return _Kind.VALUES, [model]

    def _moves(self, new: Vector, old: Vector, factor: Vector) -> Vector | None:
        """Return what each kernel moved by after the factor; None if rounding does not explain the rest."""
        moves = np.empty(len(new), np.float32)
        # In pieces that stay in the cache; what is not of this kind shows in the first.
        for begin in range(0, len(new), _KERNELS_AT_ONCE):
            rows = slice(begin, begin + _KERNELS_AT_ONCE)
            moves[rows], explained = self._moves_of(new[rows], old[rows], factor)
            if not explained:
                return None
        return moves

    @np.errstate(over="ignore", invalid="ignore")
    def _moves_of(self, new: Vector, old: Vector, factor: Vector) -> tuple[Vector, bool]:
        scaled = old * factor
        difference = new - scaled
        # Halfway between the extremes no tap is far off.
        half = np.float32(0.5)
        moves = half * _over_taps(np.minimum, difference) + half * _over_taps(np.maximum, difference)
        scaled += moves[:, None]
        rest = _over_taps(np.maximum, np.abs(new - scaled))
        largest = _over_taps(np.maximum, np.maximum(np.abs(new), np.abs(old)))
        return moves, bool((rest <= np.float32(self.ulps) * np.spacing(largest)).all())

    # ---------------------------------------------------------------- what was received

    def _parse(self, payload: bytes) -> _Message:
        parts = list(self._parts())
        begin = _HEADER.size + len(parts)
        if len(payload) < begin + _CHECKSUM.size:
            raise ValueError(
                f"the message has {len(payload)} bytes, expected {begin + _CHECKSUM.size} at least"
            )
        magic, version, count, checksum, fingerprint = _HEADER.unpack_from(payload)
        if magic != _MAGIC or version != VERSION:
            raise ValueError(
                f"the message begins with {magic!r}, version {version}; expected {_MAGIC!r}, {VERSION}"
            )
        if count != len(parts) or fingerprint != self._fingerprint():
            raise ValueError(
                f"the message is about another model, of {count} arrays; expected one whose {len(parts)} "
                "arrays have the names, shapes and dtypes of this layout"
            )
        kinds = [_kind(part, code) for part, code in zip(parts, payload[_HEADER.size : begin], strict=True)]
        numbers = sum(part.numbers(kind) for part, kind in zip(parts, kinds, strict=True))
        expected = begin + 4 * numbers + _CHECKSUM.size
        if len(payload) != expected:
            raise ValueError(f"the message has {len(payload)} bytes, expected {expected}")
        content, (stated,) = memoryview(payload)[: -_CHECKSUM.size], _CHECKSUM.unpack(payload[-4:])
        if zlib.crc32(content) != stated:
            raise ValueError("the message is damaged: its checksum does not match")
        values = np.frombuffer(payload, "<f4", numbers, begin)
        if not is_finite(values):
            raise ValueError("the message has NaN or infinite numbers, expected finite ones")
        return _Message(kinds, values, checksum)

    # ---------------------------------------------------------------- both

    def _parts(self) -> Iterator[_Part]:
        end = 0
        for spec in self.layout.specs:
            if spec.mixed:
                begin, end = end, end + spec.size
                taps = prod(spec.shape[2:]) if len(spec.shape) == 4 and spec.size > 0 else 1
                yield _Part(spec, slice(begin, end), taps)

    def _fingerprint(self) -> bytes:
        specs = [(spec.name, spec.shape, spec.dtype) for spec in self.layout.specs]
        return blake2b(repr(specs).encode(), digest_size=8).digest()

    def _check_vector(self, name: str, vector: Vector) -> None:
        if vector.dtype != np.float32 or vector.shape != (self.layout.size,):
            raise ValueError(
                f"{name} is {vector.dtype} {vector.shape}, expected float32 ({self.layout.size},)"
            )
        if not is_finite(vector):
            raise ValueError(f"{name} has NaN or infinite parameters, expected finite ones")


@np.errstate(over="ignore", invalid="ignore")
def _factor(new: Vector, old: Vector) -> Vector:
    """Fit, by least squares over all taps, what the differences within kernels have been multiplied by."""
    within = old - (_over_taps(np.add, old) / np.float32(old.shape[1]))[:, None]
    # Of the change, not of the new values: a factor near one then loses no digits.
    along, square = (
        float(np.einsum("kt,kt->", within, other, dtype=np.float64)) for other in (new - old, within)
    )
    return np.array([1 + along / square if square > 0 else 1], np.float32)


def _over_taps(function: np.ufunc, kernels: Vector) -> Vector:
    """Reduce each row; along so few numbers, column by column is several times as fast as numpy's own way."""
    reduced: Vector = reduce(function, kernels.T)
    return reduced


def _move(part: _Part, kind: _Kind, numbers: Vector, old: Vector, out: Vector) -> None:
    if kind is _Kind.KEPT:
        out[:] = old
    elif kind is _Kind.VALUES:
        out[:] = numbers
    else:
        factor, moves = np.split(numbers, [1 if kind is _Kind.SCALED_AND_MOVED else 0])
        # Two roundings on every machine, of the product and of the sum: equal to the bit.
        taps = np.multiply(
            old.reshape(-1, part.taps), factor if factor.size else 1, out=out.reshape(-1, part.taps)
        )
        taps += moves[:, None]


def _kind(part: _Part, code: int) -> _Kind:
    if code > max(_Kind) or (part.taps == 1 and code in _BY_KERNEL):
        raise ValueError(f"the message sends array {part.spec} in way {code}, which there is not")
    return _Kind(code)


def _checksum(vector: Vector) -> int:
    return zlib.crc32(np.ascontiguousarray(vector, "<f4").data)
