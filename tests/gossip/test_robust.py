"""Mixers that somebody who sends anything can hardly move."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import DPSGD, ClippedGossip, TrimmedMean, full_graph_plan, load_graph
from flower_edge.gossip.robust import named_mixer

pytestmark = pytest.mark.board

ROW = {0: 0.4, 1: 0.1, 2: 0.2, 3: 0.3}
SIZES = [1, 7, 15, 31, 33, 97, (1 << 16) + 1]


def models(size: int, count: int = 4) -> list[np.ndarray]:
    return list(np.random.default_rng(size).standard_normal((count, size)).astype(np.float32))


def slow_clip(model: np.ndarray, row: dict, received: dict, radius: float | None) -> np.ndarray:
    own = model.astype(np.float64)
    moves = {j: vector.astype(np.float64) - own for j, vector in received.items()}
    if radius is None:
        radius = np.median([np.linalg.norm(move) for move in moves.values()])
    return own + sum(row[j] * m * min(1, radius / max(np.linalg.norm(m), 1e-300)) for j, m in moves.items())


def slow_trim(model: np.ndarray, received: dict, trim: int) -> np.ndarray:
    columns = np.sort(np.array(list(received.values()), np.float64), axis=0)
    kept = columns[trim : len(columns) - trim]
    return np.concatenate([kept, model[None].astype(np.float64)]).mean(0)


@pytest.mark.parametrize("radius", [None, 0.5, 1e9])
@pytest.mark.parametrize("size", SIZES)
def test_clipping_against_its_formula(size: int, radius: float | None) -> None:
    own, *others = models(size)
    received = dict(enumerate(others, 1))

    mixed = ClippedGossip(0, radius).mix(own, ROW, received)

    np.testing.assert_allclose(mixed, slow_clip(own, ROW, received, radius), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trim", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_trimming_against_its_formula(size: int, trim: int) -> None:
    own, *others = models(size, 7)
    received = dict(enumerate(others, 1))
    row = dict.fromkeys(range(7), 1 / 7)

    mixed = TrimmedMean(0, trim).mix(own, row, received)

    np.testing.assert_allclose(mixed, slow_trim(own, received, trim), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(attack=st.floats(-1e7, 1e7, width=32), size=st.sampled_from([1, 7, 33]))
def test_one_of_four_neighbours_does_not_matter_much(attack: float, size: int) -> None:
    own, *others = models(size, 4)
    received = {**dict(enumerate(others, 1)), 4: np.full(size, attack, np.float32)}
    row = dict.fromkeys(range(5), 0.2)
    honest = np.array([own, *others])

    trimmed = TrimmedMean(0).mix(own, row, received)
    clipped = ClippedGossip(0, radius=1.0).mix(own, row, received)
    without = ClippedGossip(0, radius=1.0).mix(own, row, {j: received[j] for j in (1, 2, 3)})

    assert (honest.min(0) - 1e-5 <= trimmed).all()
    assert (trimmed <= honest.max(0) + 1e-5).all()
    assert np.linalg.norm(clipped - without) <= 0.2 + 1e-5


def test_a_wide_radius_is_d_psgd_bit_for_bit() -> None:
    own, *others = models(97)
    received = dict(enumerate(others, 1))

    np.testing.assert_array_equal(
        ClippedGossip(0, 1e9).mix(own, ROW, received), DPSGD(0).mix(own, ROW, received)
    )


def test_too_few_neighbours_to_trim() -> None:
    own, *others = models(7)

    for count in range(3):
        mixed = TrimmedMean(0).mix(own, ROW, dict(list(enumerate(others, 1))[:count]))
        np.testing.assert_array_equal(mixed, own)


def test_clipping_contracts_and_keeps_the_mean_of_honest_nodes_at_one_radius() -> None:
    plan = full_graph_plan(load_graph("ring:8"))
    fleet = np.array(models(33, 8))
    start = fleet.mean(0)
    for round_ in range(60):
        fleet = np.array(
            [
                ClippedGossip(i, 1.0).mix(x, row := plan.row(i, round_), {j: fleet[j] for j in row if j != i})
                for i, x in enumerate(fleet)
            ]
        )

    np.testing.assert_allclose(fleet, np.tile(start, (8, 1)), atol=1e-2)
    np.testing.assert_allclose(fleet.mean(0), start, atol=1e-5)


def test_in_place() -> None:
    for mixer in (ClippedGossip(0), TrimmedMean(0)):
        own, *others = models(33)
        received = dict(enumerate(others, 1))
        expected = mixer.mix(own, ROW, received)

        assert mixer.mix(own, ROW, received, out=own) is own
        np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("mixer", [ClippedGossip(3), TrimmedMean(3)])
def test_strangers_are_refused(mixer: object) -> None:
    zeros = np.zeros(2, np.float32)

    with pytest.raises(KeyError, match="none for node 3 itself"):
        mixer.mix(zeros, {0: 0.5, 1: 0.5}, {})
    with pytest.raises(KeyError, match=r"received models from \[7\]"):
        mixer.mix(zeros, {0: 0.5, 3: 0.5}, {7: zeros})


def test_names() -> None:
    assert named_mixer(None) is DPSGD
    assert isinstance(named_mixer("clip")(2), ClippedGossip)
    assert named_mixer("trim")(2).node == 2
    with pytest.raises(ValueError, match=r"robust is 'median'; expected None or one of \['clip', 'trim'\]"):
        named_mixer("median")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="radius is 0"):
        ClippedGossip(0, 0)
    with pytest.raises(ValueError, match="trim is 0"):
        TrimmedMean(0, 0)
