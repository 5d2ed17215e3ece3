"""What a backward pass costs as a function of the tensors that it trains.

A gradient travels from the loss to the deepest trained tensor. So an operation computes the gradient of its
input only if something strictly behind it is trained (residual branches included), and it keeps what that
needs from the forward pass only then.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class TrainableTensor:
    """A parameter, where one operation reads it.

    Parameters
    ----------
    name : str
        Its name in ``model.named_parameters()``. A parameter that several operations read appears at each of
        them under the same name; it is trained by all of them or by none.
    grad_weight_seconds : float
        Time for its gradient here, given the gradient of the operation's output.
    saved_bytes : int, default 0
        Activation bytes kept from the forward pass for this gradient alone.
    state_bytes : int, default 0
        Bytes of its gradient and of its optimizer state; where it appears several times, given once.
    grad_weight_joules : float, default 0.0
        Energy for its gradient here.

    Raises
    ------
    ValueError
        If the name is empty, or a cost is negative or not finite.
    """

    name: str
    grad_weight_seconds: float
    saved_bytes: int = 0
    state_bytes: int = 0
    grad_weight_joules: float = 0.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a tensor has an empty name, expected the parameter's name in the model")
        _check_costs(
            f"tensor {self.name!r}",
            grad_weight_seconds=self.grad_weight_seconds,
            saved_bytes=self.saved_bytes,
            state_bytes=self.state_bytes,
            grad_weight_joules=self.grad_weight_joules,
        )


@dataclass(frozen=True)
class Operation:
    """One step of the forward pass.

    Parameters
    ----------
    name : str
        For messages and tables.
    inputs : tuple of int
        Indices of the earlier operations whose outputs it reads; empty if it reads the data alone.
    grad_input_seconds : float, default 0.0
        Time for the gradient of its inputs; paid if and only if a trained tensor lies strictly behind it,
        that is, at an operation from which a path of `inputs` leads here.
    tensors : tuple of TrainableTensor
        The parameters that it reads.
    saved_bytes : int, default 0
        Activation bytes kept for the gradient of its inputs alone; kept if and only if that is paid.
    grad_input_joules : float, default 0.0
        Energy for the gradient of its inputs.

    Raises
    ------
    ValueError
        If a cost is negative or not finite, or a tensor appears twice.
    """

    name: str
    inputs: tuple[int, ...]
    grad_input_seconds: float = 0.0
    tensors: tuple[TrainableTensor, ...] = ()
    saved_bytes: int = 0
    grad_input_joules: float = 0.0

    def __post_init__(self) -> None:
        _check_costs(
            f"operation {self.name!r}",
            grad_input_seconds=self.grad_input_seconds,
            saved_bytes=self.saved_bytes,
            grad_input_joules=self.grad_input_joules,
        )
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) < len(names):
            raise ValueError(f"operation {self.name!r} reads tensors {names}, expected each name once")


@dataclass(frozen=True)
class SharedActivation:
    """An activation kept once for several gradients, as long as one of them is computed.

    A ReLU's output, say, which the ReLU and the convolution after it both keep; or the input of a
    normalisation, which the gradients of its input and of its weight both need.

    Parameters
    ----------
    saved_bytes : int
        Its size.
    grad_inputs : tuple of int
        Indices of the operations that need it for the gradient of their inputs.
    tensors : tuple of str
        Names of the tensors whose gradients need it.

    Raises
    ------
    ValueError
        If the size is negative, or nothing needs it.
    """

    saved_bytes: int
    grad_inputs: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_costs("a shared activation", saved_bytes=self.saved_bytes)
        if not self.grad_inputs and not self.tensors:
            raise ValueError(
                "a shared activation has neither grad_inputs nor tensors, expected what it is kept for"
            )


@dataclass(frozen=True)
class Cost:
    """What training a set of tensors costs beyond what every step costs.

    Attributes
    ----------
    seconds : float
        Backward time.
    saved_bytes : int
        Activations kept from the forward pass.
    state_bytes : int
        Gradients and optimizer state.
    joules : float
        Energy of the backward pass.
    """

    seconds: float
    saved_bytes: int
    state_bytes: int
    joules: float

    @property
    def bytes(self) -> int:
        """Activations, gradients and optimizer state together."""
        return self.saved_bytes + self.state_bytes


@dataclass(frozen=True)
class BackwardGraph:
    """The operations of a model, in the order of its forward pass, with the costs of their gradients.

    Parameters
    ----------
    operations : tuple of Operation
        In topological order: an operation comes after its inputs.
    shared : tuple of SharedActivation
        Activations that several gradients need.
    fixed_seconds, fixed_joules : float, default 0.0
        Forward pass, loss and optimizer: what a step costs whichever tensors are trained.
    fixed_bytes : int, default 0
        Bytes held whichever tensors are trained.

    Raises
    ------
    ValueError
        If an operation's inputs are not earlier operations, a shared activation names an operation or a
        tensor that is not there, or a cost is negative or not finite.
    """

    operations: tuple[Operation, ...]
    shared: tuple[SharedActivation, ...] = ()
    fixed_seconds: float = 0.0
    fixed_bytes: int = 0
    fixed_joules: float = 0.0

    def __post_init__(self) -> None:
        _check_costs(
            "the graph",
            fixed_seconds=self.fixed_seconds,
            fixed_bytes=self.fixed_bytes,
            fixed_joules=self.fixed_joules,
        )
        for index, operation in enumerate(self.operations):
            for source in operation.inputs:
                if not 0 <= source < index:
                    raise ValueError(
                        f"operation {index} ({operation.name!r}) has input {source}, "
                        f"expected the index of an earlier operation, 0 to {index - 1}"
                    )
        for activation in self.shared:
            for index in activation.grad_inputs:
                if not 0 <= index < len(self.operations):
                    raise ValueError(
                        f"a shared activation names operation {index}, "
                        f"expected 0 to {len(self.operations) - 1}"
                    )
            self._check_names(activation.tensors)

    @cached_property
    def readers(self) -> Mapping[str, tuple[int, ...]]:
        """The operations that read each tensor, in the order of the forward pass."""
        found: dict[str, list[int]] = {}
        for index, operation in enumerate(self.operations):
            for tensor in operation.tensors:
                found.setdefault(tensor.name, []).append(index)
        return {name: tuple(indices) for name, indices in found.items()}

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """All tensors, in the order in which the forward pass first reads them."""
        return tuple(self.readers)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """The operations that read each operation's output."""
        found: list[list[int]] = [[] for _ in self.operations]
        for index, operation in enumerate(self.operations):
            for source in dict.fromkeys(operation.inputs):
                found[source].append(index)
        return tuple(tuple(indices) for indices in found)

    def paid(self, chosen: Collection[str]) -> Iterator[int]:
        """Yield the operations that compute the gradient of their inputs when `chosen` are trained."""
        trained = frozenset(chosen)
        behind = [False] * len(self.operations)
        for index, operation in enumerate(self.operations):
            if any(behind[source] for source in operation.inputs):
                yield index
                behind[index] = True
            else:
                behind[index] = any(tensor.name in trained for tensor in operation.tensors)

    def cost(self, chosen: Iterable[str]) -> Cost:
        """Return what training `chosen`, and nothing else, costs beyond the fixed costs.

        Raises
        ------
        ValueError
            If a name is not a tensor of the graph.
        """
        trained = frozenset(chosen)
        self._check_names(trained)
        paid = set(self.paid(trained))
        tensors = [
            tensor for operation in self.operations for tensor in operation.tensors if tensor.name in trained
        ]
        travelled = [self.operations[index] for index in paid]
        kept = [
            activation
            for activation in self.shared
            if not paid.isdisjoint(activation.grad_inputs) or not trained.isdisjoint(activation.tensors)
        ]
        return Cost(
            seconds=math.fsum(
                [
                    *(tensor.grad_weight_seconds for tensor in tensors),
                    *(operation.grad_input_seconds for operation in travelled),
                ]
            ),
            saved_bytes=(
                sum(tensor.saved_bytes for tensor in tensors)
                + sum(operation.saved_bytes for operation in travelled)
                + sum(activation.saved_bytes for activation in kept)
            ),
            state_bytes=sum(tensor.state_bytes for tensor in tensors),
            joules=math.fsum(
                [
                    *(tensor.grad_weight_joules for tensor in tensors),
                    *(operation.grad_input_joules for operation in travelled),
                ]
            ),
        )

    @cached_property
    def full_cost(self) -> Cost:
        """What training every tensor costs."""
        return self.cost(self.tensor_names)

    def _check_names(self, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - self.readers.keys())
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is not a tensor of the graph, expected one of its "
                f"{len(self.readers)} names such as {next(iter(self.readers), 'none')!r}"
            )


def _check_costs(of: str, **costs: float) -> None:
    for name, value in costs.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} of {of} is {value}, expected a finite number of at least 0")
