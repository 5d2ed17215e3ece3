"""Times of whole training steps and their parts, of several models side by side."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.harness import Timing

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """A training step that can be repeated: the same batch, but a model that moves on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    batch: tuple[Tensor, Tensor]

    def seconds(self) -> tuple[float, float, float]:
        """Take the step; return the seconds of its forward and backward pass and of its optimizer.

        Of this thread's processor time: with one thread of torch, all there is.
        """
        x, y = self.batch
        start = time.thread_time()
        loss = self.loss(self.model(x), y)
        forward = time.thread_time()
        torch.autograd.backward(loss)
        backward = time.thread_time()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return forward - start, backward - forward, time.thread_time() - backward


@dataclass(frozen=True)
class StepTiming:
    """What the parts of a training step took, once for each round of measurement.

    Attributes
    ----------
    forward, backward, optimizer : Timing
        The last includes that gradients are given up.
    """

    forward: Timing
    backward: Timing
    optimizer: Timing

    @property
    def whole(self) -> Timing:
        """All parts together."""
        parts = self.forward.seconds, self.backward.seconds, self.optimizer.seconds
        return Timing(tuple(map(sum, zip(*parts, strict=True))))


def interleaved_steps(steps: Mapping[str, TrainingStep], repeats: int = 7) -> dict[str, StepTiming]:
    """Time training steps side by side, as `benchmarks.harness.interleaved` times functions.

    Raises
    ------
    ValueError
        If `repeats` is below 7: the median of fewer says little. Or if torch runs more than one thread.
    """
    if repeats < 7:
        raise ValueError(f"repeats is {repeats}, expected at least 7")
    if torch.get_num_threads() != 1:
        raise ValueError(
            f"torch runs {torch.get_num_threads()} threads, expected 1: only this thread's time is counted"
        )
    for step in steps.values():
        step.seconds()
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(repeats):
        for name in order:
            taken[name].append(steps[name].seconds())
        order.append(order.pop(0))
    return {name: StepTiming(*map(Timing, zip(*rows, strict=True))) for name, rows in taken.items()}
