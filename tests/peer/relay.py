"""A wire that can be cut: TCP from one port to another, through this process."""

import asyncio
from contextlib import suppress

BLOCK = 1 << 16


class Relay:
    """Passes on whatever comes to `port`, unless it is cut or frozen.

    Attributes
    ----------
    forth, back : int
        Bytes that came through.
    rate : float
        Bytes a second that pass in each direction: a slow line.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.forth = self.back = 0
        self.rate = float("inf")
        self._server: asyncio.Server | None = None
        self._open = True
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Break what is open, and refuse what comes."""
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    def freeze(self) -> None:
        """Pass nothing on, and tell nobody: a cable that is unplugged."""
        self._flowing.clear()

    def heal(self) -> None:
        self._open = True
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        try:
            reader_on, writer_on = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, writer_on}
        try:
            await asyncio.gather(
                self._pass_on(reader, writer_on, "forth"), self._pass_on(reader_on, writer, "back")
            )
        finally:
            for end in (writer, writer_on):
                end.transport.abort()
            self._writers -= {writer, writer_on}

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        with suppress(OSError):
            while block := await reader.read(BLOCK):
                await self._flowing.wait()
                if self.rate < float("inf"):
                    await asyncio.sleep(len(block) / self.rate)
                setattr(self, direction, getattr(self, direction) + len(block))
                writer.write(block)
                await writer.drain()
        writer.transport.abort()
