"""Rounds of a session that the server has not heard of yet, on the board's disk."""

from __future__ import annotations

import json
import os
from logging import WARNING, getLogger
from pathlib import Path
from typing import TypeAlias

log = getLogger("flwr").log

Row: TypeAlias = dict[str, float]
"""What is reported of one round; ``round`` says of which."""


class UntoldRounds:
    """What a board has done, kept until the server says that it knows.

    A reply is lost if the SuperLink is gone when a session ends: Flower gives up on replies to a run that it
    no longer knows as running. What was not heard goes into the reply to the next session.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def with_those(self, rows: list[Row], told: int) -> list[Row]:
        """Keep the rounds of a session; return them with those that were kept before, in order.

        Parameters
        ----------
        rows : list of dict
            One for each round.
        told : int
            The last round that the server has heard of from this node: it, and those before, are dropped.

        Notes
        -----
        A full disk, or a file that is damaged, is logged; the session's own rounds are returned then.
        """
        known = {int(row["round"]): row for row in [*self._read(), *rows] if row["round"] > told}
        merged = [known[number] for number in sorted(known)]
        self._write(merged)
        return merged

    def _read(self) -> list[Row]:
        if not self._path.exists():
            return []
        try:
            rows = json.loads(self._path.read_text())
            return [{"round": row["round"], **{name: _number(row[name]) for name in row}} for row in rows]
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            log(WARNING, "What earlier sessions did cannot be read from %s: %s", self._path, error)
            return []

    def _write(self, rows: list[Row]) -> None:
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            with partial.open("w") as file:
                json.dump(rows, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            log(WARNING, "What this session did is not on disk: %s", error)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"received {value!r:.60}, expected a number")
    return value
