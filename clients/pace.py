"""A deadline, and how fast the steps come that have to be done by it."""

from __future__ import annotations

import math
import time
from statistics import median


class Pace:
    """How much of a deadline is left, and how long steps really take.

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

    def __init__(self, deadline: float, steps: int, margin: float, started: float, slowdown: float) -> None:
        self.steps = steps
        self._deadline = deadline
        self._margin = margin
        self._started = started
        self._slowdown = slowdown
        self._last_began = 0.0
        self._taken: list[float] = []

    def left(self) -> float:
        """Return the seconds that can be planned with; may be negative."""
        return self._deadline * (1.0 - self._margin) - self._passed()

    def steps_in(self, seconds: float, step_seconds: float, done: int) -> int:
        """Return how many more steps fit; one at least if none is done yet, since a round has to train."""
        fitting = math.floor(max(seconds, 0.0) / step_seconds)
        return max(min(fitting, self.steps - done), 0 if done else 1)

    def allows(self, step_seconds: float) -> bool:
        """Whether a step that begins now ends before the deadline itself."""
        return self._passed() + step_seconds <= self._deadline

    def step_begins(self, *, after_a_step: bool) -> None:
        """Take note of the time; `after_a_step` if nothing but a step has come since the last time."""
        now = self._passed()
        if after_a_step:
            self._taken.append(now - self._last_began)
        self._last_began = now

    def step_seconds(self) -> float | None:
        """Return how long a step takes, loading of its data included: the median of those noted.

        They are forgotten then; None if there are fewer than three.
        """
        taken, self._taken = self._taken, []
        return median(taken) if len(taken) >= 3 else None

    def _passed(self) -> float:
        return (time.perf_counter() - self._started) * self._slowdown
