"""A neighbour's model, put together from its chunks in memory of a fixed size."""

from flower_edge.gossip.codec import Vector
from flower_edge.peer.frames import Frame, FrameError
from flower_edge.peer.payload import Codec, PayloadError, check_vector


class Inbox:
    """Holds one model at a time, of the latest round that the neighbour has sent.

    A payload is refused by the size that its first frame claims, before memory is taken for it. Chunks have
    to come in order, each once.

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
        self._payload = bytearray()
        self._filled = 0
        self._vector: Vector | None = None

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
            self._payload = bytearray(frame.size)
        if (frame.round, frame.offset, frame.size) != (self._round, self._filled, len(self._payload)):
            raise FrameError(
                f"received bytes from {frame.offset} of {frame.size} of round {frame.round}, expected "
                f"those from {self._filled} of {len(self._payload)} of round {self._round}"
            )
        end = self._filled + len(frame.chunk)
        self._payload[self._filled : end] = frame.chunk
        self._filled = end
        if not frame.is_last:
            return False
        self._vector = self._decoded()
        return True

    def model_of(self, round: int) -> Vector | None:
        """Return the model of a round if it is here, whole."""
        return self._vector if round == self._round else None

    def clear(self) -> None:
        """Forget what has come so far; a model that was handed out stays what it is."""
        self._round, self._payload, self._filled, self._vector = None, bytearray(), 0, None

    def _decoded(self) -> Vector:
        try:
            vector = self._codec.decode(memoryview(self._payload), self._elements)
        except ValueError as error:
            raise PayloadError(str(error)) from error
        check_vector(vector, self._largest)
        return vector
