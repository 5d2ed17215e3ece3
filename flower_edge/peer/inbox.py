"""A neighbour's model, put together from its chunks in memory of a fixed size."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flower_edge.peer.frames import Frame, FrameError
from flower_edge.peer.payload import Codec, PayloadError, check_vector

Buffer: TypeAlias = npt.NDArray[np.uint8]

MOST_SPARE = 2
"""Buffers that wait for a model, of each neighbour: one is filled while the one before is mixed."""


class Inbox:
    """Holds one model at a time, of the latest round that the neighbour has sent.

    Memory is used again once it is given back (`release`): fresh memory costs as much time as the copy into
    it. A payload is refused by the size that its first frame claims, before memory is taken for it. Chunks
    have to come in order, each once.

    Parameters
    ----------
    codec : Codec
        Both ends have to use it.
    elements : int
        Of the model.
    largest : float
        In absolute value, of what a neighbour may send; more is refused.
    """

    def __init__(self, codec: Codec, elements: int, largest: float) -> None:
        self._codec = codec
        self._elements = elements
        self._limit = codec.largest(elements)
        self._largest = largest
        self._round: int | None = None
        self._payload = _nothing()
        self._filled = 0
        self._model: Any = None
        self._spare: list[Buffer] = []
        self._handed: list[Buffer] = []

    def add(self, frame: Frame) -> bool:
        """Take a ``MODEL`` frame; return whether the model of its round is whole now.

        Raises
        ------
        FrameError
            If the codec or the size is not what was agreed, or the chunk does not follow the one before (it
            was left out, or sent a second time).
        PayloadError
            If the model is whole, and is no model.
        """
        if frame.codec != self._codec.name:
            raise FrameError(f"received codec {frame.codec!r}, expected {self._codec.name!r}")
        if not 0 < frame.size <= self._limit:
            raise FrameError(
                f"received a payload of {frame.size} bytes, expected at most {self._limit} "
                f"for {self._elements} elements in {self._codec.name}"
            )
        if frame.offset == 0 and (self._round is None or frame.round > self._round):
            self.clear()
            self._round = frame.round
            self._payload = self._memory(frame.size)
        if (frame.round, frame.offset, frame.size) != (self._round, self._filled, len(self._payload)):
            raise FrameError(
                f"received bytes from {frame.offset} of {frame.size} of round {frame.round}, expected "
                f"those from {self._filled} of {len(self._payload)} of round {self._round}"
            )
        end = self._filled + len(frame.chunk)
        self._payload[self._filled : end] = np.frombuffer(frame.chunk, np.uint8)
        self._filled = end
        if not frame.is_last:
            return False
        self._model = self._decoded()
        return True

    def model_of(self, round: int) -> Any:
        """Return the model of a round if it is here, whole, else None; it stays until `release`."""
        if round != self._round or self._model is None:
            return None
        if not any(self._payload is buffer for buffer in self._handed):
            self._handed.append(self._payload)
        return self._model

    def newest(self) -> tuple[int, Any] | None:
        """Return the round and the model that came last, if it is whole; it stays until `release`."""
        if self._round is None or (model := self.model_of(self._round)) is None:
            return None
        return self._round, model

    def release(self) -> None:
        """Use the memory of all models that were handed out for others."""
        self._spare += [buffer for buffer in self._handed if buffer is not self._payload]
        del self._spare[MOST_SPARE:]
        self._handed = [buffer for buffer in self._handed if buffer is self._payload]

    def clear(self) -> None:
        """Forget what has come so far; a model that was handed out stays what it is."""
        if not any(self._payload is buffer for buffer in self._handed):
            self._spare = [self._payload, *self._spare][:MOST_SPARE]
        self._round, self._payload, self._filled, self._model = None, _nothing(), 0, None

    def _memory(self, size: int) -> Buffer:
        """Return that many bytes, used before where there are such."""
        for index, buffer in enumerate(self._spare):
            if len(buffer) == size:
                return self._spare.pop(index)
        return np.empty(size, np.uint8)

    def _decoded(self) -> Any:
        try:
            model = self._codec.decode(self._payload.data, self._elements)
            vectors = self._codec.vectors(model)
        except ValueError as error:
            raise PayloadError(str(error)) from error
        for vector in vectors:
            check_vector(vector, self._elements, self._largest)
        return model


def _nothing() -> Buffer:
    return np.empty(0, np.uint8)
