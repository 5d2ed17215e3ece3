"""Time of layers that train in 8 bits, beside fp32, bf16 and 8 bits out of torch's own operators.

``python -m benchmarks.int8 [--quick]``

From x, grad_y and weight in fp32 to y, grad_x and grad_weight in fp32: quantisation, packing and all else
that a training step needs is in it. Torch's fp32 has the better of two memory formats. Maps of bf16 are given
in bf16, as autocast hands them on, its weights are cast. All times are measured, interleaved in one process.
"""

import sys
from collections.abc import Sequence
from math import exp, log
from timeit import repeat

import torch

from benchmarks.harness import Benchmark, interleaved, run
from benchmarks.int8_layers import MOBILENET, RESNET18, RESNET18_SMALL, RESNET20, Layer, Problem, Step

FP32, BF16, INT_MM = "torch, fp32", "torch, bf16", "torch, _int_mm"
OURS = {bits: f"flower_edge, {bits}-bit errors" for bits in (8, 16)}
# For one thread and for two: 3×3 and 1×1 over fp32.
BOUNDS = {1: (3.0, 2.0), 2: (2.8, 1.7)}
BF16_BOUND = 1.5

Ratios = dict[tuple[Layer, str], float]


def main(bench: Benchmark) -> None:
    """Time layers with one and two threads, then hold the ratios against what is claimed."""
    spatial = (*RESNET20, *RESNET18_SMALL, *RESNET18)
    layers = (*RESNET20, *MOBILENET[4:6]) if bench.quick else (*spatial, *MOBILENET)
    for threads in (1,) if bench.quick else (1, 2):
        torch.set_num_threads(threads)
        ratios: Ratios = {}
        for layer in layers:
            print(f"{layer}, {threads} threads", file=sys.stderr)
            ratios |= layer_rows(bench, layer, threads)
        if not bench.quick:
            claim(bench, ratios, threads)


def layer_rows(bench: Benchmark, layer: Layer, threads: int) -> Ratios:
    """Time all ways to compute a layer; return how many times faster ours with 8 bits is than each."""
    problems = [Problem.of(layer, layout) for layout in (torch.channels_last, torch.contiguous_format)]
    half = Problem.of(layer, torch.channels_last, torch.bfloat16)
    contenders: dict[str, Step] = {
        FP32: faster([problem.exact() for problem in problems]),
        BF16: half.exact(),
        INT_MM: problems[0].with_int_mm(),
        **{name: problems[0].ours(bits) for bits, name in OURS.items()},
    }
    times = interleaved(contenders)
    for name, timing in times.items():
        bench.row(
            layer=str(layer),
            threads=threads,
            method=name,
            milliseconds=1e3 * timing.median,
            spread=timing.spread,
            times_faster_than_fp32=times[FP32].over(timing),
        )
    return {(layer, name): times[name].over(times[OURS[8]]) for name in times}


def faster(contenders: Sequence[Step]) -> Step:
    """Return the fastest by a glance, which leaves out its first call."""
    for contender in contenders:
        contender()
    glances = [min(repeat(contender, number=1, repeat=2)) for contender in contenders]
    return contenders[glances.index(min(glances))]


def claim(bench: Benchmark, ratios: Ratios, threads: int) -> None:
    """Hold geometric means over layers against the bounds."""
    spatial = (*RESNET20, *RESNET18_SMALL, *RESNET18)
    over_fp32 = BOUNDS[threads]
    for kind, layers, other, bound in (
        ("3×3", spatial, FP32, over_fp32[0]),
        ("1×1", MOBILENET, FP32, over_fp32[1]),
        ("3×3", spatial, BF16, BF16_BOUND),
    ):
        bench.at_least(
            f"{kind} layers, {threads} threads, 8-bit errors, measured: times faster than {other}, "
            "geometric mean",
            geometric_mean([ratios[layer, other] for layer in layers]),
            bound,
        )


def geometric_mean(values: Sequence[float]) -> float:
    """Average ratios."""
    return exp(sum(map(log, values)) / len(values))


if __name__ == "__main__":
    run("int8", __doc__, main)
