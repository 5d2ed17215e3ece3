"""What each operation of a model costs in a training step on this device."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flower_edge.training import _profile_json
from flower_edge.training._checks import check_batch, check_hooks, check_optimizer, check_trainable
from flower_edge.training._device import device_name
from flower_edge.training._measurement import Measurement, ProfiledOperation, Progress, TensorUse
from flower_edge.training._optimizer_state import state_bytes, step_seconds
from flower_edge.training._passes import Step
from flower_edge.training._recorder import Loss
from flower_edge.training._untouched import untouched
from flower_edge.training.backward_graph import BackwardGraph, Operation, SharedActivation, TrainableTensor

__all__ = ["Profile", "ProfiledOperation", "ProfiledTensor", "Progress", "TensorUse", "profile"]

REPEATS = 7


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

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a step with exact gradients; counted.

        The gradient of an operation's inputs takes as many as its forward pass, that of its weights, too.
        """
        matrices = {tensor.name for tensor in self.tensors if len(tensor.shape) > 1}
        return sum(
            o.macs * (1 + bool(o.inputs) + any(use.name in matrices for use in o.tensors))
            for o in self.operations
        )

    @property
    def feedback_bytes(self) -> int:
        """Bytes of the weights that errors go back through; counted.

        :class:`flower_edge.training.SignFeedback` needs one bit of each, and a number a filter.
        """
        return sum(operation.feedback_bytes for operation in self.operations)

    @property
    def traffic_bytes(self) -> int:
        """Bytes that a step moves at least, even if a cache holds all else; counted.

        What is kept for the backward pass is written and read. A trained tensor is read and its gradient
        written; the optimizer reads both and writes the tensor, and reads and writes its own state.
        """
        tensors = sum(5 * tensor.gradient_bytes + 2 * tensor.optimizer_bytes for tensor in self.tensors)
        return 2 * sum(self.saved_sizes) + tensors

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
        measured = Measurement(step, repeats, progress or (lambda what, done, total: None))
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


def _tensor(model: nn.Module, name: str, optimizer: Optimizer | None) -> ProfiledTensor:
    parameter = model.get_parameter(name)
    state = 0 if optimizer is None else state_bytes(optimizer, parameter)
    return ProfiledTensor(name, tuple(parameter.shape), parameter.nbytes, state)


def _check(model: nn.Module, batch: Any, optimizer: Optimizer | None, repeats: int) -> None:
    check_batch(batch)
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected at least 1")
    parameters = dict(model.named_parameters())
    check_trainable(parameters)
    check_hooks(parameters)
    for name, parameter in parameters.items():
        if parameter.device.type != "cpu":
            raise ValueError(f"parameter {name!r} is on {parameter.device}, expected a model on the CPU")
    if optimizer is not None:
        check_optimizer(optimizer, parameters)


def _batch_tensors(batch: Any) -> Collection[Tensor]:
    return [value for value in torch.utils._pytree.tree_leaves(batch) if isinstance(value, Tensor)]
