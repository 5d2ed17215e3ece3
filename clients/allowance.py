"""What a training step may cost, given what is left of a round."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flower_edge.training import Deadline, ElasticTrainer
from flower_edge.training.budget import Budget, limits

LEAST_SECONDS = 1e-9
"""Of a step for which no time is left: the head is trained in spite of it."""


@dataclass(frozen=True)
class Allowance:
    """The node's own budgets, and its time.

    Attributes
    ----------
    own : tuple of Budget
        Of one step.
    seconds : float or None
        For all steps that are left together; may be negative. None if there is no deadline.
    steps : int
        How many are left; of no meaning without a deadline.
    """

    own: tuple[Budget, ...]
    seconds: float | None
    steps: int

    @property
    def of_a_step(self) -> tuple[Budget, ...]:
        """The budgets of a step, if all steps are taken."""
        if self.seconds is None:
            return self.own
        return (*self.own, Deadline(max(self.seconds / self.steps, LEAST_SECONDS)))

    def of_a_longer_step(self, least_seconds: float) -> tuple[Budget, ...]:
        """Return the budgets of a step, if only as many are taken as can be this long; one at least."""
        if self.seconds is None:
            return self.own
        steps = max(math.floor(self.seconds / least_seconds), 1)
        return (*self.own, Deadline(max(self.seconds / steps, least_seconds)))

    def covers(self, trainer: ElasticTrainer, names: Iterable[str]) -> bool:
        """Whether each of all steps can train these tensors."""
        backward = limits(self.of_a_step, trainer.profile, trainer.slowdown).backward
        return backward.allows(trainer.graph.cost(names))


def seconds_of_a_step(trainer: ElasticTrainer, names: Iterable[str]) -> float:
    """Return what a step that trains these tensors takes on the trainer's board."""
    graph = trainer.graph
    return (graph.fixed_seconds + graph.cost(names).seconds) * trainer.slowdown
