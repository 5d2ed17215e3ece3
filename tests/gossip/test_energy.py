"""What a round costs: unicast gossip, and FedAvg over the same graph."""

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import UnicastEnergy, aggregator_energy, complete, load_graph, ring
from flower_edge.gossip.graph import link_array

ENERGY = UnicastEnergy(compute=1.0, send=0.5, receive=0.25)
VALID = {
    "model_bytes": 1e6,
    "bitrate": 8e6,
    "send_watts": 3.6,
    "receive_watts": 1.8,
    "compute_watts": 3.0,
    "compute_seconds": 12.0,
}


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_per_node_counts_links(n: int, seed: int) -> None:
    graph = random_connected_graph(n, seed)

    expected = [1.0 + sum(0.5 + 0.25 for _ in graph[node]) for node in range(n)]

    np.testing.assert_allclose(ENERGY.per_node(link_array(graph), n), expected, rtol=1e-12)


def test_nodes_without_links_still_compute() -> None:
    np.testing.assert_array_equal(ENERGY.per_node(np.array([[0, 2]]), 4), [1.75, 1.0, 1.75, 1.0])
    np.testing.assert_array_equal(ENERGY.per_node(np.empty((0, 2), np.int64), 2), [1.0, 1.0])


def test_from_radio_by_hand() -> None:
    """1 MB over 8 Mbit/s takes one second: 3.6 Ws to send, 1.8 Ws to receive; 3 W for 12 s are 36 Ws."""
    energy = UnicastEnergy.from_radio(**VALID)

    assert energy.send == pytest.approx(0.001)
    assert energy.receive == pytest.approx(0.0005)
    assert energy.compute == pytest.approx(0.01)
    assert energy.per_link == pytest.approx(0.0015)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bitrate": 0.0}, "bitrate is 0"),
        ({"bitrate": -1.0}, "bitrate is -1"),
        ({"model_bytes": float("inf")}, "model_bytes is inf"),
        ({"compute_seconds": float("nan")}, "compute_seconds is nan"),
        ({"model_bytes": 0.0, "compute_watts": 0.0}, "all zero"),
    ],
)
def test_from_radio_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnicastEnergy.from_radio(**{**VALID, **change})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1.0, 0.0, 1.0), "compute is -1.0 Wh"),
        ((0.0, float("nan"), 1.0), "send is nan Wh"),
        ((0.0, 0.0, float("inf")), "receive is inf Wh"),
        ((0, 0, 0), "all zero"),
        (("1", 0.0, 0.0), "compute is '1', expected a number"),
        ((True, 0.0, 0.0), "compute is True"),
        ((None, 0.0, 0.0), "compute is None"),
    ],
)
def test_unicast_refuses(values: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnicastEnergy(*values)


def test_numpy_scalars_become_floats() -> None:
    energy = UnicastEnergy(np.float64(1), np.float32(0.5), np.int64(2))

    assert [type(value) for value in (energy.compute, energy.send, energy.receive)] == [float] * 3


def test_aggregator_of_a_star_sits_in_the_centre() -> None:
    graph = load_graph(nx.star_graph(4))

    np.testing.assert_allclose(aggregator_energy(graph, ENERGY), [1 + 4 * 0.75, *[1 + 0.75] * 4])


def test_aggregator_on_a_path_of_five() -> None:
    """From the middle: an end sends and receives one model, a relay also forwards one up and one down."""
    graph = load_graph(nx.path_graph(5))

    transfers = (aggregator_energy(graph, ENERGY) - 1) / 0.75

    np.testing.assert_allclose(transfers, [1, 3, 4, 3, 1])


def test_relays_share_the_load() -> None:
    """On a ring of four, the node opposite sends through one of two equally near neighbours."""
    transfers = sorted((aggregator_energy(ring(4), ENERGY) - 1) / 0.75)

    assert transfers == pytest.approx([1, 1, 3, 3])


def test_aggregator_of_a_complete_graph_is_the_busiest() -> None:
    energies = np.sort(aggregator_energy(complete(7), ENERGY))

    np.testing.assert_allclose(energies, [1.75] * 6 + [1 + 6 * 0.75])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 14), st.integers(0, 2**32 - 1))
def test_aggregator_on_trees_against_walking_every_model(n: int, seed: int) -> None:
    """A tree has one path between two nodes: the reference sends every model along it, up and down."""
    rng = np.random.default_rng(seed)
    tree = nx.empty_graph(n)
    tree.add_edges_from((int(rng.integers(node)), node) for node in range(1, n))

    def walked(host: int) -> np.ndarray:
        spent = np.full(n, ENERGY.compute)
        for node in range(n):
            path = nx.shortest_path(tree, node, host)
            for route in (path, path[::-1]):
                for sender, receiver in pairwise(route):
                    spent[sender] += ENERGY.send
                    spent[receiver] += ENERGY.receive
        return spent

    best = min(walked(host).max() for host in range(n))
    ours = aggregator_energy(tree, ENERGY)

    assert ours.max() == pytest.approx(best)
    assert any(np.allclose(ours, walked(host)) for host in range(n))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_aggregator_takes_shortest_paths(n: int, seed: int) -> None:
    """However ties are broken, the hops of all models add up to twice the distances to the host."""
    graph = random_connected_graph(n, seed)
    transfers = (aggregator_energy(graph, ENERGY) - 1) / 0.75

    totals = [2 * sum(nx.single_source_shortest_path_length(graph, host).values()) for host in range(n)]

    assert any(transfers.sum() == pytest.approx(total) for total in totals)
    assert transfers.max() >= n - 1 - 1e-9
