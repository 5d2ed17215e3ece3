"""What gradient filtering costs in accuracy: fine-tuning of pre-trained networks, alone and in a gossip of 8.

``python -m benchmarks.gradient_filter_accuracy --data FOLDER [--plot FILE] [--hours H] [--device cuda]
[--quick]``. Every method trains the same layers of the same checkpoint with the same budget
(`benchmarks.fine_tuning`), three times; what it loses is against exact gradients with the same seed. Every
run is kept when it is done: the most important come first, no new one is begun after `--hours`, and the table
has what is complete by then. A GPU learns what the CPU learns; times are always the CPU's.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass
from functools import cache
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from benchmarks import kept_runs
from benchmarks.cifar import cifar10, data_option
from benchmarks.filter_cost import Cost, backward_cost
from benchmarks.fine_tuning import Budget, FineTuning
from benchmarks.harness import DEVICE, PLOT, Benchmark, run
from benchmarks.kept_runs import HOURS, checkpoint_digest, keep, runners, say
from benchmarks.networks import blocks
from benchmarks.pretrain import pretrained
from flower_edge.gossip import GossipPlan, full_graph_plan, torus
from flower_edge.training import GradientFilter, all_but_stem, last, prepare_, tap_symbols

PROTOCOL = 2
"""Part of what names a kept run: raise it when what a run does changes."""

NODES = 8
SEEDS = 3
ALL = 0
"""Number of last layers that stands for all: everything is trained, and all but the stem filtered."""


Basis: TypeAlias = Literal["fourier", "walsh"]


@dataclass(frozen=True)
class Method:
    """Filtered gradients, or one of the two methods without components."""

    patch_size: int
    components: int
    basis: Basis = "walsh"

    def __str__(self) -> str:
        names = {EXACT: "exact", FROZEN: "convolutions frozen"}
        return names.get(self, f"{self.basis.capitalize()}, r = {self.patch_size}, k = {self.components}")


EXACT = Method(1, 0)
FROZEN = Method(0, 0)
"""Trains normalisation and head alone: what the convolutions' gradients are worth is seen against it."""

CURVES = (
    *(Method(2, k) for k in (1, 2, 4)),
    *(Method(4, k) for k in (1, 2, 4, 8)),
    *(Method(8, k, "fourier") for k in (9, 13, 21, 29)),
)
PAPER = Method(2, 1)
POINTWISE = Method(4, 4)
DEFAULT = Method(GradientFilter().patch_size, GradientFilter().components, GradientFilter().basis)
CLAIMED = ("resnet20", 1, 4)


@dataclass(frozen=True)
class Case:
    """What runs of different methods share: network, nodes, number of trained layers, seed."""

    network: str
    nodes: int
    layers: int
    seed: int


def cases(quick: bool) -> list[Case]:
    """Return what is trained, the most important first."""
    if quick:
        return [Case("resnet20", 1, 2, 0)]
    networks = "resnet20", "mobilenet_v2"
    choices = [
        *((network, nodes, 4) for network in networks for nodes in (1, NODES)),
        *((network, 1, layers) for network in networks for layers in (3, 2, 1)),
        *((network, nodes, ALL) for network in networks for nodes in (1, NODES)),
    ]
    return [Case(*choice, seed) for choice in choices for seed in range(SEEDS)]


def methods_of(case: Case) -> tuple[Method, ...]:
    """Return what is compared: everything in two cases, else the paper's method and the best for the layers.

    The layers of MobileNetV2 are depthwise and 1×1 ones, which the Fourier basis leaves exact.
    """
    if (case.network, case.nodes) == ("resnet20", 1) and case.layers in (4, ALL):
        return EXACT, FROZEN, *CURVES
    return EXACT, FROZEN, PAPER, DEFAULT if case.network == "resnet20" else POINTWISE


def budget_of(case: Case, quick: bool) -> Budget:
    """Return what every method may use."""
    if quick:
        return Budget(images=2560, epochs=1, test_images=2000)
    if case.nodes > 1:
        return Budget(batch=16 * NODES, test_images=2000)
    return Budget()


def change(method: Method, layers: int, measured: bool = False) -> Callable[[nn.Module], object]:
    """Return what a method does to a network."""
    if method == EXACT:
        return lambda model: model
    if method == FROZEN:
        return lambda model: _freeze(model, layers)
    where = all_but_stem if layers == ALL else last(layers)
    fallback: Literal["measured", "never"] = "measured" if measured else "never"
    part = GradientFilter(method.patch_size, method.components, where, fallback, method.basis)
    return lambda model: prepare_(model, part)


def _freeze(model: nn.Module, layers: int) -> None:
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convolutions[1:] if layers == ALL else convolutions[-layers:]:
        layer.weight.requires_grad_(False)


@cache
def plan() -> GossipPlan:
    """Return how the 8 nodes mix: a 2×4 torus with the weights of least ρ."""
    return full_graph_plan(torus(2, NODES // 2), weights="fastest")


def kept_at(case: Case, method: Method, budget: Budget) -> Path:
    """Return where the outcome of a run is kept."""
    walsh = method if method.basis == "walsh" else EXACT
    symbols = tap_symbols((3, 3), (1, 1), (1, 1), walsh.patch_size or 1, walsh.components or 1).tolist()
    checkpoint = checkpoint_digest(case.network)
    decides = [PROTOCOL, checkpoint, symbols, asdict(case), asdict(method), asdict(budget)]
    return kept_runs.kept_at("gradient_filter_accuracy", decides)


def finish(
    case: Case, budget: Budget, folder: Path, until: float = float("inf"), device: str = "cpu"
) -> None:
    """Run the methods whose outcome is not kept yet, unless it is late; what they share is made once."""
    missing = [method for method in methods_of(case) if not kept_at(case, method, budget).exists()]
    if not missing or time.time() > until:
        return
    task = fine_tuning(case, budget, folder, device)
    for method in missing:
        if time.time() > until:
            return
        start = change(method, case.layers)
        reached = task.alone(start) if case.nodes == 1 else task.gossip(start, plan())
        outcome = {**asdict(case), **asdict(method), "accuracy": reached, "device": device}
        keep(kept_at(case, method, budget), outcome)
        say(f"{case}, {method}: {reached:.4f}")


def fine_tuning(case: Case, budget: Budget, folder: Path, device: str = "cpu") -> FineTuning:
    """Prepare what all methods of a case share."""
    model = pretrained(case.network)
    convolutions = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    first = None if case.layers == ALL else convolutions[-case.layers]
    return FineTuning(model, blocks, first, *cifar10(folder), budget, case.seed, case.nodes, device)


@dataclass(frozen=True)
class Found:
    """Accuracy of one method by seed, and what it lost against exact gradients; percent."""

    accuracy: tuple[float, ...]
    lost: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.accuracy)

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy over the seeds; 0 of one."""
        return statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else 0.0

    @property
    def mean_lost(self) -> float:
        """Mean of what was lost."""
        return statistics.fmean(self.lost)

    @property
    def spread_lost(self) -> float:
        """Standard deviation of what was lost; 0 of one seed."""
        return statistics.stdev(self.lost) if len(self.lost) > 1 else 0.0


def found(group: list[Case], method: Method, quick: bool) -> Found | None:
    """Read the kept outcomes of one method for cases that differ in their seed, if all are there."""
    paths = [[kept_at(case, of, budget_of(case, quick)) for case in group] for of in (method, EXACT)]
    if not all(path.exists() for row in paths for path in row):
        return None
    reached, exact = (tuple(100 * json.loads(path.read_text())["accuracy"] for path in row) for row in paths)
    return Found(reached, tuple(e - r for e, r in zip(exact, reached, strict=True)))


def costs(case: Case, method: Method, folder: Path) -> Cost:
    """Count and time a backward pass with batches of the case, channels last: the faster layout for both."""
    torch.set_num_threads(1)
    budget = Budget(images=64, epochs=1, batch=64, test_images=1)
    task = fine_tuning(Case(case.network, 1, case.layers, 0), budget, folder)
    model = task.model(change(method, case.layers, measured=True))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backward_cost(model, task.batches[0][0].contiguous(memory_format=torch.channels_last))


def settled_costs(case: Case, method: Method, folder: Path) -> Cost:
    """Take the median of five processes: one is luckier with its memory than another by a third."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        found = [pool.submit(costs, case, method, folder) for _ in range(5)]
        return sorted((each.result() for each in found), key=lambda cost: cost.seconds_ratio)[2]


def groups(quick: bool) -> Iterator[list[Case]]:
    """Yield cases that differ in their seed alone, in the order of the table."""
    ordered = sorted(cases(quick), key=lambda c: (c.network != "resnet20", c.nodes, c.layers or 99, c.seed))
    for _, group in groupby(ordered, key=lambda case: (case.network, case.nodes, case.layers)):
        yield list(group)


def fill(bench: Benchmark, folder: Path, hours: float, device: str) -> list[dict[str, Any]]:
    """Run what is not kept, as time permits, and fill the table with what is complete."""
    until = time.time() + 3600 * hours
    with runners(device) as pool:
        jobs = [
            pool.submit(finish, case, budget_of(case, bench.quick), folder, until, device)
            for case in cases(bench.quick)
        ]
        for job in jobs:
            job.result()
    for group in groups(bench.quick):
        for method in methods_of(group[0]):
            outcome = found(group, method, bench.quick)
            if outcome is None:
                continue
            is_claimed = method == DEFAULT and astuple(group[0])[:3] == CLAIMED
            time_it = settled_costs if is_claimed else costs
            cost = None if method.components == 0 else time_it(group[0], method, folder)
            bench.row(
                network=group[0].network,
                nodes=group[0].nodes,
                layers="all" if group[0].layers == ALL else f"last {group[0].layers}",
                method=str(method),
                accuracy=outcome.mean,
                spread=outcome.spread,
                lost=outcome.mean_lost,
                spread_lost=outcome.spread_lost,
                operations_fewer_counted=1.0 if cost is None else cost.operations_ratio,
                backward_faster_measured=1.0 if cost is None else cost.seconds_ratio,
                share_of_step_counted=0.0 if cost is None else cost.share,
            )
    return bench.rows


def _is_claimed(row: dict[str, Any]) -> bool:
    network, nodes, layers = CLAIMED
    return (row["network"], row["nodes"], row["layers"]) == (network, nodes, f"last {layers}")


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw accuracy over cost for the claimed network and layers, alone: one curve for each patch size."""
    from matplotlib.figure import Figure

    network, _, layers = CLAIMED
    shown = [row for row in rows if _is_claimed(row)]
    if not any(row["method"] == str(DEFAULT) for row in shown):
        raise SystemExit("there is nothing to draw: the default is not complete")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, marker in (("Walsh, r = 2", "o"), ("Walsh, r = 4", "s"), ("Fourier, r = 8", "^")):
        curve = [row for row in shown if row["method"].startswith(name)]
        axes.errorbar(
            [1 / row["operations_fewer_counted"] for row in curve],
            [row["accuracy"] for row in curve],
            [row["spread"] for row in curve],
            marker=marker,
            capsize=3,
            label=name,
        )
        for row in curve:
            axes.annotate(
                row["method"].partition("k = ")[2],
                (1 / row["operations_fewer_counted"], row["accuracy"]),
                xytext=(4, -12),
                textcoords="offset points",
            )
    exact = next(row for row in shown if row["method"] == "exact")
    axes.axhline(exact["accuracy"], color="grey", linestyle="--", label="exact gradients")
    axes.set_xscale("log")
    axes.set_xlabel("operations of the filtered layers' backward pass, exact = 1 (counted)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(f"{network}, last {layers} layers; numbers are components")
    axes.legend()
    figure.savefig(path)


def main(bench: Benchmark) -> None:
    """Fill the table and say whether the default keeps its promise."""
    options = bench.options
    rows = fill(bench, options.data, options.hours, options.device)
    if options.plot:
        plot(rows, options.plot)
    if bench.quick:
        chance = 10.0
        bench.at_least("accuracy of the default after a short run, %", rows[-1]["accuracy"], 4 * chance)
        return
    of_claim = {row["method"]: row for row in rows if _is_claimed(row)}
    methods = [str(method) for method in (EXACT, FROZEN, DEFAULT)]
    if not set(methods) <= of_claim.keys():
        return
    exact, frozen, default = (of_claim[method] for method in methods)
    network, _, layers = CLAIMED
    text = f"{network}, last {layers} layers, {DEFAULT}"
    bench.at_most(f"points lost against exact gradients, mean of {SEEDS} seeds: {text}", default["lost"], 0.5)
    gained = exact["accuracy"] - frozen["accuracy"]
    bench.at_least(
        f"share kept of the accuracy that training these layers gains: {text}",
        1 - default["lost"] / gained,
        0.75,
    )
    bench.at_least(
        f"times less backward time in the filtered layers, measured, median of five processes: {text}",
        default["backward_faster_measured"],
        5.0,
    )


if __name__ == "__main__":
    run("gradient_filter_accuracy", __doc__, main, data_option(), PLOT, HOURS, DEVICE)
