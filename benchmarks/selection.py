"""The exact selection of tensors beside the published one, on random chains, residual graphs and ResNet-50's.

``python -m benchmarks.selection [--quick]``

Costs are drawn at random; ResNet-50's are its operation counts, each times a random factor. Importances are
log-normal. Budgets are drawn from 10 to 90 % of the cost of training everything. Gains are counted:
importance over that of the published dynamic program, which knows a budget of time alone. Times are measured,
of the processor.
"""

import math
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.harness import Benchmark, run
from benchmarks.published_selection import published_selection
from flower_edge.training.backward_graph import BackwardGraph, Operation, TrainableTensor
from flower_edge.training.selection import BackwardBudget, select_tensors

Rng = np.random.Generator

TENSORS, SMALL = 160, 40
RESNET = "ResNet-50"
IMPORTANCE_SPREAD = 1.5
BUDGETS = (("seconds",), ("bytes",), ("seconds", "bytes"), ("seconds", "bytes", "joules"))


def main(bench: Benchmark) -> None:
    """Select for many random cases of each kind."""
    cases = 10 if bench.quick else 100
    graphs: dict[str, Callable[[Rng], BackwardGraph]] = {
        f"chain of {SMALL}": lambda rng: chain(SMALL, rng),
        f"chain of {TENSORS}": lambda rng: chain(TENSORS, rng),
        f"residual of {SMALL}": lambda rng: residual(SMALL, rng),
        f"residual of {TENSORS}": lambda rng: residual(TENSORS, rng),
        RESNET: resnet50,
    }
    for name, draw in graphs.items():
        for limited in BUDGETS:
            if limited == ("seconds",) or name == RESNET:
                bench.row(**row(name, draw, limited, cases))
    for found in bench.rows:
        what = f"{found['graph']}, budget of {found['budgets']}"
        if found["budgets"] == "seconds":
            bench.at_least(f"{what}: least gain over the published selection", found["least_gain"], 1.0)
            bench.at_least(f"{what}: mean gain over the published selection", found["mean_gain"], 1.0)
            bench.at_least(f"{what}: proven optimal, share of cases", found["proven"], 1.0)
            bench.at_most(f"{what}: milliseconds, median", found["milliseconds"], 10.0)


def row(
    name: str, draw: Callable[[Rng], BackwardGraph], limited: tuple[str, ...], cases: int
) -> dict[str, object]:
    """Select in `cases` random cases."""
    rng = np.random.default_rng(0)
    seconds, published_seconds, gains, gaps = [], [], [], []
    graph = draw(rng)
    for _ in range(cases):
        graph = draw(rng)
        names = graph.tensor_names
        importance = dict(zip(names, rng.lognormal(0.0, IMPORTANCE_SPREAD, len(names)).tolist(), strict=True))
        budget = BackwardBudget(
            **{kind: rng.uniform(0.1, 0.9) * getattr(graph.full_cost, kind) for kind in limited}
        )
        start = time.process_time()
        ours = select_tensors(graph, importance, budget)
        seconds.append(time.process_time() - start)
        gaps.append(ours.upper_bound / ours.importance - 1.0)
        if limited == ("seconds",):
            start = time.process_time()
            theirs = published_selection(graph, importance, budget.seconds)
            published_seconds.append(time.process_time() - start)
            if theirs:
                gains.append(ours.importance / math.fsum(importance[name] for name in theirs))
    return {
        "graph": name,
        "tensors": len(graph.tensor_names),
        "budgets": " + ".join(limited),
        "cases": cases,
        "milliseconds": 1e3 * statistics.median(seconds),
        "slowest_tenth": 1e3 * statistics.quantiles(seconds, n=10)[-1],
        "proven": sum(gap == 0 for gap in gaps) / cases,
        "largest_gap": max(gaps),
        "mean_gain": statistics.fmean(gains) if gains else "-",
        "least_gain": min(gains) if gains else "-",
        "largest_gain": max(gains) if gains else "-",
        "published_milliseconds": 1e3 * statistics.median(published_seconds) if gains else "-",
    }


class Layers:
    """Operations in the making."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.operations: list[Operation] = []

    def add(
        self, inputs: tuple[int, ...], seconds: float, *tensors: TrainableTensor, saved_bytes: int = 0
    ) -> int:
        """Append an operation; one without inputs pays for none."""
        name = f"operation {len(self.operations)}"
        inputs = tuple(source for source in inputs if source >= 0)
        self.operations.append(Operation(name, inputs, seconds, tensors, saved_bytes, seconds))
        return len(self.operations) - 1

    def layer(self, source: int, seconds: float, size: int, weights: int) -> int:
        """Append a weighted layer and its normalisation, with times about the given one."""
        rng, index = self.rng, len(self.operations)
        about = [seconds * float(factor) for factor in rng.lognormal(0.0, 0.5, 2)]
        weight = TrainableTensor(f"{index}.weight", about[0], size, 8 * weights, about[0])
        layer = self.add((source,), about[1], weight)
        small = 0.02 * seconds
        scale = TrainableTensor(f"{index}.scale", small * float(rng.uniform(0.5, 1.5)))
        shift = TrainableTensor(f"{index}.shift", small * float(rng.uniform(0.2, 0.7)))
        return self.add((layer,), small, scale, shift, saved_bytes=size)

    def graph(self) -> BackwardGraph:
        """Return what was built."""
        return BackwardGraph(tuple(self.operations))


def chain(tensors: int, rng: Rng) -> BackwardGraph:
    """Operations in a line, one tensor each, times exponentially distributed."""
    drawn = rng.exponential(size=(tensors, 2)).tolist()
    return BackwardGraph(
        tuple(
            Operation(f"{i}", (i - 1,) if i else (), way, (TrainableTensor(f"{i}.weight", own),))
            for i, (own, way) in enumerate(drawn)
        )
    )


def residual(tensors: int, rng: Rng) -> BackwardGraph:
    """Blocks of one to three layers beside a shortcut, which down-samples in every third block."""
    layers = Layers(rng)
    last = layers.layer(-1, 1.0, 1000, 1000)
    made = 3
    while made < tensors:
        main = last
        for _ in range(int(rng.integers(1, 4))):
            main = layers.layer(main, float(rng.exponential()), int(rng.integers(1, 1000)), 1000)
            made += 3
        shortcut = last
        if rng.random() < 1 / 3:
            shortcut = layers.layer(last, float(rng.exponential()), int(rng.integers(1, 1000)), 1000)
            made += 3
        last = layers.add((main, shortcut), 0.01)
    return layers.graph()


def resnet50(rng: Rng) -> BackwardGraph:
    """ResNet-50 (He et al., CVPR 2016) at 224 x 224: times are multiplications, in 1e9."""
    layers = Layers(rng)

    def convolution(source: int, inputs: int, outputs: int, kernel: int, side: int) -> int:
        weights = inputs * outputs * kernel**2
        return layers.layer(source, weights * side**2 / 1e9, 4 * outputs * side**2, weights)

    last = layers.add((convolution(-1, 3, 64, 7, 112),), 0.01)
    channels, side = 64, 56
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            main = convolution(last, channels, width, 1, side)
            main = convolution(layers.add((main,), 0.001), width, width, 3, side)
            main = convolution(layers.add((main,), 0.001), width, 4 * width, 1, side)
            shortcut = last if block else convolution(last, channels, 4 * width, 1, side)
            last, channels = layers.add((main, shortcut), 0.001), 4 * width
        side //= 2
    head = (TrainableTensor("head.weight", 0.002, 8192, 16_384_000), TrainableTensor("head.bias", 1e-6))
    layers.add((layers.add((last,), 0.001),), 0.002, *head)
    return layers.graph()


if __name__ == "__main__":
    run("selection", __doc__, main)
