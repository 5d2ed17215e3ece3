"""The step γ of compressed gossip: what the rule says, and what a search over γ finds.

``python -m benchmarks.consensus_step [--quick]``

Models that are normally distributed numbers are averaged by CHOCO-SGD over plans whose weights stay, by all
nodes as they would run, with γ by the rule and with each of a grid; and link by link with γ = 1. What counts
is the factor by which the models' distance falls in a round, as a mean over the second half of the rounds,
or until fp32 ends it: measured, the same on every machine but for rounding.
"""

from functools import partial

import networkx as nx
import numpy as np

from benchmarks.harness import Benchmark, run
from flower_edge.gossip import (
    ChocoSGD,
    Compressor,
    GossipPlan,
    Int4,
    Int8,
    LinkChoco,
    SignNorm,
    TopK,
    UnicastEnergy,
    consensus_step,
    full_graph_plan,
    load_graph,
    optimize,
)
from flower_edge.strategies.fleet import Fleet
from flower_edge.strategies.mixing import MakeMixer

GAMMAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
COMPRESSORS: tuple[Compressor, ...] = (Int8(), Int4(), SignNorm(), TopK(0.1), TopK(0.01))
ROWS, CHANNEL = 4, 250
ROUNDS = 80
RESOLUTION = 1e-5
"""Of the first distance: below this, fp32's rounding shows."""

STANDS_STILL = 1.0


def plans(quick: bool) -> dict[str, GossipPlan]:
    """Return plans of one phase, from hardly to fully connected."""
    torus = nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 4, periodic=True))
    few = {"torus of 16": full_graph_plan(load_graph(torus))}
    if quick:
        return few
    mesh = optimize(load_graph("geometric:33:187"), UnicastEnergy(1.0, 1.0, 1.0), mode="fastest")
    return {
        "ring of 16": full_graph_plan(load_graph("ring:16")),
        **few,
        "mesh of 33, least rho": mesh,
        "complete, 8": full_graph_plan(load_graph("complete:8")),
    }


def rate(plan: GossipPlan, mixer: MakeMixer, compressor: Compressor) -> float:
    """Return the factor by which the distance falls in a round, infinity if it grows beyond bounds."""
    fleet = Fleet(plan, {"weight": np.zeros((ROWS, CHANNEL), np.float32)}, mixer, compressor)
    fleet.models[:] = np.random.default_rng(0).standard_normal(fleet.models.shape)
    distances = [fleet.consensus_distance(fleet.mean())]
    for t in range(ROUNDS):
        fleet.mix(t, range(plan.n))
        distances.append(fleet.consensus_distance(fleet.mean()))
        if not RESOLUTION < distances[-1] / distances[0] < 1 / RESOLUTION:
            break
    if not distances[-1] < distances[0] / RESOLUTION:
        return float("inf")
    half = len(distances) // 2
    return (distances[-1] / distances[half]) ** (1 / (len(distances) - 1 - half))


def main(bench: Benchmark) -> None:
    """Compare the rule with the best of the grid on each plan."""
    compressors = COMPRESSORS[1:4:2] if bench.quick else COMPRESSORS
    gammas = GAMMAS[2:8:2] if bench.quick else GAMMAS
    slowest, largest = 0.0, 0.0
    for name, plan in plans(bench.quick).items():
        for compressor in compressors:
            ruled = consensus_step(plan, compressor.codec(ROWS * CHANNEL).contraction)
            found = {gamma: rate(plan, partial(ChocoSGD, gamma=gamma), compressor) for gamma in gammas}
            best = min(found, key=lambda gamma: found[gamma])
            converging = [gamma for gamma, factor in found.items() if factor < STANDS_STILL]
            ours = rate(plan, partial(ChocoSGD, gamma=ruled), compressor)
            bench.row(
                plan=name,
                rho=plan.rho,
                codec=compressor.name,
                gamma=ruled,
                factor_a_round=ours,
                best_gamma=best,
                best_factor=found[best],
                largest_converging=max(converging, default=0.0),
                link_by_link_factor=rate(plan, LinkChoco, compressor),
            )
            slowest = max(slowest, ours)
            # Signs converge anyhow, on some plans best with steps at which their error is anything but noise.
            if found[best] < STANDS_STILL and not isinstance(compressor, SignNorm):
                largest = max(largest, np.log(found[best]) / np.log(ours) if ours < STANDS_STILL else np.inf)
    bench.at_most("largest factor a round with the rule's step, all plans and codecs", slowest, 0.999)
    bench.at_most(
        "rounds with the rule's step over those with the best of the grid, all but signs", float(largest), 2.0
    )


if __name__ == "__main__":
    run("consensus_step", __doc__, main)
