"""Patch and tap kernels: against their twins in float64, and the twins against the filter's own oracle."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from flower_edge import kernels
from flower_edge.kernels import _patches, _taps

pytestmark = pytest.mark.board

ISAS = kernels.available_isas()
FORMATS = [torch.channels_last, torch.contiguous_format]
CHANNELS = [1, 2, 7, 15, 16, 31, 33, 97]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def relative(received: torch.Tensor, expected: torch.Tensor, magnitude: torch.Tensor) -> float:
    assert received.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return float(((received.double() - expected).abs() / (magnitude + 1e-12)).max())


@pytest.mark.parametrize("patch", [1, 2, 3, 4])
def test_the_filter_is_exact_autograd_of_a_pooled_convolution(patch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 3, 12, 24), (4, 3, 3, 3), (2, 4, 12, 24))
    )
    symbols = torch.ones(1, 9, dtype=torch.float64)
    collapsed = kernels.collapse_taps(weight, symbols)
    x.requires_grad_()
    one_by_one = collapsed[0, :, :, None, None].clone().requires_grad_()
    y = interpolate(avg_pool2d(conv2d(x, one_by_one), patch), scale_factor=patch)
    y.backward(grad)
    patches = (12 // patch, 24 // patch)
    sums = kernels.patch_sums(x.detach(), patch, 0, patches)
    means = kernels.patch_means(grad, patch, patches)
    grad_x = kernels.patch_fill(means @ collapsed, x.shape, patch, 0, patches)
    assert x.grad is not None
    assert one_by_one.grad is not None
    torch.testing.assert_close(grad_x, x.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(means[0].T @ sums[0], one_by_one.grad[:, :, 0, 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("patch", "components"), [(2, 4), (4, 16), (8, 64), (16, 256)])
def test_the_basis_is_orthogonal_and_ordered_by_sequency(patch: int, components: int) -> None:
    basis = kernels.walsh_basis(patch, components, torch.float64)
    flat = basis.flatten(1)
    assert torch.equal(flat @ flat.T, patch**2 * torch.eye(components, dtype=torch.float64))
    assert (basis[0] == 1).all()
    rows = (basis.diff(dim=1) != 0).sum(dim=(1, 2)) // patch
    columns = (basis.diff(dim=2) != 0).sum(dim=(1, 2)) // patch
    order = [(int(a + b), int(max(a, b)), int(a), int(b)) for a, b in zip(rows, columns, strict=True)]
    assert order == sorted(order)


def test_all_components_restore_the_map() -> None:
    x = torch.randn(2, 5, 16, 8, dtype=torch.float64)
    means = kernels.patch_means(x, 4, (4, 2), components=16)
    torch.testing.assert_close(kernels.patch_fill(means, x.shape, 4, 0, (4, 2)), x)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_kernels_equal_their_twins(data: st.DataObject) -> None:
    components = data.draw(st.sampled_from([1, 1, 2, 3, 4, 5, 16, 30]), label="components")
    small = st.integers(1, 7)
    if components == 1:
        patch = data.draw(st.tuples(small, small), label="patch")
        stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), label="stride")
    else:
        sides = [side for side in (2, 4, 8, 16) if side**2 >= components]
        patch = (data.draw(st.sampled_from(sides), label="patch"),) * 2
        stride = (data.draw(st.integers(1, 3), label="stride"),) * 2
    images = data.draw(st.integers(0, 3), label="images")
    channels = data.draw(st.sampled_from(CHANNELS), label="channels")
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 40)), label="size")
    offset = data.draw(st.tuples(st.integers(-3, 5), st.integers(-3, 5)), label="offset")
    y_size = (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
    patches = (-(-y_size[0] // patch[0]), -(-y_size[1] // patch[1]))
    window = (patch[0] * stride[0], patch[1] * stride[1])
    x_format, y_format, fill_format = (data.draw(st.sampled_from(FORMATS)) for _ in range(3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x = torch.randn(images, channels, *size, generator=generator).contiguous(memory_format=x_format)
    grad = torch.randn(images, channels, *y_size, generator=generator).contiguous(memory_format=y_format)
    taps = torch.randn(components, channels, generator=generator)
    up = stride if components > 1 else 1
    x64, grad64, taps64 = x.double(), grad.double(), taps.double()
    sums64 = kernels.patch_sums_reference(x64, window, offset, patches, components, up)
    means64 = kernels.patch_means_reference(grad64, patch, patches, components)
    back64 = kernels.depthwise_filter_backward_reference(
        grad64, sums64, taps64, x.shape, patch, offset, patches, stride, 0.5
    )
    sum_sizes = kernels.patch_sums_reference(x64.abs(), window, offset, patches)
    mean_sizes = kernels.patch_means_reference(grad64.abs(), patch, patches)

    def fill_sizes(coefficients: torch.Tensor) -> torch.Tensor:
        total = coefficients.sum(dim=0, keepdim=True)
        return kernels.patch_fill_reference(total, x.shape, window, offset, patches)

    for isa in ISAS:
        with kernels.use_isa(isa):
            sums = kernels.patch_sums(x, window, offset, patches, components, up)
            means = kernels.patch_means(grad, patch, patches, components)
            filled = kernels.patch_fill(
                means,
                x.shape,
                window,
                offset,
                patches,
                up,
                0.5,
                channels_last=fill_format is torch.channels_last,
            )
            grad_x, gram = kernels.depthwise_filter_backward(
                grad, sums, taps, x.shape, patch, offset, patches, stride, 0.5
            )
        assert relative(sums, sums64, sum_sizes) <= 1e-5
        assert relative(means, means64, mean_sizes) <= 1e-5
        filled64 = kernels.patch_fill_reference(means.double(), x.shape, window, offset, patches, up, 0.5)
        assert relative(filled, filled64, fill_sizes(means.double().abs())) <= 1e-5
        assert filled.is_contiguous(memory_format=fill_format)
        assert grad_x is not None
        assert gram is not None
        # A gradient of one cell or channel is in both formats.
        both = all(grad.is_contiguous(memory_format=each) for each in FORMATS)
        assert grad_x.is_contiguous(memory_format=y_format) or both
        assert relative(grad_x, back64[0], fill_sizes(mean_sizes * taps64.abs()[:, None])) <= 1e-5
        assert relative(gram, back64[1], (mean_sizes * sum_sizes).sum(dim=1)) <= 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (3, 1)])
@pytest.mark.parametrize("components", [1, 3])
def test_taps_equal_their_twins(
    isa: str, memory_format: torch.memory_format, kernel: tuple[int, int], components: int
) -> None:
    for outputs, inputs in ((1, 1), (7, 33), (97, 1), (0, 3)):
        weight = torch.randn(outputs, inputs, *kernel).contiguous(memory_format=memory_format)
        symbols = torch.randn(components, kernel[0] * kernel[1])
        with kernels.use_isa(isa):
            collapsed = kernels.collapse_taps(weight, symbols)
            spread = kernels.spread_taps(collapsed, symbols, weight, 0.5)
        expected = kernels.collapse_taps_reference(weight.double(), symbols.double())
        torch.testing.assert_close(collapsed.double(), expected, rtol=1e-5, atol=1e-5)
        expected = kernels.spread_taps_reference(collapsed.double(), symbols.double(), weight, 0.5)
        torch.testing.assert_close(spread.double(), expected, rtol=1e-5, atol=1e-5)
        assert spread.stride() == weight.stride() or outputs * inputs <= outputs


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("memory_format", FORMATS)
def test_bits_do_not_depend_on_threads(memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 33, 40, 40).contiguous(memory_format=memory_format)
    taps = torch.randn(3, 33)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sums = kernels.patch_sums(x, 2, 0, 20, 3)
        means = kernels.patch_means(x, 2, 20, 3)
        filled = kernels.patch_fill(means, x.shape, 2, 0, 20)
        results.append(
            (sums, means, filled, *kernels.depthwise_filter_backward(x, sums, taps, x.shape, 2, 0, 20))
        )
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert one is not None
            assert torch.equal(one, other)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("components", [1, 4])
def test_nan_stays_in_its_patch_and_is_not_lost(memory_format: torch.memory_format, components: int) -> None:
    x = torch.ones(1, 16, 9, 35).contiguous(memory_format=memory_format)
    x[0, 3, 8, 34] = torch.nan
    for isa in ISAS:
        with kernels.use_isa(isa):
            means = kernels.patch_means(x, 2, (5, 18), components)
            filled = kernels.patch_fill(means, x.shape, 2, 0, (5, 18))
        assert means[:, -1, 3].isnan().all()
        assert int(means.isnan().sum()) == components
        assert torch.equal(filled.isnan(), x.isnan())


def test_other_strides_dtypes_and_views_are_served() -> None:
    wide = torch.randn(2, 6, 9, 22)
    for view in (wide[:, 1:5, 1:8, ::2], wide.transpose(2, 3), wide[:, ::2], torch._neg_view(wide)):
        received = kernels.patch_sums(view, 2, 1, (4, 6))
        expected = kernels.patch_sums_reference(view.double(), 2, 1, (4, 6))
        torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=1e-5)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert kernels.patch_means(wide.to(dtype), 2, (5, 11)).dtype == dtype
    assert kernels.patch_sums(wide.to("meta"), 2, 0, (5, 11)).shape == (1, 110, 6)


def test_without_the_extension_the_twins_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5, 8, 8)
    before = kernels.patch_sums(x, 2, 0, 4, 2)
    monkeypatch.setattr(_patches._dispatch, "extension", None)
    monkeypatch.setattr(_taps._dispatch, "extension", None)
    torch.testing.assert_close(kernels.patch_sums(x, 2, 0, 4, 2), before)
    assert kernels.explain().versions["gradient_filter"] == "torch"


image = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kernels.patch_sums(image.int(), 2, 0, 4), TypeError, "x is a torch.int32 tensor"),
        (lambda: kernels.patch_sums(image.to_sparse(), 2, 0, 4), TypeError, "torch.sparse_coo"),
        (lambda: kernels.patch_sums(image.numpy(), 2, 0, 4), TypeError, "x is a ndarray"),
        (lambda: kernels.patch_sums(image[0], 2, 0, 4), ValueError, r"shape \(3, 8, 8\), expected \(images"),
        (lambda: kernels.patch_sums(image, 0, 0, 4), ValueError, r"patch_size is \(0, 0\)"),
        (lambda: kernels.patch_sums(image, 2, 0, 0), ValueError, r"patches is \(0, 0\)"),
        (lambda: kernels.patch_sums(image, 2, 0, 4, 0), ValueError, "components is 0"),
        (lambda: kernels.patch_sums(image, 2, 0, 4, 5), ValueError, "at most the 4 cells"),
        (lambda: kernels.patch_sums(image, 3, 0, 3, 2), ValueError, "2, 4, 8 or 16 cells a side"),
        (lambda: kernels.patch_sums(image, (2, 4), 0, 2, 2), ValueError, "expected a square"),
        (lambda: kernels.patch_sums(image, 2.5, 0, 2), TypeError, "patch_size is 2.5, expected an int"),
        (lambda: kernels.patch_sums(image, 1 << 62, 0, 1 << 20), ValueError, "overflow an address"),
        (
            lambda: kernels.patch_sums(image.clone().requires_grad_(), 2, 0, 4),
            ValueError,
            r"x requires gradients.*x.detach\(\)",
        ),
        (
            lambda: kernels.patch_fill(torch.zeros(1, 32, 4), image.shape, 2, 0, 4),
            ValueError,
            r"coefficients has shape \(1, 32, 4\), expected \(1, 32, 3\)",
        ),
        (
            lambda: kernels.depthwise_filter_backward(image, None, None, image.shape, 2, 0, 4),
            ValueError,
            "tap_sums is None",
        ),
        (
            lambda: kernels.depthwise_filter_backward(
                image, None, torch.zeros(1, 3).double(), image.shape, 2, 0, 4, needs=(True, False)
            ),
            TypeError,
            "tap_sums is torch.float64 on cpu, expected torch.float32",
        ),
        (
            lambda: kernels.depthwise_filter_backward(
                image, None, torch.zeros(1, 3), (2, 4, 8, 8), 2, 0, 4, needs=(True, False)
            ),
            ValueError,
            "expected the images and channels of grad",
        ),
        (
            lambda: kernels.collapse_taps(torch.zeros(2, 3, 3, 3), torch.ones(1, 8)),
            ValueError,
            r"symbols has shape \(1, 8\), expected \(components, 9\)",
        ),
        (
            lambda: kernels.spread_taps(torch.zeros(1, 2, 2), torch.ones(1, 9), torch.zeros(2, 3, 3, 3)),
            ValueError,
            r"gram has shape \(1, 2, 2\), expected \(1, 2, 3\)",
        ),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_a_tensor_that_requires_gradients_is_served_where_none_are_recorded() -> None:
    with torch.no_grad():
        assert kernels.patch_sums(image.clone().requires_grad_(), 2, 0, 4).shape == (1, 32, 3)


def test_nothing_is_wanted() -> None:
    received = kernels.depthwise_filter_backward(
        image, None, None, image.shape, 2, 0, 4, needs=(False, False)
    )
    assert received == (None, None)
