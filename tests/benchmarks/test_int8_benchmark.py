"""What the benchmark of 8-bit layers times: all ways compute the same, and claims come from ratios."""

import pytest
import torch

from benchmarks import int8
from benchmarks.harness import Benchmark
from benchmarks.int8_layers import MOBILENET, RESNET18, RESNET18_SMALL, RESNET20, Layer, Problem


@pytest.mark.parametrize("layer", [Layer(8, 16, 6, 4), Layer(16, 8, 5, 8, kernel_size=1)])
def test_all_ways_compute_the_same(layer: Layer) -> None:
    problem = Problem.of(layer, torch.channels_last)
    expected = problem.exact()()
    for other, tolerance in (
        (problem.with_int_mm(), 0.05),
        (problem.ours(8), 0.03),
        (problem.ours(16), 0.03),
        (Problem.of(layer, torch.contiguous_format).exact(), 1e-5),
        (Problem.of(layer, torch.channels_last, torch.bfloat16).exact(), 0.02),
    ):
        for received, wanted in zip(other(), expected, strict=True):
            assert received.shape == wanted.shape
            assert float((received - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize(("ratio", "holds"), [(3.1, True), (1.4, False)])
def test_claims_hold_where_ratios_reach_their_bounds(ratio: float, holds: bool) -> None:
    bench = Benchmark("int8", quick=False)
    layers = (*RESNET20, *RESNET18_SMALL, *RESNET18, *MOBILENET)
    ratios = {(layer, name): ratio for layer in layers for name in (int8.FP32, int8.BF16)}
    int8.claim(bench, ratios, threads=1)
    assert [claim["holds"] for claim in bench.claims] == [holds] * 3
    assert all(claim["value"] == pytest.approx(ratio) for claim in bench.claims)
