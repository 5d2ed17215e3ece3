"""The codec: named arrays ↔ one flat vector, exactly."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flower_edge.gossip import Layout
from flower_edge.gossip.codec import is_finite

pytestmark = pytest.mark.board

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
DTYPES = st.sampled_from(["float32", "float16", "int64", "int8", "uint8", "bool"])
ARRAYS = st.tuples(DTYPES, SHAPES).flatmap(lambda spec: hnp.arrays(*spec))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1), ARRAYS, max_size=6),
    hnp.arrays("float32", hnp.array_shapes(max_side=9)),
)
def test_round_trip_is_exact(arrays: dict, floats: np.ndarray) -> None:
    arrays = {**arrays, "floats": floats}
    layout = Layout.of(arrays)

    vector, carried = layout.flatten(arrays)
    back = layout.unflatten(vector, carried)

    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert vector.size == sum(a.size for a in arrays.values() if a.dtype.kind == "f")
    assert layout.nbytes == vector.nbytes


def test_state_dict_round_trip_with_buffers_and_half_precisions() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 7, 3), torch.nn.BatchNorm2d(7), torch.nn.Linear(5, 2))
    model[1].num_batches_tracked += 3
    state = model.state_dict()
    state["2.weight"] = state["2.weight"].to(torch.bfloat16)
    state["2.bias"] = state["2.bias"].half()

    layout = Layout.of(state)
    back = layout.unflatten_torch(*layout.flatten(state))

    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert "1.num_batches_tracked" in layout.flatten(state)[1]


def test_numpy_and_torch_layouts_agree() -> None:
    state = torch.nn.Linear(4, 3).state_dict()

    assert Layout.of(state) == Layout.of({name: tensor.numpy() for name, tensor in state.items()})


def test_unflattened_tensors_do_not_share_memory() -> None:
    state = torch.nn.Linear(4, 3).state_dict()
    layout = Layout.of(state)
    vector, carried = layout.flatten(state)

    back = layout.unflatten_torch(vector, carried)
    vector[:] = 0

    assert torch.equal(back["weight"], state["weight"])


@pytest.mark.parametrize("dtype", ["float64", "complex64", "longdouble", ">f4", ">i8", "U3", "datetime64[s]"])
def test_dtypes_that_are_not_listed_are_refused_by_name(dtype: str) -> None:
    array = np.zeros(2, dtype)

    with pytest.raises(TypeError, match=rf"'w' \({re.escape(str(array.dtype))}, shape \(2,\)\)"):
        Layout.of({"b": np.zeros(2, np.float32), "w": array})


def test_a_dtype_of_torch_that_is_not_listed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'w' \(float8_e4m3fn, shape \(2,\)\)"):
        Layout.of({"b": torch.zeros(2), "w": torch.zeros(2).to(torch.float8_e4m3fn)})


def test_nothing_to_mix_is_refused() -> None:
    with pytest.raises(ValueError, match="no floating-point parameters"):
        Layout.of({"count": np.zeros(3, np.int64)})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3, np.float32)}, "array 'b' is missing"),
        (
            {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(1)},
            "unexpected array 'c'",
        ),
        (
            {"a": np.zeros(4, np.float32), "b": np.zeros(2, np.float32)},
            r"'a' \(float32, shape \(4,\)\), expected",
        ),
        (
            {"a": np.zeros(3, np.float16), "b": np.zeros(2, np.float32)},
            r"'a' \(float16, shape \(3,\)\), expected",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays: dict, message: str) -> None:
    layout = Layout.of({"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)})

    with pytest.raises(ValueError, match=message):
        layout.flatten(arrays)


def test_vector_of_another_size_is_refused() -> None:
    layout = Layout.of({"a": np.zeros(3, np.float32)})

    with pytest.raises(ValueError, match=r"float32 \(4,\), expected float32 \(3,\)"):
        layout.unflatten(np.zeros(4, np.float32), {})


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38, -3e38], True),  # the sum overflows, the values do not
        ([np.nan, 1.0], False),
        ([np.inf, -np.inf], False),
        ([], True),
    ],
)
def test_is_finite(values: list[float], finite: bool) -> None:
    assert is_finite(np.array(values, np.float32)) is finite
