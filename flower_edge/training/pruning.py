"""How much of a gradient is pruned at which step, and what that has come to."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from flower_edge.kernels._sparse_grad import pack_signs
from flower_edge.training._choice import Measurement

_numbers = count()
_known: "WeakValueDictionary[int, Pruner]" = WeakValueDictionary()
_SEEDS = 2**63


@dataclass(frozen=True)
class Rising:
    """A sparsity that begins lower and rises, in equal steps, to the one that is asked for.

    Parameters
    ----------
    start : float, default 0.5
        Of the first step; at least 0, below 1. One that asks for less has that in every step.
    steps : int, default 500
        Training steps until it has risen.

    Raises
    ------
    TypeError
        If a value is of the wrong type.
    ValueError
        If a number is out of its range.
    """

    start: float = 0.5
    steps: int = 500

    def __post_init__(self) -> None:
        check_sparsity(self.start, "start")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps is {self.steps!r}, expected an int")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1")

    def at(self, step: int, end: float) -> float:
        """Return the sparsity of a step, the first of which is 0, on the way to `end`."""
        start = min(self.start, end)
        return start + (end - start) * min(step, self.steps) / self.steps


def check_sparsity(value: object, name: str) -> None:
    """Refuse what is no share of zeros."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, expected a number")
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}, expected at least 0 and less than 1: a share of zeros")


@dataclass
class Tally:
    """What pruning has come to so far; counted.

    Attributes
    ----------
    passes : int
        Backward passes, whichever way they took: the steps of a schedule.
    elements, zeros : int
        Of the gradients that were pruned.
    macs : int
        Multiply-accumulates of the gradients of inputs and weights that were wanted, if nothing is left out.
    skipped_macs : int
        Those with a zero, which were left out.
    """

    passes: int = 0
    elements: int = 0
    zeros: int = 0
    macs: int = 0
    skipped_macs: int = 0

    @property
    def share(self) -> float:
        """Share of zeros, 0 if nothing was pruned."""
        return self.zeros / self.elements if self.elements else 0.0


class Pruner:
    """What one layer prunes, and has pruned. It is no part of ``state_dict``; copies and pickles have it.

    Random numbers are a function of `seed`, the pass and an element's place: nothing is drawn in training,
    so that dropout, say, draws the same as without pruning.

    Parameters
    ----------
    sparsity : float
        Share of zeros that is aimed for, in the end.
    schedule : Rising or None
        The way there.

    Attributes
    ----------
    seed : int
        Drawn from torch's generator.
    tally : Tally
        What it has come to.
    measurement : Measurement or None
        What the latest backward pass knew of the times of both ways.
    path : str or None
        Which way the latest backward pass took: "sparse", "dense" or "exact".
    settled : set of tuple
        What :func:`flower_edge.training._sign_ops.place_of` calls the passes that are exact for good, in this
        process.
    number : int
        Names it in this process.
    """

    def __init__(self, sparsity: float, schedule: Rising | None = None) -> None:
        self.sparsity = sparsity
        self.schedule = schedule
        # A model may be prepared where tensors have no data, but seeds are numbers.
        with _disable_current_modes():
            self.seed = int(torch.randint(_SEEDS - 1, ()))
        self.tally = Tally()
        self.measurement: Measurement | None = None
        self.path: str | None = None
        self.settled: set[tuple[object, ...]] = set()
        self.number = self._enter()

    @staticmethod
    def numbered(number: int) -> "Pruner":
        """Return the pruner with this number: a compiled graph can hold no more of it."""
        if number not in _known:
            raise RuntimeError("the layer that this graph was compiled for is gone; compile the model again")
        return _known[number]

    def sparsity_now(self) -> float:
        """Return what is aimed for in the present pass."""
        if self.schedule is None:
            return self.sparsity
        return self.schedule.at(self.tally.passes, self.sparsity)

    def seed_now(self) -> int:
        """Return the seed of the present pass."""
        return (self.seed + self.tally.passes) % _SEEDS

    def threshold(self, grad: Tensor) -> float | None:
        """Return the threshold; None: the one that is expected to leave the share of zeros aimed for."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("number", "settled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.settled = set()
        self.number = self._enter()

    def _enter(self) -> int:
        number = next(_numbers)
        _known[number] = self
        return number


@dataclass(frozen=True)
class PrunedFeedback:
    """What sign feedback does to a layer: how its two gradients are formed.

    Attributes
    ----------
    signs : bool
        Whether errors go back through the signs of the weights.
    measured : bool
        Whether torch's own backward pass is used where it is measured to be faster.
    pruner : Pruner
        What is left out.
    """

    signs: bool
    measured: bool
    pruner: Pruner = field(compare=False, repr=False)

    def feedback_bytes(self, weight: Tensor) -> int:
        """Count the bytes of what errors go back through, as the latest backward pass did."""
        if not self.signs or self.pruner.path == "exact":
            return weight.nbytes
        return pack_signs(weight.detach().float()).nbytes

    def __str__(self) -> str:
        feedback = "sign" if self.signs else "exact"
        return f"SignFeedback(sparsity={self.pruner.sparsity}, feedback={feedback!r})"


@dataclass(frozen=True)
class LayerPruning:
    """What pruning has come to in one layer.

    Attributes
    ----------
    name : str
        Of the layer in its model.
    path : str or None
        Which way the latest backward pass took: "sparse", "dense" or "exact"; None before the first.
    sparsity : float
        Share of zeros in the gradients that were pruned, 0 where none was; counted.
    macs, skipped_macs : int
        Multiply-accumulates of the backward pass without pruning, and those that were left out; counted.
    """

    name: str
    path: str | None
    sparsity: float
    macs: int
    skipped_macs: int


@dataclass(frozen=True)
class PruningReport:
    """What pruning has come to since the model was prepared.

    Attributes
    ----------
    layers : tuple of LayerPruning
        In the order of the model.
    steps : int
        Backward passes of the layer with the most of them.
    sparsity : float
        Share of zeros in all gradients that were pruned, 0 if none was; counted.
    macs, skipped_macs : int
        Of all layers together; counted.
    """

    layers: tuple[LayerPruning, ...]
    steps: int
    sparsity: float
    macs: int
    skipped_macs: int

    @property
    def skipped_share(self) -> float:
        """Share of the multiply-accumulates of these layers' backward passes that were left out."""
        return self.skipped_macs / self.macs if self.macs else 0.0


def pruning_report(model: nn.Module) -> PruningReport:
    """Say what :class:`flower_edge.training.SignFeedback` has left out in a model's backward passes so far.

    Parameters
    ----------
    model : Module
        Prepared or not.

    Returns
    -------
    PruningReport
        Without layers, if none is prepared with it.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    _check(model)
    found = list(pruners(model))
    tallies = [pruner.tally for _, pruner in found]
    counted = ("elements", "zeros", "macs", "skipped_macs")
    total = Tally(**{name: sum(getattr(tally, name) for tally in tallies) for name in counted})
    return PruningReport(
        tuple(
            LayerPruning(name, pruner.path, pruner.tally.share, pruner.tally.macs, pruner.tally.skipped_macs)
            for name, pruner in found
        ),
        max((tally.passes for tally in tallies), default=0),
        total.share,
        total.macs,
        total.skipped_macs,
    )


def resume_schedule_(model: nn.Module, steps: int) -> nn.Module:
    """Let a rising sparsity go on as if so many training steps had been taken.

    For a model that is made anew while its training goes on, as a node of a fleet does in every round;
    ``state_dict`` says nothing of steps. :func:`flower_edge.clients.edge_client_app` calls it.

    Parameters
    ----------
    model : Module
        Changed in place; one without :class:`SignFeedback` stays as it is.
    steps : int
        At least 0.

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    TypeError
        If `model` is not a module, or `steps` not an int.
    ValueError
        If `steps` is negative.
    """
    _check(model)
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps is {steps!r}, expected an int")
    if steps < 0:
        raise ValueError(f"steps is {steps}, expected at least 0")
    for _, pruner in pruners(model):
        pruner.tally.passes = steps
    return model


def pruners(model: nn.Module) -> Iterator[tuple[str, Pruner]]:
    """Yield name and pruner of the layers that have one."""
    for name, layer in model.named_modules():
        way = getattr(vars(layer).get("rule"), "grad_weight", None)
        if isinstance(way, PrunedFeedback):
            yield name, way.pruner


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
