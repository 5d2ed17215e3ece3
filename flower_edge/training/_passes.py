"""Training steps of a model, cut into calls and timed."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from flower_edge.training._recorder import Loss, Recorder, clock

PROBES, PROBE_REPEATS = 200, 9


@dataclass
class Times:
    """What one training step took, call by call, in seconds.

    Attributes
    ----------
    forward : list of float
        Per call.
    backward : dict from int to float
        Per call that took part.
    accumulate : dict from str to float
        Per parameter, for the node that stores its gradient.
    start : float
        Before the first node of the backward pass.
    """

    forward: list[float]
    backward: dict[int, float]
    accumulate: dict[str, float]
    start: float


class Step:
    """A training step without its optimizer, which can be repeated exactly.

    Parameters
    ----------
    model : Module
    batch : tuple of (inputs, targets)
    loss : callable
        ``loss(model(inputs), targets)`` is a scalar.
    """

    def __init__(self, model: nn.Module, batch: tuple[Any, Any], loss: Loss) -> None:
        self.model = model
        inputs, self.targets = batch
        self.inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.module_names = {id(module): name for name, module in model.named_modules()}
        self._loss = loss
        self._random = random.getstate(), torch.get_rng_state()

    def train_only(self, names: Collection[str]) -> None:
        """Let the parameters `names` require gradients, and no others."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)

    def begin(self) -> None:
        """Forget the gradients and set the random states to those of the first step."""
        for parameter in self.model.parameters():
            parameter.grad = None
        random.setstate(self._random[0])
        torch.set_rng_state(self._random[1])

    def forward(self) -> Tensor:
        """Return the loss."""
        with torch.enable_grad():
            return self._loss(self.model(*self.inputs), self.targets)

    def bare(self) -> tuple[float, float]:
        """Return the seconds of a forward and of a backward pass that nothing watches."""
        self.begin()
        begun = clock()
        loss = self.forward()
        between = clock()
        torch.autograd.backward(loss)
        return between - begun, clock() - between

    def timed(self, calls: int) -> Times:
        """Return the times of one step.

        Raises
        ------
        ValueError
            If it makes another number of calls than `calls`.
        """
        self.begin()
        recorder = Recorder(self.module_names)
        with recorder.recording():
            loss = self.forward()
        if len(recorder.calls) != calls:
            raise ValueError(
                f"the model made {calls} calls in one forward pass and {len(recorder.calls)} in the next "
                "with the same batch and random state, expected the same: it cannot be profiled"
            )
        recorder.stamp_nodes()
        try:
            begun = clock()
            torch.autograd.backward(loss)
            ended = clock()
        finally:
            recorder.release()
        return self._times(recorder, begun, ended)

    def _times(self, recorder: Recorder, begun: float, ended: float) -> Times:
        stamps = recorder.stamps
        call_seconds, stamp_seconds = _watching_seconds(torch.get_num_threads())
        backward: dict[int, float] = {}
        accumulate: dict[str, float] = {}
        for (node, since), (_, until) in zip(stamps, [*stamps[1:], (None, ended)], strict=True):
            seconds = max(0.0, until - since - stamp_seconds)
            if node in recorder.accumulators:
                name = self.parameter_names.get(id(recorder.accumulators[node]), "")
                accumulate[name] = accumulate.get(name, 0.0) + seconds
            else:
                call = recorder.call_of[node]
                backward[call] = backward.get(call, 0.0) + seconds
        return Times(
            forward=[max(0.0, call.forward_seconds - call_seconds) for call in recorder.calls],
            backward=backward,
            accumulate=accumulate,
            start=max(0.0, stamps[0][1] - begun),
        )


@cache
def _watching_seconds(threads: int) -> tuple[float, float]:
    """Return what watching adds to a call and to a node, measured on calls that do next to nothing.

    It depends on the clock, and so on the number of threads.
    """
    bare = [_chain(None) for _ in range(PROBE_REPEATS)]
    watched = [_chain(Recorder({})) for _ in range(PROBE_REPEATS)]
    call, node = (
        max(0.0, min(with_it) - min(without)) / PROBES
        for with_it, without in zip(zip(*watched, strict=True), zip(*bare, strict=True), strict=True)
    )
    return call, node


def _chain(recorder: Recorder | None) -> tuple[float, float]:
    """Return the seconds of a forward and of a backward pass as they are counted when they are watched."""
    value = torch.ones(1, requires_grad=True)
    begun = clock()
    if recorder is None:
        for _ in range(PROBES):
            value = value.view(1)
        forward = clock() - begun
    else:
        with recorder.recording():
            for _ in range(PROBES):
                value = value.view(1)
        forward = sum(call.forward_seconds for call in recorder.calls)
        recorder.stamp_nodes()
    begun = clock()
    torch.autograd.backward(value)
    backward = clock() - begun
    if recorder is not None:
        recorder.release()
    return forward, backward


def least(times: list[Times]) -> Times:
    """Return the least time of each call over repeated steps."""
    return Times(
        forward=[min(seconds) for seconds in zip(*(step.forward for step in times), strict=True)],
        backward=_least(step.backward for step in times),
        accumulate=_least(step.accumulate for step in times),
        start=min(step.start for step in times),
    )


def _least(steps: Any) -> dict[Any, float]:
    least: dict[Any, float] = {}
    for step in steps:
        for key, seconds in step.items():
            least[key] = min(seconds, least.get(key, seconds))
    return least
