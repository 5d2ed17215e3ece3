"""The steps that a profile is made of.

A step is run as it is, only watched: the forward pass is cut at the functions that the model calls, and the
backward pass at the autograd nodes that they made. Two kinds of steps take turns. Either trains the tensors
with nothing trainable behind them, and half of all others; so every other operation computes the gradient of
its inputs in both, and those of its tensors in one of them: the difference is the time of the latter. Every
operation thus runs on real tensors, with caches and memory as a step leaves them that trains some tensors and
not others. The least times of all operations are added up without any factor; how close that comes to the
time of a whole step is part of the result.

What depends on the choice as a whole is not in it: the memory of large gradients is new in every step if
there are many of them, and at hand if there are few.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flower_edge.training._operations import Draft, Operations, Storages
from flower_edge.training._passes import Step, Times, least
from flower_edge.training._recorder import Recorder
from flower_edge.training._replay import Parts, replay
from flower_edge.training.pruning import PrunedFeedback

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TensorUse:
    """A parameter where one operation reads it.

    Attributes
    ----------
    name : str
    grad_weight_seconds : float
        Time for its gradient, given that of the operation's output; measured.
    saved : tuple of int
        What is kept for it, as indices into `Profile.saved_sizes`.
    """

    name: str
    grad_weight_seconds: float
    saved: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProfiledOperation:
    """A torch function that the model calls, in all its parts.

    Attributes
    ----------
    name : str
        Unique in the profile: the module's name, then the function's.
    module : str
        Name of the innermost module that calls it; ``"loss"`` outside the model.
    kind : str
        Name of the function, or of the autograd node of a custom function.
    inputs : tuple of int
        Indices of the operations to which it sends gradients.
    macs : int
        Multiply-accumulates of its forward pass; counted, 0 where it multiplies no matrices.
    forward_seconds : float
        Time of its forward pass, and of the Python code that led to it; measured.
    grad_input_seconds : float
        Time that only the gradient of its inputs takes; measured.
    shared_seconds : float
        Time that the gradient of its inputs and those of its tensors have in common, and take whenever one of
        them is computed: a normalisation's sums, say; measured.
    tensors : tuple of TensorUse
    saved : tuple of int
        What is kept for the gradient of its inputs, as indices into `Profile.saved_sizes`.
    feedback_bytes : int, default 0
        Of the weights that errors go back through: the layer's own, or what stands for them where
        :class:`flower_edge.training.SignFeedback` has one bit each; counted.
    """

    name: str
    module: str
    kind: str
    inputs: tuple[int, ...]
    macs: int
    forward_seconds: float
    grad_input_seconds: float
    shared_seconds: float
    tensors: tuple[TensorUse, ...]
    saved: tuple[int, ...]
    feedback_bytes: int = 0

    @property
    def backward_seconds(self) -> float:
        """Time of its whole backward pass."""
        tensors = math.fsum(use.grad_weight_seconds for use in self.tensors)
        return self.grad_input_seconds + self.shared_seconds + tensors


class Measurement:
    """The steps that a profile is made of."""

    def __init__(self, step: Step, repeats: int, progress: Progress) -> None:
        self._step = step
        self._modules = dict(step.model.named_modules())
        self._trainable = frozenset(
            name for name, parameter in step.model.named_parameters() if parameter.requires_grad
        )
        self.storages = Storages([*step.model.parameters(), *step.model.buffers()])
        total = 3 * repeats + 1
        progress("first step", 0, total)
        check_loss(step.forward())
        # Layers that measure themselves settle, and libraries choose their kernels.
        step.bare()
        self._record(repeats)
        progress("operations taken apart", 1, total)
        self._halves = self._operations.halves()
        for names in self._halves:
            # Layers may settle anew when their weight is no longer trained.
            step.train_only(names)
            step.bare()
        steps: tuple[list[Times], list[Times]] = ([], [])
        bare: list[tuple[float, float]] = []
        for repeat in range(repeats):
            for half, (names, times) in enumerate(zip(self._halves, steps, strict=True)):
                step.train_only(names)
                times.append(step.timed(self._calls))
                progress("step of one half", 3 * repeat + half + 2, total)
            step.train_only(self._trainable)
            bare.append(step.bare())
            progress("whole step", 3 * repeat + 4, total)
        self._times = least(steps[0]), least(steps[1])
        self._either = least([*steps[0], *steps[1]])
        self.bare = min(forward for forward, _ in bare), min(backward for _, backward in bare)

    def _record(self, repeats: int) -> None:
        step = self._step
        step.begin()
        versions = [tensor._version for tensor in step.inputs if isinstance(tensor, Tensor)]
        recorder = Recorder(step.module_names, keep=True)
        with recorder.watching(), recorder.recording():
            loss = step.forward()
        if versions != [tensor._version for tensor in step.inputs if isinstance(tensor, Tensor)]:
            raise ValueError("the model changes its input in place, expected one that leaves its batch alone")
        check_loss(loss)
        self._calls = len(recorder.calls)
        self._operations = Operations(recorder, step.parameter_names)
        gradients = _backward(loss, self._operations.drafts)
        self._saved = {
            draft.name: sorted(
                {storage for c in draft.calls for storage in self.storages.of_call(recorder.calls[c])}
            )
            for draft in self._operations.drafts
        }
        self._parts = {
            draft.name: replay(draft, self._operations, gradients[draft.name], self.storages, repeats=repeats)
            for draft in self._operations.drafts
            if draft.tensors and draft.name in gradients
        }
        self.trained = list(
            dict.fromkeys(name for draft in self._operations.drafts for name in draft.tensors)
        )
        for call in recorder.calls:
            # The tensors of a whole step are not needed for the steps that are timed.
            call.args, call.kwargs, call.result, call.saved = (), {}, None, []
            call.function = call.output = None

    def operations(self) -> tuple[ProfiledOperation, ...]:
        """Return every operation with its times."""
        drafts = self._operations.drafts
        first_reader = {name: draft.name for draft in reversed(drafts) for name in draft.tensors}
        return tuple(self._operation(draft, first_reader, last=draft is drafts[-1]) for draft in drafts)

    def _operation(self, draft: Draft, first_reader: dict[str, str], *, last: bool) -> ProfiledOperation:
        parts = self._parts.get(draft.name)
        grad_input, whole = self._backward(draft, parts)
        shared = self._shared(parts, grad_input, whole - grad_input)
        return ProfiledOperation(
            name=draft.name,
            module=draft.call.module,
            kind=draft.call.kind,
            inputs=tuple(draft.inputs),
            macs=draft.call.macs,
            forward_seconds=sum(self._either.forward[call] for call in draft.calls),
            grad_input_seconds=max(0.0, grad_input - shared) + (self._either.start if last else 0.0),
            shared_seconds=shared,
            tensors=self._uses(draft, parts, whole - grad_input, first_reader),
            saved=self._saved_for_input(draft, parts),
            feedback_bytes=self._feedback_bytes(draft),
        )

    def _feedback_bytes(self, draft: Draft) -> int:
        if not draft.inputs or not draft.call.macs or draft.call.module not in self._modules:
            return 0
        module = self._modules[draft.call.module]
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            return 0
        way = getattr(vars(module).get("rule"), "grad_input", None)
        return way.feedback_bytes(weight) if isinstance(way, PrunedFeedback) else weight.nbytes

    def _backward(self, draft: Draft, parts: Parts | None) -> tuple[float, float]:
        """Return the seconds for the gradient of the inputs, and for everything."""
        tensors = frozenset(draft.tensors)
        in_half = [not tensors.isdisjoint(half) for half in self._halves]
        either = _of(self._either, draft)
        if not tensors:
            return either, either
        if not draft.inputs:
            return 0.0, either
        if all(in_half):
            # Its tensors are trained in either kind of step, for the sake of another operation.
            share = 1.0 if parts is None or not parts.both else parts.grad_input / parts.both
            return either * min(1.0, share), either
        whole = _of(self._times[in_half.index(True)], draft)
        return min(whole, _of(self._times[in_half.index(False)], draft)), whole

    @staticmethod
    def _shared(parts: Parts | None, grad_input: float, grad_weight: float) -> float:
        if parts is None or not parts.grad_input:
            return 0.0
        # In proportion: alone, an operation finds its tensors in the caches. And not more than the step
        # itself shows: alone, it may get memory at once in one case and wait for the system in another.
        return min(grad_input * parts.shared / parts.grad_input, max(0.0, parts.together - grad_weight))

    def _uses(
        self, draft: Draft, parts: Parts | None, seconds: float, first_reader: dict[str, str]
    ) -> tuple[TensorUse, ...]:
        alone = [1.0] * len(draft.tensors)
        if parts is not None and sum(parts.tensors) > len(draft.tensors) * parts.shared:
            alone = [max(0.0, tensor - parts.shared) for tensor in parts.tensors]
        total = sum(alone) or 1.0
        return tuple(
            TensorUse(
                name,
                seconds * alone[place] / total
                + (self._either.accumulate.get(name, 0.0) if first_reader[name] == draft.name else 0.0),
                tuple(self._saved[draft.name] if parts is None else parts.saved_for_tensors[place]),
            )
            for place, name in enumerate(draft.tensors)
        )

    def _saved_for_input(self, draft: Draft, parts: Parts | None) -> tuple[int, ...]:
        if draft.tensors and not draft.inputs:
            return ()
        return tuple(self._saved[draft.name] if parts is None else parts.saved_for_input)


def _of(times: Times, draft: Draft) -> float:
    return sum(times.backward.get(call, 0.0) for call in draft.calls)


def _backward(loss: Tensor, drafts: Iterable[Draft]) -> dict[str, Tensor]:
    """Run a backward pass; return the gradient of the output of each operation with tensors."""
    gradients: dict[str, Tensor] = {}

    def watch(draft: Draft) -> Any:
        assert draft.call.output is not None  # noqa: S101 - so it was selected below
        node, number = draft.call.output

        def keep(received: tuple[Tensor | None, ...]) -> None:
            gradient = received[number]
            if gradient is not None:
                gradients[draft.name] = gradient.detach()

        return node.register_prehook(keep)

    handles = [watch(draft) for draft in drafts if draft.tensors and draft.call.output is not None]
    try:
        # What is saved stays alive: a freed storage's address could stand for another one.
        torch.autograd.backward(loss, retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    return gradients


def check_loss(loss: Any) -> None:
    """Raise a ValueError if a loss is not a finite scalar that depends on a trainable parameter."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        received = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss has {received}, expected a tensor with one element")
    if not math.isfinite(loss.item()):
        raise ValueError(f"the loss of the batch is {loss.item()}, expected a finite number")
    if not loss.requires_grad:
        raise ValueError("the loss depends on no trainable parameter, expected one to train")
