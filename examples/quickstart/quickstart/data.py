"""Three image sets, and how they are dealt out to the nodes."""

import gzip
import math
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

if TYPE_CHECKING:
    import pyarrow

Bytes = npt.NDArray[np.uint8]
Splits = tuple[TensorDataset, TensorDataset]

MIN_PARTITION_SIZE = 4
MAX_IDX_BYTES = 2**30


@cache
def load_dataset(name: str, path: str) -> Splits:
    """Return (train, test), each of uint8 images (n, 3, height, width) and int64 labels (n,).

    Grey images get three equal channels, so that one model does for all sets. What is read stays in memory,
    because one process of the simulation plays many nodes.
    """
    readers = {"digits": _read_digits, "fashion-mnist": _read_fashion_mnist, "cifar10": _read_cifar10}
    if name not in readers:
        raise ValueError(f"dataset is {name!r}; expected one of {', '.join(readers)}")
    return readers[name](path)


@cache
def partition(name: str, path: str, num_partitions: int, alpha: float, seed: int) -> list[list[int]]:
    """Return each node's rows of the training set: label skew by Dirichlet(alpha), every row exactly once."""
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    train, _ = load_dataset(name, path)
    labels = train.tensors[1].tolist()
    partitioner = DirichletPartitioner(
        num_partitions, "label", alpha, min_partition_size=MIN_PARTITION_SIZE, seed=seed
    )
    partitioner.dataset = Dataset.from_dict({"row": range(len(labels)), "label": labels})
    return [list(partitioner.load_partition(node)["row"]) for node in range(num_partitions)]


def _read_digits(path: str) -> Splits:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    sixteenths, labels = load_digits(return_X_y=True)
    images = (sixteenths.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return _grey(train_images, train_labels), _grey(test_images, test_labels)


def _read_fashion_mnist(path: str) -> Splits:
    def split(prefix: str) -> TensorDataset:
        images = _read_idx(path, f"{prefix}-images-idx3-ubyte", dimensions=3)
        return _grey(images, _read_idx(path, f"{prefix}-labels-idx1-ubyte", dimensions=1))

    return split("train"), split("t10k")


def _grey(images: Bytes, labels: npt.NDArray[np.integer]) -> TensorDataset:
    if len(images) != len(labels):
        raise ValueError(f"received {len(images)} images and {len(labels)} labels, expected as many")
    channels = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)
    return TensorDataset(channels, torch.from_numpy(labels.astype(np.int64)))


def _read_idx(folder: str, name: str, dimensions: int) -> Bytes:
    """Read an IDX file: 0, 0, 8 for bytes, the number of dimensions, each as a big-endian int32, the data."""
    files = [file for file in (Path(folder, name), Path(folder, f"{name}.gz")) if file.is_file()]
    if not files:
        raise FileNotFoundError(
            f"data-path {folder!r} has no {name}, plain or .gz; expected Fashion-MNIST's four IDX files, "
            "such as those in /usr/share/datasets/fashion-mnist of Debian's package dataset-fashion-mnist"
        )
    try:
        with gzip.open(files[0]) if files[0].suffix == ".gz" else files[0].open("rb") as stream:
            if (magic := stream.read(4)) != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"begins with {magic!r}")
            shape = [int.from_bytes(stream.read(4), "big") for _ in range(dimensions)]
            size = math.prod(shape)
            if size > MAX_IDX_BYTES or len(content := stream.read(size + 1)) != size:
                raise ValueError(f"its data is not of the shape {shape} that it claims")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{files[0]} is no IDX file with {dimensions} dimensions of bytes: {error}"
        ) from error
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def _read_cifar10(path: str) -> Splits:
    table = _parquet if path else _hub
    return _colour(table(path, "train"), path), _colour(table(path, "test"), path)


def _parquet(folder: str, split: str) -> "pyarrow.Table":
    import pyarrow
    import pyarrow.parquet

    files = sorted(Path(folder).glob(f"{split}*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"data-path {folder!r} has no {split}*.parquet; expected CIFAR-10 in the Hugging Face "
            "layout. An empty data-path downloads it"
        )
    try:
        return pyarrow.concat_tables(pyarrow.parquet.read_table(f, columns=["img", "label"]) for f in files)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{split}*.parquet in {folder!r} cannot be read as img and label: {error}"
        ) from error


def _hub(_: str, split: str) -> "pyarrow.Table":
    from flwr_datasets import FederatedDataset

    hub = FederatedDataset(dataset="uoft-cs/cifar10", partitioners={"train": 1})
    return hub.load_split(split).with_format("arrow")[:]


def _colour(table: "pyarrow.Table", path: str) -> TensorDataset:
    from PIL import Image

    try:
        cells = table["img"].to_pylist()
        images = np.stack([np.asarray(Image.open(BytesIO(cell["bytes"])).convert("RGB")) for cell in cells])
        labels = torch.tensor(table["label"].to_pylist())
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"data-path {path!r}: expected images of one size and whole labels: {error}"
        ) from error
    return TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)
