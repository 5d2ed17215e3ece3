"""What each operation of a model costs in a training step on this device.

A step is run as it is, only watched: the forward pass is cut at the functions that the model calls, and the
backward pass at the autograd nodes that they made. Two kinds of steps take turns. Either trains the tensors
with nothing trainable behind them, and half of all others; so every other operation computes the gradient of
its inputs in both, and those of its tensors in one of them: the difference is the time of the latter. Every
operation thus runs on real tensors, with caches and memory as a step leaves them that trains some tensors and
not others. The least times of all operations are added up without any factor; how close that comes to the
time of a whole step is part of the result.

What depends on the choice as a whole is not in it: the memory of large gradients is new in every step if there
are many of them, and at hand if there are few.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flower_edge.training import _profile_json
from flower_edge.training._device import device_name
from flower_edge.training._operations import Draft, Operations, Storages
from flower_edge.training._optimizer_state import state_bytes, step_seconds
from flower_edge.training._passes import Step, Times, least
from flower_edge.training._recorder import Loss, Recorder
from flower_edge.training._replay import Parts, replay
from flower_edge.training._untouched import untouched
from flower_edge.training.backward_graph import BackwardGraph, Operation, SharedActivation, TrainableTensor

REPEATS = 7

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ProfiledTensor:
    """A parameter that the step trains.

    Attributes
    ----------
    name : str
        In ``model.named_parameters()``.
    shape : tuple of int
    gradient_bytes, optimizer_bytes : int
        Of its gradient, and of its optimizer state after a step; counted.
    """

    name: str
    shape: tuple[int, ...]
    gradient_bytes: int
    optimizer_bytes: int


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

    @property
    def backward_seconds(self) -> float:
        """Time of its whole backward pass."""
        tensors = math.fsum(use.grad_weight_seconds for use in self.tensors)
        return self.grad_input_seconds + self.shared_seconds + tensors


@dataclass(frozen=True)
class Profile:
    """What each operation of a model costs in a training step on one device.

    Attributes
    ----------
    operations : tuple of ProfiledOperation
        In the order of the forward pass, the loss last.
    tensors : tuple of ProfiledTensor
        The trainable parameters that the loss depends on.
    saved_sizes : tuple of int
        Bytes of each storage kept for the backward pass; several gradients may need the same. Counted.
    parameters : tuple of (str, tuple of int)
        Name and shape of every parameter of the model, trainable or not: what the profile is of.
    batch : tuple of tuple of int
        Shapes of the batch's tensors.
    forward_seconds, backward_seconds : float
        Of a whole step that nothing watches: what the operations' times should add up to; measured.
    optimizer_seconds : float
        Of the optimizer's step, 0 without an optimizer; measured.
    device : str
        The board or the processor.
    threads : int
        Of torch.
    clock : str
        ``"thread CPU time"`` with one thread, else ``"wall time"``.
    torch_version : str
    """

    operations: tuple[ProfiledOperation, ...]
    tensors: tuple[ProfiledTensor, ...]
    saved_sizes: tuple[int, ...]
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    batch: tuple[tuple[int, ...], ...]
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    device: str
    threads: int
    clock: str
    torch_version: str

    @property
    def forward_agreement(self) -> float:
        """The operations' forward times, added, by the time of the whole forward pass."""
        return math.fsum(o.forward_seconds for o in self.operations) / self.forward_seconds

    @property
    def backward_agreement(self) -> float:
        """The operations' backward times, added, by the time of the whole backward pass."""
        return math.fsum(o.backward_seconds for o in self.operations) / self.backward_seconds

    @cached_property
    def graph(self) -> BackwardGraph:
        """The costs as a function of the tensors that are trained.

        An operation with `shared_seconds` is two in the graph: what the gradients have in common comes after
        the rest, and so is paid for if something behind the operation is trained or a tensor of its own.
        """
        state = {tensor.name: tensor.gradient_bytes + tensor.optimizer_bytes for tensor in self.tensors}
        place: list[int] = []
        own: list[int] = []
        operations: list[Operation] = []
        for operation in self.operations:
            own.append(len(operations))
            uses = tuple(
                # State is held once, however many operations read the tensor.
                TrainableTensor(use.name, use.grad_weight_seconds, 0, state.pop(use.name, 0))
                for use in operation.tensors
            )
            inputs = tuple(place[source] for source in operation.inputs)
            operations.append(Operation(operation.name, inputs, operation.grad_input_seconds, uses))
            if operation.shared_seconds:
                operations.append(
                    Operation(f"{operation.name} (shared)", (own[-1],), operation.shared_seconds)
                )
            place.append(len(operations) - 1)
        return BackwardGraph(
            tuple(operations),
            self._activations(own),
            fixed_seconds=self.forward_seconds + self.optimizer_seconds,
        )

    def _activations(self, own: list[int]) -> tuple[SharedActivation, ...]:
        inputs: list[list[int]] = [[] for _ in self.saved_sizes]
        tensors: list[dict[str, None]] = [{} for _ in self.saved_sizes]
        for index, operation in enumerate(self.operations):
            for storage in operation.saved:
                inputs[storage].append(own[index])
            for use in operation.tensors:
                for storage in use.saved:
                    tensors[storage][use.name] = None
        return tuple(
            SharedActivation(size, tuple(readers), tuple(names))
            for size, readers, names in zip(self.saved_sizes, inputs, tensors, strict=True)
            if readers or names
        )

    def to_json(self) -> str:
        """Return the profile as a JSON document."""
        return _profile_json.encode(self)

    @classmethod
    def from_json(cls, text: str, model: nn.Module | None = None) -> "Profile":
        """Read a profile, and check that it is of `model` if one is given.

        Raises
        ------
        ValueError
            If the text is no profile, contradicts itself, or is of a model with other parameters.
        """
        decoded: Profile = _profile_json.decode(text, cls)
        if model is not None:
            decoded.check(model)
        return decoded

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError if the profile is of a model with other parameters."""
        received = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
        for number, (mine, other) in enumerate(zip(self.parameters, received, strict=False)):
            if mine != other:
                raise ValueError(
                    f"the profile's parameter {number} is {mine[0]!r} of shape {mine[1]}, the model's is "
                    f"{other[0]!r} of shape {other[1]}: it is the profile of another model"
                )
        if len(self.parameters) != len(received):
            raise ValueError(
                f"the profile is of a model with {len(self.parameters)} parameters, received one with "
                f"{len(received)}: it is the profile of another model"
            )

    def check_here(self) -> None:
        """Raise a ValueError if the profile is of another device, thread count or version of torch."""
        for what, mine, here in (
            ("device", self.device, device_name()),
            ("number of threads", self.threads, torch.get_num_threads()),
            ("torch", self.torch_version, torch.__version__),
        ):
            if mine != here:
                raise ValueError(
                    f"the {what} of the profile is {mine!r}, here it is {here!r}: profile the model again"
                )


def profile(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss: Loss,
    *,
    optimizer: Optimizer | None = None,
    repeats: int = REPEATS,
    progress: Progress | None = None,
) -> Profile:
    """Measure what each operation of a model costs in a training step.

    The model runs in its present mode with its present trainable parameters, and is bit for bit as before
    afterwards: parameters, buffers, gradients, flags, hooks and random states.

    Parameters
    ----------
    model : Module
        On the CPU. Any that runs eagerly; its forward pass has to make the same calls every time.
    batch : tuple of (inputs, targets)
        As it is trained with: times depend on its shape. `inputs` is a tensor or a tuple of arguments.
    loss : callable
        ``loss(model(inputs), targets)`` is a finite scalar.
    optimizer : Optimizer, optional
        The one that trains the model. Its state and its step are counted on copies.
    repeats : int, default 7
        The least time of so many steps counts.
    progress : callable, optional
        Called with what is measured, the number of steps done and that of all.

    Returns
    -------
    Profile

    Raises
    ------
    ValueError
        If nothing is trainable, the loss is not a finite scalar or does not depend on a trainable parameter,
        the model is not on the CPU, is checkpointed, changes its input in place, or makes other calls in
        every pass; the message names the module where there is one.
    """
    _check(model, batch, optimizer, repeats)
    with untouched(model):
        step = Step(model, batch, loss)
        measured = _Measurement(step, repeats, progress or (lambda what, done, total: None))
        operations = measured.operations()
        tensors = tuple(_tensor(model, name, optimizer) for name in measured.trained)
        optimizer_seconds = 0.0
        if optimizer is not None:
            parameters = [model.get_parameter(tensor.name) for tensor in tensors]
            optimizer_seconds = step_seconds(optimizer, parameters, repeats)
    return Profile(
        operations=operations,
        tensors=tensors,
        saved_sizes=tuple(measured.storages.sizes),
        parameters=tuple((name, tuple(parameter.shape)) for name, parameter in model.named_parameters()),
        batch=tuple(tuple(tensor.shape) for tensor in _batch_tensors(batch)),
        forward_seconds=measured.bare[0],
        backward_seconds=measured.bare[1],
        optimizer_seconds=optimizer_seconds,
        device=device_name(),
        threads=torch.get_num_threads(),
        clock="thread CPU time" if torch.get_num_threads() == 1 else "wall time",
        torch_version=torch.__version__,
    )


class _Measurement:
    """The steps that a profile is made of."""

    def __init__(self, step: Step, repeats: int, progress: Progress) -> None:
        self._step = step
        self._trainable = frozenset(
            name for name, parameter in step.model.named_parameters() if parameter.requires_grad
        )
        self.storages = Storages([*step.model.parameters(), *step.model.buffers()])
        total = 3 * repeats + 1
        progress("first step", 0, total)
        _check_loss(step.forward())
        # Layers that measure themselves settle, and libraries choose their kernels.
        step.bare()
        self._record(repeats)
        progress("operations taken apart", 1, total)
        self._halves = self._operations.halves()
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
        _check_loss(loss)
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
        )

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


def _tensor(model: nn.Module, name: str, optimizer: Optimizer | None) -> ProfiledTensor:
    parameter = model.get_parameter(name)
    state = 0 if optimizer is None else state_bytes(optimizer, parameter)
    return ProfiledTensor(name, tuple(parameter.shape), parameter.nbytes, state)


def _check(model: nn.Module, batch: Any, optimizer: Optimizer | None, repeats: int) -> None:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch is a {type(batch).__name__}, expected a tuple of inputs and targets")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected at least 1")
    parameters = dict(model.named_parameters())
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(
            f"none of the model's {len(parameters)} parameters requires a gradient, expected one to train"
        )
    for name, parameter in parameters.items():
        if parameter.device.type != "cpu":
            raise ValueError(f"parameter {name!r} is on {parameter.device}, expected a model on the CPU")
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"parameter {name!r} has a hook that runs after its gradient and could change it, expected a "
                "model whose optimizer steps after the backward pass"
            )
    if optimizer is not None:
        _check_optimizer(optimizer, parameters)


def _check_optimizer(optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in parameters.items():
        if parameter.requires_grad and id(parameter) not in held:
            raise ValueError(f"the optimizer does not hold parameter {name!r}, which requires a gradient")


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        received = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss has {received}, expected a tensor with one element")
    if not math.isfinite(loss.item()):
        raise ValueError(f"the loss of the batch is {loss.item()}, expected a finite number")
    if not loss.requires_grad:
        raise ValueError("the loss depends on no trainable parameter, expected one to train")


def _batch_tensors(batch: Any) -> Collection[Tensor]:
    return [value for value in torch.utils._pytree.tree_leaves(batch) if isinstance(value, Tensor)]
