"""What the benchmark of whole steps in 8 bits does: every way trains, and claims come from what was found."""

import copy

import pytest
import torch

from benchmarks import int8_step
from benchmarks.harness import Benchmark, Timing
from benchmarks.int8_step import BATCHNORM, EVONORM, OURS, WAYS


@pytest.mark.parametrize("name", WAYS)
def test_every_way_takes_a_step(name: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = WAYS[name].model()
        start = copy.deepcopy(model.state_dict())
        WAYS[name].step(model)(int8_step.images(2))
    finally:
        torch.set_num_threads(before)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, start[key])]
    assert set(changed) >= {key for key, _ in model.named_parameters()} - {"fc.bias"}


@pytest.mark.parametrize(
    ("ratio", "holds"), [(2.0, [False, True]), (2.5, [True, True]), (1.0, [False, False])]
)
def test_claims_of_speed_come_from_the_times(ratio: float, holds: list[bool]) -> None:
    bench = Benchmark("int8_step", quick=False)
    times = {BATCHNORM: Timing((ratio,) * 7), EVONORM: Timing((2 * ratio,) * 7), OURS[8]: Timing((1.0,) * 7)}
    int8_step.claim_speed(bench, times, 1)
    assert [claim["holds"] for claim in bench.claims] == holds


def test_claims_of_memory_come_from_the_bytes() -> None:
    bench = Benchmark("int8_step", quick=False)
    saved = {BATCHNORM: 100, OURS[8]: 29, OURS[16]: 31}
    peaks = {BATCHNORM: 100.0, OURS[8]: 46.0, OURS[16]: 44.0}
    int8_step.claim_memory(bench, saved, peaks)
    assert [claim["holds"] for claim in bench.claims] == [True, False, False, True]
