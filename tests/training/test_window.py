"""The stretches of a sliding window, and importances mixed with those of a fleet."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import BATCH, TwoBranches
from torch.nn import functional

from flower_edge.training import ElasticTrainer, SlidingWindow, Time, blend
from flower_edge.training.backward_graph import BackwardGraph, Operation, TrainableTensor
from flower_edge.training.window import path_seconds

pytestmark = pytest.mark.board


def chain(costs: list[float], tensors: list[int]) -> BackwardGraph:
    """Operations from input to output; the last two are head and loss."""
    counts = [*tensors, 2, 0]
    seconds = [*costs, 0.1, 0.1]
    return BackwardGraph(
        tuple(
            Operation(
                str(index),
                (index - 1,) if index else (),
                cost,
                tuple(TrainableTensor(f"{index}.{number}", 1.0) for number in range(count)),
            )
            for index, (cost, count) in enumerate(zip(seconds, counts, strict=True))
        )
    )


CHAINS = st.integers(1, 25).flatmap(
    lambda length: st.builds(
        chain,
        st.lists(st.floats(0, 5), min_size=length, max_size=length),
        st.lists(st.integers(0, 3), min_size=length, max_size=length),
    )
)


def depths(graph: BackwardGraph) -> list[float]:
    return sorted({path_seconds(graph, [name]) for name in graph.tensor_names})


@settings(deadline=None)
@given(CHAINS, st.integers(1, 6))
def test_stretches_cover_every_tensor_once_from_output_to_input(graph: BackwardGraph, positions: int) -> None:
    positions = min(positions, len(depths(graph)))

    stretches = SlidingWindow(positions).stretches(graph)

    names = [name for stretch in stretches for name in stretch]
    assert sorted(names) == sorted(graph.tensor_names)
    assert len(stretches) == positions
    reached = [[path_seconds(graph, [name]) for name in stretch] for stretch in stretches]
    for nearer, farther in pairwise(reached):
        assert max(nearer) < min(farther)


@settings(deadline=None)
@given(CHAINS, st.integers(2, 6))
def test_stretches_are_as_long_as_whole_operations_allow(graph: BackwardGraph, positions: int) -> None:
    found = depths(graph)
    positions = min(positions, len(found))
    longest_step = max(np.diff([0.0, *found]), default=0.0)

    stretches = SlidingWindow(positions).stretches(graph)

    # Where enough tensors lie at every depth, each stretch begins within a step of its ideal place.
    if longest_step * positions <= found[-1]:
        for position, stretch in enumerate(stretches):
            begins = min(path_seconds(graph, [name]) for name in stretch)
            assert abs(begins - found[-1] * position / positions) <= longest_step * (1 + 1e-9)


def test_operations_of_equal_cost_are_cut_evenly() -> None:
    graph = chain([1.0] * 12, [1] * 12)

    for positions in (2, 3, 4, 5):
        begins = [path_seconds(graph, [stretch[-1]]) for stretch in SlidingWindow(positions).stretches(graph)]
        ideal = [path_seconds(graph, ["0.0"]) * position / positions for position in range(positions)]
        assert begins == pytest.approx(ideal, abs=0.5)


def test_the_window_slides_and_begins_again() -> None:
    graph = chain([1.0] * 6, [1] * 6)
    window = SlidingWindow(3)

    seen = [window.names(graph, number) for number in range(7)]

    head = {"6.0", "6.1"}
    assert all(head <= names for names in seen)
    assert set().union(*seen[:3]) == set(graph.tensor_names)
    assert seen[3:6] == seen[:3]
    assert seen[6] == seen[0]
    assert (seen[1] - head).isdisjoint(seen[2] - head)


def test_one_position_allows_everything() -> None:
    graph = chain([1.0, 2.0], [1, 2])

    assert SlidingWindow(1).names(graph, 5) == set(graph.tensor_names)


def test_units_are_not_cut() -> None:
    graph = chain([1.0] * 6, [1] * 6)
    units = [("0.0", "1.0", "2.0"), ("5.0", "6.0", "6.1")]

    stretches = SlidingWindow(3).stretches(graph, units)

    for unit in units:
        assert sum(set(unit) <= set(stretch) for stretch in stretches) == 1
    assert all({"5.0", "6.0", "6.1"} <= SlidingWindow(3).names(graph, n, units) for n in range(3))


def test_every_tensor_of_a_model_is_trained_as_the_window_slides() -> None:
    torch.manual_seed(0)
    model = TwoBranches()
    elastic = ElasticTrainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        functional.cross_entropy,
        Time(1.0),
        units="layers",
    )
    elastic.measure(BATCH)
    window = SlidingWindow(3)
    alike = dict.fromkeys(elastic.graph.tensor_names, 1.0)

    chosen = [
        set(
            elastic.select(
                BATCH, importance=alike, among=window.names(elastic.graph, number, elastic.units)
            ).names
        )
        for number in range(3)
    ]

    assert set.union(*chosen) == set(elastic.trainable)
    assert all({"head.weight", "head.bias"} < names for names in chosen[1:])


def test_bad_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="positions is 0"):
        SlidingWindow(0)
    for positions in (1.5, True, "2"):
        with pytest.raises(TypeError, match="expected an int"):
            SlidingWindow(positions)  # type: ignore[arg-type]
    graph = chain([1.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match="9 positions, expected at most 3"):
        SlidingWindow(9).stretches(graph)


VALUES = st.dictionaries(st.sampled_from("abcdef"), st.floats(-10, 10, allow_subnormal=False), min_size=1)


@settings(deadline=None)
@given(VALUES, VALUES, st.floats(0, 1))
def test_blended_importances_are_of_the_node_s_tensors(
    local: dict[str, float], fleet: dict[str, float], share: float
) -> None:
    mixed = blend(local, fleet, share)

    assert mixed.keys() == local.keys()
    assert all(abs(value) <= 1 + 1e-12 for value in mixed.values())
    # The scale of either side does not matter.
    again = blend({n: 8 * v for n, v in local.items()}, {n: 4 * v for n, v in fleet.items()}, share)
    assert again == pytest.approx(mixed)


def test_blending_mixes_shares() -> None:
    local = {"a": 3.0, "b": 1.0, "c": -1.0}
    fleet = {"a": 100.0, "b": 300.0, "c": 0.0, "other": 7.0}

    assert blend(local, fleet, 0.0) == pytest.approx({"a": 0.6, "b": 0.2, "c": -0.2})
    assert blend(local, fleet, 1.0) == pytest.approx({"a": 0.25, "b": 0.75, "c": 0.0})
    assert blend(local, fleet, 0.5) == pytest.approx({"a": 0.425, "b": 0.475, "c": -0.1})


def test_a_tensor_that_the_fleet_does_not_know_keeps_its_own() -> None:
    mixed = blend({"a": 1.0, "b": 3.0, "new": 4.0}, {"a": 50.0, "b": 50.0}, 1.0)

    assert mixed == pytest.approx({"a": 0.25, "b": 0.25, "new": 0.5})


def test_importances_that_say_nothing_do_not_count() -> None:
    assert blend({"a": 1.0, "b": 3.0}, {"a": 0.0, "b": 0.0}, 0.9) == pytest.approx({"a": 0.25, "b": 0.75})
    assert blend({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 3.0}, 0.1) == pytest.approx({"a": 0.25, "b": 0.75})
    assert blend({"a": 2.0}, {}, 0.5) == {"a": 1.0}
    assert blend({}, {"a": 2.0}, 0.5) == {}
    assert blend({"a": 0.0}, {"a": 0.0}, 0.5) == {"a": 0.0}


def test_what_cannot_be_blended_is_refused() -> None:
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="share is"):
            blend({"a": 1.0}, {"a": 1.0}, share)
    with pytest.raises(ValueError, match="importance of 'b' is nan"):
        blend({"a": 1.0}, {"b": math.nan}, 0.5)
