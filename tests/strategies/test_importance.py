"""What matters to all nodes, told by nodes that may say anything."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip.codec import Layout
from flower_edge.strategies.importance import mean_importance, received_importance, to_config

LAYOUT = Layout.of({"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32), "n": np.int64(0)})


def reply(tensors: object, importance: object) -> RecordDict:
    return RecordDict({"elastic": ConfigRecord({"tensors": tensors, "importance": importance})})


def test_what_is_sent_is_what_is_received() -> None:
    content = RecordDict({"elastic": to_config({"b": 0.25, "a": 0.75})})

    assert received_importance(content, LAYOUT) == {"b": 0.25, "a": 0.75}
    assert received_importance(RecordDict(), LAYOUT) == {}


@pytest.mark.parametrize(
    ("tensors", "importance", "message"),
    [
        (["a", "c"], [1.0, 2.0], "importance of 'c' was given; expected one of the model's arrays"),
        (["a", "a"], [1.0, 2.0], "importance of 'a' was given twice"),
        (["a", "b"], [1.0], "two lists of one length"),
        ("a", [1.0], "two lists of one length"),
        (["a", "b"], 1.0, "two lists of one length"),
        ([1, 2], [1.0, 2.0], "importance of 1 was given"),
        (["a"], [float("nan")], "importance of 'a' is nan; expected a finite float"),
        (["a"], [float("inf")], "importance of 'a' is inf"),
        (["a"], ["much"], "importance of 'a' is 'much'"),
        (["a"], [True], "importance of 'a' is True"),
    ],
)
def test_what_is_no_importance_is_refused(tensors: object, importance: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        received_importance(reply(tensors, importance), LAYOUT)


def test_a_record_without_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="has tensors None and importance None"):
        received_importance(RecordDict({"elastic": ConfigRecord({"trained": ["a"]})}), LAYOUT)


def test_every_node_counts_the_same() -> None:
    mean = mean_importance([{"a": 1e-6, "b": 3e-6}, {"a": 5e9, "b": 0.0}, {}])

    assert mean == pytest.approx({"a": (0.25 + 1.0) / 2, "b": 0.75 / 2})


def test_what_is_not_positive_counts_nothing() -> None:
    assert mean_importance([{"a": -5.0, "b": 2.0}, {"a": 1.0}]) == pytest.approx({"a": 0.5, "b": 0.5})
    assert mean_importance([{"a": -5.0}, {"b": 0.0}, {}]) == {}
    assert mean_importance([]) == {}


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), FINITE), max_size=5))
def test_it_is_finite_and_sums_to_one_whatever_finite_numbers_came(said: list[dict[str, float]]) -> None:
    mean = mean_importance(said)

    assert all(0.0 <= value <= 1.0 for value in mean.values())
    if any(value > 0 for importance in said for value in importance.values()):
        assert sum(mean.values()) == pytest.approx(1.0)
    else:
        assert mean == {}
