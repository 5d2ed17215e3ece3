"""Range-EvoNorm: its kernels and their slow twins against the definition, differentiated in float64."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flower_edge import kernels
from flower_edge.kernels import _dispatch
from flower_edge.kernels._quantised import QuantisedTensor
from flower_edge.kernels._quantised_range_evonorm import fitted_range_evonorm
from flower_edge.kernels._range_evonorm_calls import Map, Norm, extremes_shape, run_extremes

pytestmark = pytest.mark.board

ISAS = kernels.available_isas()
EPS = 1e-3
# Fewer pixels than chunks, as many, and numbers that 16 does not divide; groups of every kind.
SHAPES = [
    ((1, 2, 1, 1), 1),
    ((2, 7, 7, 1), 7),
    ((3, 15, 3, 5), 5),
    ((1, 31, 31, 1), 1),
    ((2, 33, 4, 4), 3),
    ((2, 97, 1, 15), 1),
    ((2, 16, 7, 9), 8),
    ((3, 64, 8, 8), 8),
    ((1, 6, 1, 33), 6),
    ((2, 256, 4, 5), 4),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

Parameters = tuple[Tensor | None, Tensor | None, Tensor | None]


def definition(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, v: Tensor | None, groups: int
) -> Tensor:
    """Written down chunk by chunk and group by group, for autograd."""
    _, channels, height, width = x.shape
    pixels, per_group = height * width, channels // groups
    chunks = min(16, pixels)
    factor = 0.175 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(per_group * pixels))
    out = []
    for sample in x.flatten(2):
        normalised = []
        for group in sample.split(per_group):
            ranges = []
            for k in range(chunks):
                begin, end = k * pixels // chunks, (k + 1) * pixels // chunks
                # Pixel by pixel: torch.max over a dimension gives its gradient to the first of equals.
                elements = group[:, begin:end].T.reshape(-1)
                ranges.append(elements.max(0).values - elements.min(0).values)
            normalised.append(group / (torch.stack(ranges).mean() * factor + EPS))
        out.append(torch.cat(normalised))
    y = torch.stack(out).view_as(x)
    y = y if v is None else y * torch.nn.functional.hardsigmoid(x * v)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def drawn(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Parameters]:
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias, v = torch.randn(3, shape[1], generator=generator)
    return x, grad, (1 + weight / 2, bias, 1 + v)


class Gradient(NamedTuple):
    """An exact gradient, and what float32 may lose of it: of each channel's sum of terms that may cancel."""

    value: Tensor
    rounding: float


def expected(
    x: Tensor, grad: Tensor, parameters: Parameters, groups: int
) -> tuple[Tensor, list[Gradient | None]]:
    x = x.double().requires_grad_()
    # A parameter for each element, whose gradients are the terms that a channel's is the sum of.
    precise = [
        None if p is None else p.double().view(-1, 1, 1).expand_as(x).clone().requires_grad_()
        for p in parameters
    ]
    y = definition(x, *precise, groups)
    given = [tensor for tensor in (x, *precise) if tensor is not None]
    found = iter(torch.autograd.grad(y, given, grad.double()))
    of_x = Gradient(next(found), 0.0)
    terms = (None if p is None else next(found) for p in precise)
    return y.detach(), [of_x, *(None if each is None else summed(each) for each in terms)]


def summed(terms: Tensor) -> Gradient:
    rounding = torch.finfo(torch.float32).eps * float(terms.abs().sum((0, 2, 3)).max())
    return Gradient(terms.sum((0, 2, 3)), rounding)


def assert_near(found: Tensor, wanted: Tensor, rounding: float = 0.0) -> None:
    atol = 1e-5 * float(wanted.abs().max()) + rounding + 1e-30
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=atol)


def assert_gradients(found: kernels.NormGradients, wanted: list[Gradient | None]) -> None:
    for mine, exact in zip(found[:4], wanted, strict=True):
        if exact is not None:
            assert mine is not None
            assert_near(mine, *exact)


@pytest.fixture(params=[*ISAS, "twin"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "twin":
        monkeypatch.setattr(_dispatch, "extension", None)
        yield "twin"
    else:
        with kernels.use_isa(request.param):
            yield request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_equals_the_definition(
    way: str, shape: tuple[int, ...], groups: int, layout: torch.memory_format
) -> None:
    x, grad, (weight, bias, v) = drawn(shape)
    x = x.contiguous(memory_format=layout)
    for parameters in ((weight, bias, v), (weight, bias, None), (None, None, v)):
        y, extremes = kernels.range_evonorm(x, *parameters, groups, EPS)
        found = kernels.range_evonorm_backward(grad, x, extremes, parameters[0], parameters[2], groups, EPS)

        exact_y, exact = expected(x, grad, parameters, groups)
        assert_near(y, exact_y)
        assert_gradients(found, exact)
        assert y.is_contiguous(memory_format=layout)
        assert found.x.is_contiguous(memory_format=layout)
        low, high = found.bounds
        assert low <= min(0.0, float(found.x.min()))
        assert high >= max(0.0, float(found.x.max()))


@settings(deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    groups, per_group = (
        data.draw(st.integers(1, 9), label="groups"),
        data.draw(st.integers(1, 19), label="each"),
    )
    height, width = data.draw(st.integers(1, 9), label="height"), data.draw(st.integers(1, 9), label="width")
    if per_group == 1 and height * width <= 16:
        # Chunks of one element have no range: all is multiplied by 1 / eps, and sums of it may cancel beyond
        # what float32 holds.
        per_group = 2
    shape = (data.draw(st.integers(1, 3), label="samples"), groups * per_group, height, width)
    x, grad, parameters = drawn(shape, seed=data.draw(st.integers(0, 99), label="seed"))
    if data.draw(st.booleans(), label="ties"):
        x = x.round()

    y, extremes = kernels.range_evonorm(x, *parameters, groups, EPS)
    found = kernels.range_evonorm_backward(grad, x, extremes, parameters[0], parameters[2], groups, EPS)

    exact_y, exact = expected(x, grad, parameters, groups)
    assert_near(y, exact_y)
    assert_gradients(found, exact)


def quantised(x: Tensor, scale: float, zero_point: int) -> QuantisedTensor:
    values = (x / scale + zero_point).round().clamp(0, 255).to(torch.uint8)
    return QuantisedTensor(values.contiguous(memory_format=torch.channels_last), scale, zero_point)


def floats(x: QuantisedTensor) -> Tensor:
    return x.scale * (x.values.double() - x.zero_point)


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_bytes(way: str, shape: tuple[int, ...], groups: int) -> None:
    x, grad, parameters = drawn(shape)
    stored, error = quantised(x, 2**-5, 130), quantised(grad, 2**-5, 128)

    exact_y, exact = expected(floats(stored), grad, parameters, groups)
    y, extremes, bounds = kernels.quantised_range_evonorm(stored, *parameters, groups, EPS)
    assert isinstance(y, Tensor)
    assert_near(y, exact_y)
    assert extremes.dtype == torch.uint8
    slack = 1e-4 * float(exact_y.abs().max())
    assert bounds == pytest.approx(
        (min(0.0, float(exact_y.min())), max(0.0, float(exact_y.max()))), abs=slack
    )
    again = (stored, extremes, parameters[0], parameters[2], groups, EPS)
    assert_gradients(kernels.quantised_range_evonorm_backward(grad, *again), exact)
    _, of_error = expected(floats(stored), floats(error), parameters, groups)
    assert_gradients(kernels.quantised_range_evonorm_backward(error, *again), of_error)


def test_a_quantised_result_is_rounded_and_cut_off(way: str) -> None:
    x, _, parameters = drawn((2, 24, 5, 7))
    stored = quantised(x, 2**-5, 130)
    exact = expected(floats(stored), x, parameters, 4)[0]
    for scale, zero_point in ((0.05, 60), (0.005, 0), (1.0, 255)):
        y, _, bounds = kernels.quantised_range_evonorm(stored, *parameters, 4, EPS, (scale, zero_point))

        assert isinstance(y, QuantisedTensor)
        assert (y.scale, y.zero_point) == (scale, zero_point)
        representable = exact.clamp(-scale * zero_point, scale * (255 - zero_point))
        assert float((floats(y) - representable).abs().max()) <= scale * (0.5 + 1e-3)
        assert bounds == pytest.approx((float(exact.min()), float(exact.max())), rel=1e-4)


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_levels_fit_a_result_before_it_is_known(way: str, shape: tuple[int, ...], groups: int) -> None:
    x, _, (weight, bias, v) = drawn(shape)
    stored = quantised(x, 2**-5, 130)
    for parameters in ((weight, bias, v), (-weight, bias, -v), (weight, bias, None), (None, None, v)):
        exact = expected(floats(stored), x, (parameters[0], parameters[1], parameters[2]), groups)[0]
        y, extremes = fitted_range_evonorm(stored, *parameters, groups, EPS)

        span = max(0.0, float(exact.max())) - min(0.0, float(exact.min()))
        # Between two bytes y may be a little less than at either.
        assert 0.99 * span <= 255 * y.scale <= 1.05 * span
        assert float((floats(y) - exact).abs().max()) <= 1.01 * y.scale
        assert torch.equal(extremes, kernels.quantised_range_evonorm(stored, *parameters, groups, EPS)[1])
    with pytest.raises(ValueError, match="finite"):
        fitted_range_evonorm(stored, weight, torch.full_like(bias, float("inf")), v, groups, EPS)


def test_instruction_sets_agree_on_bytes() -> None:
    x, grad, parameters = drawn((2, 40, 9, 7))
    stored = quantised(x.round(), 0.5, 8)
    results = []
    for isa in ISAS:
        with kernels.use_isa(isa):
            _, extremes, _ = kernels.quantised_range_evonorm(stored, *parameters, 8, EPS)
            found = kernels.quantised_range_evonorm_backward(
                grad, stored, extremes, parameters[0], parameters[2], 8, EPS
            )
            results.append((extremes, found))
    for extremes, found in results[1:]:
        assert torch.equal(extremes, results[0][0])
        # Ties are many: a gradient that went to another of them would be far off.
        torch.testing.assert_close(found.x, results[0][1].x)


def test_threads_change_no_bit() -> None:
    before = torch.get_num_threads()
    x, grad, parameters = drawn((9, 48, 16, 17))
    x = x.contiguous(memory_format=torch.channels_last)
    stored = quantised(x, 2**-5, 128)
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, extremes = kernels.range_evonorm(x, *parameters, 8, EPS)
            found = kernels.range_evonorm_backward(grad, x, extremes, parameters[0], parameters[2], 8, EPS)
            bytes_, tops, _ = kernels.quantised_range_evonorm(stored, *parameters, 8, EPS, (0.05, 60))
            assert isinstance(bytes_, QuantisedTensor)
            runs.append((y, extremes, *found[:4], bytes_.values, tops))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for tensor, first in zip(run, runs[0], strict=True):
            assert torch.equal(tensor, first)


def test_a_group_of_equal_elements_is_defined(way: str) -> None:
    """Its range is 0; the gradients through max and min meet at its first element and cancel."""
    x = torch.full((2, 4, 5, 5), 0.25)
    ones = torch.ones(4)

    y, extremes = kernels.range_evonorm(x, ones, None, None, 2, EPS)
    found = kernels.range_evonorm_backward(torch.ones_like(x), x, extremes, ones, None, 2, EPS)

    torch.testing.assert_close(y, x / EPS)
    torch.testing.assert_close(found.x, torch.full_like(x, 1 / EPS), rtol=1e-4, atol=0)


def test_a_nan_is_not_hidden(way: str) -> None:
    x, _, parameters = drawn((1, 8, 4, 4))
    x[0, 3, 1, 2] = math.nan

    y, _ = kernels.range_evonorm(x, *parameters, 2, EPS)

    assert bool(y[0, 3, 1, 2].isnan())
    assert bool(y[0, 4:].isfinite().all())


@pytest.mark.parametrize(
    ("place", "strange"),
    [
        (0, math.nan),
        (0, math.inf),
        (0, -math.inf),
        (1, math.nan),
        (1, math.inf),
        (1, -math.inf),
        (2, math.nan),
    ],
)
def test_a_parameter_that_is_not_finite_is_not_hidden(way: str, place: int, strange: float) -> None:
    x, _, parameters = drawn((2, 31, 3, 5))
    parameter = parameters[place]
    assert parameter is not None
    parameter[30] = strange
    stored = quantised(x, 2**-5, 130)

    y, _, bounds = kernels.quantised_range_evonorm(stored, *parameters, 1, EPS)

    assert isinstance(y, Tensor)
    assert not bool(y[:, 30].isfinite().any())
    assert not all(map(math.isfinite, bounds))
    with pytest.raises(ValueError, match="expected finite numbers to quantise"):
        kernels.quantised_range_evonorm(stored, *parameters, 1, EPS, (0.1, 7))


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_nothing_to_normalise(way: str, shape: tuple[int, ...]) -> None:
    x, grad, parameters = drawn(shape)

    y, extremes = kernels.range_evonorm(x, *parameters, 2, EPS)
    found = kernels.range_evonorm_backward(grad, x, extremes, parameters[0], parameters[2], 2, EPS)

    assert y.shape == found.x.shape == shape
    for gradient in found[1:4]:
        assert torch.equal(gradient, torch.zeros(8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, grad, parameters = drawn((2, 16, 5, 6))
    x, grad = x.to(dtype), grad.to(dtype)

    y, extremes = kernels.range_evonorm(x, *parameters, 4, EPS)
    found = kernels.range_evonorm_backward(grad, x, extremes, parameters[0], parameters[2], 4, EPS)

    exact_y, exact = expected(x, grad, parameters, 4)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    assert (y.dtype, found.x.dtype) == (dtype, dtype)
    assert found.weight is not None
    assert found.weight.dtype == extremes.dtype == precise
    torch.testing.assert_close(y, exact_y.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert exact[0] is not None
    torch.testing.assert_close(found.x, exact[0].value.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    x, grad, (weight, bias, v) = drawn((2, 8, 4, 4))
    assert weight is not None
    assert bias is not None
    assert v is not None
    _, extremes = kernels.range_evonorm(x, weight, bias, v, 2, EPS)
    trained = bias.clone().requires_grad_()

    for error, message, arguments in (
        (ValueError, r"\(8, 4, 4\), expected \(N, C, H, W\)", (x[0], None, None, None, 2, EPS)),
        (ValueError, "groups is 3, expected a divisor of the 8", (x, None, None, None, 3, EPS)),
        (ValueError, "groups is 0", (x, None, None, None, 0, EPS)),
        (ValueError, "eps is 0.0, expected a positive", (x, None, None, None, 2, 0.0)),
        (ValueError, "a single element has no range", (x[:, :, :1, :1], None, None, None, 8, EPS)),
        (ValueError, r"v has shape \(7,\), expected \(8,\)", (x, None, None, v[:7], 2, EPS)),
        (TypeError, "weight is a torch.int64", (x, weight.long(), None, None, 2, EPS)),
        (ValueError, "bias requires gradients", (x, None, trained, None, 2, EPS)),
    ):
        with pytest.raises(error, match=message):
            kernels.range_evonorm(*arguments)
    with pytest.raises(ValueError, match="grad has shape"):
        kernels.range_evonorm_backward(grad[:1], x, extremes, None, None, 2, EPS)
    with pytest.raises(ValueError, match="extremes has shape"):
        kernels.range_evonorm_backward(grad, x, extremes, None, None, 4, EPS)


def test_bytes_that_do_not_fit_are_refused() -> None:
    x, grad, _ = drawn((2, 8, 4, 4))
    stored = quantised(x, 0.1, 128)
    contiguous = QuantisedTensor(stored.values.contiguous(), 0.1, 0)
    floating = torch.zeros(2, 16, 2, 2)

    with pytest.raises(TypeError, match="x is a Tensor, expected a QuantisedTensor"):
        kernels.quantised_range_evonorm(x, None, None, None, 2, EPS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with channels last"):
        kernels.quantised_range_evonorm(contiguous, None, None, None, 2, EPS)
    with pytest.raises(ValueError, match="scale is -1"):
        kernels.quantised_range_evonorm(stored, None, None, None, 2, EPS, (-1.0, 0))
    with pytest.raises(ValueError, match="scale is 1e-46"):
        kernels.quantised_range_evonorm(stored, None, None, None, 2, EPS, (1e-46, 0))
    with pytest.raises(TypeError, match=r"extremes is torch.float32, expected torch.uint8"):
        kernels.quantised_range_evonorm_backward(grad, stored, floating, None, None, 2, EPS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [1e-46, -1e-46, 1e-39, 1e39, math.nan])
def test_bytes_are_never_taken_for_floats(isa: str, scale: float) -> None:
    """A scale of 0 says that a map has floats; what rounds to 0 does not."""
    # As large as one of floats, in case that it is read as such.
    values = torch.zeros(2, 8, 8, 8, dtype=torch.uint8)[:, :, :4, :4]
    norm = Norm(None, None, None, 2, EPS)
    extremes = torch.empty(4, *extremes_shape((2, 8, 4, 4), 2), dtype=torch.uint8)
    with kernels.use_isa(isa), pytest.raises(ValueError, match="normal number of float32"):
        run_extremes(Map(values, scale), extremes, norm)
