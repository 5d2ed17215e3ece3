"""Repairs of plans whose fleet changed."""

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import GossipPlan, UnicastEnergy, full_graph_plan, load_graph, optimize
from flower_edge.gossip.graph import is_connected, link_array
from flower_edge.gossip.matchings import cyclic_matchings, with_pauses
from flower_edge.gossip.transmissions import expected_transmissions

ENERGY = UnicastEnergy(compute=0.01, send=0.5, receive=0.5)


def check(plan: GossipPlan, graph: nx.Graph) -> None:
    """All that every plan promises."""
    plan.validate(graph)
    assert is_connected(np.concatenate([phase.links for phase in plan.phases]), plan.n)
    for round in range(len(plan.phases)):
        matrix = plan.matrix(round).toarray()
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)
        np.testing.assert_allclose(matrix.sum(0), 1.0, atol=1e-12)
    assert plan.rho < 1


def without(graph: nx.Graph, node: int) -> nx.Graph:
    left = graph.copy()
    left.remove_node(node)
    return left


@pytest.mark.parametrize("mode", ["rationed", "static", "full", "random-matchings"])
def test_any_single_node_may_leave(mode: str) -> None:
    graph = load_graph("geometric:14:50")
    plan = optimize(graph, ENERGY, mode=mode)
    busiest = plan.mean_energy_per_node().max()

    for node in range(14):
        left = without(graph, node)
        if not nx.is_connected(left):
            with pytest.raises(ValueError, match="not connected"):
                plan.repair(removed=[node])
            continue
        repaired = plan.repair(removed=[node])
        check(repaired, load_graph(left))
        assert repaired.mean_energy_per_node().max() <= busiest * 1.01 + ENERGY.per_link


@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, 40), seed=st.integers(0, 2**16), static=st.booleans())
def test_nodes_leave_and_join(n: int, seed: int, static: bool) -> None:
    graph = load_graph(random_connected_graph(n, seed))
    rng = np.random.default_rng(seed)
    plan = full_graph_plan(graph, ENERGY) if static else optimize(graph, ENERGY, mode="rationed")
    # A leaf of a spanning tree may always leave.
    leaf = next(node for node, degree in nx.minimum_spanning_tree(graph).degree if degree == 1)
    others = [node for node in range(n) if node != leaf]
    neighbours = sorted({int(node) for node in rng.choice(others, size=min(3, n - 1))})

    repaired = plan.repair(removed=[leaf], added=[neighbours])

    changed = graph.copy()
    changed.remove_node(leaf)
    changed.add_edges_from((n, node) for node in neighbours)
    check(repaired, load_graph(changed))
    assert repaired.n == n


def test_a_full_plan_stays_full() -> None:
    repaired = full_graph_plan(load_graph("complete:5"), ENERGY).repair(removed=[0], added=[[1, 2, 3, 4]])

    assert len(repaired.phases[0].links) == 10


def test_a_plan_without_energies_can_be_repaired() -> None:
    repaired = full_graph_plan(load_graph("ring:6")).repair(added=[[0, 3]])

    assert repaired.n == 7
    assert repaired.energy is None


def test_energies_follow_their_nodes() -> None:
    graph = load_graph("complete:5")
    nx.set_edge_attributes(graph, 0.5, "quality")
    graph.edges[3, 4]["quality"] = 0.25
    energy = UnicastEnergy(
        compute=[0.1, 0.2, 0.3, 0.4, 0.5],
        send=1.0,
        receive=0.5,
        transmissions=expected_transmissions(graph),
        battery=[1, 2, 3, 4, float("inf")],
    )

    repaired = full_graph_plan(graph, energy).repair(removed=[1])

    assert repaired.energy.compute == (0.1, 0.3, 0.4, 0.5)
    assert repaired.energy.battery == (1, 3, 4, float("inf"))
    assert repaired.energy.transmissions.of(np.array([[2, 3], [0, 1]])).tolist() == [4.0, 2.0]
    with pytest.raises(ValueError, match="give the new fleet's model as energy"):
        full_graph_plan(graph, energy).repair(added=[[0]])


@pytest.mark.parametrize("objective", ["busiest", "lifetime"])
def test_the_last_node_with_a_battery_may_leave(objective: str) -> None:
    graph = load_graph("complete:5")
    energy = UnicastEnergy(0.01, 0.1, 0.1, battery=(10.0, *4 * [float("inf")]))
    plan = optimize(graph, energy, objective=objective, mode="rationed")

    repaired = plan.repair(removed=[0])

    check(repaired, load_graph("complete:4"))
    assert repaired.energy.battery is None
    assert repaired.mean_energy_per_node().max() <= plan.mean_energy_per_node().max() * 1.01


def test_a_plan_that_hardly_exchanges_may_have_to_exchange_more() -> None:
    graph = load_graph("complete:6")
    phases = with_pauses(cyclic_matchings(link_array(graph), 6), 600)

    repaired = GossipPlan(6, phases, ENERGY, link_array(graph)).repair(removed=[0])

    check(repaired, load_graph("complete:5"))


def test_where_exchanges_cost_nothing_they_are_counted() -> None:
    graph = load_graph("complete:6")
    free = UnicastEnergy(compute=1.0, send=0.0, receive=0.0)

    repaired = optimize(graph, free, mode="random-matchings").repair(removed=[0])

    check(repaired, load_graph("complete:5"))
    links = [repaired.links_per_node(round) for round in range(len(repaired.phases))]
    assert np.mean(links, axis=0).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"removed": [9]}, r"received node 9 to remove, expected nodes 0\.\.5"),
        ({"removed": [0, 1, 2, 3, 4]}, "1 nodes would be left"),
        ({"removed": [0, 3]}, "not connected"),
        ({"added": [[]]}, "has no links"),
        ({"added": [[6]]}, "linked to node 6"),
        ({"removed": [1], "added": [[1]]}, "linked to node 1"),
    ],
)
def test_what_cannot_be_repaired_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full_graph_plan(load_graph("ring:6")).repair(**change)


def test_a_plan_without_a_base_graph_cannot_be_repaired() -> None:
    with pytest.raises(ValueError, match="does not know its base graph"):
        GossipPlan.from_matrix(np.full((3, 3), 1 / 3)).repair(removed=[0])
