"""One round of elastic training on one node: what it chooses, and what it says of that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from flwr.app import ConfigRecord, Message
from torch import Tensor, nn
from torch.optim import Optimizer

from flower_edge.clients import messages
from flower_edge.clients.elastic import Elastic
from flower_edge.clients.local_training import BatchFunction
from flower_edge.clients.pace import Pace
from flower_edge.clients.profiles import Profiles
from flower_edge.training import Choice, Deadline, ElasticTrainer, Time, blend
from flower_edge.training.budget import Budget, limits

Batch: TypeAlias = tuple[Tensor, Tensor]

LEAST_SECONDS = 1e-9
"""Of a step for which no time is left: the head is trained in spite of it."""

PROBE = 1.7
"""Steps that train everything and take as long as a probe, which updates one tensor after the other."""

FIRST = 1e6
"""How much more a tensor of the window counts than any other: it comes first, and the rest fills up."""


@dataclass
class Stint:
    """A choice, and the steps taken with it."""

    choice: Choice
    steps: int = 0


@dataclass(frozen=True)
class Task:
    """What a node is asked to do in a round.

    Attributes
    ----------
    number : int
        Of the round, from 1.
    steps : int or None
        Training steps; None if they cannot be counted beforehand.
    deadline : float or None
        Seconds for all of it.
    importance : mapping of str to float
        What matters to all nodes; empty if that is not known.
    """

    number: int
    steps: int | None
    deadline: float | None
    importance: Mapping[str, float]

    @classmethod
    def of(cls, message: Message, steps: int | None) -> Task:
        """Read what a message asks for."""
        return cls(
            number=messages.server_round(message),
            steps=steps,
            deadline=messages.deadline(message),
            importance=messages.importance(message),
        )


class ElasticRound:
    """The choices of a node in one round.

    Parameters
    ----------
    elastic : Elastic
        How the node chooses; it has a budget, or the task a deadline.
    task : Task
        What it is asked to do.
    net : Module
        With the round's model.
    optimizer : Optimizer
        Of `net`.
    loss : callable
        ``(outputs, targets) -> Tensor``.
    profiles : Profiles
        What steps cost, as far as that is known.
    started : float
        When the round began, by `time.perf_counter`.

    Raises
    ------
    ValueError
        If there is a deadline and the steps cannot be counted.
    """

    def __init__(
        self,
        elastic: Elastic,
        task: Task,
        net: nn.Module,
        optimizer: Optimizer,
        loss: BatchFunction,
        profiles: Profiles,
        started: float,
    ) -> None:
        self._elastic = elastic
        self._task = task
        self._net, self._optimizer, self._loss = net, optimizer, loss
        self._profiles = profiles
        self._started = started
        self._pace = _pace(elastic, task, started)
        self._trainer: ElasticTrainer | None = None
        self._local: dict[str, float] = {}
        self._stints: list[Stint] = []
        self._last_step: int | None = None
        self._choosing = 0.0
        self._profiling = 0.0

    @property
    def steps_done(self) -> int:
        """Steps that have been let begin."""
        return sum(stint.steps for stint in self._stints)

    def before_step(self, batch: Batch) -> bool:
        """Choose what is trained from now on, if it is time to; return whether there is time for a step."""
        done, every = self.steps_done, self._elastic.every
        if done and self._is_over(done):
            return False
        if done == 0 or (every and done % every == 0):
            begun = time.perf_counter()
            self._choose(batch, done)
            self._choosing += time.perf_counter() - begun
            if self._is_over(done):
                return False
        self._stints[-1].steps += 1
        return True

    def _is_over(self, done: int) -> bool:
        if done == 0 or self._pace is None:
            return False
        planned = self._last_step is not None and done >= self._last_step
        return planned or not self._pace.allows(self._stints[-1].choice.step_seconds)

    # ---------------------------------------------------------------- choosing

    def _choose(self, batch: Batch, done: int) -> None:
        trainer = self._made(batch)
        shares = self._elastic.global_share > 0.0
        left = self._left(trainer, done, probing=shares)
        if self._allows_all(trainer, self._budgets(left, done)):
            if shares:
                self._local = trainer.importance(batch)
            # Where all tensors are worth the same, all are chosen.
            alike = dict.fromkeys(trainer.graph.tensor_names, 1.0)
            choice = trainer.select(batch, importance=alike, budget=self._budgets(left, done))
        else:
            left = self._left(trainer, done, probing=True)
            self._local = trainer.importance(batch)
            importance = blend(self._local, self._task.importance, self._elastic.global_share)
            choice = self._chosen(trainer, batch, importance, left, done)
        self._stints.append(Stint(choice))
        if self._pace is not None and left is not None:
            self._last_step = done + self._pace.steps_in(left, choice.step_seconds, done)

    def _made(self, batch: Batch) -> ElasticTrainer:
        """Return the trainer, which needs to know what steps cost with batches like this one."""
        if self._trainer is None:
            begun = time.perf_counter()
            profile = self._profiles.of(self._net, batch, self._loss, self._optimizer, self._elastic.profiles)
            self._profiling = time.perf_counter() - begun
            self._trainer = ElasticTrainer(
                self._net,
                self._optimizer,
                self._loss,
                self._elastic.budgets or Time(1.0),
                units=self._elastic.units,
                on_return=self._elastic.on_return,
                profile=profile,
                slowdown=self._elastic.slowdown,
            )
        return self._trainer

    def _chosen(
        self,
        trainer: ElasticTrainer,
        batch: Batch,
        importance: Mapping[str, float],
        left: float | None,
        done: int,
    ) -> Choice:
        """Choose by importance; where there is a window, its tensors come first."""
        window, graph = self._elastic.window, trainer.graph
        budgets = self._budgets(left, done)
        if window is None:
            return trainer.select(batch, importance=importance, budget=budgets)
        stretches = window.stretches(graph, trainer.units)
        stretch = frozenset(stretches[self._choices_before(done) % window.positions])
        ranked = {name: value * FIRST if name in stretch else value for name, value in importance.items()}
        choice = trainer.select(batch, importance=ranked, budget=budgets)
        reached = not stretch.isdisjoint(choice.names)
        if reached or left is None or self._pace is None or max(importance[n] for n in stretch) <= 0.0:
            return choice
        # The stretch lies too deep for the time that a step has: fewer steps, each of which gets there.
        whole = self._seconds(trainer, graph.cost(stretch).seconds)
        steps = self._pace.steps_in(left, whole, done)
        longer = Deadline(max(left / max(steps, 1), whole))
        return trainer.select(batch, importance=ranked, budget=(*self._elastic.budgets, longer))

    def _choices_before(self, done: int) -> int:
        """Return how many choices the node made before, if it took part in every round."""
        every, steps = self._elastic.every, self._task.steps
        in_a_round = 1 if not every or steps is None else -(-steps // every)
        return max(self._task.number - 1, 0) * in_a_round + len(self._stints)

    # ---------------------------------------------------------------- budgets

    def _left(self, trainer: ElasticTrainer, done: int, *, probing: bool) -> float | None:
        """Return the seconds for the steps that are left, None without a deadline.

        What is known to come beside the steps is taken off: a probe before each choice, and the forward
        passes by which saved bytes are counted.
        """
        if self._pace is None:
            return None
        left = self._pace.left()
        if probing:
            every = self._elastic.every or self._pace.steps
            choices = -(-(self._pace.steps - done) // every)
            left -= choices * PROBE * self._seconds(trainer, trainer.graph.full_cost.seconds)
        if not done:
            left -= 2 * trainer.profile.forward_seconds * self._elastic.slowdown
        return left

    def _budgets(self, left: float | None, done: int) -> tuple[Budget, ...]:
        if left is None or self._pace is None:
            return self._elastic.budgets
        return (*self._elastic.budgets, Deadline(max(left / (self._pace.steps - done), LEAST_SECONDS)))

    def _allows_all(self, trainer: ElasticTrainer, budgets: tuple[Budget, ...]) -> bool:
        backward = limits(budgets, trainer.profile, self._elastic.slowdown).backward
        return backward.allows(trainer.graph.full_cost)

    def _seconds(self, trainer: ElasticTrainer, backward_seconds: float) -> float:
        return (trainer.graph.fixed_seconds + backward_seconds) * self._elastic.slowdown

    # ---------------------------------------------------------------- what is said of it

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the round, which is over now; see `edge_client_app`."""
        seconds = time.perf_counter() - self._started
        done = self.steps_done
        stints = [(stint.choice, stint.steps / done) for stint in self._stints]
        found = {
            "elastic-share": sum(choice.backward_share * weight for choice, weight in stints),
            "elastic-tensors": sum(len(choice.names) * weight for choice, weight in stints),
            "elastic-step-time-predicted": sum(choice.step_seconds * weight for choice, weight in stints),
            "elastic-head-only": sum(weight for choice, weight in stints if choice.head_only),
            "elastic-overhead": (self._choosing - self._profiling) / (seconds - self._profiling),
            "elastic-profile-time": self._profiling,
            "elastic-round-time": seconds * self._elastic.slowdown,
            "elastic-steps": float(done),
        }
        if self._task.steps is not None:
            found["elastic-steps-share"] = done / self._task.steps
        return found

    def record(self) -> ConfigRecord:
        """Return what was trained, and how important each tensor was to this node when it last looked."""
        trained = dict.fromkeys(name for stint in self._stints if stint.steps for name in stint.choice.names)
        return ConfigRecord(
            {
                "trained": list(trained),
                "tensors": list(self._local),
                "importance": list(self._local.values()),
            }
        )


def _pace(elastic: Elastic, task: Task, started: float) -> Pace | None:
    if task.deadline is None:
        return None
    if task.steps is None:
        raise ValueError(
            "a deadline is divided by the number of steps, but the training batches have no length; expected "
            "batches with one, such as a DataLoader or a list"
        )
    return Pace(task.deadline, task.steps, elastic.margin, started, elastic.slowdown)
