"""What a backward pass costs, and what is refused."""

import math

import pytest

from flower_edge.training.backward_graph import BackwardGraph, Operation, SharedActivation, TrainableTensor

GRAPH = BackwardGraph(
    (
        Operation("stem", (), 50.0, (TrainableTensor("stem.w", 1.0, 10, 5, 0.5),), saved_bytes=1000),
        Operation("relu", (0,), 2.0, saved_bytes=3),
        Operation("branch", (1,), 4.0, (TrainableTensor("branch.w", 3.0, 0, 7),), grad_input_joules=2.0),
        Operation("add", (1, 2), 8.0),
        Operation(
            "head", (3,), 16.0, (TrainableTensor("head.w", 5.0), TrainableTensor("head.b", 0.25, 1, 1))
        ),
    ),
    (
        SharedActivation(100, grad_inputs=(1,), tensors=("branch.w",)),
        SharedActivation(200, tensors=("head.w", "stem.w")),
    ),
    fixed_seconds=9.0,
)


@pytest.mark.parametrize(
    ("chosen", "seconds", "saved", "state", "joules"),
    [
        ((), 0.0, 0, 0, 0.0),
        (("head.b",), 0.25, 1, 1, 0.0),
        (("head.w", "head.b"), 5.25, 201, 1, 0.0),
        # Neither its own operation nor what lies behind passes a gradient on.
        (("branch.w",), 3.0 + 8.0 + 16.0, 100, 7, 0.0),
        # The first operation has no input that needs a gradient.
        (("stem.w",), 1.0 + 2.0 + 4.0 + 8.0 + 16.0, 10 + 3 + 100 + 200, 5, 0.5 + 2.0),
        (("stem.w", "branch.w", "head.w"), 39.0, 313, 12, 2.5),
    ],
)
def test_gradients_are_paid_for_in_front_of_what_is_trained(
    chosen: tuple[str, ...], seconds: float, saved: int, state: int, joules: float
) -> None:
    cost = GRAPH.cost(chosen)

    assert (cost.seconds, cost.saved_bytes, cost.state_bytes, cost.joules) == (seconds, saved, state, joules)
    assert cost.bytes == saved + state


def test_names_in_the_order_of_the_forward_pass() -> None:
    assert GRAPH.tensor_names == ("stem.w", "branch.w", "head.w", "head.b")
    assert GRAPH.full_cost == GRAPH.cost(GRAPH.tensor_names)
    assert list(GRAPH.paid(["branch.w"])) == [3, 4]


def test_refuses_what_is_not_a_graph() -> None:
    with pytest.raises(ValueError, match=r"operation 0 .* has input 0, expected the index of an earlier"):
        BackwardGraph((Operation("a", (0,)),))
    with pytest.raises(ValueError, match="'nowhere' is not a tensor"):
        GRAPH.cost(["nowhere"])
    with pytest.raises(ValueError, match="'nowhere' is not a tensor"):
        BackwardGraph(GRAPH.operations, (SharedActivation(1, tensors=("nowhere",)),))
    with pytest.raises(ValueError, match="names operation 5, expected 0 to 4"):
        BackwardGraph(GRAPH.operations, (SharedActivation(1, grad_inputs=(5,)),))
    with pytest.raises(ValueError, match="expected what it is kept for"):
        SharedActivation(1)
    with pytest.raises(ValueError, match="expected each name once"):
        Operation("a", (), tensors=(TrainableTensor("w", 1.0), TrainableTensor("w", 1.0)))
    with pytest.raises(ValueError, match="empty name"):
        TrainableTensor("", 1.0)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_refuses_costs_without_meaning(value: float) -> None:
    with pytest.raises(ValueError, match="grad_weight_seconds of tensor 'w'"):
        TrainableTensor("w", value)
    with pytest.raises(ValueError, match="grad_input_seconds of operation 'a'"):
        Operation("a", (), value)
    with pytest.raises(ValueError, match="fixed_seconds of the graph"):
        BackwardGraph((), fixed_seconds=value)
