"""The one-bit activations: bit for bit torch's own, on every instruction set, in every layout."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge import kernels

pytestmark = pytest.mark.board

ISAS = kernels.available_isas()
SIZES = [0, 1, 7, 8, 9, 31, 33, 65, 1000, 4099]
CAPS = [None, 6.0, 0.25]
LAYOUTS = ["contiguous", "channels last", "permuted", "gaps", "expanded"]


def special_values(count: int) -> torch.Tensor:
    """Numbers of both signs, with every case that comparisons treat otherwise among them."""
    x = 4 * torch.randn(count, generator=torch.Generator().manual_seed(count))
    edges = torch.tensor([0.0, -0.0, 6.0, 0.25, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45])
    x[::3] = edges.repeat(count // len(edges) + 1)[: len(x[::3])]
    return x


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers with other strides; `expanded` repeats the first image."""
    match layout:
        case "channels last":
            return x.contiguous(memory_format=torch.channels_last)
        case "permuted":
            return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
        case "gaps":
            return torch.stack([x, x], -1)[..., 0]
        case "expanded":
            return x[:1].expand_as(x)
    return x


def torchs(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    return torch.relu(x) if cap is None else torch.nn.functional.hardtanh(x, 0.0, cap)


def torchs_gradient(x: torch.Tensor, cap: float | None, grad: torch.Tensor) -> torch.Tensor:
    """Torch's own; for a NaN under a cap, what torch does in some places of memory: the gradient passes."""
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(torchs(x, cap), x, grad)
    return torch.where(x.isnan(), grad, found)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cap", CAPS)
def test_equals_torch(isa: str, cap: float | None) -> None:
    for size in SIZES:
        x, grad = special_values(size), torch.randn(size)
        with kernels.use_isa(isa):
            y, bits = kernels.relu_bits(x, cap)
            masked = kernels.mask_by_bits(grad, bits, y.stride())
        assert bits.shape == ((size + 7) // 8,)
        assert_same(y, torchs(x, cap))
        assert_same(masked, torchs_gradient(x, cap, grad))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cap", CAPS)
def test_equals_its_twin(isa: str, cap: float | None) -> None:
    for size in SIZES:
        x = special_values(size)
        with kernels.use_isa(isa):
            y, bits = kernels.relu_bits(x, cap)
        expected, expected_bits = kernels.relu_bits_reference(x, cap)
        assert_same(y, expected)
        assert torch.equal(bits, expected_bits)
        assert_same(
            kernels.mask_by_bits(x, bits, y.stride()), kernels.mask_by_bits_reference(x, bits, y.stride())
        )


@settings(deadline=None)
@given(data=st.data())
def test_any_shape_in_any_layout(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 7)] * 4), label="shape")
    cap = data.draw(st.sampled_from(CAPS), label="cap")
    x = laid_out(
        special_values(int(np.prod(shape))).view(shape), data.draw(st.sampled_from(LAYOUTS), label="x")
    )
    grad = laid_out(torch.randn(shape), data.draw(st.sampled_from(LAYOUTS), label="grad"))

    y, bits = kernels.relu_bits(x, cap)

    assert_same(y, torchs(x, cap))
    assert_same(kernels.mask_by_bits(grad, bits, y.stride()), torchs_gradient(x, cap, grad))


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_layouts_without_gaps_are_kept_and_copied_by_no_one(layout: str) -> None:
    x = laid_out(torch.randn(2, 3, 4, 5), layout)
    expected = torch.relu(x)

    y, _ = kernels.relu_bits(x)
    assert y.stride() == x.stride()
    address = x.data_ptr()
    kernels.relu_bits_(x)

    assert x.data_ptr() == address
    assert torch.equal(x, expected)


def test_in_place_refuses_gaps() -> None:
    for layout in ("gaps", "expanded"):
        with pytest.raises(ValueError, match=r"x has shape \(2, 3, 4, 5\).*without gaps"):
            kernels.relu_bits_(laid_out(torch.randn(2, 3, 4, 5), layout))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cap", CAPS)
def test_other_dtypes(dtype: torch.dtype, cap: float | None) -> None:
    x, grad = special_values(1001).to(dtype), torch.randn(1001).to(dtype)

    y, bits = kernels.relu_bits(x, cap)
    assert_same(y, torchs(x, cap))
    assert_same(kernels.mask_by_bits(grad, bits, y.stride()), torchs_gradient(x, cap, grad))
    before = x.clone()
    assert torch.equal(kernels.relu_bits_(x, cap), bits)
    assert_same(x, torchs(before, cap))


def test_pending_negations_are_heeded() -> None:
    x = torch.complex(torch.randn(9), torch.randn(9)).conj().imag
    assert x.is_neg()

    y, bits = kernels.relu_bits(x)

    assert torch.equal(y, torch.relu(x))
    assert torch.equal(kernels.mask_by_bits(x, bits, y.stride()), torch.relu(x))


def test_threads_change_no_bit() -> None:
    before = torch.get_num_threads()
    x = special_values(300_001)
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y, bits = kernels.relu_bits(x, 6.0)
            found.append((y, bits, kernels.mask_by_bits(x, bits, y.stride())))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert_same(one, two)


def test_bad_input_is_refused() -> None:
    x = torch.randn(9)
    _, bits = kernels.relu_bits(x)
    for relu in (kernels.relu_bits, kernels.relu_bits_, kernels.relu_bits_reference):
        with pytest.raises(TypeError, match=r"x is a torch.int64 tensor"):
            relu(torch.arange(9))
        with pytest.raises(ValueError, match=r"cap is 0\.0, expected a number above 0"):
            relu(x, 0.0)
        with pytest.raises(ValueError, match="cap is nan, expected a number above 0"):
            relu(x, float("nan"))
        with pytest.raises(ValueError, match="x requires gradients"):
            relu(x.clone().requires_grad_())
    for mask in (kernels.mask_by_bits, kernels.mask_by_bits_reference):
        with pytest.raises(ValueError, match=r"bits has shape \(2,\).*expected \(3,\).*each of 17 elements"):
            mask(torch.randn(17), bits, (1,))
        with pytest.raises(ValueError, match=r"torch.float32.*expected \(2,\), torch.uint8"):
            mask(x, bits.float(), (1,))


@pytest.mark.parametrize("way", [*ISAS, "twin"])
@pytest.mark.parametrize(
    ("shape", "stride"),
    [((33,), (2,)), ((33,), (0,)), ((7, 15), (1, 1)), ((7, 15), (16, 1)), ((2, 3, 5, 1), (15, 5, 2, 1))],
)
def test_strides_with_gaps_or_overlaps_are_refused(
    way: str, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """A kernel goes through as much memory as there are elements."""
    x = torch.randn(shape)
    _, bits = kernels.relu_bits(x)
    # Of its own strides, where these are of a view, and of others.
    for grad in (x, torch.randn(999).as_strided(shape, stride)):
        with nullcontext() if way == "twin" else kernels.use_isa(way):
            mask = kernels.mask_by_bits_reference if way == "twin" else kernels.mask_by_bits
            with pytest.raises(ValueError, match=r"has strides \(.*without gaps"):
                mask(grad, bits, stride)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda() -> None:
    x = special_values(1001)
    y, bits = kernels.relu_bits(x.cuda(), 6.0)
    expected, expected_bits = kernels.relu_bits(x, 6.0)
    assert_same(y.cpu(), expected)
    assert torch.equal(bits.cpu(), expected_bits)
