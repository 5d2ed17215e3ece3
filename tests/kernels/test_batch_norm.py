"""Batch normalisation: its kernels and their slow twin against torch's own, differentiated in float64."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from flower_edge import kernels
from flower_edge.kernels import _dispatch

ISAS = kernels.available_isas()
EPS = 1e-3
CHANNELS = [1, 7, 15, 16, 24, 31, 32, 33, 64, 97]
CAPS = [None, math.inf, 2.0]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def drawn(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias = torch.randn(2, shape[1], generator=generator)
    return 3 * x + torch.linspace(-5, 20, shape[1]).view(-1, 1, 1), grad, 1 + weight / 2, bias


def activated(y: Tensor, cap: float | None) -> Tensor:
    return y if cap is None else functional.relu(y) if math.isinf(cap) else functional.hardtanh(y, 0.0, cap)


def expected(
    x: Tensor, grad: Tensor, weight: Tensor | None, bias: Tensor | None, cap: float | None
) -> tuple[Tensor, list[Tensor | None]]:
    precise = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    y = activated(functional.batch_norm(precise[0], None, None, *precise[1:], True, eps=EPS), cap)
    found = iter(torch.autograd.grad(y, [t for t in precise if t is not None], grad.double()))
    return y.detach(), [None if t is None else next(found) for t in precise]


def assert_near(found: Tensor, wanted: Tensor) -> None:
    scale = 1e-3 + float(wanted.abs().max())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5 * scale)


def check(
    x: Tensor, grad: Tensor, weight: Tensor | None, bias: Tensor | None, cap: float | None
) -> kernels.NormalisedBatch:
    normalised = kernels.batch_norm(x, weight, bias, EPS, cap)
    gradients = kernels.batch_norm_backward(grad, x, normalised.statistics, normalised.bits, weight)
    exact_y, exact = expected(x, grad, weight, bias, cap)
    assert_near(normalised.y, exact_y)
    for mine, wanted in zip(gradients, exact, strict=True):
        if wanted is not None:
            assert_near(mine, wanted)
    for made in (normalised.y, gradients[0]):
        assert any(x.is_contiguous(memory_format=f) and made.is_contiguous(memory_format=f) for f in LAYOUTS)
    return normalised


@pytest.fixture(params=[*ISAS, "twin"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "twin":
        monkeypatch.setattr(_dispatch, "extension", None)
        yield "twin"
    else:
        with kernels.use_isa(request.param):
            yield request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_equals_torch(way: str, channels: int, layout: torch.memory_format) -> None:
    x, grad, weight, bias = drawn((2, channels, 7, 9))
    x = x.contiguous(memory_format=layout)
    for cap in CAPS:
        _, statistics, bits = check(x, grad, weight, bias, cap)
        variance, mean = torch.var_mean(x.double(), (0, 2, 3))
        assert_near(statistics[0], mean)
        assert_near(statistics[2], variance)
        assert tuple(bits.shape) == ((0,) if cap is None else (126, -(-channels // 8)))
    check(x, grad, None, None, math.inf)


@settings(deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    sides = (data.draw(st.integers(1, 9), label=name) for name in ("samples", "height", "width"))
    samples, height, width = sides
    channels = data.draw(st.integers(1, 150), label="channels")
    if samples * height * width < 3:
        # Of two elements the gradient is zero but for eps: all digits cancel.
        height = 3
    x, grad, weight, bias = drawn(
        (samples, channels, height, width), data.draw(st.integers(0, 99), label="seed")
    )
    layout = data.draw(st.sampled_from(LAYOUTS), label="layout")
    check(
        x.contiguous(memory_format=layout), grad, weight, bias, data.draw(st.sampled_from(CAPS), label="cap")
    )


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_every_number_of_threads(isa: str) -> None:
    x, grad, weight, bias = drawn((4, 40, 33, 31))
    results, before = [], torch.get_num_threads()
    with kernels.use_isa(isa):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            forward = kernels.batch_norm(x, weight, bias, EPS, 6.0)
            backward = kernels.batch_norm_backward(grad, x, forward.statistics, forward.bits, weight)
            results.append((*forward, *backward))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", ISAS)
def test_far_from_zero_nothing_is_lost(isa: str) -> None:
    x, _, weight, bias = drawn((4, 16, 32, 32))
    x = x + 1e4
    with kernels.use_isa(isa):
        found = kernels.batch_norm(x, weight, bias, EPS)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3))
    torch.testing.assert_close(found.statistics[2].double(), variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.statistics[0].double(), mean, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, grad, weight, bias = drawn((2, 5, 6, 7))
    y, statistics, bits = kernels.batch_norm(x.to(dtype), weight, bias, EPS, math.inf)
    grad_x, *_ = kernels.batch_norm_backward(grad.to(dtype), x.to(dtype), statistics, bits, weight)
    exact_y, (exact, *_) = expected(x.to(dtype), grad.to(dtype), weight, bias, math.inf)
    assert y.dtype == grad_x.dtype == dtype
    assert statistics.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(y.double(), exact_y, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grad_x.double(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("isa", ISAS)
def test_parameters_and_statistics_with_gaps_in_memory(isa: str) -> None:
    x, grad, weight, bias = drawn((3, 33, 7, 5))
    with kernels.use_isa(isa):
        expected = kernels.batch_norm(x, weight, bias, EPS)
        saved = (expected.statistics, expected.bits)
        gradients = kernels.batch_norm_backward(grad, x, *saved, weight)
        spread = [
            torch.stack([t, torch.full_like(t, math.nan)], -1)[..., 0] for t in (weight, bias, saved[0])
        ]
        found = kernels.batch_norm(x, *spread[:2], EPS)
        again = kernels.batch_norm_backward(grad, x, spread[2], saved[1], spread[0])
    assert not any(tensor.is_contiguous() for tensor in spread)
    assert torch.equal(found.y, expected.y)
    assert all(map(torch.equal, again, gradients))


def test_without_the_gradient_of_x() -> None:
    x, grad, weight, bias = drawn((2, 5, 6, 7))
    _, statistics, bits = kernels.batch_norm(x, weight, bias, EPS)
    whole = kernels.batch_norm_backward(grad, x, statistics, bits, weight)
    grad_x, *others = kernels.batch_norm_backward(grad, x, statistics, bits, weight, needs_x=False)
    assert grad_x is None
    assert all(torch.equal(one, two) for one, two in zip(others, whole[1:], strict=True))


def test_what_is_refused() -> None:
    x, grad, weight, bias = drawn((2, 5, 6, 7))
    _, statistics, bits = kernels.batch_norm(x, weight, bias, EPS, 6.0)
    for match, arguments in (
        (r"expected \(N, C, H, W\)", (x[0], None, None, EPS)),
        (r"with at least one element", (x[:0], None, None, EPS)),
        (r"weight has shape \(4,\), expected \(5,\)", (x, weight[:4], None, EPS)),
        ("eps is -1.0, expected a finite number", (x, None, None, -1.0)),
        ("cap is 0.0, expected a number above 0", (x, None, None, EPS, 0.0)),
        ("x requires gradients", (x.clone().requires_grad_(), None, None, EPS)),
    ):
        with pytest.raises(ValueError, match=match):
            kernels.batch_norm(*arguments)
    with pytest.raises(TypeError, match=r"x is a torch\.int64 tensor"):
        kernels.batch_norm(x.long(), None, None, EPS)
    for match, arguments in (
        ("grad has shape", (grad[:1], x, statistics, bits, weight)),
        ("statistics has shape", (grad, x, statistics[:2], bits, weight)),
        ("bits has shape", (grad, x, statistics, bits[:-1], weight)),
    ):
        with pytest.raises(ValueError, match=match):
            kernels.batch_norm_backward(*arguments)
