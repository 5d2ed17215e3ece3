"""Energy at the busiest node until all models are as good as on the full graph, for many ways to mix.

``python -m benchmarks.gossip_energy [--quick] [--topologies FOLDER]``

Training is simulated (`benchmarks.gossip_training`), energy is modelled: rounds needed times the energy of a
round at the busiest node, as a mean over the cycle. The target is what the full graph with Metropolis
weights reaches in a given number of rounds, less 0.3 point; it comes that close in fewer. All methods have
the same data, initial models and batches, and each has the learning rate that is best for it.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Benchmark, cores, run
from benchmarks.quickstart_runs import APP
from benchmarks.rounds_needed import Accuracies, Need, Study, rounds_needed
from benchmarks.topologies import real_graphs, topologies_option
from flower_edge.gossip import (
    WAVELAN_2MBIT,
    Candidate,
    Convergence,
    EnergyModel,
    GossipPlan,
    UnicastEnergy,
    full_graph_plan,
    load_graph,
    matcha,
    mixing_matrix,
    optimize,
    random_matchings,
)
from flower_edge.gossip.choice import assess
from flower_edge.gossip.energy import term_shares

CYCLE = 128
"""Rounds of the pseudo-random cycles that stand for random schedules."""

FULL, AUTO, PAPER = "full graph, Metropolis", "auto", "least ρ (Zhang, Chiu, He)"
RANDOM, MATCHA = "random matchings", "MATCHA(0.1)"
METHODS: dict[str, Callable[[Any, EnergyModel], GossipPlan]] = {
    FULL: lambda graph, energy: full_graph_plan(graph, energy),
    "full graph, least ρ": lambda graph, energy: full_graph_plan(graph, energy, weights="fastest"),
    PAPER: lambda graph, energy: optimize(graph, energy, mode="fastest"),
    "static, least D": lambda graph, energy: optimize(graph, energy, mode="static"),
    "cyclic matchings, learned": lambda graph, energy: optimize(graph, energy, mode="cyclic"),
    RANDOM: lambda graph, energy: GossipPlan(len(graph), random_matchings(graph, CYCLE, 0), energy),
    MATCHA: lambda graph, energy: GossipPlan(len(graph), matcha(graph, 0.1, CYCLE, 0).phases, energy),
    "MATCHA(0.5)": lambda graph, energy: GossipPlan(len(graph), matcha(graph, 0.5, CYCLE, 0).phases, energy),
    "finite-time": lambda graph, energy: optimize(graph, energy, mode="finite-time"),
    AUTO: lambda graph, energy: optimize(graph, energy),
}
FEW_METHODS = (FULL, "full graph, least ρ", PAPER, RANDOM, MATCHA, AUTO)
CNN_METHODS = (FULL, PAPER, "static, least D", RANDOM, MATCHA, AUTO)
PUBLISHED = "54 to 76 %"
"""What Zhang, Chiu, He (ICASSP 2024) report that their plans save at the busiest node."""

UNICAST, LITTLE, DEAR, BROADCAST = (
    "unicast",
    "unicast, compute 1/40 link",
    "unicast, compute 10 links",
    "broadcast",
)
MESH, COMPLETE = "geometric:33:187:seed=1", "complete:33"
GENERATED = (MESH, "geometric:33:187:seed=0", "geometric:33:187:seed=2", COMPLETE)
BUSY = (MESH, "freifunk-bremen-wifi-32-c0", "freifunk-stuttgart-wifi-29-c1")
"""Graphs whose busiest nodes have at least 15 links."""

SOFTMAX = Study()
CNN = Study(
    model="CNN",
    rates=(0.1, 0.2, 0.4, 0.8, 1.6),
    seeds=5,
    reference_rounds=300,
    fewest_rounds=170,
    growth=1.4,
    beyond=1,
)
QUICK = Study(rates=(0.5, 2, 8, 32), seeds=3, reference_rounds=80, fewest_rounds=40, growth=1.3, beyond=1)
QUICK_GRAPH = "geometric:20:60:seed=1"


class Case(NamedTuple):
    """One line of the table to be."""

    graph: str
    study: Study
    cost: str
    method: str


class Finding(NamedTuple):
    """What was found for a case: Wh at the busiest node in a round and until the target is reached."""

    model: Candidate
    need: Need
    mostly: str

    @property
    def energy(self) -> float:
        """For the mean over seeds."""
        return float(self.need.rounds * self.model.energy)

    @property
    def energy_of_seeds(self) -> npt.NDArray[np.float64]:
        """For each seed and its own target."""
        return np.array([rounds * self.model.energy for rounds in self.need.of_seeds])


Found = dict[Case, Finding]


def main(bench: Benchmark) -> None:
    """Train every case, then hold the findings against what is claimed."""
    real = {} if bench.quick else real_graphs(bench.options.topologies, "freifunk")
    sources = {name: name for name in (*GENERATED, QUICK_GRAPH)} | real
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
        found = measure(pool, quick_cases() if bench.quick else cases(real), sources)
    for case, finding in found.items():
        bench.row(**row(case, finding, found[case._replace(method=FULL)]))
    margin = min(finding.need.margin for finding in found.values())
    bench.at_least("rates of the grid beyond the best one, over all methods", margin, 1)
    if bench.quick:
        small = Case(QUICK_GRAPH, QUICK, UNICAST, AUTO)
        bench.at_least(f"{QUICK_GRAPH}: saved by auto over the full graph", saving(found, small, FULL), 0.5)
        return
    claim(bench, found)


def quick_cases() -> list[Case]:
    """Return three methods on a small graph."""
    return [Case(QUICK_GRAPH, QUICK, UNICAST, method) for method in (FULL, RANDOM, AUTO)]


def cases(real: dict[str, str]) -> list[Case]:
    """Return all methods in the main model of energy, some in the others and with the CNN."""
    graphs = [*GENERATED, *real]
    named = [Case(graph, SOFTMAX, UNICAST, method) for graph in graphs for method in METHODS]
    for cost in (LITTLE, DEAR, BROADCAST):
        named += [Case(graph, SOFTMAX, cost, method) for graph in graphs for method in FEW_METHODS]
    named += [Case(graph, CNN, UNICAST, method) for graph in BUSY[:2] for method in CNN_METHODS]
    # Exact averages after some rounds need links that meshes have not got.
    return [c for c in named if c.graph in graphs and (c.method != "finite-time" or c.graph == COMPLETE)]


def measure(pool: ProcessPoolExecutor, wanted: Sequence[Case], sources: dict[str, str]) -> Found:
    """Make the plans, find the targets, and train until they are reached; equal plans are trained once."""
    energies = costs()
    jobs = list({(sources[c.graph], c.cost, c.method): None for c in wanted})
    made = in_pool(pool, "plans", make_plan, [(g, energies[cost], method) for g, cost, method in jobs])
    plans = dict(zip(jobs, made, strict=True))

    runs = list({(sources[c.graph], c.study): None for c in wanted})
    targets = dict(zip(runs, in_pool(pool, "targets", find_targets, runs), strict=True))

    trained: dict[tuple[Any, ...], tuple[Study, GossipPlan, Accuracies]] = {}
    keys = {}
    for case in wanted:
        plan = plans[sources[case.graph], case.cost, case.method]
        keys[case] = (
            case.graph,
            case.study,
            *((p.links.tobytes(), p.weights.tobytes()) for p in plan.phases),
        )
        trained[keys[case]] = (case.study, plan, targets[sources[case.graph], case.study])
    needs = dict(
        zip(trained, in_pool(pool, "methods trained", find_need, list(trained.values())), strict=True)
    )

    found: Found = {}
    for case in wanted:
        plan, energy = plans[sources[case.graph], case.cost, case.method], energies[case.cost]
        model = assess(case.method, plan.phases, plan.n, energy, "busiest", Convergence())
        shares = term_shares(energy, [phase.links for phase in plan.phases], plan.n)
        term = max(shares, key=shares.__getitem__)
        found[case] = Finding(model, needs[keys[case]], f"{shares[term]:.0%} {term}")
    return found


def in_pool(
    pool: ProcessPoolExecutor, what: str, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Call a function for every job, say on a terminal how many are done, and return the results in order."""
    futures = [pool.submit(function, *job) for job in jobs]
    try:
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            if sys.stderr.isatty():
                print(f"\r{what}: {done} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return [future.result() for future in futures]


def make_plan(source: str, energy: EnergyModel, method: str) -> GossipPlan:
    """Make the plan of a method."""
    return METHODS[method](load_graph(source), energy)


def find_targets(source: str, study: Study) -> Accuracies:
    """Train on the full graph with Metropolis weights."""
    plan = full_graph_plan(load_graph(source))
    return study.targets(plan.n, mixing(plan))


def find_need(study: Study, plan: GossipPlan, targets: Accuracies) -> Need:
    """Train with a plan until it reaches the targets."""
    return rounds_needed(study, plan.n, mixing(plan), targets)


def mixing(plan: GossipPlan) -> list[npt.NDArray[np.float64] | None]:
    """Return one cycle of W(t), None where there are no links."""
    return [mixing_matrix(p.links, p.weights, plan.n) if len(p.links) else None for p in plan.phases]


def costs() -> dict[str, EnergyModel]:
    """Return the models of energy: of the quickstart's model and boards, and two with other computing."""
    sys.path.insert(0, str(APP))
    from quickstart.server_app import model_bytes, round_energy

    compute = round_energy().compute
    unicast = WAVELAN_2MBIT.unicast(model_bytes(), compute=compute)
    link = float(unicast.per_link)
    return {
        UNICAST: unicast,
        LITTLE: UnicastEnergy(link / 40, unicast.send, unicast.receive),
        DEAR: UnicastEnergy(10 * link, unicast.send, unicast.receive),
        BROADCAST: WAVELAN_2MBIT.broadcast(model_bytes(), compute=compute),
    }


def row(case: Case, finding: Finding, full: Finding) -> dict[str, object]:
    """Lay a finding out, beside the full graph's."""
    model, need = finding.model, finding.need
    saved = 1 - finding.energy_of_seeds / full.energy_of_seeds
    return {
        "graph": case.graph,
        "model": case.study.model,
        "energy_model": case.cost,
        "method": case.method,
        "busiest_links": model.links,
        "rho": model.rho,
        "disagreement": model.disagreement,
        "predicted_rounds_over_full": model.rounds / full.model.rounds,
        "rounds_over_full": number(need.rounds / full.need.rounds),
        "rounds": number(need.rounds),
        "rounds_of_seeds": quartiles(np.array(need.of_seeds)),
        "learning_rate": need.rate,
        "busiest_mwh_a_round": 1e3 * model.energy,
        "spent_on": finding.mostly,
        "mwh_to_target": number(1e3 * finding.energy),
        "saved_percent": number(100 * (1 - finding.energy / full.energy)),
        "saved_of_seeds": quartiles(100 * saved),
        "published": PUBLISHED if case.method == PAPER and case.cost in (UNICAST, LITTLE) else "",
    }


def number(value: float) -> float | str:
    """Return a number that JSON can hold, or words."""
    return value if math.isfinite(value) else "not reached"


def quartiles(values: npt.NDArray[np.float64]) -> str:
    """Return the first and the third quartile in words."""
    low, high = np.quantile(values, [0.25, 0.75], method="nearest")
    return " to ".join(f"{value:.3g}" if math.isfinite(value) else "not reached" for value in (low, high))


def saving(found: Found, case: Case, other: str) -> float:
    """Share of the energy of another method that a case saves."""
    return 1 - found[case].energy / found[case._replace(method=other)].energy


def claim(bench: Benchmark, found: Found) -> None:
    """Claim what the plans were made for; training is simulated and energy modelled in all of it."""
    for case in found:
        if case.method != AUTO or case.cost != UNICAST:
            continue
        about = (
            f"{case.graph}, {case.study.model}, {case.cost}: share of the busiest node's energy saved by auto"
        )
        if case.graph in BUSY:
            bench.at_least(f"{about} over the full graph", saving(found, case, FULL), 0.85)
            bench.at_least(f"{about} over MATCHA(0.1)", saving(found, case, MATCHA), 0.4)
        elif case.graph not in GENERATED:
            bench.at_least(f"{about} over the full graph", saving(found, case, FULL), 0.6)
    autos = [case for case in found if case.method == AUTO]
    bench.at_most(
        "unicast: energy with auto over that with random matchings, less the spread over seeds, worst case",
        max(beyond_spread(found[c], found[c._replace(method=RANDOM)]) for c in autos if c.cost == UNICAST),
        1.0,
    )
    bench.at_most(
        "broadcast: energy with auto over that with the full graph, worst graph",
        max(1 - saving(found, case, FULL) for case in autos if case.cost == BROADCAST),
        1.0,
    )


def beyond_spread(finding: Finding, other: Finding) -> float:
    """Ratio of the energies of two methods, less half the interquartile range of the seeds' own ratios."""
    ratios = finding.energy_of_seeds / other.energy_of_seeds
    low, high = np.quantile(ratios[np.isfinite(ratios)], [0.25, 0.75])
    return float(finding.energy / other.energy - (high - low) / 2)


if __name__ == "__main__":
    run("gossip_energy", __doc__, main, topologies_option())
