"""One operation's backward pass again, alone, for every choice of what it computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map

from flower_edge.training._operations import Draft, Operations, Storages
from flower_edge.training._recorder import clock

NOISE = 0.1
"""Of either of two times: less than this in common cannot be told from nothing."""


@dataclass(frozen=True)
class Parts:
    """What an operation's backward pass consists of.

    Attributes
    ----------
    grad_input : float
        Seconds for the gradient of its inputs alone.
    tensors : tuple of float
        Seconds for the gradient of each of its tensors alone.
    together : float
        Seconds for the gradients of all its tensors.
    both : float
        Seconds for everything.
    shared : float
        Seconds of work that the gradient of the inputs and those of the tensors have in common.
    saved_for_input : list of int
        Storages kept for the gradient of its inputs.
    saved_for_tensors : list of list of int
        Storages kept for each tensor's gradient.
    """

    grad_input: float
    tensors: tuple[float, ...]
    together: float
    both: float
    shared: float
    saved_for_input: list[int]
    saved_for_tensors: list[list[int]]


@dataclass(frozen=True)
class _Replayed:
    outputs: Tensor
    leaves: list[Tensor]
    saved: list[int]


def replay(
    draft: Draft, operations: Operations, gradient: Tensor, storages: Storages, *, repeats: int
) -> Parts | None:
    """Take the backward pass of an operation apart; None if it has to stay in one piece.

    Parameters
    ----------
    draft : Draft
        With at least one tensor, and its call kept.
    operations : Operations
    gradient : Tensor
        Of the call's first result.
    storages : Storages
    repeats : int
        The least time of so many counts.
    """
    call = draft.call
    if call.function is None or _in_place(call.kind):
        return None
    wanted: list[tuple[bool, frozenset[str]]] = [(False, frozenset({name})) for name in draft.tensors]
    everything = frozenset(draft.tensors)
    wanted += [(False, everything), (bool(draft.inputs), everything)]
    if draft.inputs:
        wanted.append((True, frozenset()))
    replays = [_run(draft, operations, storages, *what) for what in wanted]
    if any(again is None or again.outputs.shape != gradient.shape for again in replays):
        return None
    seconds = _least_seconds([again for again in replays if again is not None], gradient, repeats)
    saved = [again.saved for again in replays if again is not None]
    count = len(draft.tensors)
    alone, together, both = tuple(seconds[:count]), seconds[count], seconds[count + 1]
    grad_input = seconds[count + 2] if draft.inputs else 0.0
    shared = min(max(0.0, grad_input + together - both), grad_input, together)
    if shared < NOISE * min(grad_input, together):
        shared = 0.0
    return Parts(
        grad_input, alone, together, both, shared, saved[count + 2] if draft.inputs else [], saved[:count]
    )


def _in_place(kind: str) -> bool:
    return kind == "__setitem__" or kind.startswith("__i") or (kind.endswith("_") and not kind.endswith("__"))


def _run(
    draft: Draft, operations: Operations, storages: Storages, inputs: bool, names: frozenset[str]
) -> _Replayed | None:
    """Call the operation again so that autograd wants gradients of `inputs` and of the tensors `names`."""
    call = draft.call
    leaves: list[Tensor] = []
    saved: list[Tensor] = []

    def cut_off(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.requires_grad):
            return value
        parameters = operations.parameters_behind(value)
        leaf = value.detach()
        if (inputs and not parameters) or names & parameters:
            leaves.append(leaf.requires_grad_())
        return leaf

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    args, kwargs = tree_map(cut_off, (call.args, dict(call.kwargs)))
    assert call.function is not None  # noqa: S101 - the caller's condition, for the type checker
    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call.function(*args, **kwargs)
    made = [value for value in tree_leaves(result) if isinstance(value, Tensor) and value.requires_grad]
    if not made or not leaves:
        return None
    return _Replayed(made[0], leaves, storages.of_replay(call, saved, result))


def _least_seconds(replays: Sequence[_Replayed], gradient: Tensor, repeats: int) -> list[float]:
    """Return the least time of each backward pass, taken in turns."""
    least = [float("inf")] * len(replays)
    for _ in range(repeats + 1):
        for index, again in enumerate(replays):
            least[index] = min(least[index], _seconds(again.outputs, again.leaves, gradient))
    return [max(0.0, seconds - _engine_seconds()) for seconds in least]


def _seconds(outputs: Tensor, leaves: list[Tensor], gradient: Tensor) -> float:
    begun = clock()
    torch.autograd.grad(outputs, leaves, gradient, retain_graph=True, allow_unused=True)
    return clock() - begun


@cache
def _engine_seconds(repeats: int = 50) -> float:
    """Return what a backward pass takes that computes nothing."""
    leaf = torch.ones(1, requires_grad=True)
    outputs, gradient = leaf.view(1), torch.ones(1)
    return min(_seconds(outputs, [leaf], gradient) for _ in range(repeats))
