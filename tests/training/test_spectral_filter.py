"""Gradients from low frequencies of tiles: against exact ones, and against their definition by an FFT."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_spectral_filter import gradients, tiles_along
from torch import Tensor

from flower_edge.kernels import _spectral_slabs, available_isas, use_isa
from flower_edge.training._filtered_conv import ConvFilter, filtered_conv2d

LAYOUTS = (torch.contiguous_format, torch.channels_last)
ALL = 15 * 15
"""Components of the largest window of which all frequencies are served."""


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fourier(
    patch_size: int, components: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> ConvFilter:
    pad = kernel // 2
    return ConvFilter((stride, stride), (pad, pad), (1, 1), groups, patch_size, components, "fourier")


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


def exact(x: Tensor, weight: Tensor, conv: ConvFilter, grad: Tensor) -> tuple[Tensor, ...]:
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    return torch.autograd.grad(torch.conv2d(x, weight, None, *conv[:4]), (x, weight), grad.double())


def relative(found: Tensor, expected: Tensor) -> float:
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return float((found.double() - expected).abs().max()) / max(largest, 1e-30) if found.numel() else 0.0


def sizes(x: Tensor, weight: Tensor, conv: ConvFilter, grad: Tensor) -> list[float]:
    """Bound what float32 rounds: sums may cancel, and more so where windows are mostly padding."""
    unsigned = x.abs(), weight.abs()
    means = in_float64(*unsigned, conv._replace(components=1), grad.abs())
    whole = exact(*unsigned, conv, grad.abs())
    return [float(one.max() + other.max()) for one, other in zip(means, whole, strict=True)]


def output_cells(length: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@st.composite
def axes(draw: st.DrawFn, largest: int) -> tuple[int, ...]:
    """Length, kernel, stride, dilation and padding along one axis."""
    kernel, padding = draw(st.sampled_from((1, 2, 3, 5, 7))), draw(st.integers(0, 3))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    smallest = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    return draw(st.integers(smallest, max(smallest, largest))), kernel, stride, dilation, padding


def window(axis: tuple[int, ...], patch_size: int) -> int:
    _, kernel, stride, dilation, _ = axis
    return tiles_along(output_cells(*axis), kernel, stride, dilation, patch_size)[2]


@st.composite
def convolutions(
    draw: st.DrawFn, largest: int, every_frequency: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...], ConvFilter]:
    patch_size = draw(st.integers(1, 10))
    along = axes(largest)
    components = 1 + 2 * draw(st.integers(0, 20))
    if every_frequency:
        # An even window has a fastest wave without a sine.
        along = along.filter(lambda axis: window(axis, patch_size) in range(1, 16, 2))
        components = ALL
    size, kernel, stride, dilation, padding = zip(draw(along), draw(along), strict=True)
    groups = draw(st.integers(1, 5))
    depthwise = draw(st.booleans())
    inputs, outputs = (1, 1) if depthwise else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    conv = ConvFilter(stride, padding, dilation, groups, patch_size, components, "fourier")
    return (draw(st.integers(1, 2)), inputs * groups, *size), (outputs * groups, inputs, *kernel), conv


def tensors(case, x_layout, weight_layout, dtype=torch.float64) -> tuple[Tensor, Tensor, ConvFilter]:
    x_shape, weight_shape, conv = case
    x = randn(*x_shape, dtype=dtype, seed=2).contiguous(memory_format=x_layout)
    return x, randn(*weight_shape, dtype=dtype, seed=3).contiguous(memory_format=weight_layout), conv


@settings(max_examples=80, deadline=None)
@given(convolutions(14, every_frequency=True), *[st.sampled_from(LAYOUTS)] * 3)
def test_all_frequencies_of_odd_windows_give_exact_gradients(
    case, x_layout, weight_layout, grad_layout
) -> None:
    x, weight, conv = tensors(case, x_layout, weight_layout)

    grad, *found = filtered(x, weight, conv, grad_layout)

    for mine, theirs in zip(found, exact(x, weight, conv, grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("isa", available_isas())
@settings(max_examples=60, deadline=None)
@given(convolutions(14, every_frequency=True), *[st.sampled_from(LAYOUTS)] * 3)
def test_kernels_give_exact_gradients_likewise(isa, case, x_layout, weight_layout, grad_layout) -> None:
    x, weight, conv = tensors(case, x_layout, weight_layout, torch.float32)

    with use_isa(isa):
        grad, *found = filtered(x, weight, conv, grad_layout)

    for mine, theirs, size in zip(
        found, exact(x, weight, conv, grad), sizes(x, weight, conv, grad), strict=True
    ):
        assert float((mine.double() - theirs).abs().max()) <= 1e-5 * size


@settings(max_examples=80, deadline=None)
@given(convolutions(14), *[st.sampled_from(LAYOUTS)] * 3)
def test_fewer_frequencies_are_the_definition(case, x_layout, weight_layout, grad_layout) -> None:
    x, weight, conv = tensors(case, x_layout, weight_layout)

    grad, *found = filtered(x, weight, conv, grad_layout)

    for mine, theirs in zip(found, gradients(grad, x, weight, *conv.numbers()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("isa", available_isas())
@settings(max_examples=60, deadline=None)
@given(convolutions(33), *[st.sampled_from(LAYOUTS)] * 3)
def test_kernels_give_what_float64_gives(isa, case, x_layout, weight_layout, grad_layout) -> None:
    x, weight, conv = tensors(case, x_layout, weight_layout, torch.float32)

    with use_isa(isa):
        grad, *found = filtered(x, weight, conv, grad_layout)

    expected = in_float64(x, weight, conv, grad)
    for mine, theirs, size in zip(found, expected, sizes(x, weight, conv, grad), strict=True):
        assert float((mine.double() - theirs).abs().max()) <= 1e-5 * size


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (33, 1), (13, 31), (32, 32)])
@pytest.mark.parametrize("patch_size", [1, 3, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_awkward_sizes(size, patch_size, dtype) -> None:
    x, weight = randn(2, 5, *size, dtype=dtype), randn(3, 5, 3, 3, dtype=dtype)
    conv = fourier(patch_size, 21)

    grad, *found = filtered(x, weight, conv)

    for mine, theirs in zip(found, gradients(grad, x, weight, *conv.numbers()), strict=True):
        assert relative(mine, theirs) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_in_the_padding_alone(dtype) -> None:
    x, weight = randn(1, 2, 2, 3, dtype=dtype), randn(3, 2, 1, 1, dtype=dtype)
    for stride, padding in ((2, 6), (7, 3), (20, 5)):
        conv = ConvFilter((stride, stride), (padding, padding), (1, 1), 1, 2, 5, "fourier")

        grad, *found = filtered(x, weight, conv)

        for mine, theirs in zip(found, gradients(grad, x, weight, *conv.numbers()), strict=True):
            assert relative(mine, theirs) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("kernel", [(32, 1), (1, 31)])
def test_the_largest_kernels(kernel) -> None:
    x, weight = randn(2, 3, 40, 40, dtype=torch.float32), randn(2, 3, *kernel, dtype=torch.float32)
    conv = ConvFilter((1, 1), (0, 0), (1, 1), 1, 4, 9, "fourier")

    grad, *found = filtered(x, weight, conv)

    for mine, theirs in zip(found, gradients(grad, x, weight, *conv.numbers()), strict=True):
        assert relative(mine, theirs) < 1e-5


def test_more_components_come_closer_to_the_exact_gradients() -> None:
    x, weight = randn(2, 3, 16, 16), randn(4, 3, 3, 3)
    distances = []

    for components in (1, 5, 9, 21, 37, 61, 81):
        grad, _, found = filtered(x, weight, fourier(7, components))
        distances.append(float((found - exact(x, weight, fourier(7, 1), grad)[1]).norm()))

    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_some_images_at_a_time_give_what_all_at_once_do(monkeypatch, dtype, channels_last, groups) -> None:
    layout = LAYOUTS[channels_last]
    x = randn(5, 6, 11, 9, dtype=dtype).contiguous(memory_format=layout)
    weight, scale = randn(6, 6 // groups, 3, 3, dtype=dtype), randn(6, dtype=dtype, seed=4)
    conv = fourier(4, 9, groups=groups)

    def run() -> tuple[Tensor, ...]:
        given = [tensor.clone().requires_grad_() for tensor in (x, weight, scale)]
        y = filtered_conv2d(*given[:2], None, conv, given[2])
        return torch.autograd.grad(y, given, randn(*y.shape, dtype=dtype, seed=1))

    whole = run()
    image_bytes = 6 * 11 * 9 * whole[0].element_size()
    for slab_bytes in (1, 2 * image_bytes):
        monkeypatch.setattr(_spectral_slabs, "SLAB_BYTES", slab_bytes)
        for mine, theirs in zip(run(), whole, strict=True):
            assert mine.stride() == theirs.stride()
            assert relative(mine, theirs.double()) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_images_give_no_gradient_to_the_weight(dtype) -> None:
    x, weight = randn(0, 2, 5, 6, dtype=dtype), randn(3, 2, 3, 3, dtype=dtype)

    _, grad_x, grad_weight = filtered(x, weight, fourier(4, 5))

    assert grad_x.shape == x.shape
    assert torch.equal(grad_weight, torch.zeros_like(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_and_gradient_of_the_bias_are_exact(dtype) -> None:
    x, weight, bias = randn(2, 4, 9, 7, dtype=dtype), randn(6, 4, 3, 3, dtype=dtype), randn(6, dtype=dtype)
    bias.requires_grad_()

    y = filtered_conv2d(x, weight, bias, fourier(8, 21))
    expected = torch.conv2d(x, weight, bias, 1, 1)

    grad = randn(*y.shape, dtype=dtype, seed=1)
    assert torch.equal(y, expected)
    found, theirs = (torch.autograd.grad(out, bias, grad)[0] for out in (y, expected))
    torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_only_wanted_gradients_are_formed_and_only_spectra_are_saved(wanted, groups) -> None:
    x, weight, bias = randn(2, 4, 8, 8), randn(4, 4 // groups, 3, 3), randn(4)
    conv = fourier(4, 9, groups=groups)
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
    assert shapes == ({(9, 2 * 4, 4)} if wanted[1] else set())


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("size", [(8, 6), (1, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=3)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_grad_x_has_the_layout_of_the_exact_one(dtype, layouts, kernel, size, groups) -> None:
    x = randn(2, 4, *size, dtype=dtype).contiguous(memory_format=layouts[0])
    weight = randn(4, 4 // groups, kernel, kernel, dtype=dtype).contiguous(memory_format=layouts[1])
    conv = fourier(4, 5, kernel, groups=groups)

    grad, found, grad_weight = filtered(x, weight, conv, layouts[2])

    x.requires_grad_()
    (expected,) = torch.autograd.grad(torch.conv2d(x, weight, None, *conv[:4]), x, grad)
    assert [s for s, n in zip(found.stride(), x.shape, strict=True) if n > 1] == [
        s for s, n in zip(expected.stride(), x.shape, strict=True) if n > 1
    ]
    assert grad_weight.is_contiguous(memory_format=layouts[1])


def test_the_gradient_of_a_sum_has_no_strides_and_is_right() -> None:
    x, weight = randn(2, 3, 5, 7, dtype=torch.float32), randn(4, 3, 3, 3, dtype=torch.float32)
    x.requires_grad_()
    conv = fourier(4, 9)

    filtered_conv2d(x, weight, None, conv).sum().backward()

    expected, _ = gradients(torch.ones(2, 4, 5, 7), x, weight, *conv.numbers())
    assert relative(x.grad, expected) < 1e-5


def test_second_derivatives_are_refused() -> None:
    x, weight = randn(1, 2, 4, 4).requires_grad_(), randn(2, 2, 3, 3).requires_grad_()
    y = filtered_conv2d(x, weight, None, fourier(4, 9))

    with pytest.raises(RuntimeError, match=r"no second derivative.*restore_"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("dtype", "layout", "groups", "components"),
    [
        (torch.float32, torch.channels_last, 1, 1),
        (torch.float32, torch.contiguous_format, 2, 9),
        (torch.float32, torch.contiguous_format, 4, 5),
        (torch.float64, torch.channels_last, 4, 99),
        (torch.bfloat16, torch.contiguous_format, 1, 9),
    ],
)
def test_operators_obey_torchs_own_checks(dtype, layout, groups, components) -> None:
    x = randn(2, 4, 7, 9, dtype=dtype).contiguous(memory_format=layout)
    weight = randn(4, 4 // groups, 3, 3, dtype=dtype).contiguous(memory_format=layout)
    grad, scale = randn(2, 4, 4, 5, dtype=dtype), randn(4, dtype=dtype)
    geometry = ([2, 2], [1, 1], [1, 1], groups, 4, components)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")

    operators = torch.ops.flower_edge
    arguments = (x, [4, 5], [3, 3], *geometry)
    torch.library.opcheck(operators.conv2d_tile_spectra.default, arguments, test_utils=checks)
    spectra = operators.conv2d_tile_spectra(*arguments)
    for saved, needs_x, factor in itertools.product((None, spectra), (False, True), (None, scale)):
        arguments = (grad, weight, saved, [2, 4, 7, 9], *geometry)
        arguments = (*arguments, layout == torch.channels_last, needs_x, factor)
        torch.library.opcheck(operators.conv2d_spectral_backward.default, arguments, test_utils=checks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_cuda(groups) -> None:
    x, weight = randn(2, 4, 9, 7), randn(4, 4 // groups, 3, 3)
    conv = fourier(4, 9, stride=2, groups=groups)

    grad, *found = filtered(x.cuda(), weight.cuda(), conv)

    for mine, theirs in zip(found, gradients(grad.cpu(), x, weight, *conv.numbers()), strict=True):
        assert relative(mine.cpu(), theirs) < 1e-10
