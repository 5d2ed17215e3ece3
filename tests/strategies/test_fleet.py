"""The mixing of all models, with and without failures."""

import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import DPSGD, full_graph_plan, load_graph
from flower_edge.strategies.fleet import Fleet


def random_fleet(n: int, size: int, seed: int) -> Fleet:
    plan = full_graph_plan(load_graph(random_connected_graph(n, seed)))
    fleet = Fleet(plan, {"weight": np.zeros(size, np.float32)}, DPSGD)
    fleet.models[:] = np.random.default_rng(seed).standard_normal((n, size)) + 1.0
    return fleet


def random_live(n: int, seed: int) -> set[int]:
    return set(np.flatnonzero(np.random.default_rng(seed).random(n) > 0.2))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 20), size=st.sampled_from([1, 7, 15, 31, 33, 97]), seed=st.integers(0, 2**16))
def test_mixing_keeps_the_mean_through_failures(n: int, size: int, seed: int) -> None:
    fleet = random_fleet(n, size, seed)
    mean = fleet.models.mean(0, dtype=np.float64)
    scale = np.abs(fleet.models).max()

    for server_round in range(1, 6):
        fleet.mix(server_round, random_live(n, seed + server_round))
        assert np.abs(fleet.models.mean(0, dtype=np.float64) - mean).max() <= 1e-6 * scale


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 20), seed=st.integers(0, 2**16))
def test_the_matrix_that_acts_is_symmetric_and_doubly_stochastic(n: int, seed: int) -> None:
    fleet = random_fleet(n, n, seed)
    fleet.models[:] = np.eye(n)
    live = random_live(n, seed)

    fleet.mix(1, live)

    acting = fleet.models
    np.testing.assert_allclose(acting, acting.T, atol=1e-7)
    np.testing.assert_allclose(acting.sum(0), 1.0, atol=1e-6)
    np.testing.assert_allclose(acting.sum(1), 1.0, atol=1e-6)
    for node in set(range(n)) - live:
        np.testing.assert_array_equal(acting[node], np.eye(n, dtype=np.float32)[node])
    if len(live) == n:
        np.testing.assert_allclose(acting, fleet.plan.matrix(1).toarray(), atol=1e-6)


def test_consensus_distance_and_mean_match_numpy() -> None:
    fleet = random_fleet(9, 97, seed=4)
    mean = fleet.models.mean(0, dtype=np.float64)

    np.testing.assert_allclose(fleet.mean(), mean, rtol=1e-6)
    expected = np.sqrt(((fleet.models - mean) ** 2).sum(1).mean())
    assert fleet.consensus_distance(fleet.mean()) == pytest.approx(expected, rel=1e-5)


def test_a_rejected_update_leaves_the_model() -> None:
    fleet = random_fleet(4, 7, seed=0)
    before = fleet.models.copy()

    with pytest.raises(ValueError, match="NaN or infinite"):
        fleet.update(2, {"weight": np.full(7, np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"shape \(6,\)\), expected"):
        fleet.update(2, {"weight": np.zeros(6, np.float32)})

    np.testing.assert_array_equal(fleet.models, before)


def test_an_infinite_initial_model_is_refused() -> None:
    plan = full_graph_plan(load_graph("ring:4"))

    with pytest.raises(ValueError, match="initial model has NaN or infinite"):
        Fleet(plan, {"weight": np.array([np.inf], np.float32)}, DPSGD)
