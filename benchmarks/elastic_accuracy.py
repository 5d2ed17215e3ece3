"""What training within a share of the backward time costs in accuracy: pre-trained networks learn more.

``python -m benchmarks.elastic_accuracy --data FOLDER [--plot FILE] [--quick]``. Every method has the same
images in the same order, steps and learning rates (`benchmarks.fine_tuning`), three times; all begin with
the same checkpoint and may train any tensor. Elastic training and the published selection choose anew every
`EVERY` steps; their probe trains nothing. Shares of the backward time are predicted by one profile, and
measured of the first seed's choices beside the full step, in this thread's processor time.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks import kept_runs
from benchmarks.cifar import cache_folder, cifar10, data_option
from benchmarks.elastic_methods import TRACKED, Method, choosing, share_of, train_only
from benchmarks.fine_tuning import Budget, FineTuning
from benchmarks.harness import PLOT, Benchmark, run
from benchmarks.kept_runs import checkpoint_digest, keep, runners, say
from benchmarks.networks import blocks
from benchmarks.pretrain import pretrained
from benchmarks.step_times import TrainingStep, interleaved_steps
from flower_edge.training import Profile, kept_profile

PROTOCOL = 1
"""Part of what names a kept run: raise it when what a run does changes."""

NETWORKS = ("resnet20", "mobilenet_v2")
SEEDS = 3
EVERY = 156
"""Steps between two choices: an epoch."""

SHARES = (0.3, 0.5, 0.7)
FULL = Method("full")
NORM_AND_BIAS = Method("norm + bias")


@dataclass(frozen=True)
class Case:
    """What runs of different methods share."""

    network: str
    seed: int


def cases(quick: bool) -> list[Case]:
    """Return what is trained, one network after the other."""
    if quick:
        return [Case("resnet20", 0)]
    return [Case(network, seed) for network in NETWORKS for seed in range(SEEDS)]


def methods(quick: bool) -> list[Method]:
    """Return what is compared."""
    if quick:
        return [FULL, Method("last k", 0.5), Method("ours", 0.5)]
    tracked = [Method(kind, share) for kind in TRACKED for share in SHARES]
    once = dict.fromkeys(rival for share in SHARES for rival in rivals(share))
    return [FULL, Method("last layer"), *once, *tracked]


def budget_of(quick: bool) -> Budget:
    """Return what every method may use."""
    return Budget(images=2560, epochs=1, test_images=2000) if quick else Budget()


def fine_tuning(case: Case, budget: Budget, folder: Path) -> FineTuning:
    """Prepare what all methods of a case share."""
    return FineTuning(pretrained(case.network), blocks, None, *cifar10(folder), budget, case.seed)


def profile_of(network: str, folder: Path) -> Profile:
    """Return the profile that all runs of a network use; measured once on a machine, then kept."""
    task = fine_tuning(Case(network, 0), Budget(images=64, epochs=1, test_images=1), folder)
    model = task.model(lambda model: None).train()
    optimizer = task.optimizer(model)
    return kept_profile(
        model, task.batches[0], cross_entropy, cache_folder() / "elastic_accuracy", optimizer=optimizer
    )


def kept_at(case: Case, method: Method, budget: Budget) -> Path:
    """Return where the outcome of a run is kept.

    The profile does not name it: another one hardly changes the choices, and the shares are predicted anew.
    """
    decides = [PROTOCOL, EVERY, checkpoint_digest(case.network), asdict(case), asdict(method), asdict(budget)]
    return kept_runs.kept_at("elastic_accuracy", decides)


def finish(case: Case, todo: Sequence[Method], budget: Budget, profile: Profile, folder: Path) -> None:
    """Run the methods whose outcome is not kept yet; what they share is made once."""
    missing = [method for method in todo if not kept_at(case, method, budget).exists()]
    if not missing:
        return
    torch.set_num_threads(1)
    task = fine_tuning(case, budget, folder)
    for method in missing:
        torch.manual_seed(case.seed)  # of dropout
        chosen: list[tuple[str, ...]] = []
        reached = task.alone(lambda model: None, choosing(method, profile, EVERY, chosen))
        keep(
            kept_at(case, method, budget),
            {**asdict(case), **asdict(method), "accuracy": reached, "chosen": chosen},
        )
        say(f"{case}, {method}: {reached:.4f}")


@dataclass(frozen=True)
class Found:
    """Outcomes of one method for cases that differ in their seed.

    Attributes
    ----------
    accuracy : tuple of float
        Percent, by seed.
    chosen : tuple of tuple of tuple of str
        What was trained, by seed and interval.
    """

    accuracy: tuple[float, ...]
    chosen: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.accuracy)

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy over the seeds; 0 of one."""
        return statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else 0.0

    def below(self, other: "Found") -> float:
        """Return by how many points it is below another method, mean over the seeds."""
        return statistics.fmean(o - s for o, s in zip(other.accuracy, self.accuracy, strict=True))


def found(group: Sequence[Case], method: Method, budget: Budget) -> Found:
    """Read the kept outcomes of one method."""
    kept = [json.loads(kept_at(case, method, budget).read_text()) for case in group]
    return Found(
        tuple(100 * outcome["accuracy"] for outcome in kept),
        tuple(tuple(tuple(names) for names in outcome["chosen"]) for outcome in kept),
    )


def measured_shares(task: FineTuning, outcomes: dict[Method, Found], repeats: int = 7) -> dict[Method, float]:
    """Measure the backward time of what the first seed trained, beside that of everything.

    Returns
    -------
    dict from Method to float
        Mean share over the intervals.
    """
    batch = task.batches[0]

    def step(names: tuple[str, ...] | None) -> TrainingStep:
        model = task.model(lambda model: None).train()
        optimizer = task.optimizer(model)
        if names is not None:
            train_only(model, names)
        return TrainingStep(model, optimizer, cross_entropy, batch)

    steps = {"full": step(None)}
    for outcome in outcomes.values():
        for names in outcome.chosen[0]:
            steps.setdefault(" ".join(names), step(names))
    timings = interleaved_steps(steps, repeats)
    shares = {name: timing.backward.over(timings["full"].backward) for name, timing in timings.items()}
    return {
        method: statistics.fmean(shares[" ".join(names)] for names in outcome.chosen[0])
        for method, outcome in outcomes.items()
    }


def groups(quick: bool) -> Iterator[tuple[str, list[Case]]]:
    """Yield each network with its cases, which differ in their seed."""
    every = cases(quick)
    for network in dict.fromkeys(case.network for case in every):
        yield network, [case for case in every if case.network == network]


def fill(bench: Benchmark, folder: Path) -> dict[str, dict[Method, Found]]:
    """Run what is not kept, and fill the table."""
    torch.set_num_threads(1)
    budget, todo = budget_of(bench.quick), methods(bench.quick)
    every = cases(bench.quick)
    # Before the pool starts: nothing else of this benchmark runs while it measures.
    profiles = {network: profile_of(network, folder) for network in dict.fromkeys(c.network for c in every)}
    with runners() as pool:
        jobs = [pool.submit(finish, case, todo, budget, profiles[case.network], folder) for case in every]
        for job in jobs:
            job.result()
    outcomes = {}
    for network, group in groups(bench.quick):
        outcomes[network] = {method: found(group, method, budget) for method in todo}
        add_rows(bench, group[0], outcomes[network], profiles[network], folder)
    return outcomes


def add_rows(
    bench: Benchmark, case: Case, outcomes: dict[Method, Found], profile: Profile, folder: Path
) -> None:
    """Add a row for each method of one network."""
    task = fine_tuning(case, Budget(images=64, epochs=1, test_images=1), folder)
    measured = measured_shares(task, outcomes)
    for method, outcome in outcomes.items():
        choices = [names for run in outcome.chosen for names in run]
        bench.row(
            network=case.network,
            method=str(method),
            accuracy=outcome.mean,
            spread=outcome.spread,
            below_full=outcome.below(outcomes[FULL]),
            tensors=statistics.fmean(map(len, choices)),
            backward_share_predicted=statistics.fmean(share_of(profile.graph, names) for names in choices),
            backward_share_measured=measured[method],
        )


def rivals(share: float) -> tuple[Method, ...]:
    """Return what elastic training within a share has to be better than: methods that take no less time.

    Norm + bias takes more than half of the backward time if all of it is trained: it then counts against
    half of it, too.
    """
    last_k = Method("last k", share)
    if share > 0.5:
        return last_k, NORM_AND_BIAS
    cut = Method("norm + bias", share)
    return (last_k, cut, NORM_AND_BIAS) if share == 0.5 else (last_k, cut)


def claim(bench: Benchmark, network: str, outcomes: dict[Method, Found]) -> None:
    """Say how far elastic training is below full training, and above the others at equal time."""
    ours = {share: outcomes[Method("ours", share)] for share in SHARES}
    below = ours[0.5].below(outcomes[FULL])
    bench.at_most(f"{network}, ours at ρ = 0.5: points below full training", below, 0.5)
    for share in SHARES:
        for rival in rivals(share):
            above = outcomes[rival].below(ours[share])
            bench.at_least(f"{network}, ours at ρ = {share}: points above {rival}", above, 0.0)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw accuracy over the backward time, a panel for each network and a curve for each way to choose."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(5 * len(networks), 4), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        shown = [row for row in rows if row["network"] == network]
        for kind, marker in {"ours": "o", "published": "^", "last k": "s", "norm + bias": "v"}.items():
            curve = sorted(
                (row for row in shown if row["method"].partition(",")[0] == kind),
                key=lambda row: row["backward_share_predicted"],
            )
            axes.errorbar(
                [row["backward_share_predicted"] for row in curve],
                [row["accuracy"] for row in curve],
                [row["spread"] for row in curve],
                marker=marker,
                capsize=3,
                label=kind,
            )
        full = next(row for row in shown if row["method"] == str(FULL))
        axes.axhline(full["accuracy"], color="grey", linestyle="--", label="full")
        axes.set_xlabel("backward time, full = 1 (predicted)")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(network)
        axes.legend()
    figure.savefig(path)


def main(bench: Benchmark) -> None:
    """Fill the table and say whether elastic training keeps its promise."""
    outcomes = fill(bench, bench.options.data)
    if bench.options.plot:
        plot(bench.rows, bench.options.plot)
    if bench.quick:
        chance = 10.0
        reached = outcomes["resnet20"][Method("ours", 0.5)].mean
        bench.at_least("accuracy of ours at ρ = 0.5 after a short run, %", reached, 4 * chance)
        return
    for network, of_network in outcomes.items():
        claim(bench, network, of_network)


if __name__ == "__main__":
    run("elastic_accuracy", __doc__, main, data_option(), PLOT)
