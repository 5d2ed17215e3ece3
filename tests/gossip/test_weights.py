"""Mixing weights against closed forms and slow float64 references."""

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import complete, fastest_symmetric, load_graph, metropolis_hastings, ring
from flower_edge.gossip.graph import link_array
from flower_edge.gossip.weights import mixing_matrix, nearly_fastest, rho, smoothed_rho

SEEDS = st.integers(0, 2**32 - 1)


def rho_of(graph: nx.Graph, weights: np.ndarray) -> float:
    return rho(mixing_matrix(link_array(graph), weights, len(graph)))


def edge_transitive_optimum(graph: nx.Graph) -> float:
    """Where every link looks like every other, one weight is best: 2 / (λ_2 + λ_n) of the Laplacian."""
    spectrum = np.linalg.eigvalsh(nx.laplacian_matrix(graph).toarray().astype(float))
    return (spectrum[-1] - spectrum[1]) / (spectrum[-1] + spectrum[1])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), SEEDS)
def test_metropolis_is_doubly_stochastic_and_stays_on_the_links(n: int, seed: int) -> None:
    graph = random_connected_graph(n, seed)

    matrix = mixing_matrix(link_array(graph), metropolis_hastings(graph), n)

    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix.sum(0), 1, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(
        (matrix != 0) & ~np.eye(n, dtype=bool), nx.to_numpy_array(graph, nodelist=range(n)) != 0
    )
    assert matrix.min() >= 0
    for i, j in graph.edges:
        assert matrix[i, j] == 1 / (1 + max(graph.degree[i], graph.degree[j]))
    assert rho(matrix) < 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), SEEDS)
def test_mixing_matrix_against_its_definition(n: int, seed: int) -> None:
    graph = random_connected_graph(n, seed)
    links = link_array(graph)
    weights = np.random.default_rng(seed).normal(size=len(links))

    reference = np.eye(n)
    for (i, j), weight in zip(links, weights, strict=True):
        edge = np.zeros(n)
        edge[i], edge[j] = 1, -1
        reference -= weight * np.outer(edge, edge)

    np.testing.assert_allclose(mixing_matrix(links, weights, n), reference, atol=1e-12)
    spectral_norm = np.linalg.norm(reference - np.full((n, n), 1 / n), 2)
    assert rho(reference) == pytest.approx(spectral_norm, rel=1e-9)


@pytest.mark.parametrize(
    "graph",
    [
        *[complete(n) for n in (2, 3, 8)],
        *[ring(n) for n in (3, 4, 5, 12, 13)],
        nx.star_graph(5),
        nx.complete_bipartite_graph(3, 4),
        nx.hypercube_graph(3),
        nx.petersen_graph(),
    ],
)
def test_fastest_weights_of_edge_transitive_graphs(graph: nx.Graph) -> None:
    graph = load_graph(graph)

    assert rho_of(graph, fastest_symmetric(graph)) == pytest.approx(edge_transitive_optimum(graph), abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 6, 11])
def test_fastest_markov_chain_on_a_path(n: int) -> None:
    """ρ = cos(π/n), with weights of one half (Boyd, Diaconis, Sun, Xiao, 2006)."""
    graph = load_graph(nx.path_graph(n))

    weights = fastest_symmetric(graph, nonnegative=True)

    assert rho_of(graph, weights) == pytest.approx(np.cos(np.pi / n), abs=1e-6)


@pytest.mark.parametrize("leaves", [3, 6])
def test_nonnegative_binds_on_a_star(leaves: int) -> None:
    """The hub can give each leaf no more than 1 / leaves; unconstrained, it gives 2 / (leaves + 2)."""
    graph = load_graph(nx.star_graph(leaves))

    chain = fastest_symmetric(graph, nonnegative=True)

    assert rho_of(graph, chain) == pytest.approx(1 - 1 / leaves, abs=1e-6)
    assert rho_of(graph, fastest_symmetric(graph)) == pytest.approx(leaves / (leaves + 2), abs=1e-6)
    assert mixing_matrix(link_array(graph), chain, len(graph)).min() >= -1e-15


@settings(max_examples=8, deadline=None)
@given(st.integers(3, 14), SEEDS)
def test_fastest_beats_every_weighting_nearby_and_metropolis(n: int, seed: int) -> None:
    graph = random_connected_graph(n, seed)
    rng = np.random.default_rng(seed)
    best = fastest_symmetric(graph)
    chain = fastest_symmetric(graph, nonnegative=True)
    matrix = mixing_matrix(link_array(graph), chain, n)

    least = rho_of(graph, best)

    assert least <= rho_of(graph, chain) + 1e-7 <= rho_of(graph, metropolis_hastings(graph)) + 2e-7
    assert matrix.min() >= -1e-15
    for scale in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            assert least <= rho_of(graph, best + scale * rng.normal(size=best.shape)) + 1e-7


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 16), SEEDS)
def test_nearly_fastest_is_near(n: int, seed: int) -> None:
    graph = random_connected_graph(n, seed)

    exact, near = (rho_of(graph, w) for w in (fastest_symmetric(graph), nearly_fastest(link_array(graph), n)))

    assert exact - 1e-7 <= near <= exact + 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 10), SEEDS, st.sampled_from([0.3, 0.03]))
def test_smoothed_rho_bounds_rho_and_knows_its_slope(n: int, seed: int, smoothing: float) -> None:
    graph = random_connected_graph(n, seed)
    links, weights = link_array(graph), metropolis_hastings(graph)
    pairs = np.argwhere(np.triu(np.ones((n, n)), 1))

    value, slopes = smoothed_rho(links, weights, n, smoothing, pairs)

    exact = rho_of(graph, weights)
    assert exact - 1e-12 <= value <= exact + smoothing * np.log(2 * n) + 1e-12
    step = 1e-6
    matrix = mixing_matrix(links, weights, n)
    for (i, j), slope in zip(pairs, slopes, strict=True):
        edge = np.zeros(n)
        edge[i], edge[j] = 1, -1

        def smoothed(change: float, edge: np.ndarray = edge) -> float:
            deviation = matrix - change * np.outer(edge, edge) - 1 / n
            spectrum = np.linalg.eigvalsh(deviation)
            return smoothing * np.log(np.exp(np.concatenate([spectrum, -spectrum]) / smoothing).sum())

        assert slope == pytest.approx((smoothed(step) - smoothed(-step)) / (2 * step), abs=1e-6)


def test_weights_of_a_graph_that_is_none() -> None:
    for rule in (metropolis_hastings, fastest_symmetric):
        with pytest.raises(ValueError, match="not connected: its 2 components"):
            rule(nx.Graph({0: [1], 2: [3]}))
