"""CIFAR-10 as the accuracy benchmarks use it: bytes in memory, augmented and normalised batch by batch.

The images are not part of this repository. ``--data FOLDER``, or FLOWER_EDGE_CIFAR10, names a folder with
``train*.parquet`` and ``test*.parquet`` in the Hugging Face layout (columns ``img`` = {bytes, path} and
``label``), as ``datasets`` downloads them from ``uoft-cs/cifar10``.
"""

import argparse
import hashlib
import io
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.harness import folder_option

VARIABLE = "FLOWER_EDGE_CIFAR10"
CLASSES = 10
SIDE = 32
MARGIN = 4
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Of each colour over the training set, with pixels from 0 to 1."""

Rows = npt.NDArray[np.int64]


def data_option() -> argparse.ArgumentParser:
    """Return the option that names the folder of CIFAR-10; it has to be there."""
    return folder_option("--data", VARIABLE, _folder, "with CIFAR-10 in parquet files")


def _folder(named: str) -> Path:
    if not named:
        raise argparse.ArgumentTypeError(
            f"name a folder with CIFAR-10 in parquet files by --data FOLDER or {VARIABLE}"
        )
    folder = Path(named)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder of CIFAR-10 at {named!r}")
    return folder


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled colour images.

    Attributes
    ----------
    pixels : Tensor of uint8, shape (n, 3, height, width)
    labels : Tensor of int64, shape (n,)
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def of_classes(self, classes: Collection[int]) -> "Images":
        """Return the images of some classes, whose labels stay as they are."""
        return self.rows(torch.isin(self.labels, torch.tensor(sorted(classes))).nonzero()[:, 0])

    def rows(self, rows: Rows | Tensor) -> "Images":
        """Return the images with these row numbers."""
        rows = torch.as_tensor(rows)
        return Images(self.pixels[rows], self.labels[rows])

    def sample(self, count: int, seed: int) -> "Images":
        """Draw `count` different images.

        Raises
        ------
        ValueError
            If there are fewer.
        """
        if count > len(self):
            raise ValueError(f"count is {count}, expected at most the {len(self)} images that there are")
        return self.rows(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images and labels in order, for evaluation."""
        for pixels, labels in zip(
            torch.split(self.pixels, size), torch.split(self.labels, size), strict=True
        ):
            yield normalised(pixels), labels

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of augmented, normalised images and labels in a random order.

        What does not fill a batch at the end is left out: statistics of a small batch are noise.
        """
        order = torch.randperm(len(self), generator=generator)
        for rows in torch.split(order[: len(order) // size * size], size):
            yield normalised(augmented(self.pixels[rows], generator)), self.labels[rows]


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels each way, filled with black, and mirror half of them.

    Parameters
    ----------
    pixels : Tensor, shape (n, channels, height, width)
        Images of any dtype.
    generator : torch.Generator
        Source of the shifts and of who is mirrored.

    Returns
    -------
    Tensor
        New images of the same shape and dtype.
    """
    n, _, height, width = pixels.shape
    # A view of all crops, out of which one gather takes one each: no loop over images.
    crops = pad(pixels, (MARGIN,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * MARGIN + 1, (2, n), generator=generator)
    cropped = crops[torch.arange(n), :, down, right]
    mirrored = torch.rand(n, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], cropped.flip(3), cropped)


def normalised(pixels: Tensor) -> Tensor:
    """Return float32 images in channels-last layout with mean 0 and variance 1 in each colour."""
    mean, std = (255 * torch.tensor(colours).view(3, 1, 1) for colours in (MEAN, STD))
    return pixels.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)


def dirichlet_split(labels: Tensor, nodes: int, alpha: float, seed: int, fewest: int = 2) -> tuple[Rows, ...]:
    """Deal images out to nodes with label skew; each image goes to one node.

    Each class is split in proportions drawn from a symmetric Dirichlet distribution (Hsu, Qi, Brown 2019),
    again until every node has enough.

    Parameters
    ----------
    labels : Tensor of int64, shape (n,)
        The classes of the images.
    nodes : int
        Number of nodes.
    alpha : float
        Concentration: the smaller, the fewer classes a node has.
    seed : int
        Of the proportions and of who gets which images.
    fewest : int, default 2
        Images that every node has at least.

    Returns
    -------
    tuple of ndarray of int64
        Row numbers of each node.

    Raises
    ------
    ValueError
        If there are too few images for that.
    """
    if nodes * fewest > len(labels):
        raise ValueError(f"{len(labels)} images are too few for {nodes} nodes with at least {fewest} each")
    rng = np.random.default_rng(seed)
    classes = [rng.permutation(np.flatnonzero(labels == label)) for label in torch.unique(labels)]
    while True:
        pieces = []
        for members in classes:
            shares = np.cumsum(rng.dirichlet(np.full(nodes, alpha)))[:-1]
            pieces.append(np.split(members, (shares * len(members)).astype(int)))
        owned = tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
        if min(map(len, owned)) >= fewest:
            return owned


def label_split(labels: Tensor, nodes: int, skew: float, seed: int) -> tuple[Rows, ...]:
    """Deal images out to nodes, some of them by their labels; each image goes to one node.

    The share `skew` of the images is sorted by label and cut into one piece for each node, the others are
    dealt out at random (Hsieh, Phanishayee, Mutlu, Gibbons, ICML 2020): with a skew of 1 a node has one or
    two of ten classes.

    Parameters
    ----------
    labels : Tensor of int64, shape (n,)
        The classes of the images.
    nodes : int
        Number of nodes.
    skew : float
        0 to 1.
    seed : int
        Of who gets which images.

    Returns
    -------
    tuple of ndarray of int64
        Row numbers of each node; their numbers differ by two at most.

    Raises
    ------
    ValueError
        If `skew` is not from 0 to 1.
    """
    if not 0.0 <= skew <= 1.0:
        raise ValueError(f"skew is {skew}, expected 0 to 1")
    order = np.random.default_rng(seed).permutation(len(labels))
    by_label, anywhere = np.split(order, [round(skew * len(labels))])
    by_label = by_label[np.argsort(labels.numpy()[by_label], kind="stable")]
    return tuple(
        np.concatenate(pair)
        for pair in zip(np.array_split(by_label, nodes), np.array_split(anywhere, nodes), strict=True)
    )


def cifar10(folder: Path) -> tuple[Images, Images]:
    """Return CIFAR-10's (training, test) images, decoded on first use and kept in the user's cache folder.

    Raises
    ------
    FileNotFoundError
        If the folder has no parquet files of a split.
    ValueError
        If they hold something else than 32×32 colour images of ten classes.
    """
    return _split(folder, "train"), _split(folder, "test")


def cache_folder() -> Path:
    """Return where this project keeps what can be made again: never inside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flower_edge"


def _split(folder: Path, split: str) -> Images:
    from safetensors.torch import load_file, save_file

    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} has no {split}*.parquet of CIFAR-10")
    # Named by content: a changed file is decoded anew, whatever its date.
    content = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    kept = cache_folder() / f"cifar10-{split}-{content}.safetensors"
    if not kept.exists():
        images = _decoded(files)
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = kept.with_suffix(f".{os.getpid()}.tmp")
        save_file({"pixels": images.pixels, "labels": images.labels}, scratch)
        scratch.replace(kept)
    return Images(**load_file(kept))


def _decoded(files: list[Path]) -> Images:
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.concat_tables(
        pyarrow.parquet.read_table(file, columns=["img", "label"]) for file in files
    )
    pixels = np.empty((len(table), SIDE, SIDE, 3), np.uint8)
    encoded = table["img"].combine_chunks().field("bytes")
    for row, content in enumerate(encoded):
        image = Image.open(io.BytesIO(content.as_py()))
        if image.size != (SIDE, SIDE):
            raise ValueError(f"image {row} is {image.size}, expected {SIDE}×{SIDE} pixels")
        pixels[row] = np.asarray(image.convert("RGB"))
    labels = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"labels of {len(labels)} images; expected some, each from 0 to {CLASSES - 1}")
    return Images(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), labels)
