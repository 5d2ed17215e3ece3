"""Both gradients of a convolution from low frequencies: in one pass, against steps in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge import kernels
from flower_edge.kernels import _spectral_conv, _spectral_slabs
from flower_edge.kernels._spectra import tile_spectra
from flower_edge.kernels._spectral_conv import Tilings, spectral_conv_backward, tilings
from flower_edge.kernels._tiling import low_frequencies, tiling

ISAS = kernels.available_isas()
FORMATS = [torch.channels_last, torch.contiguous_format]
CHANNELS = [1, 7, 15, 31, 33, 64, 65, 97, 130]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cut_of(
    images: int,
    outputs: int,
    inputs: int,
    size: tuple[int, int],
    tile: int = 4,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    components: int = 13,
) -> Tilings:
    """Cut a convolution without padding, so that its input is as large as its windows reach."""
    reach = dilation * (kernel - 1)
    window = stride * (tile - 1) + reach + 1
    tiles = (-(-size[0] // tile), -(-size[1] // tile))
    frequencies = low_frequencies((window, window), components)
    x_size = [stride * (cells - 1) + reach + 1 for cells in size]
    both, period = (tile, tile), (window, window)
    y = tiling((images, outputs, *size), tiles, both, (0, 0), both, (stride, stride), period, frequencies)
    x = tiling(
        (images, inputs, *x_size), tiles, (stride * tile,) * 2, (0, 0), period, (1, 1), period, frequencies
    )
    return tilings(y, x, (outputs, inputs, kernel, kernel), (dilation, dilation))


def tensors(
    cut: Tilings, memory_format: torch.memory_format = torch.channels_last, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a gradient, a weight, and the spectra of an input."""
    generator = torch.Generator().manual_seed(seed)
    grad, weight, x = (
        torch.randn(one.shape, generator=generator).contiguous(memory_format=memory_format)
        for one in (cut.y, cut.taps, cut.x)
    )
    return grad, weight, tile_spectra(x, cut.x)


def in_float64(cut: Tilings, *given: torch.Tensor, groups: int = 1) -> tuple[torch.Tensor, ...]:
    found = spectral_conv_backward(*(tensor.double() for tensor in given), cut, groups)
    return tuple(tensor for tensor in found if tensor is not None)


def are_close(found: Any, expected: tuple[torch.Tensor, ...], bound: float = 1e-5) -> bool:
    return all(
        float((mine.double() - theirs).abs().max()) <= bound * float(theirs.abs().max())
        for mine, theirs in zip(found, expected, strict=True)
    )


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_one_pass_equals_the_steps_in_float64(data: st.DataObject) -> None:
    integers, channels = st.integers, st.sampled_from(CHANNELS)
    cut = cut_of(
        data.draw(integers(1, 3)),
        data.draw(channels),
        data.draw(channels),
        (data.draw(integers(1, 13)), data.draw(integers(1, 13))),
        tile=data.draw(integers(1, 8)),
        kernel=data.draw(integers(1, 5)),
        stride=data.draw(integers(1, 2)),
        dilation=data.draw(integers(1, 2)),
        components=data.draw(st.sampled_from([1, 5, 13, 21, 29])),
    )
    memory_format = data.draw(st.sampled_from(FORMATS))
    given_ = tensors(cut, memory_format, seed=data.draw(integers(0, 99)))
    channels_last = data.draw(st.booleans())
    expected = in_float64(cut, *given_)

    for isa in ISAS:
        with kernels.use_isa(isa):
            grad_x, grad_weight = spectral_conv_backward(*given_, cut, channels_last=channels_last)
        assert grad_x is not None
        assert grad_weight is not None
        assert are_close((grad_x, grad_weight), expected)
        assert grad_x.is_contiguous(memory_format=FORMATS[not channels_last])
        assert grad_weight.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("size", [(1, 1), (7, 15), (31, 33), (97, 1)])
@pytest.mark.parametrize("isa", ISAS)
def test_awkward_sizes(size: tuple[int, int], isa: str) -> None:
    cut = cut_of(2, 33, 97, size, tile=8, components=21)
    given_ = tensors(cut)
    with kernels.use_isa(isa):
        assert are_close(spectral_conv_backward(*given_, cut), in_float64(cut, *given_))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(
    ("outputs", "inputs", "images"), [(64, 64, 5), (48, 150, 3), (200, 64, 1), (16, 16, 40), (70, 130, 7)]
)
def test_bits_do_not_depend_on_threads(
    outputs: int, inputs: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_spectral_conv, "_WORTH_A_THREAD", 1)
    _spectral_conv._division.cache_clear()
    cut = cut_of(images, outputs, inputs, (13, 17))
    given_ = tensors(cut)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(spectral_conv_backward(*given_, cut))
    for result in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(result, results[0], strict=True))
    _spectral_conv._division.cache_clear()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_division_gives_the_same(
    threads: int, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    cut = cut_of(7, 130, 70, (9, 13))
    given_ = tensors(cut, memory_format)
    expected = in_float64(cut, *given_)
    for points in (1, 40, 1 << 20):
        for band in (1, 5, 1 << 20):
            monkeypatch.setattr(_spectral_conv, "_SLAB_FLOATS", 1)
            monkeypatch.setattr(_spectral_conv, "_SLAB_POINTS", points)
            monkeypatch.setattr(_spectral_conv, "_BAND_POINTS", band)
            _spectral_conv._division.cache_clear()
            assert are_close(spectral_conv_backward(*given_, cut), expected)
    _spectral_conv._division.cache_clear()


def test_only_what_is_wanted_is_formed() -> None:
    cut = cut_of(2, 33, 64, (8, 8))
    grad, weight, spectra = tensors(cut)
    both = spectral_conv_backward(grad, weight, spectra, cut)

    grad_x, nothing = spectral_conv_backward(grad, weight, None, cut)
    assert nothing is None
    assert torch.equal(grad_x, both[0])
    nothing, grad_weight = spectral_conv_backward(grad, weight, spectra, cut, needs_x=False)
    assert nothing is None
    assert torch.equal(grad_weight, both[1])
    assert spectral_conv_backward(grad, weight, None, cut, needs_x=False) == (None, None)


def test_without_vectors_or_the_extension_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cut_of(2, 8, 12, (9, 7))
    given_ = tensors(cut)
    taken: list[str] = []
    slabs = _spectral_slabs.spectral_slabs
    monkeypatch.setattr(_spectral_conv, "spectral_slabs", lambda *a: taken.append("steps") or slabs(*a))
    fused = spectral_conv_backward(*given_, cut)
    expected = ["steps"] if kernels.explain().versions["spectrum"] in ("serial", "torch") else []
    assert taken == expected
    taken.clear()
    if "serial" in ISAS:
        with kernels.use_isa("serial"):
            assert are_close(spectral_conv_backward(*given_, cut), fused)
        assert taken == ["steps"]
        taken.clear()
    monkeypatch.setattr(_spectral_conv._dispatch, "extension", None)
    assert are_close(spectral_conv_backward(*given_, cut), fused)
    assert taken == ["steps"]


def test_steps_of_groups_are_those_of_each_group() -> None:
    whole = cut_of(2, 6, 6, (5, 6))
    cut = tilings(whole.y, whole.x, (6, 3, 3, 3), (1, 1))
    grad, weight, spectra = tensors(cut)
    grad_x, grad_weight = spectral_conv_backward(grad, weight, spectra, cut, 2)
    part = cut_of(2, 3, 3, (5, 6))
    for g in range(2):
        of = slice(3 * g, 3 * g + 3)
        found = spectral_conv_backward(grad[:, of], weight[of], spectra[:, :, of], part)
        assert grad_x is not None
        assert grad_weight is not None
        assert are_close((grad_x[:, of], grad_weight[of]), tuple(one.double() for one in found))


def test_other_strides_are_served() -> None:
    cut = cut_of(2, 8, 12, (6, 6))
    grad, weight, spectra = tensors(cut)
    expected = spectral_conv_backward(grad, weight, spectra, cut)
    wide = torch.zeros(2, 16, 6, 6)
    wide[:, ::2] = grad
    strided = wide[:, ::2], weight.transpose(2, 3).contiguous().transpose(2, 3), spectra.mT.contiguous().mT
    found = spectral_conv_backward(*strided, cut)
    assert are_close(found, tuple(one.double() for one in expected), 1e-6)
    turned = spectral_conv_backward(torch._neg_view(-grad), weight, spectra, cut)
    assert are_close(turned, tuple(one.double() for one in expected))


@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_in_its_window_and_reaches_its_channel(isa: str) -> None:
    cut = cut_of(2, 40, 20, (8, 8))
    grad, weight, spectra = tensors(cut)
    grad[1, 3, 5, 5] = torch.nan
    with kernels.use_isa(isa):
        grad_x, grad_weight = spectral_conv_backward(grad, weight, spectra, cut)
    poisoned = torch.zeros(cut.x.shape, dtype=torch.bool)
    poisoned[1, :, 4:10, 4:10] = True
    assert grad_x is not None
    assert grad_weight is not None
    assert torch.equal(grad_x.isnan(), poisoned)
    assert grad_weight[3].isnan().all()
    assert int(grad_weight.isnan().sum()) == grad_weight[3].numel()


@pytest.mark.parametrize(("images", "outputs", "inputs"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_what_is_empty_is_served(images: int, outputs: int, inputs: int) -> None:
    cut = cut_of(images, outputs, inputs, (5, 5))
    grad_x, grad_weight = spectral_conv_backward(*tensors(cut), cut)
    assert grad_x is not None
    assert grad_weight is not None
    assert not grad_x.any()
    assert not grad_weight.any()
    assert grad_x.shape == cut.x.shape


CUT = cut_of(2, 3, 4, (5, 5))
GRAD, WEIGHT, SPECTRA = tensors(CUT)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: spectral_conv_backward(GRAD[:1], WEIGHT, SPECTRA, CUT),
            ValueError,
            r"grad has shape \(1, 3, 5, 5\), expected \(2, 3, 5, 5\) as the tilings say",
        ),
        (
            lambda: spectral_conv_backward(GRAD, WEIGHT[:, :2], SPECTRA, CUT),
            ValueError,
            r"weight has shape \(3, 2, 3, 3\), expected \(3, 4, 3, 3\)",
        ),
        (
            lambda: spectral_conv_backward(GRAD, WEIGHT, SPECTRA[1:], CUT),
            ValueError,
            r"spectra has shape \(12, 8, 4\), expected \(13, 8, 4\)",
        ),
        (
            lambda: spectral_conv_backward(GRAD, WEIGHT.double(), SPECTRA, CUT),
            TypeError,
            "weight is torch.float64",
        ),
        (
            lambda: spectral_conv_backward(GRAD, WEIGHT, SPECTRA.clone().requires_grad_(), CUT),
            ValueError,
            r"spectra requires gradients.*spectra.detach\(\)",
        ),
        (
            lambda: tilings(CUT.y, cut_of(3, 3, 4, (5, 5)).x, (3, 4, 3, 3), (1, 1)),
            ValueError,
            r"output and input have 2 and 3 images .* expected the same",
        ),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
