"""Mixing plans of real and generated graphs: how fast they mix, what they cost, and the time to make them.

``python -m benchmarks.mixing [--quick] [--topologies FOLDER]``

ρ and its gap are computed, times are measured, energies until convergence are predicted (`Convergence`), as
a share of what the full graph with Metropolis weights needs. ``mixingmatrix`` of PyPI, which nothing here
needs, is timed beside the weights of least ρ where it is installed.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import networkx as nx
import numpy as np

from benchmarks.gossip_energy import UNICAST, costs
from benchmarks.harness import Benchmark, interleaved, run
from benchmarks.topologies import real_graphs, topologies_option
from flower_edge.gossip import (
    Candidate,
    Convergence,
    EnergyModel,
    Phase,
    choose_links,
    fastest,
    fastest_symmetric,
    load_graph,
    metropolis_hastings,
    optimize,
    prune,
    rationed_schedule,
)
from flower_edge.gossip.choice import assess
from flower_edge.gossip.graph import link_array

MESH, COMPLETE, BREMEN = "geometric:33:187:seed=1", "complete:33", "freifunk-bremen-wifi-32-c0"
SMALLER, SMALL, LARGE = "regular:33:8", "regular:64:8", "regular:1000:8"
GENERATED = (MESH, COMPLETE, SMALLER, SMALL, "regular:128:8", "regular:256:8", "regular:512:8", LARGE)
RHO_OF_FOUR_LINKS = {MESH: 0.72, COMPLETE: 0.64, BREMEN: 0.912}
FEW_LINKS = 4
EXACT_NODES = 256
NOT_TRIED = "not tried"
"""Links are chosen for all but the largest graphs, where the search takes minutes."""

RIVAL, RIVALS_GRAPH = "mixingmatrix", "regular:200:4"

Made = TypeVar("Made")


def main(bench: Benchmark) -> None:
    """Make every plan once, then time the weights of least ρ beside other solvers."""
    real = {} if bench.quick else real_graphs(bench.options.topologies)
    names = (MESH, SMALL) if bench.quick else (*GENERATED, *real)
    energy = costs()[UNICAST]
    for name in names:
        bench.row(**row(name, load_graph(real.get(name, name)), energy))
    rows = {row["graph"]: row for row in bench.rows}

    gaps = [row["gap"] for row in bench.rows if row["nodes"] <= EXACT_NODES]
    bench.at_most(f"gap of weights of least ρ, worst graph of up to {EXACT_NODES} nodes", max(gaps), 1e-6)
    for name, bound in RHO_OF_FOUR_LINKS.items():
        if name in rows:
            bench.at_most(f"{name}: ρ with {FEW_LINKS} links a node", rows[name]["rho_few_links"], bound)
    if LARGE in rows:
        found, gap = rows[LARGE]["rho_least"], rows[LARGE]["gap"]
        bench.at_most(f"{LARGE}: seconds to weights of least ρ", rows[LARGE]["seconds_least"], 120.0)
        bench.at_most(f"{LARGE}: ρ over the certified lower bound", found / (found - gap), 1.05)
    repairs(bench, MESH, load_graph(MESH), energy)
    race(bench)


def row(name: str, graph: Any, energy: EnergyModel) -> dict[str, object]:
    """Make the plans of one graph."""
    links, n = link_array(graph), len(graph)
    metropolis = (Phase(links, metropolis_hastings(graph)),)
    least, seconds_least = timed(lambda: fastest(links, n))
    sparse, seconds_sparse = timed(lambda: sparse_phase(graph)) if n <= EXACT_NODES else (None, NOT_TRIED)
    rations = energy.link_costs(links, n).max() * np.ones(n)
    rationed, seconds_rationed = timed(lambda: rationed_schedule(graph, energy.link_costs(links, n), rations))

    def predicted(phases: Sequence[Phase]) -> Candidate:
        return assess(name, phases, n, energy, "busiest", Convergence())

    full, least_plan = predicted(metropolis), predicted((Phase(links, least.weights),))
    rationed_plan = predicted(rationed)
    sparse_plan = predicted((sparse,)) if sparse else None
    return {
        "graph": name,
        "nodes": n,
        "links": len(links),
        "rho_metropolis": full.rho,
        "rho_least": float(least.rho),
        "gap": float(least.gap),
        "seconds_least": seconds_least,
        "most_few_links": int(np.bincount(sparse.links.ravel()).max()) if sparse else NOT_TRIED,
        "rho_few_links": sparse_plan.rho if sparse_plan else NOT_TRIED,
        "seconds_few_links": seconds_sparse,
        "rho_rationed": rationed_plan.rho,
        "seconds_rationed": seconds_rationed,
        "energy_least": least_plan.predicted_energy / full.predicted_energy,
        "energy_few_links": (
            sparse_plan.predicted_energy / full.predicted_energy if sparse_plan else NOT_TRIED
        ),
        "energy_rationed": rationed_plan.predicted_energy / full.predicted_energy,
    }


def sparse_phase(graph: Any) -> Phase:
    """Choose four links of each node, or the fewest that connect the graph, and weights of least ρ."""
    try:
        links = choose_links(graph, FEW_LINKS)
    except ValueError:
        # A node that others are reached through alone needs more.
        links = prune(graph)[-1].links
    return Phase(links, fastest(links, len(graph)).weights)


def repairs(bench: Benchmark, name: str, graph: Any, energy: EnergyModel) -> None:
    """Time a new plan beside the repair of an old one, for every node that may leave alone."""
    plan, seconds = timed(lambda: optimize(graph, energy))
    cuts = set(nx.articulation_points(graph))
    slowest = max(
        timed(lambda node=node: plan.repair(removed=[node]))[1] for node in graph if node not in cuts
    )
    bench.at_least(
        f"{name}: times faster than a new plan, the slowest repair of one node", seconds / slowest, 10.0
    )


def race(bench: Benchmark) -> None:
    """Time weights of least ρ and of either sign beside cvxpy and, where it is installed, a rival."""
    name, bound = (SMALLER, 10.0) if bench.quick else (SMALL, 50.0)
    graph = load_graph(name)
    links = link_array(graph)
    timings = interleaved(
        {
            "ours": lambda: fastest(links, len(graph)),
            "cvxpy": lambda: fastest_symmetric(graph, constrain=lambda weights, matrix: []),
        }
    )
    ratio = timings["cvxpy"].over(timings["ours"])
    bench.at_least(f"{name}: times faster than cvxpy with CLARABEL", ratio, bound)
    if bench.quick:
        return
    if importlib.util.find_spec(RIVAL) is None:
        print(f"{RIVAL} is not installed: nothing is timed beside it")
        return
    rival = importlib.import_module(RIVAL)
    sparse = load_graph(RIVALS_GRAPH)
    sparse_links = link_array(sparse)
    timings = interleaved(
        {
            "ours": lambda: fastest(sparse_links, len(sparse)),
            "theirs": lambda: rival.solve(sparse, allow_negative=True),
        }
    )
    ratio = timings["theirs"].over(timings["ours"])
    bench.at_least(f"{RIVALS_GRAPH}: times faster than {RIVAL} {rival.__version__}", ratio, 10.0)


def timed(make: Callable[[], Made]) -> tuple[Made, float]:
    """Return what a call makes, and the seconds that it took."""
    start = time.perf_counter()
    made = make()
    return made, time.perf_counter() - start


if __name__ == "__main__":
    run("mixing", __doc__, main, topologies_option())
