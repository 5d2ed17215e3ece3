"""A whole training step of ResNet-20 in 8 bits, its saved activations, and the peak of its process.

``python -m benchmarks.int8_step [--quick]``

Batch 32 of 32×32 images, channels last, SGD with momentum: forward pass, loss, backward pass, optimizer. Step
times are measured side by side in one process; a turn lasts a quarter of a second, so that most steps follow
one of their own kind, as in training. Saved bytes are counted (:func:`flower_edge.training.saved_bytes`). The
peak is measured: by how much the resident memory of a fresh process grows at most in three training steps,
gradients and momentum being there already; median of three processes. For bytes and peaks, all layers compute
in 8 bits, whatever the clock says of them; the measurement itself, in a first step, takes more memory than
that. "Chained" layers hand bytes to each other (``Int8Training(chain=True)``).
"""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.evonorm import replace_range_evonorm_
from benchmarks.harness import Benchmark, Timing, interleaved, run
from benchmarks.memory_saved import status
from benchmarks.networks import resnet20
from flower_edge.training import Int8Training, prepare_, replace_batchnorm_, saved_bytes

MIB = 2**20

CLASSES, SIDE, COUNT = 10, 32, 32
TURN_SECONDS = 0.25

BATCHNORM, EVONORM = "fp32, BatchNorm", "fp32, EvoNorm"
OURS = {bits: f"8 bits, chained, {bits}-bit errors" for bits in (8, 16)}

OVER_BATCHNORM, OVER_EVONORM = 2.3, 4.0
MOST_SAVED, MOST_PEAK = 0.30, 0.45


@dataclass(frozen=True)
class Way:
    """How ResNet-20 is trained: its normalisation, a method, and whether autocast computes in bf16."""

    norm: str = "BatchNorm"
    method: Int8Training | None = None
    is_bf16: bool = False

    def model(self, is_measured: bool = True) -> nn.Module:
        """Build it, in train mode; without layers that measure themselves if not `is_measured`."""
        torch.manual_seed(0)
        model = resnet20(CLASSES)
        if self.norm != "BatchNorm":
            replace_batchnorm_(model)
        if self.norm == "EvoNorm":
            replace_range_evonorm_(model)
        model = model.to(memory_format=torch.channels_last).train()
        if self.method is None:
            return model
        return prepare_(model, self.method if is_measured else replace(self.method, fallback="never"))

    def step(self, model: nn.Module) -> Callable[[tuple[Tensor, Tensor]], None]:
        """Give a training step."""
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

        def step(batch: tuple[Tensor, Tensor]) -> None:
            optimizer.zero_grad(set_to_none=False)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
                loss = cross_entropy(model(batch[0]), batch[1])
            torch.autograd.backward(loss)
            optimizer.step()

        return step


WAYS = {
    BATCHNORM: Way(),
    EVONORM: Way("EvoNorm"),
    "fp32, Range-EvoNorm": Way("Range-EvoNorm"),
    "bf16 autocast, BatchNorm": Way(is_bf16=True),
    "8 bits, layer by layer, 8-bit errors": Way("Range-EvoNorm", Int8Training(error_bits=8)),
    **{name: Way("Range-EvoNorm", Int8Training(error_bits=bits, chain=True)) for bits, name in OURS.items()},
}


def images(count: int) -> tuple[Tensor, Tensor]:
    """Make a batch of noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def step_times(names: list[str], repeats: int) -> dict[str, Timing]:
    """Time whole steps side by side."""
    batch = images(COUNT)
    steps = {name: WAYS[name].step(WAYS[name].model()) for name in names}
    return interleaved(
        {name: lambda step=step: step(batch) for name, step in steps.items()}, repeats, TURN_SECONDS
    )


def peak_growth(name: str) -> int:
    """Measure in a fresh process by how many bytes its resident memory grows at most in training steps."""
    # Not forked: a child of this process would begin with its memory.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_growth_here, (name,))


def _peak_growth_here(name: str) -> int:
    torch.set_num_threads(1)
    way = WAYS[name]
    step, batch = way.step(way.model(False)), images(COUNT)
    step(images(1))  # loads libraries, makes gradients and momentum
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak begins anew
    for _ in range(3):
        step(batch)
    return status("VmHWM") - before


def main(bench: Benchmark) -> None:
    """Measure all ways with one and two threads, then hold them against what is claimed."""
    names = [BATCHNORM, EVONORM, *OURS.values()] if bench.quick else list(WAYS)
    saved = {name: saved_bytes(WAYS[name].model(False), images(COUNT), cross_entropy).total for name in names}
    peaks: dict[str, float] = {}
    if not bench.quick:
        peaks = {name: median(peak_growth(name) for _ in range(3)) for name in names}
    for threads in (1,) if bench.quick else (1, min(2, len(os.sched_getaffinity(0)))):
        torch.set_num_threads(threads)
        times = step_times(names, 7 if bench.quick else 21)
        for name, timing in times.items():
            bench.row(
                way=name,
                threads=threads,
                step_ms_measured=1e3 * timing.median,
                spread=timing.spread,
                times_faster_than_batchnorm=times[BATCHNORM].over(timing),
                times_faster_than_evonorm=times[EVONORM].over(timing),
                saved_mib_counted=saved[name] / MIB,
                share_of_saved=saved[name] / saved[BATCHNORM],
                share_of_peak_measured=peaks[name] / peaks[BATCHNORM] if peaks else None,
            )
        if not bench.quick:
            claim_speed(bench, times, threads)
    claim_memory(bench, saved, peaks)


def claim_speed(bench: Benchmark, times: dict[str, Timing], threads: int) -> None:
    """Hold step times against the bounds."""
    ours = times[OURS[8]]
    for other, bound in ((BATCHNORM, OVER_BATCHNORM), (EVONORM, OVER_EVONORM)):
        bench.at_least(
            f"ResNet-20, {OURS[8]}, {threads} threads, whole step, measured: times faster than {other}",
            times[other].over(ours),
            bound,
        )


def claim_memory(bench: Benchmark, saved: dict[str, int], peaks: dict[str, float]) -> None:
    """Hold saved bytes, and peaks where they have been measured, against the bounds."""
    for name in OURS.values():
        share = saved[name] / saved[BATCHNORM]
        bench.at_most(f"ResNet-20, {name}: share of fp32's saved bytes, counted", share, MOST_SAVED)
        if peaks:
            share = peaks[name] / peaks[BATCHNORM]
            bench.at_most(f"ResNet-20, {name}: share of fp32's peak growth, measured", share, MOST_PEAK)


if __name__ == "__main__":
    run("int8_step", __doc__, main)
