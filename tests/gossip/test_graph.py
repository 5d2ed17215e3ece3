"""Base graphs: generators, files, networkx graphs, and everything that is refused."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import complete, geometric, load_graph, regular, ring, save_graph, torus
from flower_edge.gossip.graph import MAX_NODES, check_connected, link_array


@pytest.mark.parametrize(
    ("spec", "graph", "n", "m", "degrees"),
    [
        ("complete:6", complete(6), 6, 15, {5}),
        ("complete:2", complete(2), 2, 1, {1}),
        ("ring:7", ring(7), 7, 7, {2}),
        ("ring:2", ring(2), 2, 1, {1}),
        ("torus:4x5", torus(4, 5), 20, 40, {4}),
        ("torus:2x3", torus(2, 3), 6, 9, {3}),
        ("torus:1x5", torus(1, 5), 5, 5, {2}),
        ("regular:10:3", regular(10, 3), 10, 15, {3}),
        ("regular:10:3:seed=4", regular(10, 3, seed=4), 10, 15, {3}),
        ("regular:2:1", regular(2, 1), 2, 1, {1}),
        ("geometric:33:187", geometric(33, 187), 33, 187, None),
        ("geometric:33:187:seed=7", geometric(33, 187, seed=7), 33, 187, None),
    ],
)
def test_generators_and_their_names(spec: str, graph: nx.Graph, n: int, m: int, degrees: set | None) -> None:
    named = load_graph(spec)

    assert (len(graph), graph.number_of_edges()) == (n, m)
    assert list(graph) == list(range(n))
    assert nx.is_connected(graph)
    assert degrees is None or set(dict(graph.degree).values()) == degrees
    np.testing.assert_array_equal(link_array(named), link_array(graph))
    assert named.name.startswith(spec)


def test_torus_is_numbered_row_by_row() -> None:
    assert set(torus(3, 4)[5]) == {4, 6, 1, 9}


def test_geometric_links_the_closest_pairs() -> None:
    graph = geometric(12, 30, seed=3)
    position = nx.get_node_attributes(graph, "pos")
    distance = {pair: np.hypot(*np.subtract(position[pair[0]], position[pair[1]])) for pair in all_pairs(12)}
    linked = set(map(tuple, link_array(graph).tolist()))

    assert max(distance[pair] for pair in linked) < min(distance[pair] for pair in set(distance) - linked)


@pytest.mark.parametrize("make", [lambda seed: geometric(20, 60, seed), lambda seed: regular(20, 4, seed)])
def test_seeds(make: object) -> None:
    np.testing.assert_array_equal(link_array(make(1)), link_array(make(1)))
    assert (link_array(make(1)) != link_array(make(2))).any()


def test_geometric_draws_again_until_connected() -> None:
    """A tree's worth of shortest pairs almost never connects; three nodes do in a few draws, thirty never."""
    assert nx.is_connected(geometric(3, 2, seed=0))
    with pytest.raises(
        ValueError, match="no connected geometric graph of 30 nodes and 29 links in 1000 draws"
    ):
        geometric(30, 29)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ring:x", "expected ring:NODES"),
        ("ring:", "expected ring:NODES"),
        ("ring:1", "1 nodes, expected 2"),
        ("ring:-4", "expected ring:NODES"),
        ("ring:5:seed=1", "expected ring:NODES"),
        ("complete:999999999", "999999999 nodes, expected 2 to"),
        ("complete:" + "9" * 5000, "expected complete:NODES"),
        ("torus:4", "expected torus:ROWSxCOLS"),
        ("torus:0x4", "at least one of each"),
        ("torus:99999x99999", "9999800001 nodes"),
        ("regular:5:3", "n · degree even"),
        ("regular:4:4", "expected 1 to 3"),
        ("regular:6:1", "no connected 1-regular graph"),
        ("geometric:5:3", "expected 4 .a tree. to 10"),
        ("geometric:5:11", "expected 4 .a tree. to 10"),
        ("geometric:5:7:seed=x", "expected geometric:NODES:LINKS"),
        ("geometric:5:7:8", "expected geometric:NODES:LINKS"),
        ("hypercube:4", "expected a file or one of complete:NODES, ring:NODES"),
        ("no/such/file.json", "cannot read 'no/such/file.json'"),
    ],
)
def test_bad_names(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_graph(spec)


def test_networkx_graph_is_relabelled_in_sorted_order() -> None:
    source = nx.Graph([("c", "a"), ("a", "b")], name="three")
    source.nodes["b"]["battery"] = True

    graph = load_graph(source)

    assert link_array(graph).tolist() == [[0, 1], [0, 2]]
    assert nx.get_node_attributes(graph, "label") == {0: "a", 1: "b", 2: "c"}
    assert graph.nodes[1]["battery"]
    assert set(source) == {"a", "b", "c"}
    assert "label" not in source.nodes["a"]


def test_networkx_graph_with_names_that_cannot_be_sorted() -> None:
    graph = load_graph(nx.Graph([("b", 1), (1, (2, 3))]))

    assert nx.get_node_attributes(graph, "label") == {0: "b", 1: 1, 2: (2, 3)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (nx.DiGraph([(0, 1)]), "received a DiGraph, expected an undirected"),
        (nx.MultiGraph([(0, 1)]), "received a MultiGraph"),
        (nx.Graph([(0, 1), (1, 1)]), "node 1 is linked to itself"),
        (nx.empty_graph(1), "graph of 1 nodes"),
        (nx.empty_graph(0), "graph of 0 nodes"),
        (nx.empty_graph(MAX_NODES + 1), f"expected 2 to {MAX_NODES}"),
        (nx.disjoint_union(nx.path_graph(7), nx.path_graph(2)), "7 nodes: 0, 1, 2, 3, 4, …; 2 nodes: 7, 8"),
        (nx.Graph({0: [1], 2: []}), "its 2 components have 2 nodes: 0, 1; 1 node: 2"),
        (nx.empty_graph(9), "its 9 components have 1 node: 0; .*; and 4 more"),
    ],
)
def test_bad_networkx_graphs(source: nx.Graph, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_graph(source)


def test_other_types() -> None:
    with pytest.raises(TypeError, match="received a list, expected a path, a generator"):
        load_graph([[0, 1]])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_links_are_sorted_pairs(n: int, seed: int) -> None:
    graph = random_connected_graph(n, seed)

    links = link_array(graph)

    assert links.dtype == np.int64
    assert links.tolist() == sorted(sorted(edge) for edge in graph.edges)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
def test_connected_means_what_networkx_means(n: int, pairs: list[tuple[int, int]]) -> None:
    graph = nx.empty_graph(n)
    graph.add_edges_from((i, j) for i, j in pairs if i != j and max(i, j) < n)

    if nx.is_connected(graph):
        check_connected(link_array(graph), n)
    else:
        with pytest.raises(ValueError, match=f"its {nx.number_connected_components(graph)} components"):
            check_connected(link_array(graph), n)


def test_files_round_trip(tmp_path: Path) -> None:
    graph = load_graph("ring:5")
    graph.edges[0, 4]["quality"] = 0.25
    path = tmp_path / "graph.json"

    save_graph(graph, path)
    back = load_graph(str(path))

    assert back.name == graph.name
    assert nx.utils.edges_equal(back.edges(data=True), graph.edges(data=True))
    assert json.loads(path.read_text())["edges"][1] == [0, 4, 0.25]
    np.testing.assert_array_equal(link_array(load_graph(path)), link_array(graph))


def test_only_base_graphs_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass this one through load_graph first"):
        save_graph(nx.path_graph(["a", "b"]), tmp_path / "graph.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[[0, 1]]", "a JSON list, expected an object"),
        ('{"edges": [[0, 1]]}', 'expected {"n": nodes'),
        ('{"n": 2}', 'expected {"n": nodes'),
        ('{"n": true, "edges": []}', 'expected {"n": nodes'),
        ('{"n": 2.0, "edges": [[0, 1]]}', 'expected {"n": nodes'),
        ('{"n": 1, "edges": []}', "1 nodes, expected 2"),
        ('{"n": 1000000000000, "edges": [[0, 1]]}', "1000000000000 nodes, expected 2 to"),
        ('{"n": 4000, "edges": [[0, 1]]}', "1 links cannot connect 4000 nodes"),
        ('{"n": 2, "m": 3, "edges": [[0, 1]]}', "claims m = 3 links, has 1"),
        ('{"n": 2, "edges": [[0, 2]]}', r"link \[0, 2\], expected two different nodes of 0..1"),
        ('{"n": 2, "edges": [[-1, 1]]}', "expected two different nodes"),
        ('{"n": 2, "edges": [[1, 1]]}', "expected two different nodes"),
        ('{"n": 2, "edges": [[0, 1], [1, 0]]}', r"link \[1, 0\] is there twice"),
        ('{"n": 2, "edges": [[0, "1"]]}', r"expected \[i, j\]"),
        ('{"n": 2, "edges": [[0, true]]}', r"expected \[i, j\]"),
        ('{"n": 2, "edges": [[0]]}', r"expected \[i, j\]"),
        ('{"n": 2, "edges": [[0, 1, 0.5, 0.5]]}', r"expected \[i, j\]"),
        ('{"n": 2, "edges": [{"0": 1}]}', r"expected \[i, j\]"),
        ('{"n": 2, "edges": [[0, 1, NaN]]}', "NaN is no number"),
        ('{"n": 2, "edges": [[0, 1, 1e999]]}', "quality inf, expected a number from 0 to 1"),
        ('{"n": 2, "edges": [[0, 1, -0.1]]}', "quality -0.1"),
        ('{"n": 2, "edges": [[0, 1, "good"]]}', "quality 'good'"),
        ('{"n": 2, "edges": [[0, 1, null]]}', "quality None"),
        ('{"n": 4, "edges": [[0, 1], [2, 3], [0, 1]]}', "is there twice"),
        ('{"n": 4, "edges": [[0, 1], [0, 2], [1, 2]]}', "3 nodes: 0, 1, 2; 1 node: 3"),
    ],
)
def test_hostile_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(content)

    with pytest.raises(ValueError, match=message) as raised:
        load_graph(path)

    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 500 + len(str(path))


def test_files_that_are_no_text_or_too_large(tmp_path: Path) -> None:
    binary, sparse = tmp_path / "binary", tmp_path / "sparse"
    binary.write_bytes(b"\xff\xfe{}")
    with sparse.open("wb") as file:
        file.truncate(2**30)

    with pytest.raises(ValueError, match="cannot read"):
        load_graph(binary)
    with pytest.raises(ValueError, match="1073741824 bytes, expected at most"):
        load_graph(sparse)
    with pytest.raises(ValueError, match="cannot read"):
        load_graph(tmp_path)


def all_pairs(n: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(n) for j in range(i + 1, n)]
