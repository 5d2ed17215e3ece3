"""The backward pass in one call is the same as its parts one after the other, to the last bit."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from flower_edge import kernels
from flower_edge.kernels import _dispatch

pytestmark = pytest.mark.board

ISAS = kernels.available_isas()
LAYERS = {
    "3x3": ((2, 31, 9, 7), (33, 31, 3, 3), (1, 1, 1, 1)),
    "stride 2": ((3, 15, 8, 8), (97, 15, 3, 3), (2, 1, 1, 1)),
    "one tap": ((2, 64, 7, 6), (7, 64, 1, 1), ((2, 3), 0, 1, 1)),
    "one tap, padded": ((2, 64, 5, 5), (31, 64, 1, 1), (1, 1, 1, 1)),
    "groups": ((2, 15, 6, 5), (6, 5, 3, 3), (1, 1, (2, 1), 3)),
    "depthwise": ((1, 33, 7, 7), (33, 1, 3, 3), (1, 1, 1, 33)),
    "one": ((1, 1, 1, 1), (1, 1, 1, 1), (1, 0, 1, 1)),
    "several tiles": ((5, 40, 32, 32), (40, 40, 3, 3), (1, 1, 1, 1)),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def layer(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[Any, ...]]:
    x_shape, weight_shape, geometry = LAYERS[name]
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(shape, generator=generator) for shape in (x_shape, weight_shape))
    y = torch.conv2d(x, weight, None, *geometry)
    return torch.randn(y.shape, generator=generator), weight, x, geometry


def one_by_one(name: str, signs: bool, threshold: float | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    grad, weight, x, geometry = layer(name)
    found = kernels.pruning_threshold(grad, 0.8) if threshold is None else threshold
    pruned = kernels.prune(grad, found, 7)
    back = kernels.pack_signs(weight) if signs else weight
    grad_x = kernels.sparse_grad_input(pruned, back, x.shape, *geometry)
    return grad_x, kernels.sparse_grad_weight(pruned, x, weight.shape, *geometry), pruned.nonzeros


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("isa", [*ISAS, "twin"])
def test_one_call_is_all_calls(name: str, signs: bool, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa == "twin":
        monkeypatch.setattr(_dispatch, "extension", None)
    grad, weight, x, geometry = layer(name)
    with nullcontext() if isa == "twin" else kernels.use_isa(isa):
        for threshold in (None, 0.9):
            torch.set_num_threads(1)
            grad_x, grad_weight, nonzeros = one_by_one(name, signs, threshold)
            # Torch's own products, which the twins use, may depend on them.
            for threads in (1,) if isa == "twin" else (1, 2, 5):
                torch.set_num_threads(threads)
                found = kernels.sparse_backward(
                    grad, weight, x, 0.8, 7, *geometry, signs=signs, threshold=threshold
                )
                assert found.nonzeros == nonzeros
                assert found.grad_x is not None
                assert found.grad_weight is not None
                assert torch.equal(found.grad_x, grad_x)
                assert torch.equal(found.grad_weight, grad_weight)
                assert found.grad_x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("served", [True, False])
def test_what_is_not_wanted_is_not_formed(needs: tuple[bool, bool], served: bool) -> None:
    grad, weight, x, geometry = layer("groups")
    expected = one_by_one("groups", False, None)
    if not served:
        # A pending negation: the twins' sums have another order.
        grad = torch._neg_view(-grad)
    if not needs[1]:
        x = torch.empty(1, dtype=torch.float64).expand(x.shape)

    found = kernels.sparse_backward(grad, weight, x, 0.8, 7, *geometry, needs=needs)

    assert found.nonzeros == expected[2]
    for is_wanted, received, wanted in zip(needs, found[:2], expected[:2], strict=True):
        assert (received is not None) == is_wanted
        if received is not None:
            torch.testing.assert_close(received, wanted, rtol=1e-4, atol=1e-4)


GRAD, WEIGHT, X, GEOMETRY = layer("3x3")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kernels.sparse_backward(GRAD.double(), WEIGHT, X, 0.5, 1), TypeError, "grad is a torch.flo"),
        (lambda: kernels.sparse_backward(GRAD, WEIGHT.half(), X, 0.5, 1), TypeError, "weight is a torch.flo"),
        (
            lambda: kernels.sparse_backward(GRAD, WEIGHT, X.double(), 0.5, 1),
            TypeError,
            "x is a torch.float64",
        ),
        (lambda: kernels.sparse_backward(GRAD, WEIGHT, X, 1.0, 1), ValueError, "sparsity is 1.0"),
        (
            lambda: kernels.sparse_backward(GRAD, WEIGHT, X, 0.5, 1, threshold=-1.0),
            ValueError,
            "threshold is -1.0",
        ),
        (lambda: kernels.sparse_backward(GRAD, WEIGHT, X, 0.5, 1), ValueError, "expected the output's"),
        (lambda: kernels.sparse_backward(GRAD, WEIGHT, X[:, :3], 0.5, 1, 1, 1), ValueError, "do not fit"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
