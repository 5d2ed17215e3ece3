"""The quickstart's data sets, read from tiny files made here, and their partitions."""

import gzip
import io
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from quickstart.data import load_dataset, partition

PREFIXES = ("train", "t10k")


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    yield
    load_dataset.cache_clear()
    partition.cache_clear()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_fashion(folder: Path, *, zipped: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    written = {}
    for prefix, n in zip(PREFIXES, (6, 3), strict=True):
        images = rng.integers(0, 256, (n, 4, 5), np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
        written[prefix] = images, labels
    return written


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_read_to_the_last_byte(tmp_path: Path, zipped: bool) -> None:
    written = write_fashion(tmp_path, zipped=zipped)

    for dataset, prefix in zip(load_dataset("fashion-mnist", str(tmp_path)), PREFIXES, strict=True):
        images, labels = dataset.tensors
        expected_images, expected_labels = written[prefix]
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), 3, 4, 5)
        for channel in range(3):
            np.testing.assert_array_equal(images[:, channel], expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def damaged(content: bytes, how: str) -> bytes:
    return {
        "another type": content[:2] + b"\x0d" + content[3:],
        "cut": content[:-1],
        "too long": content + b"\0",
        "claims terabytes": content[:4] + struct.pack(">3i", *[2**30] * 3) + content[16:],
        "empty": b"",
    }[how]


@pytest.mark.parametrize("how", ["another type", "cut", "too long", "claims terabytes", "empty"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, how: str) -> None:
    write_fashion(tmp_path, zipped=False)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(damaged(file.read_bytes(), how))

    with pytest.raises(ValueError, match="train-images-idx3-ubyte is no IDX file with 3 dimensions"):
        load_dataset("fashion-mnist", str(tmp_path))


def test_as_many_images_as_labels(tmp_path: Path) -> None:
    write_fashion(tmp_path, zipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(5, np.uint8)))

    with pytest.raises(ValueError, match="6 images and 5 labels"):
        load_dataset("fashion-mnist", str(tmp_path))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_cifar10(folder: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    rng = np.random.default_rng(0)
    written = {}
    for split, n in (("train", 5), ("test", 2)):
        images = rng.integers(0, 256, (n, 6, 6, 3), np.uint8)
        labels = [int(label) for label in rng.integers(0, 10, n)]
        cells = [{"bytes": png(pixels), "path": None} for pixels in images]
        # In two files, as the hub splits large sets.
        for part, rows in enumerate((slice(0, 1), slice(1, None))):
            table = pa.table({"img": cells[rows], "label": labels[rows]})
            pq.write_table(table, folder / f"{split}-0000{part}-of-00002.parquet")
        written[split] = images, labels
    return written


def test_cifar10_is_read_to_the_last_pixel(tmp_path: Path) -> None:
    written = write_cifar10(tmp_path)

    for dataset, split in zip(load_dataset("cifar10", str(tmp_path)), ("train", "test"), strict=True):
        images, labels = dataset.tensors
        expected_images, expected_labels = written[split]
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1), expected_images)
        assert labels.tolist() == expected_labels


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "test-00001-of-00002.parquet").write_bytes(b"PAR1 and no more")

    with pytest.raises(ValueError, match=r"test\*\.parquet .* cannot be read as img and label"):
        load_dataset("cifar10", str(tmp_path))


def test_an_image_that_is_none_is_an_error(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table = pa.table({"img": [{"bytes": b"no image", "path": ""}], "label": [1]})
        pq.write_table(table, tmp_path / f"{split}.parquet")

    with pytest.raises(ValueError, match="expected images of one size"):
        load_dataset("cifar10", str(tmp_path))


def test_digits_are_whole_and_split_for_good() -> None:
    train, test = load_dataset("digits", "")
    load_dataset.cache_clear()
    again, _ = load_dataset("digits", "")

    assert len(train) + len(test) == 1797
    assert train.tensors[0].shape[1:] == (3, 8, 8)
    assert train.tensors[0].max() == 255
    assert torch.equal(train.tensors[0], again.tensors[0])
    in_train = {bytes(image.numpy()) for image in train.tensors[0]}
    assert not any(bytes(image.numpy()) in in_train for image in test.tensors[0])


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_an_unreadable_path_says_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"data-path '{tmp_path / 'nowhere'}' has no train.*; expected"
    ):
        load_dataset(name, str(tmp_path / "nowhere"))


def test_an_unknown_dataset_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="dataset is 'imagenet'; expected one of digits, fashion-mnist, cifar10"
    ):
        load_dataset("imagenet", "")


@pytest.mark.parametrize(("nodes", "alpha", "seed"), [(33, 0.3, seed) for seed in range(5)] + [(4, 100.0, 0)])
def test_partitions_are_disjoint_and_cover_everything(nodes: int, alpha: float, seed: int) -> None:
    rows = partition("digits", "", nodes, alpha, seed)

    assert len(rows) == nodes
    assert min(map(len, rows)) >= 4
    assert sorted(row for own in rows for row in own) == list(range(len(load_dataset("digits", "")[0])))


def test_partitions_follow_from_the_seed_alone() -> None:
    first = partition("digits", "", 33, 0.3, 0)
    partition.cache_clear()

    assert partition("digits", "", 33, 0.3, 0) == first
    assert partition("digits", "", 33, 0.3, 1) != first


def test_a_small_alpha_skews_labels() -> None:
    labels = load_dataset("digits", "")[0].tensors[1]

    def largest_share(alpha: float) -> float:
        shares = []
        for own in partition("digits", "", 10, alpha, 0):
            counts = Counter(labels[own].tolist())
            shares.append(max(counts.values()) / len(own))
        return float(np.mean(shares))

    assert largest_share(0.3) > largest_share(100.0) + 0.15
