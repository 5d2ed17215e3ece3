"""One node's side of D-PSGD against the matrix that it is a row of."""

import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import DPSGD, full_graph_plan, load_graph

pytestmark = pytest.mark.board


def mix_all(plan, models: np.ndarray, server_round: int = 1) -> np.ndarray:
    mixers = [DPSGD(node) for node in range(plan.n)]
    rows = [plan.row(node, server_round) for node in range(plan.n)]
    outgoing = [
        mixer.outgoing(model, plan.neighbours(node, server_round))
        for node, (mixer, model) in enumerate(zip(mixers, models, strict=True))
    ]
    return np.stack(
        [
            mixer.mix(models[i], rows[i], {j: outgoing[j][i] for j in rows[i] if j != i})
            for i, mixer in enumerate(mixers)
        ]
    )


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 12), seed=st.integers(0, 2**16), size=st.sampled_from([1, 7, 15, 31, 33, 97]))
def test_all_nodes_together_multiply_by_the_mixing_matrix(n: int, seed: int, size: int) -> None:
    pytest.importorskip("scipy", reason="a plan's matrix is one of scipy's")
    plan = full_graph_plan(load_graph(random_connected_graph(n, seed)))
    models = np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32)

    mixed = mix_all(plan, models)

    np.testing.assert_allclose(
        mixed, plan.matrix(1).toarray() @ models.astype(np.float64), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(mixed.mean(0), models.mean(0, dtype=np.float64), atol=1e-6)


def test_absent_neighbours_leave_their_weight() -> None:
    model, neighbour = np.float32([1.0, 2.0]), np.float32([3.0, -2.0])

    mixed = DPSGD(0).mix(model, {0: 0.25, 1: 0.25, 2: 0.5}, {1: neighbour})

    np.testing.assert_allclose(mixed, 0.75 * model + 0.25 * neighbour, rtol=1e-6)


def test_a_node_alone_keeps_its_model_bit_for_bit() -> None:
    model = np.random.default_rng(0).standard_normal(33).astype(np.float32)

    mixed = DPSGD(4).mix(model, {4: 0.4, 1: 0.6}, {})

    np.testing.assert_array_equal(mixed, model)


def test_mixing_in_place() -> None:
    model, neighbour = np.float32([1.0, 2.0]), np.float32([3.0, -2.0])
    expected = DPSGD(0).mix(model, {0: 0.5, 1: 0.5}, {1: neighbour})

    assert DPSGD(0).mix(model, {0: 0.5, 1: 0.5}, {1: neighbour}, out=model) is model
    np.testing.assert_array_equal(model, expected)


def test_a_row_of_another_node_is_refused() -> None:
    with pytest.raises(KeyError, match="none for node 3 itself"):
        DPSGD(3).mix(np.zeros(2, np.float32), {0: 0.5, 1: 0.5}, {})


def test_a_model_from_a_stranger_is_refused() -> None:
    with pytest.raises(KeyError, match=r"received models from \[7\]"):
        DPSGD(0).mix(np.zeros(2, np.float32), {0: 0.5, 1: 0.5}, {7: np.zeros(2, np.float32)})
