"""Named arrays in a session: mixed ones go through the vector, the others stay."""

import numpy as np
import pytest
import torch

from flower_edge.peer import StateError
from flower_edge.peer.named import NamedModel

pytestmark = pytest.mark.board


def test_torch_stays_torch_and_numpy_numpy() -> None:
    for arrays in (
        {"weight": torch.ones(2, 3), "half": torch.ones(2, dtype=torch.bfloat16), "count": torch.tensor(4)},
        {"weight": np.ones((2, 3), np.float32), "count": np.array(4)},
    ):
        seen = []

        def train(given: dict, round_: int, seen: list = seen) -> tuple[dict, dict]:
            seen.append(given)
            return {name: array + round_ for name, array in given.items()}, {"loss": 1.0}

        model = NamedModel(arrays, train)
        vector, metrics = model.train(model.vector, 2)

        assert metrics == {"loss": 1.0}
        np.testing.assert_array_equal(vector, np.full(len(model.vector), 3.0))
        assert {name: type(array) for name, array in seen[0].items()} == {
            name: type(array) for name, array in arrays.items()
        }
        assert all(seen[0][name].dtype == array.dtype for name, array in arrays.items())
        assert model.arrays(vector)["count"] == 6


def test_training_in_place_does_not_reach_the_sessions_model() -> None:
    def train(given: dict, _: int) -> tuple[dict, dict]:
        given["weight"] += 1
        return given, {}

    model = NamedModel({"weight": np.zeros(3, np.float32)}, train)
    trained, _ = model.train(model.vector, 1)

    np.testing.assert_array_equal(model.vector, np.zeros(3))
    np.testing.assert_array_equal(trained, np.ones(3))


def test_what_is_not_mixed_outlives_the_process() -> None:
    arrays = {"weight": np.zeros(3, np.float32), "a/b": np.array(7), "mask": np.array([True, False])}
    model = NamedModel(arrays, lambda given, _: (given, {}))
    again = NamedModel(
        {**arrays, "a/b": np.array(0), "mask": np.zeros(2, bool)}, lambda given, _: (given, {})
    )

    again.restore(model.extra())

    found = again.arrays(again.vector)
    assert found["a/b"] == 7
    np.testing.assert_array_equal(found["mask"], [True, False])


def test_what_belongs_to_another_model_is_refused() -> None:
    model, other = (
        NamedModel({"weight": np.zeros(3, np.float32), **carried}, lambda given, _: (given, {}))
        for carried in ({"steps": np.array(1)}, {"steps": np.array([1, 2])})
    )

    with pytest.raises(StateError, match=r"array 'steps' is int64 \(2,\) in the state"):
        model.restore(other.extra())
    with pytest.raises(StateError, match="cannot read"):
        model.restore(b"nonsense")
