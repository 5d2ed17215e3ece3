"""Random connected graphs for property tests."""

import networkx as nx
import numpy as np


def random_connected_graph(n: int, seed: int) -> nx.Graph:
    """A random tree of n nodes and up to n further links."""
    rng = np.random.default_rng(seed)
    graph = nx.empty_graph(n)
    graph.add_edges_from((int(rng.integers(node)), node) for node in range(1, n))
    chords = rng.integers(n, size=(int(rng.integers(n + 1)), 2))
    graph.add_edges_from((int(i), int(j)) for i, j in chords if i != j)
    return graph
