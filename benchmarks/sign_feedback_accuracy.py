"""What pruned gradients and feedback through signs cost in accuracy: ResNet-20 on CIFAR-10.

``python -m benchmarks.sign_feedback_accuracy --data FOLDER [--plot FILE] [--hours H] [--device cuda]
[--quick]``. Two tasks: fine-tuning of the checkpoint of classes 0 to 4 to all ten (`benchmarks.fine_tuning`),
and 15 epochs from random weights on a part of the training images, the same for all methods. All convolutions
but the stem are pruned, three seeds each; what a method loses is against exact gradients with the same seed.
Every run is kept when it is done: the most important come first, no new one is begun after `--hours`, and the
table has what is complete by then. Without the compiled kernels a run takes ten times as long; a GPU learns
what the CPU learns.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import kept_runs
from benchmarks.cifar import CLASSES, cifar10, data_option
from benchmarks.fine_tuning import Budget, FineTuning
from benchmarks.harness import DEVICE, PLOT, Benchmark, run
from benchmarks.kept_runs import HOURS, checkpoint_digest, keep, runners, say
from benchmarks.networks import blocks, resnet20
from benchmarks.pretrain import channels_last, pretrained
from benchmarks.published_pruning import PublishedFeedback
from flower_edge.training import Rising, SignFeedback, gradient_angle, prepare_, pruning_report

PROTOCOL = 1
"""Part of what names a kept run: raise it when what a run does changes."""

SEEDS = 3

Task: TypeAlias = Literal["fine-tuning", "from scratch"]
Feedback: TypeAlias = Literal["sign", "exact"]


@dataclass(frozen=True)
class Method:
    """What is done to the gradients; 0 and exact feedback is nothing.

    Attributes
    ----------
    sparsity : float
        Share of zeros; of the published rule, P.
    feedback : {"sign", "exact"}
    start : float
        Sparsity of the first step, from where it rises over a third of the steps.
    published : bool
        Whether the threshold comes from a Gaussian fit.
    """

    sparsity: float
    feedback: Feedback
    start: float | None = None
    published: bool = False

    def __str__(self) -> str:
        if self == EXACT:
            return "exact"
        if self.published:
            return f"published rule, P = {self.sparsity:g}"
        pruned = f"pruned {self.sparsity:.0%}" if self.sparsity else ""
        if self.start is not None:
            pruned += f", rising from {self.start:.0%}"
        return " and ".join(filter(None, (pruned, "sign feedback" if self.feedback == "sign" else "")))

    def of(self, budget: Budget) -> SignFeedback:
        """Return the method for runs with this budget."""
        schedule = None if self.start is None else Rising(self.start, max(1, budget.steps // 3))
        kind = PublishedFeedback if self.published else SignFeedback
        # Measured fall-backs would make what is trained depend on the machine.
        return kind(self.sparsity, self.feedback, schedule, fallback="never")


EXACT = Method(0.0, "exact")
FEEDBACK_ONLY = Method(0.0, "sign")
BOTH, PRUNED = Method(0.8, "sign"), Method(0.8, "exact")
PRUNED_90, PRUNED_95 = (Method(sparsity, "exact") for sparsity in (0.9, 0.95))
PRUNED_RISING, BOTH_RISING = Method(0.8, "exact", 0.5), Method(0.8, "sign", 0.5)
BOTH_90 = Method(0.9, "sign")
PUBLISHED = Method(0.9, "sign", published=True)

TIERS: tuple[tuple[Method, ...], ...] = (
    (EXACT, PRUNED_RISING),
    (PRUNED, BOTH),
    (FEEDBACK_ONLY,),
    (PUBLISHED, PRUNED_90),
    (BOTH_RISING, PRUNED_95),
    (BOTH_90,),
)
"""The most important first; of each, fine-tuning comes before training from scratch."""

METHODS = tuple(method for tier in TIERS for method in tier)


@dataclass(frozen=True)
class Case:
    """What runs of different methods share."""

    task: Task
    seed: int


def todo(quick: bool) -> list[tuple[Case, Method]]:
    """Return all runs, the most important first."""
    if quick:
        return [(Case("fine-tuning", 0), method) for method in (EXACT, BOTH)]
    return [
        (Case(task, seed), method)
        for tier in TIERS
        for task in ("fine-tuning", "from scratch")
        for seed in range(SEEDS)
        for method in tier
    ]


def budget_of(task: Task, quick: bool) -> Budget:
    """Return what every method may use."""
    if quick:
        return Budget(images=1920, epochs=1, test_images=1000)
    if task == "from scratch":
        return Budget(images=6400, epochs=15, rate=0.1)
    return Budget()


def start(case: Case) -> nn.Module:
    """Return the network that all methods begin with."""
    if case.task == "fine-tuning":
        return pretrained("resnet20")
    torch.manual_seed(case.seed)
    return channels_last(resnet20(CLASSES))


def kept_at(case: Case, method: Method, budget: Budget) -> Path:
    """Return where the outcome of a run is kept."""
    begins = checkpoint_digest("resnet20") if case.task == "fine-tuning" else "random"
    decides = [PROTOCOL, begins, asdict(case), asdict(method), asdict(budget)]
    return kept_runs.kept_at("sign_feedback_accuracy", decides)


def finish(
    case: Case, method: Method, budget: Budget, folder: Path, until: float, device: str = "cpu"
) -> None:
    """Do a run whose outcome is not kept yet, unless it is late."""
    path = kept_at(case, method, budget)
    if path.exists() or time.time() > until:
        return
    task = FineTuning(start(case), blocks, None, *cifar10(folder), budget, case.seed, device=device)
    # Of the pruning; the data have a generator of their own.
    torch.manual_seed(case.seed)
    outcome = trained(task, method)
    keep(path, {**asdict(case), **asdict(method), **outcome, "device": device})
    say(f"{case}, {method}: {outcome['accuracy']:.4f}")


def trained(task: FineTuning, method: Method) -> dict[str, float]:
    """Train by a method; return what came of it, and the angles of its gradient from the exact one.

    Returns
    -------
    dict of str to float
        ``accuracy`` from 0 to 1; ``sparsity`` and ``skipped`` (shares of zeros and of multiply-accumulates
        left out, counted); ``angle_first`` and ``angle_last``, degrees, of the first batch and of the last.
    """
    models: list[nn.Module] = []
    angles: list[float] = []

    def watched(model: nn.Module, optimizer: torch.optim.SGD) -> Callable[[int, Any], None]:
        models.append(model)
        last = len(task.batches) - 1

        def before_step(step: int, batch: Any) -> None:
            if step in (0, last) and method != EXACT:
                angles.append(gradient_angle(model, batch, cross_entropy).degrees)

        return before_step

    reached = task.alone(
        lambda model: model if method == EXACT else prepare_(model, method.of(task.budget)), watched
    )
    report = pruning_report(models[0])
    first, *_, last = angles or [0.0, 0.0]
    return {
        **{"accuracy": reached, "sparsity": report.sparsity, "skipped": report.skipped_share},
        **{"angle_first": first, "angle_last": last},
    }


@dataclass(frozen=True)
class Found:
    """What one method reached, by seed; percent."""

    accuracy: tuple[float, ...]
    lost: tuple[float, ...]
    sparsity: float
    skipped: float
    angle_first: float
    angle_last: float

    @property
    def mean_lost(self) -> float:
        """Mean of what was lost against exact gradients with the same seed, in points."""
        return statistics.fmean(self.lost)


def found(task: Task, method: Method, quick: bool) -> Found | None:
    """Read the kept outcomes of a method, if those of all seeds are there."""
    cases = [Case(task, seed) for seed in range(1 if quick else SEEDS)]
    paths = [[kept_at(case, of, budget_of(task, quick)) for case in cases] for of in (method, EXACT)]
    if not all(path.exists() for pair in paths for path in pair):
        return None
    ours, exact = ([json.loads(path.read_text()) for path in pair] for pair in paths)

    def mean(name: str) -> float:
        return statistics.fmean(outcome[name] for outcome in ours)

    return Found(
        tuple(100 * one["accuracy"] for one in ours),
        tuple(100 * (e["accuracy"] - o["accuracy"]) for e, o in zip(exact, ours, strict=True)),
        *(100 * mean(name) for name in ("sparsity", "skipped")),
        *(mean(name) for name in ("angle_first", "angle_last")),
    )


def fill(bench: Benchmark, folder: Path, hours: float, device: str) -> dict[tuple[Task, Method], Found]:
    """Run what is not kept, as time permits, and fill the table with what is complete."""
    until = time.time() + 3600 * hours
    with runners(device) as pool:
        jobs = [
            pool.submit(finish, case, method, budget_of(case.task, bench.quick), folder, until, device)
            for case, method in todo(bench.quick)
        ]
        for job in jobs:
            job.result()
    tasks: tuple[Task, ...] = ("fine-tuning", "from scratch")
    complete = {
        (task, method): outcome
        for task in tasks
        for method in METHODS
        if (outcome := found(task, method, bench.quick)) is not None
    }
    for (task, method), outcome in complete.items():
        bench.row(
            task=task,
            method=str(method),
            accuracy=statistics.fmean(outcome.accuracy),
            spread=_spread(outcome.accuracy),
            lost=outcome.mean_lost,
            spread_lost=_spread(outcome.lost),
            zeros_counted=outcome.sparsity,
            macs_skipped_counted=outcome.skipped,
            angle_first_measured=outcome.angle_first,
            angle_last_measured=outcome.angle_last,
        )
    return complete


def _spread(values: tuple[float, ...]) -> float:
    """Return the standard deviation; 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def default() -> Method:
    """Return the method as it is without arguments, in these runs."""
    made = SignFeedback()
    return Method(made.sparsity, made.feedback, None if made.schedule is None else made.schedule.start)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw what is lost over the share of multiply-accumulates that is left, a panel for each task."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if not tasks:
        raise SystemExit("there is nothing to draw: no method is complete")
    figure = Figure(figsize=(5.5 * len(tasks), 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for row in (row for row in rows if row["task"] == task and row["method"] != str(EXACT)):
            marker = "o" if "sign" in row["method"] or "published" in row["method"] else "s"
            axes.errorbar(
                [row["macs_skipped_counted"]],
                [row["lost"]],
                [row["spread_lost"]],
                marker=marker,
                capsize=3,
                label=row["method"],
            )
        axes.axhline(0.0, color="grey", linestyle="--", label=str(EXACT))
        axes.set_xlabel("multiply-accumulates of backward passes skipped (%, counted)")
        axes.set_ylabel("points lost against exact gradients")
        axes.set_title(f"ResNet-20, {task}")
        axes.legend(fontsize="small")
    figure.savefig(path)


def main(bench: Benchmark) -> None:
    """Fill the table and say whether the default keeps its promise."""
    options = bench.options
    complete = fill(bench, options.data, options.hours, options.device)
    if options.plot:
        plot(bench.rows, options.plot)
    if bench.quick:
        chance = 10.0
        reached = complete["fine-tuning", BOTH].accuracy[0]
        bench.at_least("accuracy with both after a short run, %", reached, 3 * chance)
        return
    claim(bench, complete)


def claim(bench: Benchmark, complete: dict[tuple[Task, Method], Found]) -> None:
    """Claim how little the default loses, where its runs are complete."""
    bounds: dict[Task, float] = {"fine-tuning": 0.5, "from scratch": 1.0}
    for task, bound in bounds.items():
        outcome = complete.get((task, default()))
        if outcome is not None:
            text = f"points lost against exact gradients, mean of {SEEDS} seeds: {task}, {default()}"
            bench.at_most(text, outcome.mean_lost, bound)


if __name__ == "__main__":
    run("sign_feedback_accuracy", __doc__, main, data_option(), PLOT, HOURS, DEVICE)
