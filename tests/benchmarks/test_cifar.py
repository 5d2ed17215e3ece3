"""CIFAR-10's loader on parquet files made here, and augmentation and split against plain loops."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import pad

from benchmarks.cifar import (
    MARGIN,
    VARIABLE,
    Images,
    augmented,
    cache_folder,
    cifar10,
    data_option,
    dirichlet_split,
    normalised,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(n: int, seed: int = 0, side: int = 32) -> Images:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 3, side, side), np.uint8)
    return Images(torch.from_numpy(pixels), torch.arange(n) % 10)


def write_parquet(path: Path, images: Images, mode: str = "RGB") -> None:
    rows = []
    for pixels in images.pixels.permute(0, 2, 3, 1).numpy():
        stream = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(stream, "png")
        rows.append({"bytes": stream.getvalue(), "path": None})
    pyarrow.parquet.write_table(pyarrow.table({"img": rows, "label": images.labels.tolist()}), path)


def test_images_are_read_once_and_kept(tmp_path: Path) -> None:
    train, test = noise(23), noise(7, seed=1)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", train.rows(range(15)))
    write_parquet(tmp_path / "train-00001-of-00002.parquet", train.rows(range(15, 23)))
    write_parquet(tmp_path / "test.parquet", test)

    for _ in range(2):
        for found, wanted in zip(cifar10(tmp_path), (train, test), strict=True):
            assert torch.equal(found.pixels, wanted.pixels)
            assert torch.equal(found.labels, wanted.labels)

    assert len(list(cache_folder().iterdir())) == 2
    write_parquet(tmp_path / "test.parquet", noise(7, seed=2))
    assert torch.equal(cifar10(tmp_path)[1].pixels, noise(7, seed=2).pixels)


def test_grey_images_become_coloured(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", noise(2), mode="L")

    pixels = cifar10(tmp_path)[0].pixels

    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no train\*\.parquet"):
        cifar10(tmp_path)
    write_parquet(tmp_path / "train.parquet", noise(2, side=28))
    with pytest.raises(ValueError, match="image 0 is"):
        cifar10(tmp_path)
    write_parquet(tmp_path / "train.parquet", Images(noise(2).pixels, torch.tensor([3, 10])))
    with pytest.raises(ValueError, match="from 0 to 9"):
        cifar10(tmp_path)


def test_the_folder_is_named_by_option_or_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(SystemExit):
        data_option().parse_args([])
    assert f"by --data FOLDER or {VARIABLE}" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(SystemExit):
        data_option().parse_args([])
    assert "there is no folder of CIFAR-10 at" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert data_option().parse_args([]).data == tmp_path
    assert data_option().parse_args(["--data", str(tmp_path.parent)]).data == tmp_path.parent


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(4, 9), st.integers(4, 9), st.integers(0, 99))
def test_each_image_is_shifted_and_half_are_mirrored(n: int, height: int, width: int, seed: int) -> None:
    pixels = torch.randint(1, 256, (n, 3, height, width), dtype=torch.uint8)

    found = augmented(pixels, torch.Generator().manual_seed(seed))

    for image, source in zip(found, pad(pixels, (MARGIN,) * 4), strict=True):
        shifts = range(2 * MARGIN + 1)
        assert any(
            torch.equal(candidate, image)
            for y in shifts
            for x in shifts
            for crop in [source[:, y : y + height, x : x + width]]
            for candidate in (crop, crop.flip(2))
        )


def test_all_shifts_and_both_mirrorings_occur() -> None:
    """A single white pixel in the middle shows where each image went."""
    pixels = torch.zeros(4000, 1, 11, 11, dtype=torch.uint8)
    pixels[:, :, 5, 5] = 1

    found = augmented(pixels, torch.Generator().manual_seed(0)).sum(0)[0].int()

    assert (found[1:10, 1:10] > 0).all()
    assert found.sum() == 4000
    left = torch.zeros(4000, 1, 4, 32, dtype=torch.uint8)
    left[..., 8] = 1
    moved = augmented(left, torch.Generator().manual_seed(0))[..., 16:].amax((1, 2, 3))
    assert 0.3 < moved.double().mean() < 0.5, "of half of them, some are shifted out of sight"


def test_normalised_images_have_mean_0_and_variance_1() -> None:
    from benchmarks.cifar import MEAN, STD

    colours = torch.tensor([[m - s, m + s] for m, s in zip(MEAN, STD, strict=True)]) * 255
    pixels = colours.round().byte()[None, :, :, None].expand(2, 3, 2, 4)

    found = normalised(pixels)

    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=0.01, rtol=0)
    torch.testing.assert_close(found.var((0, 2, 3), correction=0), torch.ones(3), atol=0.02, rtol=0)


def test_an_epoch_shows_every_image_of_whole_batches_once() -> None:
    images = Images(noise(23).pixels, torch.arange(23))
    generator = torch.Generator().manual_seed(0)

    epochs = [torch.cat([y for _, y in images.shuffled(5, generator)]) for _ in range(2)]

    assert all(len(set(epoch.tolist())) == 20 for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(torch.cat([y for _, y in images.batches(5)]), images.labels)


def test_subsets() -> None:
    images = noise(40)

    some = images.of_classes({7, 2})

    assert sorted(set(some.labels.tolist())) == [2, 7]
    assert torch.equal(some.pixels, images.pixels[(images.labels == 2) | (images.labels == 7)])
    drawn = Images(images.pixels, torch.arange(40)).sample(40, seed=1)
    assert sorted(drawn.labels.tolist()) == list(range(40))
    with pytest.raises(ValueError, match="41"):
        images.sample(41, seed=0)


@settings(deadline=None)
@given(st.integers(2, 9), st.sampled_from([0.1, 0.5, 10.0]), st.integers(0, 99))
def test_every_image_goes_to_one_node(nodes: int, alpha: float, seed: int) -> None:
    labels = torch.arange(200) % 7

    owned = dirichlet_split(labels, nodes, alpha, seed, fewest=3)

    assert sorted(np.concatenate(owned).tolist()) == list(range(200))
    assert min(map(len, owned)) >= 3
    again = dirichlet_split(labels, nodes, alpha, seed, fewest=3)
    assert json.dumps([o.tolist() for o in owned]) == json.dumps([o.tolist() for o in again])


def test_label_skew_grows_as_alpha_falls() -> None:
    labels = torch.arange(1000) % 10

    def most_common(alpha: float) -> float:
        owned = dirichlet_split(labels, 8, alpha, seed=0)
        return float(np.mean([labels[own].bincount().max() / len(own) for own in owned]))

    assert most_common(0.1) > most_common(1.0) > most_common(100.0)
    with pytest.raises(ValueError, match="too few"):
        dirichlet_split(labels[:7], 4, 1.0, seed=0)
