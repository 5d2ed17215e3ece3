"""The choice of a plan."""

import logging

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import (
    BroadcastEnergy,
    GossipPlan,
    RadioEnergy,
    UnicastEnergy,
    full_graph_plan,
    load_graph,
    optimize,
)
from flower_edge.gossip.families import FULL_METROPOLIS
from flower_edge.gossip.graph import is_connected
from flower_edge.gossip.radio import WAVELAN_2MBIT

LINKS_COST = UnicastEnergy(compute=0.01, send=0.5, receive=0.5)
MODES = ["auto", "rationed", "static", "fastest", "cyclic", "matcha", "random-matchings", "full"]


def union(plan: GossipPlan) -> np.ndarray:
    return np.concatenate([phase.links for phase in plan.phases])


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(2, 60),
    seed=st.integers(0, 2**16),
    objective=st.sampled_from(["busiest", "total", "lifetime"]),
    broadcast=st.booleans(),
)
def test_every_plan_is_a_mixing_plan_of_its_graph(n: int, seed: int, objective: str, broadcast: bool) -> None:
    """Every W(t) is symmetric and doubly stochastic on the base graph, and a cycle connects it."""
    graph = load_graph(random_connected_graph(n, seed))
    battery = np.random.default_rng(seed).uniform(1, 10, n)
    model = BroadcastEnergy if broadcast else UnicastEnergy

    plan = optimize(graph, model(0.01, 0.5, 0.5, battery=battery), objective=objective)

    plan.validate(graph)
    assert is_connected(union(plan), n)
    for round in range(len(plan.phases)):
        matrix = plan.matrix(round).toarray()
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)
        np.testing.assert_allclose(matrix.sum(0), 1.0, atol=1e-12)
    assert plan.rho < 1
    assert plan.choice is not None
    assert plan.choice.chosen.predicted_energy <= plan.choice.baselines[0].predicted_energy * (1 + 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_makes_plans(mode: str) -> None:
    graph = load_graph("geometric:12:40")

    plan = optimize(graph, LINKS_COST, mode=mode)

    plan.validate(graph)
    assert plan.choice is not None
    assert plan.choice.mode == mode
    assert plan.choice.baselines[0].name == FULL_METROPOLIS
    assert GossipPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("graph", ["complete:2", nx.path_graph(3), nx.star_graph(4)])
def test_a_tree_has_a_static_plan(graph: str | nx.Graph) -> None:
    """No link of it can go: its one static plan has all."""
    graph = load_graph(graph)

    plan = optimize(graph, LINKS_COST, mode="static")

    plan.validate(graph)
    assert all(len(phase.links) in (0, len(graph) - 1) for phase in plan.phases)


def test_auto_is_predicted_to_lose_to_no_mode() -> None:
    graph = load_graph("geometric:14:50")
    auto = optimize(graph, LINKS_COST).choice

    for mode in ("rationed", "static", "matcha", "random-matchings", "full"):
        other = optimize(graph, LINKS_COST, mode=mode).choice
        assert auto.chosen.predicted_energy <= other.chosen.predicted_energy * (1 + 1e-9)


def test_exact_averages_need_the_links() -> None:
    assert optimize(load_graph("complete:8"), LINKS_COST, mode="finite-time").rho == 0.0
    with pytest.raises(ValueError, match="no plan of mode 'finite-time' exists on this graph"):
        optimize(load_graph("ring:9"), LINKS_COST, mode="finite-time")


def test_where_links_cost_much_is_saved() -> None:
    plan = optimize(load_graph("geometric:16:60"), LINKS_COST)

    assert plan.choice.saving > 0.8
    assert "predicted to save" in plan.choice.verdict


def test_where_only_computing_costs_nothing_is_given_up() -> None:
    """Links are free: then the best mixing of the graph is the best plan, and the plan says so."""
    graph = load_graph("geometric:12:40")
    compute_only = UnicastEnergy(compute=1.0, send=0.0, receive=0.0)

    plan = optimize(graph, compute_only)

    assert plan.rho <= full_graph_plan(graph, compute_only, weights="least-disagreement").rho + 1e-9
    assert plan.choice.verdict.startswith("Sparsifying does not pay here")
    assert "100 % for computing" in plan.choice.verdict


def test_broadcasts_never_lose_to_the_full_graph() -> None:
    graph = load_graph("geometric:16:60")

    plan = optimize(graph, BroadcastEnergy(compute=0.1, send=1.0, receive=0.05))

    assert plan.choice.saving >= 0
    assert "A broadcast reaches all neighbours" in plan.choice.verdict


def test_a_slowdown_of_one_keeps_the_models_as_close_as_on_the_full_graph() -> None:
    graph = load_graph("geometric:16:60")

    tight = optimize(graph, LINKS_COST, max_slowdown=1.0).choice
    loose = optimize(graph, LINKS_COST, max_slowdown=3.0).choice

    assert tight.chosen.rounds <= tight.baselines[0].rounds * (1 + 1e-9)
    assert loose.chosen.rounds <= 3 * loose.baselines[0].rounds
    assert loose.chosen.predicted_energy < tight.chosen.predicted_energy


def test_a_mains_node_works_for_a_battery_node() -> None:
    """With the lifetime as the objective, batteries decide who exchanges how often."""
    graph = load_graph("complete:8")
    battery = [1.0] * 4 + [float("inf")] * 4
    energy = UnicastEnergy(0.001, 0.5, 0.5, battery=battery)

    spent = optimize(graph, energy, objective="lifetime").mean_energy_per_node()

    assert spent[:4].max() < spent[4:].min()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "rationed"])
@pytest.mark.parametrize("objective", ["busiest", "total", "lifetime"])
def test_a_radio_that_costs_nothing_is_used(mode: str, objective: str) -> None:
    graph = load_graph("torus:3x4")
    free = np.where(np.arange(12) == 0, 0.0, 0.5)
    for each in (free, np.zeros(12)):
        energy = UnicastEnergy(0.01, send=each, receive=each, battery=np.full(12, 5.0))
        optimize(graph, energy, mode=mode, objective=objective).validate(graph)


def test_nonnegative_plans_are_nonnegative() -> None:
    plan = optimize(load_graph("geometric:12:40"), LINKS_COST, nonnegative=True)

    assert all(plan.matrix(round).toarray().min() >= -1e-12 for round in range(len(plan.phases)))


def test_links_survive_as_many_failures_as_asked() -> None:
    plan = optimize(load_graph("geometric:14:60"), LINKS_COST, min_connectivity=3)

    assert nx.node_connectivity(nx.Graph(union(plan).tolist())) >= 3


def test_a_tree_keeps_all_its_links() -> None:
    plan = optimize(load_graph(nx.star_graph(6)), LINKS_COST)

    assert len({tuple(link) for link in union(plan).tolist()}) == 6


def test_the_papers_weights_have_a_certificate() -> None:
    graph = load_graph("geometric:14:45")

    plan = optimize(graph, LINKS_COST, mode="fastest")

    sub = load_graph(nx.Graph(plan.phases[0].links.tolist()))
    assert plan.rho == pytest.approx(full_graph_plan(sub, weights="fastest").rho, abs=1e-5)
    assert 0 <= plan.choice.gap < 1e-5


def test_radios_need_the_size_of_the_model() -> None:
    graph = load_graph("ring:6")
    radio = RadioEnergy(WAVELAN_2MBIT, compute=1e-5)

    plan = optimize(graph, radio, 1e6)

    assert plan.energy.send > 0
    with pytest.raises(ValueError, match="without model_bytes"):
        optimize(graph, radio)


def test_the_same_graph_gives_the_same_plan() -> None:
    graph = load_graph("geometric:12:40")

    assert optimize(graph, LINKS_COST) == optimize(graph, LINKS_COST)


def test_progress_and_candidates_are_told(caplog: pytest.LogCaptureFixture) -> None:
    told = []
    with caplog.at_level(logging.INFO, logger="flower_edge"):
        optimize(load_graph("torus:3x3"), LINKS_COST, progress=lambda *step: told.append(step))

    assert "predicted energy" in caplog.text
    assert [done for _, done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][1] == told[-1][2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "best"}, "received mode 'best', expected one of auto, rationed"),
        ({"objective": "fun"}, "received objective 'fun'"),
        ({"objective": "lifetime"}, "needs batteries"),
        ({"max_slowdown": 0.5}, r"max_slowdown is 0\.5"),
        ({"max_slowdown": float("nan")}, "max_slowdown is nan"),
        ({"min_connectivity": 3}, "falls apart when 2 of its nodes fail"),
        ({"min_connectivity": 0}, "min_connectivity is 0"),
        ({"model_bytes": 1e6}, "received model_bytes"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimize(load_graph("ring:4"), LINKS_COST, **arguments)


def test_a_disconnected_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="component"):
        optimize(nx.Graph([(0, 1), (2, 3)]), LINKS_COST)


@pytest.mark.parametrize("weights", ["metropolis", "fastest", "least-disagreement"])
def test_the_full_graph_uses_every_link(weights: str) -> None:
    graph = load_graph("torus:3x3")

    plan = full_graph_plan(graph, weights=weights)

    assert {tuple(link) for link in plan.phases[0].links.tolist()} == {tuple(sorted(e)) for e in graph.edges}


def test_unknown_full_graph_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="received weights 'equal'"):
        full_graph_plan(load_graph("ring:4"), weights="equal")
