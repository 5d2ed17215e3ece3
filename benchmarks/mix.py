"""The mix kernel against the machine's copy bandwidth and against in-place torch operations.

``python -m benchmarks.mix [--quick]``

Bytes are counted: (K + 1) * 4 * n for a mix of K vectors, 2 * 4 * n for a copy. The copy is the faster one of
torch's ``copy_`` and of ``memcpy`` on as many threads. Torch's sum is ``mul`` (``mul_`` where `out` is the
first vector) and then ``add_(x, alpha=w)`` for each further vector.
Times are measured, side by side.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.harness import Benchmark, cores, interleaved, run
from flower_edge import kernels

LARGE = 8_000_000
"""Floats that no cache holds."""

SMALL = 64_000
"""Floats of which a few vectors fit into an L2 cache."""


def torch_sum(out: torch.Tensor, vectors: list[torch.Tensor], weights: list[float]) -> None:
    """Write the same sum with torch operations, one pass over `out` for each vector."""
    if out is vectors[0]:
        out.mul_(weights[0])
    else:
        torch.mul(vectors[0], weights[0], out=out)
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        out.add_(vector, alpha=weight)


def threaded_memcpy(to: torch.Tensor, source: torch.Tensor, threads: int) -> Callable[[], None]:
    """Make a function that copies with the C library's memcpy, a slice on each thread."""
    pool = ThreadPoolExecutor(threads)
    step = -(-to.nbytes // threads)
    slices = [(begin, min(step, to.nbytes - begin)) for begin in range(0, to.nbytes, step)]

    def copy_slice(piece: tuple[int, int]) -> None:
        begin, length = piece
        ctypes.memmove(to.data_ptr() + begin, source.data_ptr() + begin, length)

    def copy() -> None:
        list(pool.map(copy_slice, slices))

    return copy


def measure(
    bench: Benchmark, threads: int, length: int, count: int, in_place: bool = False, isa: str | None = None
) -> tuple[float, float]:
    """Measure one case and add its row; return its share of copy bandwidth and its gain over torch."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(length, generator=generator) for _ in range(count)]
    out = vectors[0] if in_place else torch.zeros(length)
    source, to = torch.ones(length), torch.zeros(length)
    weights = [1 / count] * count
    isa = isa or kernels.available_isas()[-1]
    with kernels.use_isa(isa):
        timings = interleaved(
            {
                "mix": lambda: kernels.mix(out, vectors, weights),
                "torch": lambda: torch_sum(out, vectors, weights),
                "copy_": lambda: to.copy_(source),
                "memcpy": threaded_memcpy(to, source, threads),
            },
            repeats=7 if bench.quick else 21,
        )
        version = kernels.explain().versions["mix"]
    copy = min(timings["copy_"], timings["memcpy"], key=lambda timing: timing.median)
    share = copy.over(timings["mix"]) * (count + 1) / 2
    faster = timings["torch"].over(timings["mix"])
    bench.row(
        threads=threads,
        floats=length,
        vectors=count,
        out="in place" if in_place else "apart",
        version=version,
        copy_gb_s=8e-9 * length / copy.median,
        mix_gb_s=4e-9 * length * (count + 1) / timings["mix"].median,
        share_of_copy=share,
        times_faster_than_torch=faster,
        mix_spread=timings["mix"].spread,
    )
    return share, faster


def main(bench: Benchmark) -> None:
    """Measure the claims first, then what surrounds them."""
    if cores() < 2:
        raise SystemExit(f"two cores are needed to measure two threads, this process may use {cores()}")
    for threads in (1, 2):
        said = f"4 vectors of {LARGE:,} floats on {threads} thread{'s'[: threads - 1]}, measured"
        for in_place in (False, True):
            place = "in place" if in_place else "apart"
            share, faster = measure(bench, threads, LARGE, 4, in_place)
            bench.at_least(f"{said}, out {place}: share of the copy bandwidth", share, 0.8)
            # In place, torch moves less memory: the gain is too near this bound to promise, the row shows it.
            if not in_place:
                bench.at_least(f"{said}, out {place}: times faster than torch", faster, 1.5)
    if bench.quick:
        return
    for threads in (1, 2):
        for isa in kernels.available_isas()[:-1]:
            measure(bench, threads, LARGE, 4, isa=isa)
        for count in (1, 2, 3, 6, 8, 12):
            measure(bench, threads, LARGE, count)
        for count in (2, 4, 8, 64):
            measure(bench, threads, SMALL, count)


if __name__ == "__main__":
    run("mix", __doc__, main)
