"""What a node remembers from one round to the next, in Flower's ``Context.state``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

IMPORTANCE = "flower_edge.importance"
"""Key of the record; a SuperNode that restarts has none, and probes again."""


def remember(memory: RecordDict, number: int, importance: Mapping[str, float]) -> None:
    """Keep the importances found in a round."""
    memory[IMPORTANCE] = ConfigRecord(
        {"round": number, "tensors": list(importance), "importance": list(importance.values())}
    )


def recalled(memory: RecordDict, number: int, rounds: int) -> dict[str, float]:
    """Return the importances found in this round or so many before it, nothing if there are none.

    Parameters
    ----------
    memory : RecordDict
    number : int
        Of this round.
    rounds : int
        How long they are used, from the round on in which they were found; 1 for that round alone.
    """
    record: Any = memory.config_records.get(IMPORTANCE)
    if record is None or not 0 < number - record["round"] < rounds:
        return {}
    return dict(zip(record["tensors"], record["importance"], strict=True))
