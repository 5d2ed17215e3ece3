"""A deadline, and what is left of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How fast a node has to train to be done in time.

    Times are those of a board that is `slowdown` times slower than this machine.

    Parameters
    ----------
    deadline : float
        Seconds from `started` on.
    steps : int
        Training steps that are wanted.
    margin : float
        Share of the deadline that is not planned with.
    started : float
        By `time.perf_counter`.
    slowdown : float
    """

    deadline: float
    steps: int
    margin: float
    started: float
    slowdown: float

    def left(self) -> float:
        """Return the seconds that can be planned with; may be negative."""
        return self.deadline * (1.0 - self.margin) - self._passed()

    def steps_in(self, seconds: float, step_seconds: float, done: int) -> int:
        """Return how many more steps fit; one at least if none is done yet, since a round has to train."""
        fitting = math.floor(max(seconds, 0.0) / step_seconds)
        return max(min(fitting, self.steps - done), 0 if done else 1)

    def allows(self, step_seconds: float) -> bool:
        """Whether a step that begins now ends before the deadline itself."""
        return self._passed() + step_seconds <= self.deadline

    def _passed(self) -> float:
        return (time.perf_counter() - self.started) * self.slowdown
