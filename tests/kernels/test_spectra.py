"""Kernels of spectra: against their twins in float64, and the twins against their definition in numpy."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge import kernels
from flower_edge.kernels import _spectra
from flower_edge.kernels._spectra import map_of_products, tile_spectra
from flower_edge.kernels._spectra_reference import map_of_products_reference, tile_spectra_reference
from flower_edge.kernels._tiling import HIGHEST_FREQUENCY, Tiling, low_frequencies, tiling

pytestmark = pytest.mark.board

ISAS = kernels.available_isas()
FORMATS = [torch.channels_last, torch.contiguous_format]
CHANNELS = [1, 2, 7, 15, 16, 31, 33, 97]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cells(cut: Tiling) -> Iterator[tuple[int, int, int, int, int]]:
    """Go through the cells of all windows that lie in the map: tile, place in it, place in the map."""
    for p, q in np.ndindex(*cut.tiles):
        for i, j in np.ndindex(*cut.window):
            h, w = p * cut.step[0] - cut.offset[0] + i, q * cut.step[1] - cut.offset[1] + j
            if 0 <= h < cut.shape[2] and 0 <= w < cut.shape[3]:
                yield p * cut.tiles[1] + q, i, j, h, w


def angles(cut: Tiling, i: int, j: int) -> np.ndarray:
    places = [cut.spacing[axis] * (at - (cut.window[axis] - 1) / 2) for axis, at in enumerate((i, j))]
    turns = [f * places[0] / cut.period[0] + g * places[1] / cut.period[1] for f, g in cut.frequencies]
    return 2 * np.pi * np.array(turns)


def spectra_by_definition(x: torch.Tensor, cut: Tiling) -> torch.Tensor:
    count = len(cut.frequencies)
    found = np.zeros((1 + 2 * count, cut.shape[0], cut.tiles[0] * cut.tiles[1], cut.shape[1]))
    values = x.double().numpy()
    for tile, i, j, h, w in cells(cut):
        angle = angles(cut, i, j)
        waves = np.concatenate([[1.0], np.cos(angle), np.sin(angle)])
        found[:, :, tile] += waves[:, None, None] * values[:, :, h, w]
    return torch.from_numpy(found).flatten(1, 2)


def map_by_definition(products: torch.Tensor, cut: Tiling) -> torch.Tensor:
    count = len(cut.frequencies)
    images, channels = cut.shape[:2]
    by_tile = products.double().numpy().reshape(len(products), images, cut.tiles[0] * cut.tiles[1], channels)
    found = np.zeros(cut.shape)
    for tile, i, j, h, w in cells(cut):
        u, v, s = (by_tile[1 + k * count : 1 + (k + 1) * count, :, tile] for k in range(3))
        angle = angles(cut, i, j)[:, None, None]
        waves = (u - v) * np.cos(angle) + (s - u - v) * np.sin(angle)
        found[:, :, h, w] += by_tile[0, :, tile] + waves.sum(axis=0)
    return torch.from_numpy(found)


def sizes_of_spectra(x: torch.Tensor, cut: Tiling) -> torch.Tensor:
    """Sums of magnitudes, which bound what float32 rounds."""
    return tile_spectra_reference(x.double().abs(), cut)[:1]


def sizes_of_map(products: torch.Tensor, cut: Tiling) -> torch.Tensor:
    count = len(cut.frequencies)
    p = products.double().abs()
    # u and w are in both parts.
    factors = torch.tensor([1.0] + [2.0] * (2 * count) + [1.0] * count, dtype=torch.float64)
    constants = torch.einsum("k,kmc->mc", factors, p)[None]
    whole = torch.cat([constants, torch.zeros_like(p[1:])])
    return map_of_products_reference(whole, cut)


def relative(received: torch.Tensor, expected: torch.Tensor, sizes: torch.Tensor) -> float:
    assert received.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return float(((received.double() - expected).abs() / (sizes + 1e-12)).max())


@st.composite
def tilings(draw: st.DrawFn, channels: st.SearchStrategy[int], widest: int = 9) -> Tiling:
    def pairs(least: int, most: int) -> tuple[int, int]:
        one = st.integers(least, most)
        return draw(st.tuples(one, one))

    period = pairs(1, 2 * widest)
    highest = [min(HIGHEST_FREQUENCY, (cells - 1) // 2) for cells in period]
    everything = [
        (f, g) for f in range(highest[0] + 1) for g in range(-highest[1], highest[1] + 1) if (f, g) >= (0, 1)
    ]
    chosen = st.lists(st.sampled_from(everything), unique=True, max_size=12) if everything else st.just([])
    return tiling(
        (draw(st.integers(0, 2)), draw(channels), *pairs(1, 17)),
        tiles=pairs(1, 4),
        step=pairs(1, widest),
        offset=pairs(-6, 12),
        window=pairs(1, widest),
        spacing=pairs(1, 3),
        period=period,
        frequencies=tuple(draw(chosen)),
    )


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def random_products(cut: Tiling, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return random(1 + 3 * len(cut.frequencies), cut.points, cut.shape[1], seed=seed, dtype=dtype)


@settings(deadline=None, max_examples=60)
@given(tilings(st.integers(0, 2), widest=5), st.integers(0, 2**31))
def test_the_twins_are_the_definition(cut: Tiling, seed: int) -> None:
    x = random(*cut.shape, seed=seed, dtype=torch.float64)
    products = random_products(cut, seed, torch.float64)

    spectra = tile_spectra_reference(x, cut, sums=True)
    whole = map_of_products_reference(products, cut)

    count = len(cut.frequencies)
    torch.testing.assert_close(spectra[: cut.rows], spectra_by_definition(x, cut), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(spectra[cut.rows :], spectra[1 : 1 + count] + spectra[1 + count : cut.rows])
    torch.testing.assert_close(whole, map_by_definition(products, cut), rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(tilings(st.sampled_from(CHANNELS)), st.sampled_from(FORMATS), st.integers(0, 2**31))
def test_kernels_equal_their_twins(cut: Tiling, memory_format: torch.memory_format, seed: int) -> None:
    x = random(*cut.shape, seed=seed).contiguous(memory_format=memory_format)
    products = random_products(cut, seed)
    spectra64 = tile_spectra_reference(x.double(), cut, sums=True)
    whole64 = map_of_products_reference(products.double(), cut)

    for isa in ISAS:
        with kernels.use_isa(isa):
            spectra = tile_spectra(x, cut)
            with_sums = tile_spectra(x, cut, sums=True)
            whole = map_of_products(products, cut)
        assert relative(with_sums, spectra64, sizes_of_spectra(x, cut)) <= 1e-5
        assert torch.equal(spectra, with_sums[: cut.rows])
        assert spectra.is_contiguous()
        assert relative(whole, whole64, sizes_of_map(products, cut)) <= 1e-5
        assert whole.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [(32, 32), (15, 31), (1, 32)])
def test_the_largest_windows_and_all_their_frequencies(isa: str, window: tuple[int, int]) -> None:
    frequencies = low_frequencies(window, 999)
    cut = tiling((2, 17, 40, 33), (2, 2), (20, 16), (1, 2), window, (1, 1), window, frequencies)
    x, products = random(*cut.shape), random_products(cut)

    with kernels.use_isa(isa):
        spectra, whole = tile_spectra(x, cut), map_of_products(products, cut)

    assert relative(spectra, tile_spectra_reference(x.double(), cut), sizes_of_spectra(x, cut)) <= 1e-5
    expected = map_of_products_reference(products.double(), cut)
    assert relative(whole, expected, sizes_of_map(products, cut)) <= 1e-5


@settings(deadline=None, max_examples=30)
@given(tilings(st.integers(1, 3), widest=6))
def test_a_map_of_products_is_the_transpose_of_spectra(cut: Tiling) -> None:
    x = random(*cut.shape, dtype=torch.float64)
    spectra = random(cut.rows, cut.points, cut.shape[1], seed=1, dtype=torch.float64)
    count = len(cut.frequencies)
    cosines, sines = spectra[1 : 1 + count], spectra[1 + count :]
    # u - w and s - u - w are what is given.
    w = random(count, *spectra.shape[1:], seed=2, dtype=torch.float64)
    products = torch.cat([spectra[:1], cosines + w, w, sines + cosines + 2 * w])

    ahead = (tile_spectra(x, cut) * spectra).sum()
    back = (x * map_of_products(products, cut)).sum()

    torch.testing.assert_close(ahead, back, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("window", [(3, 5), (7, 1), (9, 15)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_frequencies_of_odd_windows_restore_a_map(window: tuple[int, int], dtype: torch.dtype) -> None:
    frequencies = low_frequencies(window, 999)
    size = (2 * window[0], 3 * window[1])
    cut = tiling((2, 3, *size), (2, 3), window, (0, 0), window, (1, 1), window, frequencies)
    x = random(*cut.shape, dtype=dtype)
    area = window[0] * window[1]

    spectra = tile_spectra(x, cut) / area
    cosines, sines = 2 * spectra[1 : 1 + len(frequencies)], 2 * spectra[1 + len(frequencies) :]
    products = torch.cat([spectra[:1], cosines, torch.zeros_like(cosines), cosines + sines])

    assert cut.rows == area
    torch.testing.assert_close(map_of_products(products, cut), x)


def example(images: int = 2, channels: int = 3) -> Tiling:
    frequencies = low_frequencies((6, 7), 9)
    return tiling((images, channels, 9, 10), (2, 3), (5, 4), (1, 2), (6, 7), (1, 1), (6, 7), frequencies)


@pytest.mark.usefixtures("_threads")
def test_bits_do_not_depend_on_threads() -> None:
    frequencies = low_frequencies((7, 7), 13)
    cut = tiling((3, 150, 40, 40), (8, 8), (5, 5), (1, 1), (7, 7), (1, 1), (7, 7), frequencies)
    x, products = random(*cut.shape), random_products(cut)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((tile_spectra(x, cut, sums=True), map_of_products(products, cut)))
    for spectra, whole in results[1:]:
        assert torch.equal(spectra, results[0][0])
        assert torch.equal(whole, results[0][1])


@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_in_its_windows_and_is_not_lost(isa: str) -> None:
    cut = tiling((1, 18, 6, 6), (2, 2), (3, 3), (0, 0), (3, 3), (1, 1), (3, 3), low_frequencies((3, 3), 9))
    x = torch.ones(cut.shape)
    x[0, 17, 4, 1] = torch.nan
    products = torch.ones(13, 4, 18)
    products[0, 2, 17] = torch.nan

    with kernels.use_isa(isa):
        spectra, whole = tile_spectra(x, cut), map_of_products(products, cut)

    assert spectra[:, 2, 17].isnan().all()
    assert int(spectra.isnan().sum()) == cut.rows
    assert whole[0, 17, 3:, :3].isnan().all()
    assert int(whole.isnan().sum()) == 9


def test_other_strides_dtypes_and_views_are_served() -> None:
    cut = example()
    wide = random(2, 6, 10, 20)
    row = random(3, 1, 10)
    expanded = row.expand(2, 3, 9, 10)
    for view in (
        wide[:, 1:4, 1:, ::2],
        wide[:, ::2, :9, :10],
        torch._neg_view(wide)[:, :3, :9, :10],
        expanded,
    ):
        received = tile_spectra(view, cut)
        expected = tile_spectra_reference(view.double(), cut)
        torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=1e-5)
    products = random_products(cut).mT.contiguous().mT
    expected = map_of_products_reference(products.double(), cut)
    torch.testing.assert_close(map_of_products(products, cut).double(), expected, rtol=1e-5, atol=1e-5)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert tile_spectra(random(*cut.shape, dtype=dtype), cut).dtype == dtype
        assert map_of_products(random_products(cut, dtype=dtype), cut).dtype == dtype
    assert tile_spectra(torch.empty(cut.shape, device="meta"), cut).shape == (9, 12, 3)


@pytest.mark.parametrize(("images", "channels"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_maps(images: int, channels: int, dtype: torch.dtype) -> None:
    cut = example(images, channels)

    spectra = tile_spectra(torch.zeros(cut.shape, dtype=dtype), cut, sums=True)

    assert spectra.shape == (13, images * 6, channels)
    assert map_of_products(spectra, cut).shape == cut.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_without_rows_has_spectra_of_nothing(dtype: torch.dtype) -> None:
    cut = tiling((2, 3, 0, 5), (1, 1), (3, 3), (0, 0), (3, 3), (1, 1), (3, 3), low_frequencies((3, 3), 5))

    assert torch.equal(
        tile_spectra(torch.zeros(cut.shape, dtype=dtype), cut), torch.zeros(5, 2, 3, dtype=dtype)
    )
    assert map_of_products(random_products(cut, dtype=dtype), cut).shape == cut.shape


def test_without_the_extension_the_twins_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = example()
    x, products = random(*cut.shape), random_products(cut)
    before = tile_spectra(x, cut), map_of_products(products, cut)
    monkeypatch.setattr(_spectra._dispatch, "extension", None)
    torch.testing.assert_close((tile_spectra(x, cut), map_of_products(products, cut)), before)
    assert kernels.explain().versions["spectrum"] == "torch"


image = torch.zeros(2, 3, 9, 10)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: tile_spectra(image.numpy(), example()),
            TypeError,
            "x is a ndarray, expected a torch tensor",
        ),
        (lambda: tile_spectra(image.int(), example()), TypeError, "x is a torch.int32 tensor"),
        (lambda: tile_spectra(image.to_sparse(), example()), TypeError, "torch.sparse_coo"),
        (
            lambda: tile_spectra(image[:1], example()),
            ValueError,
            r"x has shape \(1, 3, 9, 10\), expected \(2, 3, 9, 10\) as the tiling says",
        ),
        (
            lambda: tile_spectra(image.clone().requires_grad_(), example()),
            ValueError,
            r"x requires gradients.*x.detach\(\)",
        ),
        (
            lambda: map_of_products(torch.zeros(9, 12, 3), example()),
            ValueError,
            r"products has shape \(9, 12, 3\), expected \(13, 12, 3\)",
        ),
        (
            lambda: map_of_products(torch.zeros(13, 12, 3).long(), example()),
            TypeError,
            "products is a torch.int64",
        ),
        (
            lambda: map_of_products(torch.zeros(13, 12, 3, requires_grad=True), example()),
            ValueError,
            r"products requires gradients.*products.detach\(\)",
        ),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_a_tensor_that_requires_gradients_is_served_where_none_are_recorded() -> None:
    with torch.no_grad():
        assert tile_spectra(image.clone().requires_grad_(), example()).shape == (9, 12, 3)
