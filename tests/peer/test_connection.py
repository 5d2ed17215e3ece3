"""One stream between two nodes, whose other end does not do its part."""

import asyncio

import pytest

from flower_edge.peer.connection import MOST_WAITING, BrokenError, Connection


class Deaf:
    """The other end of a stream: says the same again and again, and reads nothing."""

    def __init__(self, says: int) -> None:
        self.left = says

    async def read(self) -> bytes:
        if not self.left:
            await asyncio.sleep(60.0)
        self.left -= 1
        await asyncio.sleep(0)
        return b"ready?"

    async def write(self, message: bytes) -> None:
        await asyncio.sleep(60.0)


@pytest.mark.parametrize("asked", [True, False])
def test_answers_that_nobody_reads_end_the_connection(asked: bool) -> None:
    """Whether they are answers to what was read, or said unasked."""

    async def run() -> tuple[Deaf, Connection]:
        stream = Deaf(100_000 if asked else 0)
        connection = Connection(stream, lambda _: connection.post(b"yes"))
        running = asyncio.ensure_future(connection.run())
        await asyncio.sleep(0)
        for _ in range(0 if asked else 2 * MOST_WAITING):
            connection.post(b"hello")
        with pytest.raises(BrokenError, match=f"{MOST_WAITING} messages wait to be read"):
            await asyncio.wait_for(running, 10.0)
        return stream, connection

    stream, connection = asyncio.run(run())

    assert len(connection._short) <= MOST_WAITING
    if asked:
        assert 100_000 - stream.left < MOST_WAITING + 10


def test_a_few_answers_wait() -> None:
    async def run() -> None:
        connection = Connection(Deaf(MOST_WAITING), lambda _: connection.post(b"yes"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.run(), 0.5)
        assert len(connection._short) >= MOST_WAITING - 1

    asyncio.run(run())
