"""Accuracy over time with slow boards: gossip with one deadline a round, and what boards do to meet it.

``python -m benchmarks.elastic_stragglers --data FOLDER [--plot FILE] [--quick]``. Eight boards, of which the
slowest takes four times as long as the fastest, learn all classes of CIFAR-10 by gossip on a torus, from
ResNet-20 pre-trained on five of them, with Dirichlet(0.5) label skew. Time is simulated
(`benchmarks.stragglers`): *measured* processor time, times *modelled* slowdowns.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import kept_runs
from benchmarks.cifar import CLASSES, Images, cache_folder, cifar10, data_option, dirichlet_split, normalised
from benchmarks.harness import PLOT, Benchmark, run
from benchmarks.kept_runs import checkpoint_digest, keep, runners, say
from benchmarks.pretrain import pretrained
from benchmarks.stragglers import NODES, Board, Race, Way
from flower_edge.gossip import DPSGD, GossipPlan, full_graph_plan, torus
from flower_edge.strategies.fleet import Fleet
from flower_edge.strategies.importance import mean_importance
from flower_edge.training import Profile, kept_profile

PROTOCOL = 2
"""Part of what names a kept run: raise it when what a run does changes."""

NETWORK = "resnet20"
SEEDS = 3
ALPHA = 0.5
"""Of the Dirichlet distribution that skews the labels."""

WAITED_FOR = Way("waited for")
ELASTIC = Way("elastic")
WAYS = (
    WAITED_FOR,
    Way("dropped"),
    Way("fewer steps"),
    ELASTIC,
    Way("elastic", mixed_by="trainers"),
    Way("elastic", window=3),
    Way("elastic", window=3, of_all=0.5),
)


@cache
def plan() -> GossipPlan:
    """Return how the 8 nodes mix: a 2×4 torus with the weights of least ρ."""
    return full_graph_plan(torus(2, NODES // 2), weights="fastest")


@dataclass(frozen=True)
class Outcome:
    """What one run found.

    Attributes
    ----------
    curve : list of (float, float)
        Simulated time, and the share of test images that the nodes get right, each asked its own ones. The
        unit is a round of the fastest board that trains everything, as predicted, so that runs of machines
        that are not equally fast can be compared.
    accuracy : list of list of float
        At the end, by node and label.
    rounds : int
    longest : float
        Longest round of any board, by the deadline.
    choosing : float
        Largest share of a board's time that choosing took.
    shares : list of float
        Mean share of the backward time that each board trained, the fastest first.
    steps : list of int
        Of each board, the fastest first.
    exchanged : float
        Numbers exchanged, as a share of exchanging all in every round.
    """

    curve: list[tuple[float, float]]
    accuracy: list[list[float]]
    rounds: int
    longest: float
    choosing: float
    shares: list[float]
    steps: list[int]
    exchanged: float

    def time_to(self, accuracy: float) -> float:
        """Return when an accuracy is first reached, between two looks in proportion; inf if never."""
        before = (0.0, 0.0)
        for after in self.curve:
            if after[1] >= accuracy:
                part = (accuracy - before[1]) / (after[1] - before[1])
                return before[0] + max(0.0, part) * (after[0] - before[0])
            before = after
        return float("inf")


class Gossip:
    """One run: boards that train, and their mixing.

    Parameters
    ----------
    race : Race
    way : Way
    model : Module
        That all begin with.
    profile : Profile
        Of the model on the fastest board.
    train, test : Images
    seed : int
        Of the split, the slowdowns and the order of the images.
    clock : callable, default time.thread_time
        Of the processor, in seconds.
    """

    def __init__(
        self,
        race: Race,
        way: Way,
        model: nn.Module,
        profile: Profile,
        train: Images,
        test: Images,
        seed: int,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.race, self.way, self.profile = race, way, profile
        images = train.sample(race.images, seed)
        self.test = test.sample(race.test_images, seed)
        owned = dirichlet_split(images.labels, NODES, ALPHA, seed)
        slowdowns = race.slowdowns(seed)
        self.boards = [
            Board(
                race,
                way,
                copy.deepcopy(model),
                profile,
                images.rows(rows),
                slowdown,
                1000 * seed + node,
                clock,
            )
            for node, (rows, slowdown) in enumerate(zip(owned, slowdowns, strict=True))
        ]
        self._fleet = Fleet(plan(), model.state_dict(), DPSGD)
        self._parameters = {name for name, _ in model.named_parameters()}
        self._rounds = 0
        self._exchanged: list[float] = []

    def run(self) -> Outcome:
        """Train until the time is over."""
        unit = self.race.round_seconds(self.profile)
        end = self.race.rounds * self.race.slowest
        between = end / self.race.looks
        now, next_look = 0.0, between
        curve: list[tuple[float, float]] = []
        while now < end:
            of_all = mean_importance([board.importance for board in self.boards]) if self.way.of_all else {}
            took = max(board.round(self._rounds, of_all) for board in self.boards) / unit
            # Nobody knows of a node that it is late before the deadline has passed.
            now += self.race.deadline if self.way.late == "dropped" else took
            self._mix()
            self._rounds += 1
            if now >= min(next_look, end):
                curve.append((now, self.look()))
                next_look = (now // between + 1) * between
        return self._outcome(curve)

    def _mix(self) -> None:
        trained: dict[int, set[str]] | None = None
        for node, board in enumerate(self.boards):
            self._fleet.update(node, board.model.state_dict())
        if self.way.mixed_by == "trainers":
            statistics_ = {spec.name for spec in self._fleet.layout.specs} - self._parameters
            trained = {node: {*board.trained, *statistics_} for node, board in enumerate(self.boards)}
        parts = self._fleet.mix(self._rounds, range(NODES), trained)
        self._exchanged.append(
            sum(part.size * len(part.live) for part in parts) / (NODES * self._fleet.layout.size)
        )
        for node, board in enumerate(self.boards):
            _load(board.model, self._fleet.arrays(node))

    def look(self) -> float:
        """Ask each node other test images; return the share that is right."""
        parts = torch.arange(len(self.test)).chunk(NODES)
        right = [
            _right(board.model, self.test.rows(rows)).sum().item()
            for board, rows in zip(self.boards, parts, strict=True)
        ]
        return sum(right) / len(self.test)

    def _outcome(self, curve: list[tuple[float, float]]) -> Outcome:
        accuracy = []
        for board in self.boards:
            right = _right(board.model, self.test)
            accuracy.append([right[self.test.labels == label].mean().item() for label in range(CLASSES)])
        fastest_first = sorted(self.boards, key=lambda board: board.slowdown)
        return Outcome(
            curve=curve,
            accuracy=accuracy,
            rounds=self._rounds,
            longest=max(board.spent.longest for board in self.boards),
            choosing=max(board.spent.choosing / (board.spent.total or 1.0) for board in self.boards),
            shares=[statistics.fmean(board.spent.shares or [0.0]) for board in fastest_first],
            steps=[board.spent.steps for board in fastest_first],
            exchanged=statistics.fmean(self._exchanged),
        )


def _load(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(torch.from_numpy(arrays[name]))


def _right(model: nn.Module, images: Images) -> torch.Tensor:
    """Return for each image whether a model is right, 0 or 1; the model is left in train mode."""
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(x).argmax(1) == y for x, y in images.batches(250)]).double()
    model.train()
    return found


def profile_of(folder: Path) -> Profile:
    """Return the profile of the fastest board, which is this machine; measured once, then kept."""
    model = pretrained(NETWORK).train()
    images = cifar10(folder)[0].sample(Race().batch, 0)
    optimizer = torch.optim.SGD(model.parameters(), Race().rate, momentum=Race().momentum)
    batch = normalised(images.pixels), images.labels
    return kept_profile(
        model, batch, cross_entropy, cache_folder() / "elastic_stragglers", optimizer=optimizer
    )


def race_of(quick: bool) -> Race:
    """Return what all ways share."""
    return Race(rounds=1, every=5, looks=1, images=2000, test_images=200) if quick else Race()


def ways(quick: bool) -> Sequence[Way]:
    """Return what is compared."""
    return (WAITED_FOR, ELASTIC) if quick else WAYS


def kept_at(way: Way, race: Race, seed: int) -> Path:
    """Return where the outcome of a run is kept."""
    decides = [PROTOCOL, checkpoint_digest(NETWORK), asdict(way), asdict(race), seed]
    return kept_runs.kept_at("elastic_stragglers", decides)


def finish(way: Way, race: Race, seed: int, profile: Profile, folder: Path) -> None:
    """Do one run, unless its outcome is kept."""
    path = kept_at(way, race, seed)
    if path.exists():
        return
    torch.set_num_threads(1)
    model = pretrained(NETWORK)
    outcome = Gossip(race, way, model, profile, *cifar10(folder), seed).run()
    keep(path, {"way": str(way), "seed": seed, "outcome": asdict(outcome)})
    say(f"{way}, seed {seed}: {outcome.curve[-1][1]:.4f} after {outcome.rounds} rounds")


def found(way: Way, race: Race, seeds: int) -> list[Outcome]:
    """Read the kept outcomes of one way, by seed."""
    outcomes = []
    for seed in range(seeds):
        kept = json.loads(kept_at(way, race, seed).read_text())["outcome"]
        outcomes.append(Outcome(**{**kept, "curve": [tuple(look) for look in kept["curve"]]}))
    return outcomes


def fill(bench: Benchmark, folder: Path) -> dict[Way, list[Outcome]]:
    """Run what is not kept, and fill the table."""
    torch.set_num_threads(1)
    race, seeds = race_of(bench.quick), 1 if bench.quick else SEEDS
    # Before the pool starts: nothing else of this benchmark runs while it measures.
    profile = profile_of(folder)
    with runners() as pool:
        jobs = [
            pool.submit(finish, way, race, seed, profile, folder)
            for seed in range(seeds)
            for way in ways(bench.quick)
        ]
        for job in jobs:
            job.result()
    outcomes = {way: found(way, race, seeds) for way in ways(bench.quick)}
    for way, of_way in outcomes.items():
        bench.row(**row(way, of_way, outcomes[WAITED_FOR]))
    return outcomes


def times_faster(outcomes: Sequence[Outcome], waited_for: Sequence[Outcome]) -> float:
    """Return how many times sooner the accuracy is reached that waiting for the slowest ends with; median."""
    ratios = []
    for ours, theirs in zip(outcomes, waited_for, strict=True):
        target = theirs.curve[-1][1]
        ratios.append(theirs.time_to(target) / ours.time_to(target))
    return statistics.median(ratios)


def row(way: Way, outcomes: Sequence[Outcome], waited_for: Sequence[Outcome]) -> dict[str, object]:
    """Return a row of the table: means over the seeds, the worst for a deadline."""
    accuracy = 100 * np.array([outcome.accuracy for outcome in outcomes])

    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(values)

    return {
        "way": str(way),
        "accuracy": accuracy.mean(),
        "spread": accuracy.mean((1, 2)).std(ddof=1) if len(outcomes) > 1 else 0.0,
        "worst_node": accuracy.mean(2).min(1).mean(),
        "worst_label": accuracy.mean(1).min(1).mean(),
        "spread_of_labels": accuracy.mean(1).std(1).mean(),
        "times_faster": times_faster(outcomes, waited_for),
        "rounds": mean([outcome.rounds for outcome in outcomes]),
        "longest_round_by_deadline": max(outcome.longest for outcome in outcomes),
        "share_of_choosing": max(outcome.choosing for outcome in outcomes),
        "backward_share_fastest": mean([outcome.shares[0] for outcome in outcomes]),
        "backward_share_slowest": mean([outcome.shares[-1] for outcome in outcomes]),
        "steps_fastest": mean([outcome.steps[0] for outcome in outcomes]),
        "steps_slowest": mean([outcome.steps[-1] for outcome in outcomes]),
        "exchanged": mean([outcome.exchanged for outcome in outcomes]),
    }


def plot(outcomes: Mapping[Way, Sequence[Outcome]], path: str) -> None:
    """Draw accuracy over simulated time, mean over the seeds as long as all of them last."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for way, of_way in outcomes.items():
        curves = [np.array([(0.0, 0.0), *outcome.curve]) for outcome in of_way]
        times = np.linspace(0.0, min(curve[-1, 0] for curve in curves), max(map(len, curves)))
        accuracy = [np.interp(times, curve[:, 0], 100 * curve[:, 1]) for curve in curves]
        axes.plot(times, np.mean(accuracy, axis=0), marker=".", label=str(way))
    axes.set_xlabel("rounds of the fastest board (measured processor time × modelled slowdown)")
    axes.set_ylabel("test accuracy, mean over nodes (%)")
    axes.legend()
    figure.savefig(path)


def main(bench: Benchmark) -> None:
    """Fill the table and say whether elastic boards keep the deadline and gain time."""
    outcomes = fill(bench, bench.options.data)
    if bench.options.plot:
        plot(outcomes, bench.options.plot)
    elastic = [way for way in outcomes if way.late == "elastic"]
    for way in elastic:
        longest = max(outcome.longest for outcome in outcomes[way])
        bench.at_most(f"{way}: longest round of any node by the deadline, simulated", longest, 1.1)
    if not bench.quick:
        # Mixing by trainers alone is in the table to show what it costs.
        for way in (way for way in elastic if way.mixed_by == "all"):
            faster = times_faster(outcomes[way], outcomes[WAITED_FOR])
            bench.at_least(f"{way}: times sooner than waiting for the slowest, simulated", faster, 2.0)


if __name__ == "__main__":
    run("elastic_stragglers", __doc__, main, data_option(), PLOT)
