"""One round of elastic training on one node: what it chooses, and what it says of that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor, nn
from torch.optim import Optimizer

from flower_edge.clients import messages
from flower_edge.clients.allowance import Allowance, seconds_of_a_step
from flower_edge.clients.elastic import Elastic
from flower_edge.clients.local_training import BatchFunction
from flower_edge.clients.memory import recalled, remember
from flower_edge.clients.pace import Pace
from flower_edge.clients.profiles import Profiles
from flower_edge.training import Choice, ElasticTrainer, Time, blend

Batch: TypeAlias = tuple[Tensor, Tensor]

PROBE = 1.7
"""Steps that train everything and take as long as a probe, which updates one tensor after the other."""

LOOK = 5
"""Steps after which the time that they took is compared with what was planned."""

TOLERANCE = 1.1
"""How many times longer they may have taken, before the rest of the round is planned anew."""

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
    memory : RecordDict
        What the node keeps from round to round.

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
        memory: RecordDict,
    ) -> None:
        self._elastic = elastic
        self._task = task
        self._net, self._optimizer, self._loss = net, optimizer, loss
        self._profiles = profiles
        self._started = started
        self._pace = _pace(elastic, task, started)
        self._trainer: ElasticTrainer | None = None
        self._memory = memory
        self._local = recalled(memory, task.number, elastic.probe_rounds)
        self._may_probe = not self._local
        self._stints: list[Stint] = []
        self._last_step: int | None = None
        self._choices = 0
        self._load = 1.0
        self._choosing = 0.0
        self._profiling = 0.0

    @property
    def steps_done(self) -> int:
        """Steps that have been let begin."""
        return sum(stint.steps for stint in self._stints)

    def before_step(self, batch: Batch) -> bool:
        """Choose what is trained from now on, if it is time to; return whether there is time for a step."""
        done, every = self.steps_done, self._elastic.every
        if self._pace is not None:
            self._pace.step_begins(after_a_step=bool(self._stints) and self._stints[-1].steps > 1)
        if self._is_over(done):
            return False
        due = done == 0 or (every > 0 and done % every == 0)
        if due or self._is_slower_than_planned():
            begun = time.perf_counter()
            self._choose(batch, done, due=due)
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

    def _is_slower_than_planned(self) -> bool:
        """Whether the first steps of the round say so: the board does something else, too."""
        if self._pace is None or len(self._stints) > 1 or self._stints[-1].steps != LOOK:
            return False
        before = self._load
        self._find_load()
        return self._load > before * TOLERANCE

    def _find_load(self) -> None:
        seconds = None if self._pace is None else self._pace.step_seconds()
        if seconds is not None and self._trainer is not None:
            # Never faster than the profile: what is short of it is chance.
            self._load = max(1.0, self._load * seconds / self._stints[-1].choice.step_seconds)
            self._trainer.slowdown = self._elastic.slowdown * self._load

    # ---------------------------------------------------------------- choosing

    def _choose(self, batch: Batch, done: int, *, due: bool) -> None:
        """Choose; if it is not due, by the importances that are known."""
        trainer = self._made(batch)
        if due:
            self._find_load()
            self._choices += 1
        may_probe = due and self._may_probe
        wanted = may_probe and self._elastic.global_share > 0.0
        allowance = self._allowance(trainer, done, probing=wanted)
        if allowance.covers(trainer, trainer.graph.tensor_names):
            if wanted:
                self._probe(trainer, batch)
            # Where all tensors are worth the same, all are chosen.
            alike = dict.fromkeys(trainer.graph.tensor_names, 1.0)
            choice = trainer.select(batch, importance=alike, budget=allowance.of_a_step)
        else:
            # What was kept may be of another model.
            if may_probe or self._local.keys() != trainer.graph.readers.keys():
                allowance = self._allowance(trainer, done, probing=True)
                self._probe(trainer, batch)
            importance = blend(self._local, self._task.importance, self._elastic.global_share)
            choice = self._chosen(trainer, batch, importance, allowance)
        self._stints.append(Stint(choice))
        if self._pace is not None and allowance.seconds is not None:
            self._last_step = done + self._pace.steps_in(allowance.seconds, choice.step_seconds, done)

    def _probe(self, trainer: ElasticTrainer, batch: Batch) -> None:
        self._local = trainer.importance(batch)
        remember(self._memory, self._task.number, self._local)

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
        self, trainer: ElasticTrainer, batch: Batch, importance: Mapping[str, float], allowance: Allowance
    ) -> Choice:
        """Choose by importance; where there is a window, its tensors come first."""
        window, budgets = self._elastic.window, allowance.of_a_step
        if window is None:
            return trainer.select(batch, importance=importance, budget=budgets)
        stretches = window.stretches(trainer.graph, trainer.units)
        stretch = frozenset(stretches[self._choices_before() % window.positions])
        units = [unit for unit in trainer.units if stretch.issuperset(unit)]
        worth = [unit for unit in units if sum(importance[name] for name in unit) > 0.0]
        if worth and not any(allowance.covers(trainer, unit) for unit in worth):
            # Too deep for the time that a step has: fewer steps, each of which can train the whole stretch.
            budgets = allowance.of_a_longer_step(seconds_of_a_step(trainer, stretch))
        ranked = {name: value * FIRST if name in stretch else value for name, value in importance.items()}
        return trainer.select(batch, importance=ranked, budget=budgets)

    def _choices_before(self) -> int:
        """Return how many choices the node made before, if it took part in every round."""
        every, steps = self._elastic.every, self._task.steps
        in_a_round = 1 if not every or steps is None else -(-steps // every)
        return max(self._task.number - 1, 0) * in_a_round + self._choices - 1

    def _allowance(self, trainer: ElasticTrainer, done: int, *, probing: bool) -> Allowance:
        """Return what the steps may cost that are left.

        What is known to come beside them is taken off: a probe before each choice, and the forward passes by
        which saved bytes are counted.
        """
        pace, own = self._pace, self._elastic.budgets
        if pace is None:
            return Allowance(own, None, 0)
        seconds, steps = pace.left(), pace.steps - done
        if probing:
            choices = -(-steps // (self._elastic.every or steps))
            seconds -= choices * PROBE * seconds_of_a_step(trainer, trainer.graph.tensor_names)
        if not done:
            seconds -= 2 * trainer.profile.forward_seconds * trainer.slowdown
        return Allowance(own, seconds, steps)

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
            "elastic-load": self._load,
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
