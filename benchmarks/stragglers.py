"""A gossip of boards of different speeds with one deadline, simulated: real training, modelled speeds.

Every board trains for real. What that takes is the processor time, *measured*, times the board's slowdown,
*modelled*. A round takes as long as the board that is waited for; mixing is the strategy's own
(`flower_edge.strategies`) and takes no time here.
"""

import math
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.cifar import Images, augmented, normalised
from flower_edge.clients.elastic_round import FIRST
from flower_edge.training import Deadline, ElasticTrainer, Profile, SlidingWindow, blend

NODES = 8
MARGIN = 0.05
"""Share of a deadline that a choice leaves for what no prediction knows."""


@dataclass(frozen=True)
class Race:
    """What all ways share.

    Attributes
    ----------
    slowest : float, default 4.0
        Slowdown of the slowest board; the fastest has 1, the others lie evenly between.
    steps : int, default 10
        Local steps of a round.
    batch : int, default 16
        Images a step.
    deadline : float, default 1.1
        Of a round, by what the fastest board takes to train everything.
    rounds : int, default 16
        For those who wait for the slowest board; the others have the same time.
    every : int, default 10
        Rounds between two choices.
    rate, momentum, weight_decay : float
        Of SGD.
    warm_up : int, default 20
        Steps over which the rate rises; it is constant afterwards.
    looks : int, default 16
        How often the accuracy is looked at, evenly over the time.
    images, test_images : int
        Of the training and of the test set.
    """

    slowest: float = 4.0
    steps: int = 10
    batch: int = 16
    deadline: float = 1.1
    rounds: int = 16
    every: int = 10
    rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: int = 20
    looks: int = 16
    images: int = 10_000
    test_images: int = 2000

    def slowdowns(self, seed: int) -> list[float]:
        """Return the boards' slowdowns, in a random order."""
        evenly = np.linspace(1.0, self.slowest, NODES)
        return [float(slowdown) for slowdown in np.random.default_rng(seed).permutation(evenly)]

    def round_seconds(self, profile: Profile) -> float:
        """Return what the fastest board takes to train everything for a round, predicted."""
        return self.steps * step_seconds(profile, profile.graph.tensor_names)

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a board's step."""
        return self.rate * min(1.0, (step + 1) / self.warm_up)


@dataclass(frozen=True)
class Way:
    """What becomes of boards that are too slow for the deadline.

    Attributes
    ----------
    late : str
        They are waited for; their work is dropped; they take fewer steps; or they train fewer tensors.
    mixed_by : {"all", "trainers"}
        Who mixes a tensor: all nodes, or those that trained it in the round.
    least : float, default 0.0
        Share of the backward time that a board trains at least; it takes fewer steps if it must.
    window : int, default 0
        Positions of the sliding window of boards that cannot train everything in time; 0 is none.
    of_all : float, default 0.0
        Weight of what is important to all nodes, beside what is to the node itself.
    """

    late: Literal["waited for", "dropped", "fewer steps", "elastic"]
    mixed_by: Literal["all", "trainers"] = "all"
    least: float = 0.0
    window: int = 0
    of_all: float = 0.0

    def __str__(self) -> str:
        if self.late != "elastic":
            return f"late nodes {self.late}" if self.late != "fewer steps" else "fewer full steps"
        parts = [
            *(["mixed by trainers"] if self.mixed_by == "trainers" else []),
            *([f"at least {self.least:.0%}"] if self.least else []),
            *([f"window of {self.window}"] if self.window else []),
            *([f"{self.of_all:.0%} global importance"] if self.of_all else []),
        ]
        return ", ".join(["elastic", *parts])


def step_seconds(profile: Profile, names: Collection[str]) -> float:
    """Return the predicted time of a step that trains `names`, on the board that was profiled."""
    return profile.graph.fixed_seconds + profile.graph.cost(names).seconds


@dataclass
class Spent:
    """Seconds of one board: over all rounds, for choosing, and the longest round by its deadline."""

    total: float = 0.0
    choosing: float = 0.0
    longest: float = 0.0
    steps: int = 0
    shares: list[float] = field(default_factory=list)


class Board:
    """One node: its images, its model, its clock.

    Parameters
    ----------
    race : Race
    way : Way
    model : Module
        Its own copy of what all begin with.
    profile : Profile
        Of the model on the fastest board.
    images : Images
        That it owns.
    slowdown : float
    seed : int
        Of the order of its images.
    clock : callable, default time.thread_time
        Of the processor, in seconds.
    """

    def __init__(
        self,
        race: Race,
        way: Way,
        model: nn.Module,
        profile: Profile,
        images: Images,
        slowdown: float,
        seed: int,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.model = model.train()
        self.slowdown = slowdown
        self.trained: tuple[str, ...] = profile.graph.tensor_names
        self.importance: dict[str, float] = {}
        self.spent = Spent()
        self._race, self._way, self._clock = race, way, clock
        self._images = images
        self._random = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.SGD(
            model.parameters(), race.rate, momentum=race.momentum, weight_decay=race.weight_decay
        )
        self._profile = profile
        self._deadline = race.deadline * race.round_seconds(profile)
        self._trainer = ElasticTrainer(
            model,
            self._optimizer,
            cross_entropy,
            Deadline(self._deadline),
            profile=profile,
            slowdown=slowdown,
        )
        self._window = SlidingWindow(way.window) if way.window else None
        self._pace = 1.0

    @property
    def on_time(self) -> bool:
        """Whether it can train everything in every step before the deadline, as predicted."""
        return self.slowdown * self._race.round_seconds(self._profile) <= self._deadline

    def round(self, number: int, of_all: Mapping[str, float]) -> float:
        """Train for one round.

        Parameters
        ----------
        number : int
            Of the round, from 0.
        of_all : mapping of str to float
            What is important to all nodes; empty if nobody knows yet.

        Returns
        -------
        float
            Seconds that it takes on this board.
        """
        if self._way.late == "dropped" and not self.on_time:
            self.trained = ()
            return 0.0
        elapsed = 0.0
        if self._way.late == "elastic" and number % self._race.every == 0:
            elapsed = self._timed(lambda: self._choose(number // self._race.every, of_all))
            self.spent.choosing += elapsed
        limit = math.inf if self._way.late == "waited for" else self._deadline
        predicted = self.slowdown * step_seconds(self._profile, self.trained)
        for step in range(self._race.steps):
            # A board knows from its own clock by how much the prediction is off today.
            if step and elapsed + self._pace * predicted > limit:
                break
            x, y = self._batch()
            took = self._timed(lambda x=x, y=y: self._step(x, y))
            self._pace += 0.2 * (took / predicted - self._pace)
            elapsed += took
            self.spent.shares.append(
                self._profile.graph.cost(self.trained).seconds / self._profile.graph.full_cost.seconds
            )
        self.spent.total += elapsed
        self.spent.longest = max(self.spent.longest, elapsed / self._deadline)
        return elapsed

    def _choose(self, number: int, of_all: Mapping[str, float]) -> None:
        batch = self._batch()
        graph = self._profile.graph
        self.importance = self._trainer.importance(batch)
        importance = blend(self.importance, of_all, self._way.of_all) if of_all else self.importance
        seconds = (1 - MARGIN) * self._deadline / self._race.steps / self._pace
        if self._way.least:
            # Where the time of a step is too short for that, there will be fewer steps.
            seconds = max(seconds, self._seconds_for(self._way.least * graph.full_cost.seconds))
        if self._window and seconds < self._seconds_for(graph.full_cost.seconds):
            stretches = self._window.stretches(graph)
            stretch = frozenset(stretches[number % self._way.window])
            worth = [name for name in stretch if importance[name] > 0]
            if worth and min(self._seconds_for(graph.cost([name]).seconds) for name in worth) > seconds:
                seconds = self._seconds_for(graph.cost(stretch).seconds)
            # As nodes do in Flower: what is in the stretch first, and the others with what time is left.
            importance = {
                name: value * FIRST if name in stretch else value for name, value in importance.items()
            }
        with warnings.catch_warnings():
            # That nothing but the head fits is what the table shows.
            warnings.simplefilter("ignore", UserWarning)
            choice = self._trainer.select(batch, importance=importance, budget=Deadline(seconds))
        self.trained = choice.names

    def _seconds_for(self, backward_seconds: float) -> float:
        """Return what a step takes here, with the least bit more, so that what was asked for fits."""
        return (1 + 1e-9) * self.slowdown * (self._profile.graph.fixed_seconds + backward_seconds)

    def _batch(self) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self._images), (self._race.batch,), generator=self._random)
        drawn = self._images.rows(rows)
        return normalised(augmented(drawn.pixels, self._random)), drawn.labels

    def _step(self, x: Tensor, y: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._race.rate_at(self.spent.steps)
        self._optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(self.model(x), y))
        self._optimizer.step()
        self.spent.steps += 1

    def _timed(self, work: Callable[[], None]) -> float:
        start = self._clock()
        work()
        return self.slowdown * (self._clock() - start)
