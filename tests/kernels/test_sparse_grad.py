"""Kernels of pruned gradients: the zeros of their twins, and gradients against float64 autograd."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge import kernels
from flower_edge.kernels import _dispatch

pytestmark = pytest.mark.board

ISAS = kernels.available_isas()
SIZES = [1, 7, 15, 31, 33, 97]


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(_dispatch, "extension", None)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Conv(NamedTuple):
    x_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    def pair(least: int, most: int) -> tuple[int, int]:
        one = st.integers(least, most)
        return draw(st.tuples(one, one))

    groups = draw(st.sampled_from([1, 1, 1, 2, 5]))
    inputs, outputs = draw(st.sampled_from([*SIZES, 64])), draw(st.sampled_from(SIZES))
    if draw(st.booleans()) and groups > 1:
        inputs = outputs = 1
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 4), (1, 3), (7, 2)]))
    dilation, padding = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3)])), pair(0, 3)
    least = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    extra = draw(st.sampled_from([(0, 0), (3, 5), (8, 6), (32, 14)]))
    size = tuple(max(1, cells) + more for cells, more in zip(least, extra, strict=True))
    x_shape = (draw(st.integers(1, 5)), inputs * groups, size[0], size[1])
    weight_shape = (outputs * groups, inputs, kernel[0], kernel[1])
    return Conv(x_shape, weight_shape, (pair(1, 3), padding, dilation, groups))


class Problem(NamedTuple):
    """A convolution with random numbers, some of them 0."""

    x: torch.Tensor
    weight: torch.Tensor
    grad: torch.Tensor
    geometry: tuple[Any, ...]

    @classmethod
    def of(cls, conv: Conv, seed: int) -> "Problem":
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(conv.x_shape, generator=generator).relu()
        weight = torch.randn(conv.weight_shape, generator=generator)
        weight[weight.abs() < 0.1] = 0.0
        y = torch.conv2d(x, weight, None, *conv.geometry)
        grad = torch.randn(y.shape, generator=generator) * torch.rand(y.shape[1], 1, 1, generator=generator)
        return cls(x, weight, grad, conv.geometry)

    def exact(self, dense: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = self.x.double().requires_grad_(), weight.double().requires_grad_()
        torch.conv2d(x, weight, None, *self.geometry).backward(dense.double())
        assert x.grad is not None
        assert weight.grad is not None
        return x.grad, weight.grad


def assert_close(received: torch.Tensor, expected: torch.Tensor) -> None:
    assert received.dtype == torch.float32
    assert received.is_contiguous(memory_format=torch.channels_last)
    error = (received.double() - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max() + 1e-30


def all_gradients(problem: Problem, pruned: kernels.PrunedGradient) -> list[torch.Tensor]:
    signs, geometry = kernels.pack_signs(problem.weight), problem.geometry
    return [
        kernels.sparse_grad_input(pruned, problem.weight, problem.x.shape, *geometry),
        kernels.sparse_grad_input(pruned, signs, problem.x.shape, *geometry),
        kernels.sparse_grad_weight(pruned, problem.x, problem.weight.shape, *geometry),
    ]


@settings(deadline=None, max_examples=60)
@given(convs(), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.8, 0.95]))
def test_gradients_are_those_of_the_pruned_gradient(conv: Conv, seed: int, sparsity: float) -> None:
    problem = Problem.of(conv, seed)
    threshold = kernels.pruning_threshold(problem.grad, sparsity)
    twin = kernels.prune_reference(problem.grad, threshold, seed)
    signs = kernels.pack_signs_reference(problem.weight)
    grad_x, grad_weight = problem.exact(twin.dense(), problem.weight)
    grad_x_by_signs, _ = problem.exact(twin.dense(), signs.unpacked())

    for isa in ISAS:
        with kernels.use_isa(isa):
            pruned = kernels.prune(problem.grad, threshold, seed)
            packed = kernels.pack_signs(problem.weight)
            received = all_gradients(problem, pruned)
        assert torch.equal(pruned.dense(), twin.dense())
        assert pruned.nonzeros == twin.nonzeros == int(twin.dense().count_nonzero())
        assert torch.equal(packed.bits, signs.bits)
        torch.testing.assert_close(packed.scales, signs.scales, rtol=1e-6, atol=0)
        for ours, expected in zip(received, (grad_x, grad_x_by_signs, grad_weight), strict=True):
            assert_close(ours, expected)


@settings(deadline=None, max_examples=15)
@given(convs(), st.integers(0, 2**31))
def test_twins_are_float64_autograd(conv: Conv, seed: int) -> None:
    problem = Problem.of(conv, seed)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(_dispatch, "extension", None)
        pruned = kernels.prune(problem.grad, kernels.pruning_threshold(problem.grad, 0.7), seed)
        received = all_gradients(problem, pruned)
        signs = kernels.pack_signs(problem.weight)
    magnitude = problem.weight.abs().mean((1, 2, 3), keepdim=True)
    unpacked = torch.where(problem.weight < 0, -magnitude, magnitude)
    torch.testing.assert_close(signs.unpacked(), unpacked)
    grad_x, grad_weight = problem.exact(pruned.dense(), problem.weight)
    grad_x_by_signs, _ = problem.exact(pruned.dense(), signs.unpacked())
    for ours, expected in zip(received, (grad_x, grad_x_by_signs, grad_weight), strict=True):
        assert_close(ours, expected)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(
    "conv",
    [
        Conv((3, 64, 32, 32), (64, 64, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
        Conv((9, 40, 16, 16), (97, 40, 3, 3), ((2, 2), (1, 1), (1, 1), 1)),
        Conv((5, 64, 16, 16), (128, 64, 1, 1), ((2, 2), (0, 0), (1, 1), 1)),
        Conv((4, 48, 20, 20), (48, 1, 3, 3), ((1, 1), (1, 1), (1, 1), 48)),
    ],
)
@pytest.mark.parametrize("isa", ISAS)
def test_threads_change_no_bit(conv: Conv, isa: str) -> None:
    problem = Problem.of(conv, 1)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        with kernels.use_isa(isa):
            threshold = kernels.pruning_threshold(problem.grad, 0.8)
            pruned = kernels.prune(problem.grad, threshold, 3)
            signs = kernels.pack_signs(problem.weight)
            tensors = [pruned.dense(), signs.bits, signs.scales, *all_gradients(problem, pruned)]
            results.append((threshold, tensors))
    for threshold, tensors in results[1:]:
        assert threshold == results[0][0]
        assert all(torch.equal(ours, first) for ours, first in zip(tensors, results[0][1], strict=True))


def distributions(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    normal, uniform = (make(count, generator=generator) for make in (torch.randn, torch.rand))
    images = torch.arange(count) // (count // 4)
    return {
        "gaussian": 1e-4 * normal,
        "heavy tails": normal * (8 * uniform).exp(),
        "half zeros": normal.relu(),
        "loud channels": normal * (0.01 + (torch.arange(count) % 64 < 3)),
        "quiet images": normal * 10.0 ** -(3 * images),
        "constant": torch.full((count,), -0.3),
        "vast": 1e36 * uniform,
    }


@pytest.mark.parametrize("name", distributions(8))
@pytest.mark.parametrize("count", [1 << 14, 1 << 19])
def test_as_many_zeros_come_out_as_are_wanted(name: str, count: int) -> None:
    grad = distributions(count)[name].view(4, -1, 8, 8)
    for sparsity in (0.0, 0.3, 0.8, 0.95, 0.99):
        threshold = kernels.pruning_threshold(grad, sparsity)
        pruned = kernels.prune(grad, threshold, 7)

        already = float((grad == 0).double().mean())
        # Where the whole gradient has few elements, the draws themselves spread.
        chance = 3 * (0.25 / count) ** 0.5
        assert abs(pruned.zero_fraction - max(sparsity, already)) <= 0.01 + chance
        assert threshold > 0 or already >= sparsity
        assert pruned.threshold == threshold
        if count > 1 << 14 and sparsity != 0.8:
            continue
        exact = kernels.pruning_threshold_reference(grad, sparsity)
        expected = (1 - grad.double().abs() / exact).clamp_min(0).mean() if exact else torch.tensor(already)
        assert float(expected) == pytest.approx(max(sparsity, already), abs=1e-4)


@pytest.mark.parametrize("isa", [*ISAS, "twin"])
def test_pruning_is_unbiased(isa: str, twins: Callable[[], None]) -> None:
    if isa == "twin":
        twins()
    draws = 1_000_000
    for part in (1e-5, 0.003, 0.25, 0.5, 0.9, 0.999):
        grad = torch.full((1, 100, 100, draws // 10_000), -part)
        with nullcontext() if isa == "twin" else kernels.use_isa(isa):
            values = kernels.prune(grad, 1.0, 2**40 + int(1000 * part)).dense().double()
        assert set(values.unique().tolist()) <= {0.0, -1.0}
        deviation = (part * (1 - part) / draws) ** 0.5
        assert abs(float(values.mean()) + part) <= 4 * deviation


def test_seeds_draw_other_zeros_that_have_nothing_to_do_with_each_other() -> None:
    grad = torch.full((2, 64, 32, 32), 0.5)
    draws = torch.stack([kernels.prune(grad, 1.0, seed).dense().flatten() for seed in (0, 1, 2, 2**63)])
    assert torch.equal(draws[0], kernels.prune(grad, 1.0, 0).dense().flatten())
    off = torch.corrcoef(draws) - torch.eye(4)
    assert off.abs().max() < 4 / draws.shape[1] ** 0.5
    for lag in (1, 16, 32, 64, 64 * 32):
        shifted = torch.corrcoef(torch.stack((draws[0, lag:], draws[0, :-lag])))[0, 1]
        assert abs(float(shifted)) < 4.5 / draws.shape[1] ** 0.5


@pytest.mark.parametrize("served", [True, False])
def test_what_is_not_finite_stays(served: bool, twins: Callable[[], None]) -> None:
    if not served:
        twins()
    grad = torch.randn(1, 40, 5, 5)
    grad[0, 3, 1, 1], grad[0, 39, 4, 4], grad[0, 0, 0, 0] = float("nan"), float("inf"), float("-inf")
    threshold = kernels.pruning_threshold(grad, 0.9)
    assert 0 < threshold < 100
    dense = kernels.prune(grad, threshold, 1).dense()
    assert torch.isnan(dense[0, 3, 1, 1])
    assert dense[0, 39, 4, 4] == float("inf")
    assert dense[0, 0, 0, 0] == float("-inf")
    assert int(dense.isfinite().logical_not().sum()) == 3
    assert kernels.pruning_threshold(torch.full((1, 1, 2, 2), float("nan")), 0.5) == 0.0


def test_any_layout_is_served() -> None:
    problem = Problem.of(Conv((2, 17, 9, 8), (33, 17, 3, 3), ((1, 1), (1, 1), (1, 1), 1)), 4)
    threshold = kernels.pruning_threshold(problem.grad, 0.8)
    expected = all_gradients(problem, kernels.prune(problem.grad, threshold, 1))
    for change in (
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: torch.cat((t, t), 3)[..., : t.shape[3]],
        lambda t: torch._neg_view(-t),
    ):
        other = Problem(*(change(tensor) for tensor in problem[:3]), problem.geometry)
        # A pending negation goes to the twin, whose sums have another order.
        for ours, first in zip(
            all_gradients(other, kernels.prune(other.grad, threshold, 1)), expected, strict=True
        ):
            torch.testing.assert_close(ours, first, rtol=1e-4, atol=1e-4)


def test_signs_take_one_bit() -> None:
    weight = torch.randn(512, 512, 3, 3)
    weight[0, 0] = 0.0
    packed = kernels.pack_signs(weight)
    assert packed.nbytes == packed.bits.numel() + 4 * 512
    assert weight.nbytes / packed.nbytes > 31
    assert torch.equal(packed.unpacked().sign(), torch.where(weight < 0, -1.0, 1.0))


def test_an_empty_gradient_stays_empty(twins: Callable[[], None]) -> None:
    for _ in range(2):
        empty = torch.empty(0, 3, 4, 4)
        pruned = kernels.prune(empty, kernels.pruning_threshold(empty, 0.5), 1)
        assert (pruned.nonzeros, pruned.zero_fraction, pruned.dense().shape) == (0, 1.0, empty.shape)
        twins()


def test_more_channels_than_a_place_can_name_go_to_the_twin() -> None:
    problem = Problem.of(Conv((1, 2, 2, 2), (70_000, 2, 1, 1), ((1, 1), (0, 0), (1, 1), 1)), 6)
    pruned = kernels.prune(problem.grad, kernels.pruning_threshold(problem.grad, 0.5), 1)
    grad_x, grad_weight = problem.exact(pruned.dense(), problem.weight)
    received = all_gradients(problem, pruned)
    assert_close(received[0], grad_x)
    assert_close(received[2], grad_weight)
    assert abs(pruned.zero_fraction - 0.5) < 0.01


def test_without_the_extension_the_twins_run(twins: Callable[[], None]) -> None:
    twins()
    assert kernels.explain().versions["sparse_grad"] == "torch"


GRAD = torch.randn(1, 6, 5, 5)
PRUNED = kernels.prune(GRAD, 1.0, 1)
X, WEIGHT = torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kernels.pruning_threshold(GRAD.double(), 0.5), TypeError, "grad is a torch.float64"),
        (lambda: kernels.pruning_threshold(GRAD, 1.0), ValueError, "sparsity is 1.0, expected 0 <="),
        (lambda: kernels.pruning_threshold(GRAD, float("nan")), ValueError, "sparsity is nan"),
        (lambda: kernels.pruning_threshold(GRAD[0], 0.5), ValueError, "expected four dimensions"),
        (lambda: kernels.prune(GRAD, -1.0, 1), ValueError, "threshold is -1.0"),
        (lambda: kernels.prune(GRAD, float("inf"), 1), ValueError, "threshold is inf"),
        (lambda: kernels.prune(GRAD.half(), 1.0, 1), TypeError, "grad is a torch.float16"),
        (lambda: kernels.prune(torch.ones_like(GRAD, requires_grad=True), 1.0, 1), ValueError, "detach"),
        (lambda: kernels.pack_signs(WEIGHT.double()), TypeError, "weight is a torch.float64"),
        (lambda: kernels.pack_signs([1.0]), TypeError, "weight is a list"),
        (lambda: kernels.sparse_grad_input(PRUNED, WEIGHT, X.shape), ValueError, "the output's"),
        (lambda: kernels.sparse_grad_input(PRUNED, WEIGHT, (1, 5, 5, 5), 1, 1), ValueError, "do not fit"),
        (lambda: kernels.sparse_grad_input(PRUNED, WEIGHT, X.shape, 0, 1), ValueError, "stride is"),
        (lambda: kernels.sparse_grad_input(PRUNED, WEIGHT, X.shape, 1.5, 1), TypeError, "stride is 1.5"),
        (lambda: kernels.sparse_grad_input(PRUNED, WEIGHT, (1, 4, 5), 1, 1), ValueError, "nothing empty"),
        (lambda: kernels.sparse_grad_input(PRUNED, WEIGHT, (1, 4, 2, 1)), ValueError, "reaches over 3"),
        (
            lambda: kernels.sparse_grad_input(PRUNED, WEIGHT, (9, 4, 1 << 15, 1 << 15), 1, 1),
            ValueError,
            "divide the batch",
        ),
        (lambda: kernels.sparse_grad_weight(PRUNED, X.double(), WEIGHT.shape), TypeError, "x is a torch.flo"),
        (lambda: kernels.sparse_grad_weight(PRUNED, X[:, :3], WEIGHT.shape, 1, 1), ValueError, "do not fit"),
        (lambda: kernels.sparse_grad_weight(PRUNED, X, (6, 4, 5, 5), 1, 1), ValueError, r"\(1, 6, 3, 3\)"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
