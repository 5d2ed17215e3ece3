"""Times of Range-EvoNorm, fused, beside eager EvoNorm and BatchNorm with ReLU: forward and backward pass.

``python -m benchmarks.range_evonorm [--quick]``. Maps are those of ResNet-20 and ResNet-18 for 32×32 images
and of ResNet-18 for 224×224, batch 32; torch's own run in the faster of both layouts; one thread and two.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.evonorm import EvoNorm
from benchmarks.harness import Benchmark, Timing, cores, interleaved, run
from flower_edge import kernels
from flower_edge.kernels._quantised import QuantisedTensor
from flower_edge.training import RangeEvoNorm

BATCH = 32
# Channels and side of a map.
MAPS = {
    "ResNet-20": ((16, 32), (32, 16), (64, 8)),
    "ResNet-18, 32×32": ((64, 32), (128, 16), (256, 8), (512, 4)),
    "ResNet-18, 224×224": ((64, 56), (128, 28), (256, 14), (512, 7)),
}


def step(norm: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], object]:
    """Return what runs a layer forward and backward."""

    def both() -> None:
        x.grad = None
        norm.zero_grad()
        norm(x).backward(grad)

    return both


def in_bytes(x: Tensor, grad: Tensor, groups: int) -> Callable[[], object]:
    """Return what runs the kernels on a map of bytes: bytes to bytes, then floats to floats."""
    low, high = (float(end) for end in x.aminmax())
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    values = (x / scale + zero_point).round().clamp(0, 255).to(torch.uint8)
    stored = QuantisedTensor(values, scale, zero_point)
    weight, bias, v = torch.ones(x.shape[1]), torch.zeros(x.shape[1]), torch.ones(x.shape[1])

    def both() -> None:
        _, extremes, _ = kernels.quantised_range_evonorm(stored, weight, bias, v, groups, 1e-5, (0.02, 20))
        kernels.quantised_range_evonorm_backward(grad, stored, extremes, weight, v, groups, 1e-5)

    return both


def measure(channels: int, side: int) -> dict[str, Timing]:
    """Time the ways on one map; torch's own in the faster of both layouts."""
    x = torch.randn(BATCH, channels, side, side).contiguous(memory_format=torch.channels_last)
    grad, ours = torch.randn_like(x), RangeEvoNorm(channels)
    contenders = {
        "ours": step(ours, x.clone().requires_grad_(), grad),
        "bytes": in_bytes(x, grad, ours.groups),
    }
    for layout in (torch.channels_last, torch.contiguous_format):
        here, error = (t.contiguous(memory_format=layout) for t in (x, grad))
        for name, norm in (
            ("evonorm", EvoNorm(RangeEvoNorm(channels))),
            ("batchnorm", nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))),
        ):
            contenders[f"{name}, {layout}"] = step(norm, here.clone().requires_grad_(), error)
    timings = interleaved(contenders)
    best = {name: timings[name] for name in ("ours", "bytes")}
    for name in ("evonorm", "batchnorm"):
        layouts = [timing for way, timing in timings.items() if way.startswith(name)]
        best[name] = min(layouts, key=lambda timing: timing.median)
    return best


def main(bench: Benchmark) -> None:
    """Measure all maps."""
    ratios: dict[tuple[str, int], list[float]] = {}
    for threads in range(1, 1 + min(2, cores())):
        torch.set_num_threads(threads)
        for network, maps in MAPS.items():
            for channels, side in maps[:1] if bench.quick else maps:
                timings = measure(channels, side)
                found = {
                    (name, kind): timings[name].over(timings[kind])
                    for name in ("evonorm", "batchnorm")
                    for kind in ("ours", "bytes")
                }
                bench.row(
                    network=network,
                    map=f"{channels}×{side}×{side}",
                    threads=threads,
                    evonorm_ms=1e3 * timings["evonorm"].median,
                    batchnorm_relu_ms=1e3 * timings["batchnorm"].median,
                    fused_ms=1e3 * timings["ours"].median,
                    fused_bytes_ms=1e3 * timings["bytes"].median,
                    faster_than_evonorm=found["evonorm", "ours"],
                    faster_than_batchnorm_relu=found["batchnorm", "ours"],
                    bytes_faster_than_batchnorm_relu=found["batchnorm", "bytes"],
                )
                for name in ("evonorm", "batchnorm"):
                    ratios.setdefault((name, threads), []).append(found[name, "ours"])
    for (name, threads), values in ratios.items():
        text = "eager EvoNorm" if name == "evonorm" else "BatchNorm and ReLU"
        mean = math.exp(sum(map(math.log, values)) / len(values))
        bench.at_least(
            f"times faster than {text}, {threads} threads, geometric mean (measured)",
            mean,
            4.0 if name == "evonorm" else 1.0,
        )


if __name__ == "__main__":
    run("range_evonorm", __doc__, main)
