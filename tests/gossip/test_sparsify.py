"""Pruning under a budget of links per node."""

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import complete, geometric, load_graph, regular
from flower_edge.gossip.graph import link_array
from flower_edge.gossip.sparsify import prune
from flower_edge.gossip.weights import mixing_matrix, nearly_fastest, rho


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_every_stage_is_a_connected_part_of_the_graph_within_its_budget(n: int, seed: int) -> None:
    graph = random_connected_graph(n, seed)
    base = link_array(graph)

    stages = prune(graph)

    assert stages[0].links.tolist() == base.tolist()
    assert [stage.budget for stage in stages] == list(
        range(stages[0].budget, stages[0].budget - len(stages), -1)
    )
    for stage in stages:
        part = nx.Graph(stage.links.tolist())
        assert len(part) == n
        assert nx.is_connected(part)
        assert max(dict(part.degree).values()) == stage.budget
        assert stage.weights.shape == (len(stage.links),)
        assert stage.links.tolist() == sorted(stage.links.tolist())
        assert {tuple(link) for link in stage.links.tolist()} <= {tuple(link) for link in base.tolist()}


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_no_link_is_left_out_that_would_fit(n: int, seed: int) -> None:
    graph = random_connected_graph(n, seed)

    for stage in prune(graph):
        used = {tuple(link) for link in stage.links.tolist()}
        degrees = np.bincount(stage.links.ravel(), minlength=n)
        for i, j in set(map(tuple, link_array(graph).tolist())) - used:
            assert max(degrees[i], degrees[j]) == stage.budget


@pytest.mark.parametrize("tree", [nx.star_graph(6), nx.path_graph(5), nx.balanced_tree(2, 3)])
def test_a_tree_cannot_be_pruned(tree: nx.Graph) -> None:
    (stage,) = prune(load_graph(tree))

    assert len(stage.links) == len(tree) - 1


def test_the_last_stage_ends_where_a_busiest_node_has_bridges_alone() -> None:
    """Two hubs with three leaves each and a triangle elsewhere: nothing can relieve the hubs."""
    graph = nx.Graph([(0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7), (0, 1), (7, 8), (8, 9), (9, 7)])

    assert [stage.budget for stage in prune(load_graph(graph))] == [4]


def test_better_than_pruning_at_random() -> None:
    graph = geometric(20, 80, seed=1)
    stages = {stage.budget: stage for stage in prune(graph)}

    for budget in (3, 4):
        links = stages[budget].links
        ours = rho(mixing_matrix(links, nearly_fastest(links, 20), 20))
        others = [random_pruning(graph, budget, seed) for seed in range(10)]
        theirs = [rho(mixing_matrix(links, nearly_fastest(links, 20), 20)) for links in others]
        assert ours < min(theirs)


def test_a_complete_graph_keeps_an_expander() -> None:
    """As good as the best of twenty random 4-regular graphs, which are nearly Ramanujan."""
    stage = next(stage for stage in prune(complete(16)) if stage.budget == 4)

    found = rho(mixing_matrix(stage.links, nearly_fastest(stage.links, 16), 16))

    drawn = [link_array(regular(16, 4, seed)) for seed in range(20)]
    assert found < min(rho(mixing_matrix(links, nearly_fastest(links, 16), 16)) for links in drawn) + 0.02


def random_pruning(graph: nx.Graph, budget: int, seed: int) -> np.ndarray:
    """Take random removable links from the busiest nodes until all fit the budget."""
    rng = np.random.default_rng(seed)
    left = nx.Graph(graph.edges)
    while max(dict(left.degree).values()) > budget:
        bridges = set(map(frozenset, nx.bridges(left)))
        over = [e for e in left.edges if max(left.degree[e[0]], left.degree[e[1]]) > budget]
        removable = [edge for edge in over if frozenset(edge) not in bridges]
        left.remove_edge(*removable[rng.integers(len(removable))])
    return link_array(left)
