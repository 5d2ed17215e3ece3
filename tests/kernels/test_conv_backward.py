"""Both gradients of a filtered convolution: however divided, with and without vectors, against the twin."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge import kernels
from flower_edge.kernels import _conv

ISAS = kernels.available_isas()
FORMATS = [torch.channels_last, torch.contiguous_format]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tensors(
    images: int, outputs: int, inputs: int, height: int, width: int, patch: int, components: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...], tuple[int, int]]:
    patches = (-(-height // patch), -(-width // patch))
    points = images * patches[0] * patches[1]
    grad = torch.randn(images, outputs, height, width).contiguous(memory_format=torch.channels_last)
    sums, taps = torch.randn(components, points, inputs), torch.randn(components, outputs, inputs)
    return grad, sums, taps, (images, inputs, height, width), patches


def close(received: Any, expected: torch.Tensor, magnitude: torch.Tensor) -> bool:
    return bool(((received - expected).abs() <= 1e-5 * magnitude + 1e-30).all())


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_slabs_equal_their_twin(data: st.DataObject) -> None:
    integers = st.integers
    patch = data.draw(st.sampled_from([1, 2, 3, 4]))
    components = data.draw(integers(1, patch * patch)) if patch in (2, 4) else 1
    stride, offset = data.draw(integers(1, 2)), data.draw(integers(-2, 2))
    images, outputs, inputs = (data.draw(integers(1, most)) for most in (5, 40, 40))
    height, width = data.draw(integers(1, 40)), data.draw(integers(1, 40))
    torch.manual_seed(data.draw(integers(0, 99)))
    grad, sums, taps, _, patches = tensors(images, outputs, inputs, height, width, patch, components)
    grad = grad.contiguous(memory_format=data.draw(st.sampled_from(FORMATS)))
    sums = sums.mT.contiguous().mT if data.draw(st.booleans()) else sums
    x_shape = (images, inputs, height * stride - data.draw(integers(0, stride - 1)), width * stride)
    channels_last = data.draw(st.booleans())
    cut = (x_shape, patch, offset, patches, stride)
    with kernels.use_isa(data.draw(st.sampled_from(ISAS))):
        grad_x, gram = kernels.conv_filter_backward(grad, sums, taps, *cut, channels_last=channels_last)
    expected = kernels.conv_filter_backward_reference(grad.double(), sums.double(), taps.double(), *cut)
    magnitudes = kernels.conv_filter_backward_reference(
        grad.double().abs(), sums.double().abs(), taps.double().abs(), *cut
    )
    if components == 1:
        assert expected[0] is not None
        assert magnitudes[0] is not None
        assert close(grad_x, expected[0], magnitudes[0])
        assert expected[1] is not None
        assert magnitudes[1] is not None
        assert close(gram, expected[1], magnitudes[1])
    else:
        # Of several components, the magnitude of one is no bound for that of another.
        torch.testing.assert_close(grad_x, expected[0], rtol=1e-4, atol=1e-4, check_dtype=False)
        torch.testing.assert_close(gram, expected[1], rtol=1e-4, atol=1e-4, check_dtype=False)
    assert grad_x is not None
    assert grad_x.is_contiguous(memory_format=FORMATS[not channels_last])


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_depend_on_the_number_of_threads_alone(threads: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    grad, sums, taps, x_shape, patches = tensors(4, 48, 64, 37, 40, 2, 1)
    first, *others = (
        kernels.conv_filter_backward(grad, sums, taps, x_shape, 2, 0, patches) for _ in range(4)
    )
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    alone = kernels.conv_filter_backward(grad, sums, None, x_shape, 2, 0, patches, needs=(False, True))
    assert alone[0] is None
    assert torch.equal(alone[1], first[1])
    alone = kernels.conv_filter_backward(grad, None, taps, x_shape, 2, 0, patches, needs=(True, False))
    assert alone[1] is None
    assert torch.equal(alone[0], first[0])


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("components", [1, 3])
def test_every_division_into_slabs_gives_the_same(
    threads: int, components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    grad, sums, taps, x_shape, patches = tensors(3, 32, 24, 30, 44, 2, components)
    whole = kernels.conv_filter_backward_reference(grad, sums, taps, x_shape, 2, 0, patches)
    for floats in (1, 1 << 14, 1 << 30):
        monkeypatch.setattr(_conv, "_SLAB_FLOATS", floats)
        monkeypatch.setattr(_conv, "_LEAST_POINTS", 1)
        _conv._plan.cache_clear()
        slabs = kernels.conv_filter_backward(grad, sums, taps, x_shape, 2, 0, patches)
        for received, expected in zip(slabs, whole, strict=True):
            torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-4)
    _conv._plan.cache_clear()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 15), (31, 33), (97, 64), (64, 97), (130, 40)])
@pytest.mark.parametrize("patch", [1, 2])
def test_products_of_every_version(isa: str, outputs: int, inputs: int, patch: int) -> None:
    # More points than a product takes at a time, and of outputs than a tile has.
    torch.manual_seed(0)
    grad, sums, taps, x_shape, patches = tensors(3, outputs, inputs, 22 * patch, 19 * patch, patch, 1)
    given = grad.double(), sums.double(), taps.double()
    expected = kernels.conv_filter_backward_reference(*given, x_shape, patch, 0, patches)
    magnitudes = kernels.conv_filter_backward_reference(*(t.abs() for t in given), x_shape, patch, 0, patches)
    with kernels.use_isa(isa):
        received = kernels.conv_filter_backward(grad, sums, taps, x_shape, patch, 0, patches)
    for one, two, magnitude in zip(received, expected, magnitudes, strict=True):
        assert two is not None
        assert magnitude is not None
        assert close(one, two, magnitude)


def test_without_vectors_whole_maps_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_conv, "_in_slabs", None)
    grad, sums, taps, x_shape, patches = tensors(3, 8, 12, 10, 11, 2, 2)
    with kernels.use_isa("serial"):
        received = kernels.conv_filter_backward(grad, sums, taps, x_shape, 2, 0, patches)
    expected = kernels.conv_filter_backward_reference(grad, sums, taps, x_shape, 2, 0, patches)
    for one, two in zip(received, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_nan_stays_in_its_patch_and_reaches_its_channel() -> None:
    grad, sums, taps, x_shape, patches = tensors(2, 8, 12, 8, 8, 2, 1)
    grad[1, 3, 5, 5] = torch.nan
    grad_x, gram = kernels.conv_filter_backward(grad, sums, taps, x_shape, 2, 0, patches)
    assert grad_x is not None
    assert gram is not None
    poisoned = torch.zeros(2, 12, 8, 8, dtype=torch.bool)
    poisoned[1, :, 4:6, 4:6] = True
    assert torch.equal(grad_x.isnan(), poisoned)
    assert gram[0, 3].isnan().all()
    assert not gram[0, :3].isnan().any()


@pytest.mark.parametrize("images", [0, 2])
def test_maps_without_cells_are_served(images: int) -> None:
    grad, sums, taps, x_shape, patches = tensors(images, 8, 12, 8, 8, 2, 1)
    grad_x, gram = kernels.conv_filter_backward(
        grad, sums, taps[:, :, :0], (*x_shape[:1], 0, 8, 8), 2, 0, 4, needs=(True, False)
    )
    assert grad_x is not None
    assert grad_x.shape == (images, 0, 8, 8)
    assert gram is None
    _, gram = kernels.conv_filter_backward(grad, sums, taps, x_shape, 2, 0, patches)
    assert gram is not None
    assert gram.shape == (1, 8, 12)
    assert bool((gram == 0).all()) == (images == 0)


GRAD, SUMS, TAPS, X_SHAPE, PATCHES = tensors(2, 8, 12, 8, 8, 2, 1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: kernels.conv_filter_backward(GRAD, None, None, X_SHAPE, 2, 0, 4),
            ValueError,
            "tap_sums is None",
        ),
        (
            lambda: kernels.conv_filter_backward(GRAD, SUMS[:, 1:], TAPS, X_SHAPE, 2, 0, 4),
            ValueError,
            r"x_sums has shape \(1, 31, 12\), expected \(1, 32, 12\)",
        ),
        (
            lambda: kernels.conv_filter_backward(GRAD, SUMS, TAPS.mT, X_SHAPE, 2, 0, 4),
            ValueError,
            r"tap_sums has shape \(1, 12, 8\), expected \(1, 8, 12\)",
        ),
        (
            lambda: kernels.conv_filter_backward(GRAD, SUMS, TAPS, (3, *X_SHAPE[1:]), 2, 0, 4),
            ValueError,
            "expected the 2 images of grad",
        ),
        (
            lambda: kernels.conv_filter_backward(GRAD, SUMS.double(), TAPS, X_SHAPE, 2, 0, 4),
            TypeError,
            "x_sums is torch.float64",
        ),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_nothing_is_wanted() -> None:
    received = kernels.conv_filter_backward(GRAD, None, None, X_SHAPE, 2, 0, 4, needs=(False, False))
    assert received == (None, None)
