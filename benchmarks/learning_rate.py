"""Which learning rate is best for D-PSGD on the full graph: the one that every method of the demo then gets.

``python -m benchmarks.learning_rate [--quick]``

Trains the quickstart with its own run config, ClientApp and strategy, for several rates and seeds. Only the
transport differs from ``flwr run``: messages are answered in this process. Writes ``docs/learning_rate.md``.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Benchmark, run
from benchmarks.quickstart_runs import CONFIG, run_all
from examples.comparison import LAST_EVALUATIONS

DOCUMENT = Path(__file__).parent.parent / "docs" / "learning_rate.md"

RATES = (0.025, 0.05, 0.1, 0.2, 0.4)
SEEDS = (0, 1, 2, 3, 4)
QUICK_RATES, QUICK_SEEDS, QUICK_ROUNDS = (0.025, 0.1, 0.4), (0,), 16

TEMPLATE = """# The learning rate of the demo

`make demo` gives all five methods the learning rate that is best for D-PSGD on the full graph with
Metropolis weights, the baseline that the optimised plan is compared with. So neither the plan nor FedAvg
gets a rate that was tuned for it.

| learning rate | accuracy (%) | over seeds | |
|---:|---:|---:|---|
{rows}

*Measured*: mean accuracy of all nodes' own models on the common test set, averaged over the last {last}
evaluations of {rounds} rounds, one every {evaluate_every} rounds, and over {seeds} seeds; a seed stands for
another initial model, another partition of the data and another order of the batches.

The task is that of `examples/quickstart` with its run config: {dataset}, Dirichlet({alpha:g}) label skew,
graph `{graph}`, batches of {batch_size}, local epochs a round: {local_epochs}, plain SGD.

Measured on {cpu} with torch {torch} and flwr {flwr} by `python -m benchmarks.learning_rate`, which writes
this page and `benchmarks/results/learning_rate.json`.
"""


def main(bench: Benchmark) -> None:
    """Measure the grid, and see that its best is not at its edge."""
    rates, seeds = (QUICK_RATES, QUICK_SEEDS) if bench.quick else (RATES, SEEDS)
    rounds = QUICK_ROUNDS if bench.quick else CONFIG["num-server-rounds"]
    runs = [
        {"strategy": "gossip-full", "num-server-rounds": rounds, "learning-rate": rate, "seed": seed}
        for rate in rates
        for seed in seeds
    ]
    finals = iter([_final(accuracies) for accuracies in run_all(runs)])
    found = {rate: [next(finals) for _ in seeds] for rate in rates}
    means = {rate: statistics.fmean(accuracies) for rate, accuracies in found.items()}
    best = max(means, key=means.__getitem__)
    for rate, accuracies in found.items():
        bench.row(
            learning_rate=rate,
            accuracy_percent=means[rate],
            lowest_seed=min(accuracies),
            highest_seed=max(accuracies),
            best="best" if rate == best else "",
        )
    inside = min(rates.index(best), len(rates) - 1 - rates.index(best))
    bench.at_least("rates of the grid on the smaller side of the best one (measured)", inside, 1)
    if not bench.quick:
        DOCUMENT.write_text(_document(bench, rounds), "utf-8")


def _final(accuracies: Mapping[int, float]) -> float:
    return statistics.fmean(list(accuracies.values())[-LAST_EVALUATIONS:])


def _document(bench: Benchmark, rounds: int) -> str:
    rows = "\n".join(
        f"| {row['learning_rate']:g} | {row['accuracy_percent']:.2f} | {row['lowest_seed']:.2f} to "
        f"{row['highest_seed']:.2f} | {row['best']} |"
        for row in bench.rows
    )
    task = CONFIG | {"last": LAST_EVALUATIONS, "rounds": rounds, "seeds": len(SEEDS), **bench.machine}
    return TEMPLATE.format(rows=rows, **{name.replace("-", "_"): value for name, value in task.items()})


if __name__ == "__main__":
    run("learning_rate", __doc__, main)
