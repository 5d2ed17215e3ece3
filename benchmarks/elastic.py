"""What elastic training saves of a step, beside what its profile predicts: time, memory, and its own cost.

``python -m benchmarks.elastic [--quick]``

ResNet-18, batch 16, one thread, channels last; two stems: of three by three taps, for small images, and the
original one of seven by seven, whose maps are 16 times smaller. The selection is exact, by the importance of
the batch. Times are measured, of this thread's processor: steps of the full and the selected models side by
side. A profile adds up the least times of operations, so what it predicts is held against the least time of
a backward pass; how much faster steps are is said of medians. Saved activations are predicted by the profile
and counted by hooks (`saved_bytes`).
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.harness import Benchmark, run
from benchmarks.networks import resnet18
from benchmarks.step_times import StepTiming, TrainingStep, interleaved_steps
from flower_edge.training import Choice, ElasticTrainer, Time, saved_bytes

CLASSES, BATCH = 10, 16
INTERVAL = 100
"""Steps between two selections."""

SHARES = (0.3, 0.5, 0.7)
LEAST_SPEEDUP = {0.3: 1.9, 0.5: 1.5, 0.7: 1.26}
"""Of a whole step at 32², by the share of the backward time."""

MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """What is trained: the stem and the side of the images."""

    small_images: bool
    side: int

    def __str__(self) -> str:
        return f"{3 if self.small_images else 7}×{3 if self.small_images else 7} stem, {self.side}²"


SETTINGS = (Setting(True, 32), Setting(True, 64), Setting(False, 32), Setting(False, 64))


def network(setting: Setting) -> nn.Module:
    """Build the network in channels last, in train mode."""
    torch.manual_seed(0)
    return resnet18(CLASSES, setting.small_images).to(memory_format=torch.channels_last).train()


def images(side: int) -> tuple[Tensor, Tensor]:
    """Make a batch of noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    """Return SGD with momentum, slow enough for a model that sees the same batch over and over."""
    return torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)


@dataclass(frozen=True)
class Found:
    """One share of the backward time: what was predicted, and what was measured beside the full step.

    Attributes
    ----------
    choice : Choice
    predicted_share : float
        Of the full step's backward time, by the profile.
    timing, full : StepTiming
    saved_bytes : int
        Of the selected model, counted.
    """

    choice: Choice
    predicted_share: float
    timing: StepTiming
    full: StepTiming
    saved_bytes: int

    @property
    def measured_share(self) -> float:
        """Of the full step's backward time, measured."""
        return self.timing.backward.over(self.full.backward)

    @property
    def least_seconds(self) -> float:
        """Of the backward pass, measured."""
        return min(self.timing.backward.seconds)

    @property
    def time_error(self) -> float:
        """By how much the measured backward time is off the predicted one, as a share of the latter."""
        return abs(self.least_seconds / self.choice.backward_seconds - 1)

    @property
    def speedup(self) -> float:
        """Of a whole step."""
        return self.full.whole.over(self.timing.whole)

    @property
    def memory_error(self) -> float:
        """By how much the counted activations are off the predicted ones, as a share of the latter."""
        return abs(self.saved_bytes / self.choice.saved_bytes - 1)

    @property
    def overhead(self) -> float:
        """Probe and solver, as a share of an interval's time."""
        selecting = self.choice.probe_seconds + self.choice.solve_seconds
        return selecting / (selecting + INTERVAL * self.timing.whole.median)


def findings(setting: Setting, repeats: int) -> dict[float, Found]:
    """Profile, select and measure; by the share of the backward time."""
    model, batch = network(setting), images(setting.side)
    trainer = ElasticTrainer(model, optimizer_of(model), cross_entropy, Time(1.0))
    steps = {"full": _step(copy.deepcopy(model), batch)}
    choices, saved = {}, {}
    for share in SHARES:
        # The probe is part of what a selection takes, though its result is the same for all shares.
        choices[share] = trainer.select(batch, budget=Time(share))
        chosen = copy.deepcopy(model)
        saved[share] = saved_bytes(chosen, batch, cross_entropy).total
        steps[str(share)] = _step(chosen, batch)
    timings = interleaved_steps(steps, repeats)
    graph = trainer.profile.graph
    return {
        share: Found(
            choice,
            graph.cost(choice.names).seconds / graph.full_cost.seconds,
            timings[str(share)],
            timings["full"],
            saved[share],
        )
        for share, choice in choices.items()
    }


def _step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> TrainingStep:
    return TrainingStep(model, optimizer_of(model), cross_entropy, batch)


def main(bench: Benchmark) -> None:
    """Measure all settings, and compare them with what was predicted."""
    torch.set_num_threads(1)
    for setting in SETTINGS[2:3] if bench.quick else SETTINGS:
        found = findings(setting, repeats=7 if bench.quick else 15)
        for share, part in found.items():
            bench.row(**row(setting, share, part))
        if not bench.quick:
            claim(bench, setting, found)
    if bench.quick:
        errors = [part.memory_error for part in found.values()]
        bench.at_most(f"{setting}: activations off the prediction, counted, as a share", max(errors), 0.10)


def row(setting: Setting, share: float, found: Found) -> dict[str, object]:
    """Return a row of the table."""
    return {
        "network": f"ResNet-18, {setting}",
        "share": share,
        "tensors": len(found.choice.names),
        "backward_share_predicted": found.predicted_share,
        "backward_share_measured": found.measured_share,
        "backward_ms_predicted": 1e3 * found.choice.backward_seconds,
        "backward_ms_least": 1e3 * found.least_seconds,
        "backward_ms_median": 1e3 * found.timing.backward.median,
        "step_times_faster": found.speedup,
        "saved_mib_predicted": found.choice.saved_bytes / MIB,
        "saved_mib_counted": found.saved_bytes / MIB,
        "probe_ms": 1e3 * found.choice.probe_seconds,
        "solve_ms": 1e3 * found.choice.solve_seconds,
        "overhead": found.overhead,
        "spread_of_measurement": found.timing.backward.spread,
    }


def claim(bench: Benchmark, setting: Setting, found: dict[float, Found]) -> None:
    """Compare with the bounds."""
    for share, part in found.items():
        text = f"ResNet-18, {setting}, ρ = {share}"
        bench.at_most(f"{text}: backward time off the prediction, measured", part.time_error, 0.06)
        if setting.side == 32:
            bench.at_least(f"{text}: times faster step, measured", part.speedup, LEAST_SPEEDUP[share])
        bench.at_most(f"{text}: activations off the prediction, counted", part.memory_error, 0.10)
        bench.at_most(f"{text}: probe and solver, share of {INTERVAL} steps, measured", part.overhead, 0.03)


if __name__ == "__main__":
    run("elastic", __doc__, main)
