"""One stream between two nodes, whichever of them opened it."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import grpc

MOST_WAITING = 1024
"""Short messages that wait to be written. A round has a handful: the other end of so many does not read."""


class Stream(Protocol):
    """What grpc.aio's calls and server contexts have in common."""

    def read(self) -> Any:
        """Await the next message; ``grpc.aio.EOF`` if there is none."""

    def write(self, message: bytes) -> Any:
        """Await that a message is on its way."""


class BrokenError(ConnectionError):
    """The stream has ended, or nothing can be sent over it any more."""


async def next_message(stream: Stream) -> bytes:
    """Return the next message of a stream.

    Raises
    ------
    BrokenError
        If there will be none.
    """
    try:
        message = await stream.read()
    except grpc.RpcError as error:
        raise BrokenError(describe(error)) from None
    # grpc.aio's own types say nothing of what a stream holds.
    if not isinstance(message, bytes):
        raise BrokenError("the other end closed the link")
    return message


class Connection:
    """Sends and receives messages in order; short ones overtake the rest of a model that is being sent.

    Parameters
    ----------
    stream : Stream
    on_message : callable
        Called with each message that arrives. What it raises ends the connection.
    """

    def __init__(self, stream: Stream, on_message: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._on_message = on_message
        self._short: deque[bytes] = deque()
        self._model: Iterator[bytes] = iter(())
        self._on_sent: Callable[[], None] = _nothing
        self._work = asyncio.Event()
        self._full = asyncio.Event()
        self._closing = False

    def post(self, message: bytes) -> None:
        """Send a short message as soon as possible; where `MOST_WAITING` wait already, `run` ends instead."""
        if len(self._short) == MOST_WAITING:
            self._full.set()
        # None may be left out and a later one arrive.
        if not self._full.is_set():
            self._short.append(message)
            self._work.set()

    def post_model(self, frames: Iterator[bytes], on_sent: Callable[[], None]) -> None:
        """Send the frames of a model; what is left of an earlier one is dropped.

        Parameters
        ----------
        frames : iterator of bytes
        on_sent : callable
            Called when the last of them has been written.
        """
        self._model, self._on_sent = frames, on_sent
        self._work.set()

    @property
    def sends(self) -> bool:
        """Whether a model is being sent."""
        return self._on_sent is not _nothing

    def drop_model(self) -> None:
        """Send no more of the model."""
        self._model, self._on_sent = iter(()), _nothing

    def close(self) -> None:
        """End `run` once all short messages are written."""
        self._closing = True
        self._work.set()

    async def run(self) -> None:
        """Carry messages both ways until `close` is called.

        Raises
        ------
        BrokenError
            If the stream ends before, or the other end does not read.
        """
        tasks = [asyncio.ensure_future(work()) for work in (self._read, self._write, self._overflow)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _read(self) -> None:
        while True:
            self._on_message(await next_message(self._stream))

    async def _write(self) -> None:
        while True:
            if self._short:
                await self._send(self._short.popleft())
            elif (frame := next(self._model, None)) is not None:
                await self._send(frame)
            elif self._on_sent is not _nothing:
                on_sent, self._on_sent = self._on_sent, _nothing
                on_sent()
            elif self._closing:
                return
            else:
                self._work.clear()
                await self._work.wait()

    async def _overflow(self) -> None:
        await self._full.wait()
        raise BrokenError(f"{MOST_WAITING} messages wait to be read, expected an end that reads them")

    async def _send(self, message: bytes) -> None:
        try:
            await self._stream.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise BrokenError(describe(error)) from None


def describe(error: BaseException) -> str:
    """Return what gRPC says of a call that failed, in one line."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {' '.join(str(error.details()).split())}"
    return str(error) or type(error).__name__


def _nothing() -> None:
    """Do nothing."""
