"""Who mixes which part of a model, and what that costs."""

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import DPSGD, GossipPlan, UnicastEnergy, full_graph_plan, load_graph
from flower_edge.gossip.codec import Layout
from flower_edge.gossip.energy import BroadcastEnergy
from flower_edge.strategies.fleet import Fleet
from flower_edge.strategies.stretches import Stretch, energy, stretches

SIZES = {"stem": 3, "steps": 1, "body": 8, "norm": 2, "head": 5}
MIXED = [name for name in SIZES if name != "steps"]


def arrays() -> dict[str, np.ndarray]:
    return {name: np.zeros(size, np.int64 if name == "steps" else np.float32) for name, size in SIZES.items()}


def random_round(n: int, seed: int) -> tuple[GossipPlan, set[int], dict[int, set[str]]]:
    """A plan, the nodes that trained well, and what each of them trained."""
    rng = np.random.default_rng(seed)
    live = set(np.flatnonzero(rng.random(n) > 0.2).tolist())
    trained = {node: {name for name in SIZES if rng.random() > 0.4} for node in live}
    return full_graph_plan(load_graph(random_connected_graph(n, seed))), live, trained


def spans() -> dict[str, slice]:
    spans, start = {}, 0
    for name in MIXED:
        spans[name] = slice(start, start + SIZES[name])
        start += SIZES[name]
    return spans


def acting_matrix(plan: GossipPlan, live: set[int], trained: dict[int, set[str]], name: str) -> np.ndarray:
    """What `mix` does to every element of an array, column by column: each node starts with a unit vector."""
    columns = []
    for source in range(plan.n):
        fleet = Fleet(plan, arrays(), DPSGD)
        fleet.models[source] = 1.0
        fleet.mix(1, live, trained)
        block = fleet.models[:, spans()[name]]
        np.testing.assert_array_equal(block, np.broadcast_to(block[:, :1], block.shape))
        columns.append(block[:, 0])
    return np.stack(columns, axis=1)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 2**16))
def test_each_arrays_matrix_is_symmetric_doubly_stochastic_and_among_those_that_trained_it(
    n: int, seed: int
) -> None:
    plan, live, trained = random_round(n, seed)
    full = plan.matrix(1).toarray()

    for name in MIXED:
        acting = acting_matrix(plan, live, trained, name)

        np.testing.assert_array_equal(acting, acting.T)
        np.testing.assert_allclose(acting.sum(0), 1.0, atol=1e-6)
        np.testing.assert_allclose(acting.sum(1), 1.0, atol=1e-6)
        mixing = [node for node in sorted(live) if name in trained[node]]
        off_diagonal = np.zeros((n, n))
        off_diagonal[np.ix_(mixing, mixing)] = full[np.ix_(mixing, mixing)]
        np.fill_diagonal(off_diagonal, 0.0)
        np.testing.assert_allclose(acting - np.diag(np.diag(acting)), off_diagonal, atol=1e-7)
        for node in set(range(n)) - set(mixing):
            np.testing.assert_array_equal(acting[node], np.eye(n, dtype=np.float32)[node])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 20), seed=st.integers(0, 2**16))
def test_the_mean_over_all_nodes_is_kept(n: int, seed: int) -> None:
    plan, _, _ = random_round(n, seed)
    fleet = Fleet(plan, arrays(), DPSGD)
    fleet.models[:] = np.random.default_rng(seed).standard_normal(fleet.models.shape) + 1.0
    mean, scale = fleet.models.mean(0, dtype=np.float64), np.abs(fleet.models).max()

    for server_round in range(1, 6):
        _, live, trained = random_round(n, seed + server_round)
        fleet.mix(server_round, live, trained)
        assert np.abs(fleet.models.mean(0, dtype=np.float64) - mean).max() <= 1e-6 * scale


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 20), seed=st.integers(0, 2**16))
def test_if_all_train_everything_it_is_plain_mixing_to_the_last_bit(n: int, seed: int) -> None:
    plan, live, _ = random_round(n, seed)
    models = np.random.default_rng(seed).standard_normal((n, 18)).astype(np.float32)
    plain, by_array = Fleet(plan, arrays(), DPSGD), Fleet(plan, arrays(), DPSGD)
    plain.models[:] = by_array.models[:] = models

    plain_parts = plain.mix(1, live)
    parts = by_array.mix(1, live, {node: set(SIZES) for node in live})

    np.testing.assert_array_equal(by_array.models, plain.models)
    assert parts == plain_parts == (Stretch(0, 18, frozenset(live)),)


def test_neighbouring_arrays_of_the_same_nodes_are_one_stretch() -> None:
    layout = Layout.of(arrays() | {"empty": np.zeros(0, np.float32)})
    trained = {0: {"stem", "body", "norm"}, 1: {"stem", "body", "head", "empty"}, 2: {"stem", "body"}}

    parts = list(stretches(layout, [0, 1, 2], trained))

    everyone = frozenset({0, 1, 2})
    assert parts == [
        Stretch(0, 11, everyone),
        Stretch(11, 13, frozenset({0})),
        Stretch(13, 18, frozenset({1})),
    ]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 12), seed=st.integers(0, 2**16))
def test_traffic_is_counted_array_by_array_and_link_by_link(n: int, seed: int) -> None:
    plan, live, trained = random_round(n, seed)
    fleet = Fleet(plan, arrays(), DPSGD)

    fleet.mix(1, live, trained)

    expected = np.zeros(n, np.int64)
    for i, j in plan.phase(1).links.tolist():
        if i in live and j in live:
            both = sum(4 * SIZES[name] for name in MIXED if name in trained[i] & trained[j])
            expected[[i, j]] += both
    np.testing.assert_array_equal(fleet.sent, expected)
    np.testing.assert_array_equal(fleet.received, expected)
    assert fleet.compression == 1.0


@pytest.mark.parametrize("model", [UnicastEnergy, BroadcastEnergy])
def test_a_part_of_a_model_costs_its_share_of_the_energy(model: type) -> None:
    """A ring of four, of which the neighbours 0 and 1 exchange the last ten of eighteen numbers."""
    plan = full_graph_plan(load_graph(nx.cycle_graph(4)), model(compute=1.0, send=0.5, receive=0.25))
    parts = (Stretch(0, 8, frozenset()), Stretch(8, 18, frozenset({0, 1})))

    spent = energy(plan, 1, parts)

    np.testing.assert_allclose(spent, [1 + 0.75 * 10 / 18] * 2 + [1, 1])


def test_the_energy_of_whole_models_is_that_of_the_plan() -> None:
    plan = full_graph_plan(load_graph("ring:5"), UnicastEnergy(compute=0.1, send=0.3, receive=0.7))
    parts = tuple(stretches(Layout.of(arrays()), range(5)))

    np.testing.assert_array_equal(energy(plan, 1, parts), plan.energy_per_node(1))
    assert not energy(full_graph_plan(load_graph("ring:5")), 1, parts).any()
