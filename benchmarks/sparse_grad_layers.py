"""Convolutions whose gradients are formed from a pruned one, and the ways to form them."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness import interleaved
from flower_edge import kernels

Gradients = Callable[[], tuple[Tensor, Tensor]]


class Layer(NamedTuple):
    """A convolution of a square map."""

    inputs: int
    outputs: int
    side: int
    kernel_size: int = 3
    stride: int = 1
    batch: int = 16

    def __str__(self) -> str:
        kind = f"{self.kernel_size}×{self.kernel_size} {self.inputs}→{self.outputs}"
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{kind} @{self.side}×{self.side}{stride}, batch {self.batch}"


RESNET18_SMALL = (
    *(Layer(64, 64, 32), Layer(128, 128, 16), Layer(256, 256, 8), Layer(512, 512, 4)),
    *(Layer(64, 128, 32, stride=2), Layer(128, 256, 16, stride=2), Layer(256, 512, 8, stride=2)),
    *(Layer(64, 128, 32, 1, 2), Layer(128, 256, 16, 1, 2), Layer(256, 512, 8, 1, 2)),
)
"""The convolutions of ResNet-18, images of 32×32, without the first."""
SPARSITIES = (0.8, 0.9, 0.95)


class Problem(NamedTuple):
    """A layer and tensors for it with random values."""

    layer: Layer
    x: Tensor
    grad: Tensor
    weight: Tensor

    @classmethod
    def of(cls, layer: Layer, layout: torch.memory_format) -> "Problem":
        """Make the tensors."""
        torch.manual_seed(0)
        x = torch.relu(torch.randn(layer.batch, layer.inputs, layer.side, layer.side))
        size = (-(-layer.side // layer.stride),) * 2
        grad = torch.randn(layer.batch, layer.outputs, *size)
        kernel = (layer.kernel_size,) * 2
        weight = torch.randn(layer.outputs, layer.inputs, *kernel) / (layer.inputs * kernel[0] ** 2) ** 0.5
        x, grad, weight = (tensor.contiguous(memory_format=layout) for tensor in (x, grad, weight))
        return cls(layer, x, grad, weight)

    def conv2d(self) -> nn.Conv2d:
        """Make torch's layer with this weight."""
        inputs, outputs, _, kernel_size, stride, _ = self.layer
        layer = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
        layer.weight = nn.Parameter(self.weight)
        return layer

    def dense(self) -> Gradients:
        """Bind torch's own backward pass."""
        stride, padding = [self.layer.stride] * 2, [self.layer.kernel_size // 2] * 2
        rest = (stride, padding, [1, 1], False, [0, 0], 1, [True, True, False])

        def gradients() -> tuple[Tensor, Tensor]:
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                self.grad, self.x, self.weight, None, *rest
            )
            return grad_x, grad_weight

        return gradients

    def sparse(self, sparsity: float, feedback: str) -> Gradients:
        """Bind ours: threshold, pruning and, with feedback "sign", packing are part of it."""
        geometry = (self.layer.stride, self.layer.kernel_size // 2)

        def gradients() -> tuple[Tensor, Tensor]:
            threshold = kernels.pruning_threshold(self.grad, sparsity)
            pruned = kernels.prune(self.grad, threshold, seed=1)
            weight = kernels.pack_signs(self.weight) if feedback == "sign" else self.weight
            grad_x = kernels.sparse_grad_input(pruned, weight, self.x.shape, *geometry)
            return grad_x, kernels.sparse_grad_weight(pruned, self.x, self.weight.shape, *geometry)

        return gradients


def layer_rows(quick: bool) -> Iterator[dict[str, Any]]:
    """Time every layer in torch's better layout and in ours, on one thread and on two.

    Parameters
    ----------
    quick : bool
        Fewer layers.

    Yields
    ------
    dict
        A row: layer, threads, sparsity, feedback, milliseconds of both, and `times_faster`.
    """
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for layer in RESNET18_SMALL[:: 4 if quick else 1]:
                yield from _rows_of(layer, threads)
    finally:
        torch.set_num_threads(before)


def _rows_of(layer: Layer, threads: int) -> Iterator[dict[str, Any]]:
    last = Problem.of(layer, torch.channels_last)
    first = Problem.of(layer, torch.contiguous_format)
    contenders = {"channels last": last.dense(), "contiguous": first.dense()}
    ways = [(sparsity, feedback) for sparsity in SPARSITIES for feedback in ("exact", "sign")]
    ours = {f"{sparsity} {feedback}": last.sparse(sparsity, feedback) for sparsity, feedback in ways}
    timings = interleaved(contenders | ours, repeats=9)
    dense = min((timings[name] for name in contenders), key=lambda timing: timing.median)
    for (sparsity, feedback), name in zip(ways, ours, strict=True):
        yield {
            "layer": str(layer),
            "threads": threads,
            "sparsity": sparsity,
            "feedback": feedback,
            "dense_milliseconds": 1e3 * dense.median,
            "milliseconds": 1e3 * timings[name].median,
            "times_faster": dense.over(timings[name]),
        }


def mean_times_faster(rows: list[dict[str, Any]], **chosen: Any) -> float:
    """Take the geometric mean of `times_faster` over the rows that have the chosen values."""
    factors = [
        row["times_faster"] for row in rows if all(row[name] == value for name, value in chosen.items())
    ]
    return math.exp(sum(map(math.log, factors)) / len(factors))
