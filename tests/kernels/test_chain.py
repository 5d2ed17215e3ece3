"""Whole passes of layers in one call: the same bits as from kernels one by one."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flower_edge import kernels
from flower_edge.kernels import _dispatch
from flower_edge.kernels._chain import Fitted, conv_backward, conv_forward, norm_backward, norm_forward
from flower_edge.kernels._int8_conv import int8_conv, int8_conv_with_ends, int8_grad_weight, pack_weight
from flower_edge.kernels._int8_quantise import QuantisedError, quantise, quantise_error
from flower_edge.kernels._int8_shape import ConvShape, conv_shape
from flower_edge.kernels._quantised import QuantisedTensor
from flower_edge.kernels._quantised_range_evonorm import (
    fitted_range_evonorm,
    quantised_range_evonorm_backward,
)
from flower_edge.kernels._range_evonorm_calls import Norm
from flower_edge.kernels._range_evonorm_reference import range_factor


@pytest.fixture(params=[*kernels.available_isas(), "twin"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "twin":
        monkeypatch.setattr(_dispatch, "extension", None)
        yield "twin"
    else:
        with kernels.use_isa(request.param):
            yield request.param


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last)


CONVOLUTIONS = [
    conv_shape((1, 1, 7, 7), (1, 1, 1, 1)),
    conv_shape((2, 7, 5, 9), (15, 7, 3, 3), (1, 1), (1, 1)),
    conv_shape((3, 31, 8, 7), (33, 31, 3, 3), (2, 2), (1, 1)),
    conv_shape((2, 33, 6, 6), (97, 33, 1, 1), (2, 2)),
    conv_shape((2, 16, 9, 9), (16, 1, 3, 3), (1, 1), (1, 1), (1, 1), 16),
]


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def same_bytes(a: QuantisedTensor, b: QuantisedTensor) -> bool:
    return torch.equal(a.values, b.values) and (a.scale, a.zero_point) == (b.scale, b.zero_point)


def same_error(a: QuantisedError, b: QuantisedError) -> bool:
    return same_bytes(a.values, b.values) and same(a.high, b.high) and same(a.low, b.low)


@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_convolution_is_that_of_its_kernels(way: str, shape: ConvShape, channels_last: bool) -> None:
    x, weight = quantise(drawn(shape.x_shape, 0)), drawn(shape.weight_shape, 1)
    weight = weight if channels_last else weight.contiguous()
    bias = drawn((1, shape.y_shape[1], 1, 1), 2).flatten()

    y, ends = conv_forward(x, weight, bias, shape)

    expected, expected_ends = int8_conv_with_ends(x, pack_weight(weight, shape), bias)
    assert torch.equal(y, expected)
    assert ends == expected_ends


@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("bits", [8, 16])
def test_gradients_of_a_convolution_are_those_of_its_kernels(way: str, shape: ConvShape, bits: int) -> None:
    x, weight = quantise(drawn(shape.x_shape, 0)), drawn(shape.weight_shape, 1)
    error = quantise_error(drawn(shape.y_shape, 2), bits, 5)
    of_x = int8_conv(error.values, pack_weight(weight, shape, transposed=True))
    of_weight = int8_grad_weight(x, error, shape)

    for needs in ((True, True), (True, False), (False, True)):
        found = conv_backward(x, error, weight, shape, needs)
        assert same(found[0], of_x if needs[0] else None)
        assert same(found[1], of_weight if needs[1] else None)


NORMS = [((1, 2, 1, 1), 1), ((2, 7, 3, 5), 7), ((3, 15, 7, 1), 5), ((2, 31, 4, 4), 1), ((2, 33, 3, 11), 3)]
NORMS += [((3, 64, 8, 8), 8), ((2, 97, 5, 5), 1), ((5, 16, 32, 32), 8)]


def parameters(channels: int, has_v: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    made = 1.0 + 0.3 * torch.randn(3, channels, generator=torch.Generator().manual_seed(3))
    return made[0], made[1], made[2] if has_v else None


def with_a_step(norm: Norm, x: QuantisedTensor) -> Norm:
    _, channels, height, width = x.values.shape
    return norm._replace(eps=norm.eps + x.scale * range_factor(channels // norm.groups * height * width))


@pytest.mark.parametrize(("shape", "groups"), NORMS)
@pytest.mark.parametrize("has_v", [True, False])
def test_a_norm_is_that_of_its_kernels(way: str, shape: tuple[int, ...], groups: int, has_v: bool) -> None:
    floats = drawn(shape, 0)
    ends = min(0.0, float(floats.min())), max(0.0, float(floats.max()))
    x = quantise(floats, ends)
    norm = Norm(*parameters(shape[1], has_v), groups, 1e-5)
    y, extremes = fitted_range_evonorm(x, *with_a_step(norm, x))

    for given in (x, Fitted(floats, ends)):
        made = norm_forward(given, norm)
        assert same_bytes(made.x, x)
        assert same_bytes(made.y, y)
        assert torch.equal(made.extremes, extremes)


@pytest.mark.parametrize(("shape", "groups"), NORMS)
@pytest.mark.parametrize("errors", [None, (8, None), (8, 7), (16, 7)])
def test_gradients_of_a_norm_are_those_of_its_kernels(
    way: str, shape: tuple[int, ...], groups: int, errors: tuple[int, int | None] | None
) -> None:
    x, grad = quantise(drawn(shape, 0)), drawn(shape, 1)
    norm = Norm(*parameters(shape[1], has_v=True), groups, 1e-5)
    made = norm_forward(x, norm)
    weight, _, v, *numbers = with_a_step(norm, x)
    expected = quantised_range_evonorm_backward(grad, x, made.extremes, weight, v, *numbers)

    found = norm_backward(grad, x, made.extremes, norm, errors)

    assert all(same(a, b) for a, b in zip(found[1:], expected[1:4], strict=True))
    if errors is None:
        assert isinstance(found.x, Tensor)
        assert torch.equal(found.x, expected.x)
    else:
        assert isinstance(found.x, QuantisedError)
        assert same_error(found.x, quantise_error(expected.x, *errors, expected.bounds))


def test_what_is_not_finite_is_named(way: str) -> None:
    shape = CONVOLUTIONS[1]
    x, weight = quantise(drawn(shape.x_shape, 0)), drawn(shape.weight_shape, 1)
    weight[3, 2, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="weight has a NaN or an infinity"):
        conv_forward(x, weight, None, shape)
    with pytest.raises(ValueError, match="weight has a NaN or an infinity"):
        conv_backward(x, quantise_error(drawn(shape.y_shape, 2)), weight, shape, (True, True))

    for of in (shape, CONVOLUTIONS[4]):
        x, bias = quantise(drawn(of.x_shape, 0)), torch.zeros(of.y_shape[1])
        for bias[5] in (float("nan"), float("inf"), float("-inf")):
            y = conv_forward(x, drawn(of.weight_shape, 1), bias, of)
            with pytest.raises(ValueError, match="has a NaN or an infinity"):
                norm_forward(y, Norm(None, None, None, 1, 1e-5))

    x = quantise(drawn(shape.x_shape, 0))
    norm = Norm(*parameters(7, has_v=True), 7, 1e-5)
    with pytest.raises(ValueError, match="has a NaN or an infinity"):
        norm_forward(Fitted(drawn(shape.x_shape, 0), (0.0, float("inf"))), norm)
    made = norm_forward(x, norm)
    grad = drawn(shape.x_shape, 1)
    grad[1, 3, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="has a NaN or an infinity"):
        norm_backward(grad, x, made.extremes, norm, (8, 1))
    norm[0][2] = float("inf")
    with pytest.raises(ValueError, match="expected finite numbers"):
        norm_forward(x, norm)


def test_a_group_of_one_element_is_refused(way: str) -> None:
    with pytest.raises(ValueError, match="a single element has no range"):
        norm_forward(quantise(drawn((2, 3, 1, 1), 0)), Norm(None, None, None, 3, 1e-5))
