"""Memory of a training step: what autograd holds for the backward pass, and the peak of the whole process.

``python -m benchmarks.memory_saved [--quick]``

Batch 8 of 224×224 images, channels last. Saved bytes are counted (:func:`flower_edge.training.saved_bytes`);
the peak is measured: by how much the resident memory of a fresh process grows at most during three training
steps, gradients and optimizer state being there already; median of three processes. Filters are on all
convolutions but the stem, whatever the clock says of a layer. Step times are measured side by side.
"""

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.harness import Benchmark, interleaved, run
from benchmarks.networks import mobilenet_v2, resnet18
from flower_edge.training import (
    FrozenNorm,
    GradientFilter,
    LeanActivations,
    all_but_stem,
    prepare_,
    saved_bytes,
)
from flower_edge.training.rule import Method, ModelMethod

MIB = 2**20

CLASSES = 1000

MOST = {"ResNet-18": 0.40, "MobileNetV2": 0.15}
"""Largest share of the exact step's saved bytes that is claimed, with everything on."""

FILTERS = {
    f"filter r={r}": GradientFilter(r, where=all_but_stem, fallback="never", basis="walsh") for r in (2, 4)
}

WAYS: dict[str, Sequence[Method | ModelMethod]] = {
    "exact": (),
    "frozen norm": (FrozenNorm(),),
    "lean + frozen norm": (LeanActivations(), FrozenNorm()),
    "filter r=2": (FILTERS["filter r=2"],),
    "filter r=2 + lean + frozen norm": (FILTERS["filter r=2"], LeanActivations(), FrozenNorm()),
    "filter r=4 + lean + frozen norm": (FILTERS["filter r=4"], LeanActivations(), FrozenNorm()),
    "Fourier + lean + frozen norm": (
        GradientFilter(where=all_but_stem, fallback="never"),
        LeanActivations(),
        FrozenNorm(),
    ),
}

ALL = "filter r=2 + lean + frozen norm"


def network(name: str, way: str) -> nn.Module:
    """Build a network in channels last, in train mode, and prepare it."""
    torch.manual_seed(0)
    small = {"small_images": False}
    model = resnet18(CLASSES) if name == "ResNet-18" else mobilenet_v2(CLASSES, width=1.0, **small)
    model = model.to(memory_format=torch.channels_last).train()
    return prepare_(model, *WAYS[way]) if WAYS[way] else model


def images(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Make a batch of noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def peak_growth(name: str, way: str, count: int, side: int) -> int:
    """Measure in a fresh process by how many bytes its resident memory grows at most in training steps."""
    # Not forked: a child of this process would begin with its memory.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_growth_here, (name, way, count, side, torch.get_num_threads()))


def _peak_growth_here(name: str, way: str, count: int, side: int, threads: int) -> int:
    torch.set_num_threads(threads)
    model = network(name, way)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    small, batch = images(1, 64), images(count, side)
    _step(model, optimizer, small)  # loads libraries, makes gradients and momentum
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak begins anew
    for _ in range(3):
        _step(model, optimizer, batch)
    return status("VmHWM") - before


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    optimizer.zero_grad(set_to_none=False)
    cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def status(field: str) -> int:
    """Read a size of this process, in bytes, from ``/proc/self/status``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def step_seconds(name: str, count: int, side: int, quick: bool) -> dict[str, float]:
    """Measure a training step of every way, side by side, in seconds."""
    batch = images(count, side)
    contenders = {}
    for way in WAYS:
        model = network(name, way)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
        contenders[way] = lambda model=model, optimizer=optimizer: _step(model, optimizer, batch)
    timings = interleaved(contenders, repeats=7 if quick else 11)
    return {way: timing.median for way, timing in timings.items()}


def main(bench: Benchmark) -> None:
    """Count and measure both networks."""
    count, side = (2, 128) if bench.quick else (8, 224)
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    for name, most in MOST.items():
        seconds = step_seconds(name, count, side, bench.quick)
        saved = {}
        peaks = {}
        for way in WAYS:
            saved[way] = saved_bytes(network(name, way), images(count, side), cross_entropy).total
            growths = [peak_growth(name, way, count, side) for _ in range(1 if bench.quick else 3)]
            peaks[way] = median(growths)
            bench.row(
                network=name,
                way=way,
                saved_mib_counted=saved[way] / MIB,
                share_of_exact=saved[way] / saved["exact"],
                peak_growth_mib_measured=peaks[way] / MIB,
                share_of_exact_peak=peaks[way] / peaks["exact"],
                step_ms_measured=1e3 * seconds[way],
            )
        if not bench.quick:
            bench.at_most(
                f"{name}, {ALL}: share of the exact step's saved bytes, counted",
                saved[ALL] / saved["exact"],
                most,
            )
            bench.at_most(
                f"{name}, {ALL}: share of the exact step's peak growth, measured",
                peaks[ALL] / peaks["exact"],
                0.99,
            )


if __name__ == "__main__":
    run("memory_saved", __doc__, main)
