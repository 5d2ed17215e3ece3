"""Sparse regular graphs of a complete base graph."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip.regular_graphs import RegularGraph, _circulant, _outermost, ramanujan
from flower_edge.gossip.weights import mixing_matrix, rho


def check(found: RegularGraph, n: int, degree: int) -> None:
    """Regular but for one link of an odd sum, connected, and as good as it says."""
    links = found.links
    assert links.tolist() == sorted(links.tolist())
    assert (links[:, 0] < links[:, 1]).all()
    degrees = sorted(np.bincount(links.ravel(), minlength=n).tolist(), reverse=True)
    assert degrees == [degree] * (n - 1) + [degree - n * degree % 2]
    assert nx.is_connected(nx.Graph(links.tolist()))
    assert found.rho == pytest.approx(rho(mixing_matrix(links, np.full(len(links), 1 / degree), n)), abs=1e-7)
    assert found.bound == pytest.approx(2 * np.sqrt(degree - 1) / degree)
    assert found.is_ramanujan == (found.rho <= found.bound and found.rho < 1 - 1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 60), st.data())
def test_regular_connected_and_as_good_as_it_says(n: int, data: st.DataObject) -> None:
    degree = data.draw(st.integers(2, min(n - 1, 8)))
    seed = data.draw(st.integers(0, 2**32 - 1))

    found = ramanujan(n, degree, seed)

    check(found, n, degree)
    assert found.links.tolist() == ramanujan(n, degree, seed).links.tolist()


def test_connected_where_rho_does_not_tell() -> None:
    """An even ring is bipartite, so that its ρ is 1, as that of two rings."""
    for n in range(4, 61, 2):
        check(ramanujan(n, 2), n, 2)


@pytest.mark.parametrize(("n", "degree"), [(33, 3), (33, 4), (50, 3), (64, 6), (301, 4), (21, 20), (7, 5)])
def test_the_bound_is_met(n: int, degree: int) -> None:
    found = ramanujan(n, degree)

    check(found, n, degree)
    assert found.is_ramanujan


def test_better_than_random_regular_graphs() -> None:
    found = ramanujan(33, 4)

    for seed in range(20):
        links = np.array(nx.random_regular_graph(4, 33, seed=seed).edges)
        assert found.rho < rho(mixing_matrix(links, np.full(66, 1 / 4), 33)) - 0.03


def test_an_even_ring_does_not_mix() -> None:
    assert not ramanujan(8, 2).is_ramanujan
    assert ramanujan(9, 2).rho == pytest.approx(np.cos(np.pi / 9))


@pytest.mark.parametrize("n", [201, 250])
def test_the_outermost_eigenvalue_of_a_large_graph_is_that_of_its_dense_matrix(n: int) -> None:
    adjacency = _circulant(n, 5, np.array([1, 7]))
    links = np.argwhere(np.triu(adjacency))

    eigenvalue, vector = _outermost(adjacency, 5)

    matrix = mixing_matrix(links, np.full(len(links), 1 / 5), n)
    assert abs(eigenvalue) == pytest.approx(rho(matrix), abs=1e-9)
    np.testing.assert_allclose((matrix - 1 / n) @ vector, eigenvalue * vector, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "degree", "message"),
    [
        (2, 1, "received 2 nodes"),
        (5000, 4, "expected 3 to 4096"),
        (8, 8, "expected 2 to 7"),
        (8, 1, "degree 1"),
    ],
)
def test_sizes_are_checked(n: int, degree: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ramanujan(n, degree)
