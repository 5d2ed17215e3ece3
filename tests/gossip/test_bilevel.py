"""The choice of a plan."""

import logging

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import (
    Convergence,
    GossipPlan,
    UnicastEnergy,
    disagreement,
    full_graph_plan,
    load_graph,
    optimize,
)

LINKS_COST = UnicastEnergy(compute=0.01, send=0.5, receive=0.5)


def disagreement_of(plan: GossipPlan) -> float:
    return disagreement(plan.matrix(0).toarray())


def predicted(plan: GossipPlan) -> float:
    return Convergence().rounds(plan.rho, plan.n) * plan.energy_per_node(0).max()


@settings(max_examples=12, deadline=None)
@given(n=st.integers(2, 14), seed=st.integers(0, 2**16))
def test_an_optimised_plan_is_a_mixing_plan_of_its_graph(n: int, seed: int) -> None:
    graph = load_graph(random_connected_graph(n, seed))

    plan = optimize(graph, LINKS_COST)

    plan.validate(graph)
    matrix = plan.matrix(0).toarray()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)
    np.testing.assert_allclose(matrix.sum(0), 1.0, atol=1e-12)
    assert plan.rho < 1
    full = full_graph_plan(graph, LINKS_COST)
    assert predicted(plan) <= predicted(full) * (1 + 1e-9) or disagreement_of(plan) <= disagreement_of(full)


def test_a_dense_graph_is_sparsified_and_stays_in_agreement() -> None:
    graph = load_graph("geometric:16:60")
    full = full_graph_plan(graph, LINKS_COST)

    plan = optimize(graph, LINKS_COST)

    assert plan.energy_per_node(0).max() < 0.5 * full.energy_per_node(0).max()
    assert disagreement_of(plan) <= max(0.85 * disagreement_of(full), 0.25)
    assert predicted(plan) < predicted(full)


def test_where_only_computing_costs_nothing_is_given_up() -> None:
    """Links are free: then the best mixing of the graph is the best plan."""
    graph = load_graph("geometric:12:40")
    compute_only = UnicastEnergy(compute=1.0, send=0.0, receive=0.0)

    plan = optimize(graph, compute_only)

    assert plan.rho <= full_graph_plan(graph, compute_only, weights="least-disagreement").rho + 1e-9


def test_a_tree_keeps_all_its_links() -> None:
    graph = load_graph(nx.star_graph(6))

    assert len(optimize(graph, LINKS_COST).phases[0].links) == 6


def test_the_papers_weights_mix_fastest() -> None:
    graph = load_graph("geometric:14:45")

    ours, papers = optimize(graph, LINKS_COST), optimize(graph, LINKS_COST, weights="fastest")

    def best_rho(plan: GossipPlan) -> float:
        sub = load_graph(nx.Graph(plan.phases[0].links.tolist()))
        return full_graph_plan(sub, weights="fastest").rho

    assert papers.rho == pytest.approx(best_rho(papers), abs=1e-3)
    assert ours.rho >= best_rho(ours) - 1e-9


def test_a_tight_limit_gives_the_closest_models_there_are() -> None:
    graph = load_graph("ring:10")

    plan = optimize(graph, LINKS_COST, max_disagreement=0.0)

    best = full_graph_plan(graph, weights="least-disagreement")
    assert disagreement_of(plan) == pytest.approx(disagreement_of(best), rel=1e-6)


def test_a_loose_limit_saves_more() -> None:
    graph = load_graph("geometric:16:60")

    tight = optimize(graph, LINKS_COST, max_disagreement=0.1)
    loose = optimize(graph, LINKS_COST, max_disagreement=10.0)

    assert loose.energy_per_node(0).max() < tight.energy_per_node(0).max()


def test_the_same_graph_gives_the_same_plan() -> None:
    graph = load_graph("geometric:12:40")

    assert optimize(graph, LINKS_COST) == optimize(graph, LINKS_COST)


def test_candidates_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flower_edge"):
        optimize(load_graph("torus:3x3"), LINKS_COST)

    assert "predicted to converge" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "best"}, "received weights 'best'"),
        ({"max_disagreement": -1.0}, r"max_disagreement is -1\.0"),
        ({"max_disagreement": float("nan")}, "max_disagreement is nan"),
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
