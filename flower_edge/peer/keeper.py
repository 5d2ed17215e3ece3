"""States on their way to the disk, while the next round trains."""

import asyncio
from pathlib import Path

from flower_edge.peer.refusals import log
from flower_edge.peer.state import State


class Keeper:
    """Writes one state after the other to a file.

    Parameters
    ----------
    path : Path or None
        None to keep nothing.

    Attributes
    ----------
    unsaved : int
        How many could not be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.unsaved = 0
        self._path = path
        self._writing: asyncio.Task[None] | None = None

    async def keep(self, state: State) -> None:
        """Begin to write a state, once the one before is written."""
        await self.done()
        if self._path is not None:
            self._writing = asyncio.create_task(self._write(state, self._path))

    async def done(self) -> None:
        """Wait until what was begun is written, or has failed."""
        if self._writing is not None:
            await self._writing

    async def _write(self, state: State, path: Path) -> None:
        try:
            await asyncio.to_thread(state.save, path)
        except OSError as error:
            # To stop here would lose more than it saves: the file of an earlier round is still whole.
            self.unsaved += 1
            log.error("round %d is not on disk, an earlier one is: %s", state.round, error)
