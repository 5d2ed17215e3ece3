"""What 8 bits, the normalisation and few bytes on the links cost in accuracy, under label skew.

``python -m benchmarks.low_precision_accuracy --data FOLDER [--plot FILE] [--hours H] [--quick]``. ResNet-20
learns CIFAR-10 from random weights on 8 and 16 nodes (`benchmarks.low_precision_runs`), three times. There
are hundreds of runs, each kept when it is done: the most important come first, no new one is begun after
`--hours`, and the table has what is complete by then.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import kept_runs
from benchmarks.cifar import cifar10, data_option
from benchmarks.fine_tuning import Budget
from benchmarks.harness import PLOT, Benchmark, run
from benchmarks.kept_runs import HOURS, keep, runners, say
from benchmarks.low_precision_runs import ARITHMETICS, EXCHANGES, Outcome, Run, train
from flower_edge.training import Int8Training

PROTOCOL = 1
"""Part of what names a kept run: raise it when what a run does changes."""

SEEDS = 3
BATCH = 16
"""Images of one node in a step."""

# How far a choice is from what matters most: both arithmetics with Range-EvoNorm, fp32 exchange, a ring of 8.
LATER: dict[str, dict[Any, int]] = {
    "skew": {0.0: 0, 1.0: 0, 0.8: 0, 0.6: 3},
    "norm": {"Range-EvoNorm": 0, "BatchNorm": 1, "EvoNorm": 2},
    "arithmetic": dict.fromkeys(ARITHMETICS, 0),
    "exchange": {"fp32": 0, "int8 CHOCO": 1, "int4 CHOCO": 1, "top-k CHOCO": 2},
    "topology": {"ring": 0, "optimised": 2},
    "nodes": {8: 0, 16: 3},
}


def cases(quick: bool) -> list[Run]:
    """Return what is trained, each with seed 0, the most important first."""
    if quick:
        return [
            Run(1.0, "Range-EvoNorm", "fp32", exchange, "ring", 4, 0) for exchange in ("fp32", "int8 CHOCO")
        ]
    every = [
        Run(**dict(zip(LATER, choice, strict=True)), seed=0)
        for choice in product(*(choices for choices in LATER.values()))
    ]
    return sorted(every, key=lambda case: sum(LATER[name][getattr(case, name)] for name in LATER))


def seeds_of(case: Run, quick: bool) -> list[Run]:
    """Return the runs of a case, which differ in their seed alone."""
    return [replace(case, seed=seed) for seed in range(1 if quick else SEEDS)]


def budget_of(case: Run, quick: bool) -> Budget:
    """Return what every run with so many nodes may use."""
    batch = BATCH * case.nodes
    if quick:
        return Budget(images=640, epochs=1, batch=batch, rate=0.1, test_images=500)
    return Budget(images=50_000, epochs=4, batch=batch, rate=0.1)


def kept_at(of: Run, budget: Budget) -> Path:
    """Return where the outcome of a run is kept."""
    how = [_settings(ARITHMETICS[of.arithmetic]), repr(EXCHANGES[of.exchange])]
    return kept_runs.kept_at("low_precision_accuracy", [PROTOCOL, asdict(of), asdict(budget), *how])


def _settings(method: Int8Training | None) -> dict[str, Any] | None:
    """Return what decides how a method computes; a function, such as `where`, is written with its address."""
    if method is None:
        return None
    return {name: value for name, value in vars(method).items() if not callable(value)}


def finish(of: Run, budget: Budget, folder: Path, until: float) -> None:
    """Do a run whose outcome is not kept yet, unless it is late."""
    path = kept_at(of, budget)
    if path.exists() or time.time() > until:
        return
    outcome = train(of, budget, *cifar10(folder))
    keep(path, {"run": asdict(of), **asdict(outcome)})
    say(f"{of}: {outcome}")


@dataclass(frozen=True)
class Found:
    """What a case reached: accuracies in percent, one for each seed.

    Attributes
    ----------
    consensus : tuple of float
        Of the mean of all models.
    nodes : float
        Of the nodes' own models, mean over nodes and seeds.
    megabytes : float
        Sent by a node, mean over nodes and seeds.
    """

    consensus: tuple[float, ...]
    nodes: float
    megabytes: float

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.consensus)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 of one."""
        return statistics.stdev(self.consensus) if len(self.consensus) > 1 else 0.0


def found(case: Run, quick: bool) -> Found | None:
    """Read the kept outcomes of a case, if those of all seeds are there."""
    budget = budget_of(case, quick)
    paths = [kept_at(of, budget) for of in seeds_of(case, quick)]
    if not all(path.exists() for path in paths):
        return None
    kept = [json.loads(path.read_text()) for path in paths]
    outcomes = [Outcome(*(float(one[name]) for name in ("consensus", "nodes", "megabytes"))) for one in kept]
    return Found(
        tuple(100 * outcome.consensus for outcome in outcomes),
        100 * statistics.fmean(outcome.nodes for outcome in outcomes),
        statistics.fmean(outcome.megabytes for outcome in outcomes),
    )


def fill(bench: Benchmark, folder: Path, hours: float) -> dict[Run, Found]:
    """Run what is not kept, as time permits, and fill the table with what is complete."""
    until = time.time() + 3600 * hours
    with runners() as pool:
        jobs = [
            pool.submit(finish, of, budget_of(case, bench.quick), folder, until)
            for case in cases(bench.quick)
            for of in seeds_of(case, bench.quick)
        ]
        for job in jobs:
            job.result()
    complete = {case: outcome for case in cases(bench.quick) if (outcome := found(case, bench.quick))}
    for case, outcome in sorted(complete.items(), key=lambda item: tuple(asdict(item[0]).values())):
        bench.row(
            skew=case.skew,
            topology=case.topology,
            nodes=case.nodes,
            norm=case.norm,
            arithmetic=case.arithmetic,
            exchange=case.exchange,
            accuracy_of_consensus=outcome.mean,
            spread=outcome.spread,
            accuracy_of_nodes=outcome.nodes,
            megabytes_sent_a_node_counted=outcome.megabytes,
        )
    return complete


def pairs(complete: dict[Run, Found], **change: Any) -> Iterator[tuple[Run, Found, Found]]:
    """Yield complete cases together with what a case reached that differs from them in this alone."""
    for case, outcome in complete.items():
        other = replace(case, **change)
        if other != case and other in complete:
            yield case, outcome, complete[other]


def claim_losses(bench: Benchmark, complete: dict[Run, Found]) -> None:
    """Claim that 8 bits lose little, and few bytes on the links."""
    for case, low, full in pairs(complete, arithmetic="fp32"):
        if case.norm == "Range-EvoNorm" and case.exchange == "fp32" and case.skew != 0.6:
            bench.at_most(
                f"points lost by {case.arithmetic} arithmetic, {_short(case)} (measured)",
                full.mean - low.mean,
                1.0 if case.skew == 1.0 else 0.5,
            )
    for case, low, full in pairs(complete, exchange="fp32"):
        if case.exchange in ("int8 CHOCO", "int4 CHOCO"):
            bench.at_most(
                f"points lost by {case.exchange}, {_short(case)} (measured)", full.mean - low.mean, 0.5
            )
            bench.at_least(
                f"times fewer bytes by {case.exchange}, {_short(case)} (counted)",
                full.megabytes / low.megabytes,
                3.5 if case.exchange == "int8 CHOCO" else 6.5,
            )


def _short(case: Run) -> str:
    return f"{case.norm}, {case.arithmetic}, skew {case.skew:g}, {case.topology} of {case.nodes}"


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw accuracy over megabytes for the ring of 8, one panel for each skew."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if (row["topology"], row["nodes"]) == ("ring", 8)]
    skews = sorted({row["skew"] for row in shown})
    if not skews:
        raise SystemExit("there is nothing to draw: no case on the ring of 8 is complete")
    figure = Figure(figsize=(4 * len(skews), 4), layout="constrained")
    for axes, skew in zip(figure.subplots(1, len(skews), squeeze=False)[0], skews, strict=True):
        here = [row for row in shown if row["skew"] == skew]
        for norm, arithmetic in sorted({(row["norm"], row["arithmetic"]) for row in here}):
            curve = sorted(
                (row for row in here if (row["norm"], row["arithmetic"]) == (norm, arithmetic)),
                key=lambda row: float(row["megabytes_sent_a_node_counted"]),
            )
            axes.errorbar(
                [row["megabytes_sent_a_node_counted"] for row in curve],
                [row["accuracy_of_consensus"] for row in curve],
                [row["spread"] for row in curve],
                marker="o",
                capsize=3,
                label=f"{norm}, {arithmetic}",
            )
        axes.set_xscale("log")
        axes.set_title(f"label skew {skew:g}")
        axes.set_xlabel("megabytes sent by a node (counted)")
        axes.set_ylabel("test accuracy of the consensus (%)")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.containers}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path)


def main(bench: Benchmark) -> None:
    """Fill the table, draw it, and say what low precision loses."""
    options = bench.options
    complete = fill(bench, options.data, options.hours)
    if options.plot:
        plot(bench.rows, options.plot)
    if not bench.quick:
        claim_losses(bench, complete)
        return
    full, low = (complete[case] for case in cases(quick=True))
    bench.at_least("times fewer bytes by int8 CHOCO (counted)", full.megabytes / low.megabytes, 3.5)


if __name__ == "__main__":
    run("low_precision_accuracy", __doc__, main, data_option(), PLOT, HOURS)
