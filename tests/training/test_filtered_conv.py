"""Filtered gradients against their definition, against the method's oracle and against exact gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_filter import gradients
from torch import Tensor, nn

from flower_edge.kernels import available_isas, use_isa
from flower_edge.training._filtered_conv import ConvFilter, filtered_conv2d

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filtered(
    x: Tensor, weight: Tensor, conv: ConvFilter, grad_layout: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the output that was used, and those of input and weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = filtered_conv2d(x, weight, None, conv)
    grad = randn(*y.shape, dtype=y.dtype, seed=1).to(y.device).contiguous(memory_format=grad_layout)
    return grad, *torch.autograd.grad(y, (x, weight), grad)


def in_float64(x: Tensor, weight: Tensor, conv: ConvFilter, grad: Tensor) -> tuple[Tensor, ...]:
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    return torch.autograd.grad(filtered_conv2d(x, weight, None, conv), (x, weight), grad.double())


def relative(found: Tensor, expected: Tensor) -> float:
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return float((found.double() - expected).abs().max()) / max(largest, 1e-30) if found.numel() else 0.0


@st.composite
def convolutions(draw: st.DrawFn, largest: int) -> tuple[tuple[int, ...], tuple[int, ...], ConvFilter]:
    kernel = draw(st.tuples(*[st.sampled_from((1, 2, 3, 5, 7))] * 2))
    stride = draw(st.tuples(*[st.integers(1, 2)] * 2))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * 2))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 2))
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    height, width = (draw(st.integers(least, max(least, largest))) for least in smallest)
    depthwise = draw(st.booleans())
    groups = draw(st.integers(1, 5))
    inputs, outputs = (1, 1) if depthwise else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    patch_size = draw(st.integers(1, 4))
    components = draw(st.integers(1, patch_size**2)) if patch_size in (2, 4) else 1
    conv = ConvFilter(stride, padding, dilation, groups, patch_size, components)
    x_shape = (draw(st.integers(1, 2)), inputs * groups, height, width)
    return x_shape, (outputs * groups, inputs, *kernel), conv


@settings(max_examples=80, deadline=None)
@given(convolutions(17), *[st.sampled_from(LAYOUTS)] * 3)
def test_float64_is_the_definition(case, x_layout, weight_layout, grad_layout) -> None:
    x_shape, weight_shape, conv = case
    x = randn(*x_shape, seed=2).contiguous(memory_format=x_layout)
    weight = randn(*weight_shape, seed=3).contiguous(memory_format=weight_layout)

    grad, *found = filtered(x, weight, conv, grad_layout)
    expected = gradients(grad, x, weight, *conv.numbers())

    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("isa", available_isas())
@settings(max_examples=80, deadline=None)
@given(convolutions(33), *[st.sampled_from(LAYOUTS)] * 3)
def test_kernels_give_what_float64_gives(isa, case, x_layout, weight_layout, grad_layout) -> None:
    x_shape, weight_shape, conv = case
    x = randn(*x_shape, dtype=torch.float32, seed=2).contiguous(memory_format=x_layout)
    weight = randn(*weight_shape, dtype=torch.float32, seed=3).contiguous(memory_format=weight_layout)

    with use_isa(isa):
        grad, *found = filtered(x, weight, conv, grad_layout)
    expected = in_float64(x, weight, conv, grad)

    # Sums may cancel; their rounding errors are as large as those of the same sums without signs.
    unsigned = in_float64(x.abs(), weight.abs(), conv._replace(components=1), grad.abs())
    for mine, theirs, scale in zip(found, expected, unsigned, strict=True):
        assert float((mine.double() - theirs).abs().max()) <= 1e-5 * float(scale.max())


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (33, 1), (13, 31), (33, 33), (32, 32)])
@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_awkward_sizes(size, patch_size, dtype) -> None:
    x, weight = randn(2, 5, *size, dtype=dtype), randn(3, 5, 3, 3, dtype=dtype)
    conv = ConvFilter((1, 1), (1, 1), (1, 1), 1, patch_size, 1)

    grad, *found = filtered(x, weight, conv)

    for mine, theirs in zip(found, gradients(grad, x, weight, *conv.numbers()), strict=True):
        assert relative(mine, theirs) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("patch_size", [2, 4])
def test_stride_1_is_the_exact_gradient_of_a_pooled_pointwise_convolution(patch_size, dtype) -> None:
    x, weight = randn(3, 6, 16, 24, dtype=dtype), randn(5, 6, 3, 3, dtype=dtype)

    grad, *found = filtered(x, weight, ConvFilter((1, 1), (1, 1), (1, 1), 1, patch_size, 1))

    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    y = torch.conv2d(x64, weight64.sum((2, 3), keepdim=True))
    oracle = nn.functional.interpolate(nn.functional.avg_pool2d(y, patch_size), scale_factor=patch_size)
    expected = torch.autograd.grad(oracle, (x64, weight64), grad.double())
    for mine, theirs in zip(found, expected, strict=True):
        assert relative(mine, theirs) < (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 1), (3, 7)])
def test_all_components_of_2x2_patches_give_the_exact_grad_x_of_a_symmetric_convolution_of_mirrored_patches(
    kernel,
) -> None:
    x, weight = randn(2, 3, 8, 6), randn(4, 3, *kernel)
    weight = weight + weight.flip(2)
    weight = weight + weight.flip(3)
    centre = tuple((k - 1) // 2 for k in kernel)

    grad, found, _ = filtered(x, weight, ConvFilter((1, 1), centre, (1, 1), 1, 2, 4))

    x.requires_grad_()
    patches = x.unflatten(2, (4, 2)).unflatten(4, (3, 2))
    mirrored = [torch.tensor([0, 1, 1, 0])[(torch.arange(2) + shift) % 4] for shift in range(-3, 4)]
    y = sum(
        torch.einsum(
            "oi,nipaqb->nopaqb",
            weight[:, :, u, v],
            patches[:, :, :, mirrored[3 + u - centre[0]]][..., mirrored[3 + v - centre[1]]],
        )
        for u, v in itertools.product(*map(range, kernel))
    )
    (expected,) = torch.autograd.grad(y, x, grad.reshape(y.shape))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def exact(x: Tensor, weight: Tensor, conv: ConvFilter, grad: Tensor) -> tuple[Tensor, ...]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(torch.conv2d(x, weight, None, *conv[:4]), (x, weight), grad)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("patch_size", [2, 4])
def test_mean_of_grad_x_is_the_exact_one_where_no_tap_reads_padding(patch_size, stride, dilation) -> None:
    x, weight = randn(2, 4, 48, 48), randn(5, 4, 3, 3)
    conv = ConvFilter((stride, stride), (dilation, dilation), (dilation, dilation), 1, patch_size, 1)
    grad = randn(*torch.conv2d(x, weight, None, *conv[:4]).shape, seed=4)
    for edge in (0, 1, -2, -1):
        grad[:, :, edge], grad[:, :, :, edge] = 0, 0

    x.requires_grad_()
    (found,) = torch.autograd.grad(filtered_conv2d(x, weight, None, conv), x, grad)

    means = exact(x, weight, conv, grad)[0].mean((2, 3))
    torch.testing.assert_close(found.mean((2, 3)), means, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_smooth_maps_have_the_mean_of_the_exact_ones_within_a_hundredth(stride) -> None:
    """Mean of grad_x over cells, and of grad_weight over taps, edges of the map included."""
    weight = randn(5, 4, 3, 3) + 0.5
    x = 1 + nn.functional.interpolate(randn(2, 4, 6, 6), size=(256, 256), mode="bicubic")
    conv = ConvFilter((stride, stride), (1, 1), (1, 1), 1, 2, 1)
    size = (256 // stride, 256 // stride)
    grad = 1 + nn.functional.interpolate(randn(2, 5, 6, 6, seed=1), size=size, mode="bicubic")
    x.requires_grad_(), weight.requires_grad_()

    found = torch.autograd.grad(filtered_conv2d(x, weight, None, conv), (x, weight), grad)

    for mine, theirs in zip(found, exact(x, weight, conv, grad), strict=True):
        mine, theirs = mine.mean((2, 3)), theirs.mean((2, 3))
        assert float((mine - theirs).abs().max()) < 0.01 * float(theirs.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_and_gradient_of_the_bias_are_exact(dtype) -> None:
    x, weight, bias = randn(2, 4, 9, 7, dtype=dtype), randn(6, 4, 3, 3, dtype=dtype), randn(6, dtype=dtype)
    bias.requires_grad_()

    y = filtered_conv2d(x, weight, bias, ConvFilter((1, 1), (1, 1), (1, 1), 1, 2, 1))
    expected = torch.conv2d(x, weight, bias, 1, 1)

    grad = randn(*y.shape, dtype=dtype, seed=1)
    assert torch.equal(y, expected)
    found, theirs = (torch.autograd.grad(out, bias, grad)[0] for out in (y, expected))
    torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_only_wanted_gradients_are_formed_and_only_patch_sums_are_saved(wanted, groups) -> None:
    x, weight, bias = randn(2, 4, 8, 8), randn(4, 4 // groups, 3, 3), randn(4)
    conv = ConvFilter((1, 1), (1, 1), (1, 1), groups, 2, 1)
    everything = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    filtered_conv2d(*everything, conv).square().sum().backward()
    saved: list[Tensor] = []

    given = [tensor.requires_grad_(need) for tensor, need in zip((x, weight, bias), wanted, strict=True)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = filtered_conv2d(*given, conv)
    if any(wanted):
        y.square().sum().backward()

    for tensor, full, need in zip(given, everything, wanted, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            torch.testing.assert_close(tensor.grad, full.grad)
    shapes = {tuple(tensor.shape) for tensor in saved if tensor is not weight}
    assert shapes == ({(1, 2 * 16, 4)} if wanted[1] else set())


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("size", [(8, 6), (1, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=3)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_grad_x_has_the_layout_of_the_exact_one(dtype, layouts, kernel, size, groups) -> None:
    x = randn(2, 4, *size, dtype=dtype).contiguous(memory_format=layouts[0])
    weight = randn(4, 4 // groups, kernel, kernel, dtype=dtype).contiguous(memory_format=layouts[1])
    pad = kernel // 2
    conv = ConvFilter((1, 1), (pad, pad), (1, 1), groups, 2, 1)

    grad, found, _ = filtered(x, weight, conv, layouts[2])

    expected = exact(x, weight, conv, grad)[0]
    assert [s for s, n in zip(found.stride(), x.shape, strict=True) if n > 1] == [
        s for s, n in zip(expected.stride(), x.shape, strict=True) if n > 1
    ]


def test_the_gradient_of_a_sum_has_no_strides_and_is_right() -> None:
    x, weight = (
        randn(2, 3, 5, 7, dtype=torch.float32).requires_grad_(),
        randn(4, 3, 3, 3, dtype=torch.float32),
    )
    conv = ConvFilter((1, 1), (1, 1), (1, 1), 1, 2, 1)

    filtered_conv2d(x, weight, None, conv).sum().backward()

    expected, _ = gradients(torch.ones(2, 4, 5, 7), x, weight, *conv.numbers())
    assert relative(x.grad, expected) < 1e-5


def test_a_changed_weight_is_noticed() -> None:
    x, weight = randn(1, 2, 4, 4).requires_grad_(), randn(2, 2, 3, 3)
    y = filtered_conv2d(x, weight, None, ConvFilter((1, 1), (1, 1), (1, 1), 1, 2, 1))
    weight.zero_()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivatives_are_refused() -> None:
    x, weight = randn(1, 2, 4, 4).requires_grad_(), randn(2, 2, 3, 3).requires_grad_()
    y = filtered_conv2d(x, weight, None, ConvFilter((1, 1), (1, 1), (1, 1), 1, 2, 1))

    with pytest.raises(RuntimeError, match=r"no second derivative.*restore_"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("dtype", "layout", "groups", "components"),
    [
        (torch.float32, torch.channels_last, 1, 1),
        (torch.float32, torch.contiguous_format, 2, 3),
        (torch.float32, torch.contiguous_format, 4, 1),
        (torch.float64, torch.channels_last, 4, 3),
        (torch.bfloat16, torch.contiguous_format, 1, 1),
    ],
)
def test_operators_obey_torchs_own_checks(dtype, layout, groups, components) -> None:
    x = randn(2, 4, 7, 9, dtype=dtype).contiguous(memory_format=layout)
    weight = randn(4, 4 // groups, 3, 3, dtype=dtype).contiguous(memory_format=layout)
    grad = randn(2, 4, 4, 5, dtype=dtype)
    geometry = ([2, 2], [1, 1], [1, 1])
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")

    operators = torch.ops.flower_edge
    arguments = (x, [2, 3], [3, 3], *geometry, 2, components)
    torch.library.opcheck(operators.conv2d_patch_sums.default, arguments, test_utils=checks)
    sums = operators.conv2d_patch_sums(*arguments)
    for saved, needs_x in itertools.product((None, sums), (False, True)):
        arguments = (grad, weight, saved, [2, 4, 7, 9], *geometry, groups, 2, components)
        arguments = (*arguments, layout == torch.channels_last, needs_x)
        torch.library.opcheck(operators.conv2d_filtered_backward.default, arguments, test_utils=checks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_cuda(groups) -> None:
    x, weight = randn(2, 4, 9, 7), randn(4, 4 // groups, 3, 3)
    conv = ConvFilter((2, 2), (1, 1), (1, 1), groups, 2, 1)

    grad, *found = filtered(x.cuda(), weight.cuda(), conv)

    for mine, theirs in zip(found, gradients(grad.cpu(), x, weight, *conv.numbers()), strict=True):
        assert relative(mine.cpu(), theirs) < 1e-10
