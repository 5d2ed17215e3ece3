"""The task that every project has: LeNet on a share of Fashion-MNIST, and a count of what it costs.

The images are not part of this repository. ``--data FOLDER``, or FLOWER_EDGE_FASHION_MNIST, names a folder
with ``train-images-idx3-ubyte.gz`` and ``train-labels-idx1-ubyte.gz``: Debian's package
``dataset-fashion-mnist`` puts them into ``/usr/share/datasets/fashion-mnist``.
"""

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, relu

NODES, IMAGES, BATCH, LEARNING_RATE = 8, 1000, 32, 0.05
PARAMETERS = 44_426
LINKS = NODES
"""Of a ring."""

FILES = {"images": "train-images-idx3-ubyte.gz", "labels": "train-labels-idx1-ubyte.gz"}


class LeNet(nn.Module):
    """Two convolutions and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of images of shape (n, 1, 28, 28)."""
        features = max_pool2d(relu(self.conv1(images)), 2)
        features = max_pool2d(relu(self.conv2(features)), 2).flatten(1)
        return self.fc3(relu(self.fc2(relu(self.fc1(features)))))


def share(folder: Path, node: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return a node's images, pixels from 0 to 1, shape (1000, 1, 28, 28), and their labels.

    Raises
    ------
    ValueError
        If a file is missing, or is no IDX file of as many bytes as are needed.
    """
    images = _idx(folder / FILES["images"], 0x803, 16, 28 * 28, node)
    labels = _idx(folder / FILES["labels"], 0x801, 8, 1, node)
    return (images / np.float32(255)).reshape(-1, 1, 28, 28), labels.astype(np.int64)


def _idx(path: Path, magic: int, header: int, size: int, node: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of a node's items of an IDX file."""
    needed = header + size * IMAGES * (node + 1)
    try:
        with gzip.open(path) as file:
            content = file.read(needed)
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error
    if len(content) < needed or int.from_bytes(content[:4], "big") != magic:
        raise ValueError(
            f"{str(path)!r} has {len(content)} bytes and begins with {content[:4].hex()}, expected at least "
            f"{needed} and {magic:08x}"
        )
    return np.frombuffer(content, np.uint8)[-size * IMAGES :]


class Training:
    """One node's training: SGD without momentum, the batches in the same order in each round.

    Parameters
    ----------
    folder : Path
        Of the IDX files.
    node : int
    """

    def __init__(self, folder: Path, node: int) -> None:
        torch.manual_seed(0)
        self.model = LeNet()
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE)
        images, labels = share(folder, node)
        self.images, self.labels = torch.from_numpy(images), torch.from_numpy(labels)

    def epoch(self) -> float:
        """Train for one epoch and return the last batch's loss."""
        loss = torch.zeros(())
        for start in range(0, IMAGES, BATCH):
            batch = slice(start, start + BATCH)
            self.optimizer.zero_grad()
            loss = cross_entropy(self.model(self.images[batch]), self.labels[batch])
            loss.backward()
            self.optimizer.step()
        return float(loss.detach())


def settle(*, one_core: bool) -> None:
    """Let torch use one thread, and this process one core if asked; before there are other threads."""
    torch.set_num_threads(1)
    if one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Marks:
    """What this process has used up when it begins to train for a round.

    Parameters
    ----------
    carried : callable
        Returns the bytes that its links have carried up to now, in one of the two directions.
    """

    def __init__(self, carried: Callable[[], int] = lambda: 0) -> None:
        self._carried = carried
        self._taken: list[tuple[float, float, int]] = []

    def take(self) -> None:
        """Note the CPU seconds of all threads (user and system), the time, and the bytes."""
        self._taken.append((time.process_time(), time.monotonic(), self._carried()))

    def a_round(self) -> dict[str, float]:
        """Return what a round took on average; the first one is start-up."""
        (cpu, seconds, carried), last = self._taken[1], self._taken[-1]
        rounds = len(self._taken) - 2
        return {
            "cpu_seconds": (last[0] - cpu) / rounds,
            "seconds": (last[1] - seconds) / rounds,
            "bytes": (last[2] - carried) / rounds,
        }
