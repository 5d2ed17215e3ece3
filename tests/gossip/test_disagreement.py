"""D(W): what it says of real noise, and the weights that make it least."""

import cvxpy as cp
import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import load_graph
from flower_edge.gossip._objectives import Disagreement, fit
from flower_edge.gossip.disagreement import disagreement, least_disagreement
from flower_edge.gossip.fastest import fastest_symmetric
from flower_edge.gossip.graph import link_array
from flower_edge.gossip.weights import metropolis_hastings, mixing_matrix, rho


def matrix_of(graph: nx.Graph, weights: np.ndarray) -> np.ndarray:
    return mixing_matrix(link_array(graph), weights, len(graph))


def test_it_is_what_noisy_gossip_settles_at() -> None:
    """A million noisy steps of x ← W (x − g), beside the formula."""
    graph = load_graph("torus:3x4")
    matrix = matrix_of(graph, metropolis_hastings(graph))
    rng = np.random.default_rng(0)
    models = np.zeros((12, 20000))
    for _ in range(60):
        models = matrix @ (models - rng.standard_normal(models.shape))
    spread = np.square(models - models.mean(0)).sum(0).mean() / 12

    assert disagreement(matrix) == pytest.approx(spread, rel=0.02)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 16), seed=st.integers(0, 2**16))
def test_bounds(n: int, seed: int) -> None:
    graph = load_graph(random_connected_graph(n, seed))
    metropolis = matrix_of(graph, metropolis_hastings(graph))
    best = matrix_of(graph, least_disagreement(graph))

    assert disagreement(best) <= disagreement(metropolis) + 1e-12
    for matrix in (metropolis, best):
        assert 0 <= disagreement(matrix) <= rho(matrix) ** 2 / (1 - rho(matrix) ** 2) + 1e-9
    np.testing.assert_allclose(best, best.T)
    np.testing.assert_allclose(best.sum(1), 1.0, atol=1e-12)
    assert rho(best) < 1


@pytest.mark.parametrize("seed", range(5))
def test_least_disagreement_agrees_with_cvxpy(seed: int) -> None:
    """D(W) = 1/n (tr (I − S²)⁻¹ − n) with S = W − J; as an SDP by the block matrix [[I, S], [S, I]]."""
    graph = load_graph(random_connected_graph(7, seed))
    links, n = link_array(graph), len(graph)
    weights = cp.Variable(len(links))
    incidence = np.zeros((n, len(links)))
    incidence[links[:, 0], range(len(links))] = 1
    incidence[links[:, 1], range(len(links))] = -1
    spread = np.eye(n) - 1 / n - incidence @ cp.diag(weights) @ incidence.T
    both = cp.bmat([[np.eye(n), spread], [spread, np.eye(n)]])
    problem = cp.Problem(cp.Minimize(cp.matrix_frac(np.vstack([np.eye(n), np.zeros((n, n))]), both)))
    problem.solve(solver="CLARABEL")

    found = disagreement(matrix_of(graph, least_disagreement(graph)))

    assert found == pytest.approx((problem.value - n) / n, abs=1e-6)


@pytest.mark.parametrize("graph", [nx.balanced_tree(2, 4), nx.path_graph(64), nx.barbell_graph(8, 6)])
def test_least_disagreement_of_long_graphs_agrees_with_newtons_method(graph: nx.Graph) -> None:
    links, n = link_array(graph), len(graph)
    newton = fit(Disagreement(), links, n, metropolis_hastings(graph), 200)

    found = disagreement(matrix_of(graph, least_disagreement(graph)))

    assert found == pytest.approx(newton.value, rel=1e-5)


def test_known_optima() -> None:
    for n in (2, 3, 9):
        graph = load_graph(f"complete:{n}")
        np.testing.assert_allclose(least_disagreement(graph), 1 / n, atol=1e-5)
    assert disagreement(np.full((5, 5), 0.2)) == pytest.approx(0, abs=1e-12)
    assert disagreement(np.eye(3)) == np.inf


def test_least_rho_can_disagree_more_than_metropolis() -> None:
    """Why ρ alone must not choose the weights."""
    graph = load_graph("ring:12")
    metropolis = matrix_of(graph, metropolis_hastings(graph))
    fastest = matrix_of(graph, fastest_symmetric(graph).weights)
    least = matrix_of(graph, least_disagreement(graph))

    assert rho(fastest) < rho(metropolis)
    assert disagreement(fastest) > disagreement(metropolis) > disagreement(least)
