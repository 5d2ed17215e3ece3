"""From the calls of a forward pass to the graph of its operations."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from flower_edge.training._recorder import Call, Recorder


@dataclass
class Draft:
    """An operation whose times are not known yet.

    Attributes
    ----------
    name : str
        Module and function, unique in the graph.
    call : Call
    calls : list of int
        Indices of the calls that count as part of it: its own, and those that prepared its parameters.
    inputs : list of int
        Indices of the operations whose outputs it reads and has to send gradients to.
    tensors : list of str
        Names of the trainable parameters that it reads, directly or through calls that read only parameters.
    """

    name: str
    call: Call
    calls: list[int]
    inputs: list[int] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)


class Operations:
    """The operations of a recorded forward pass, in its order.

    Parameters
    ----------
    recorder : Recorder
        Of a pass whose calls were kept.
    parameter_names : mapping from int to str
        Name of each parameter of the model, by its `id`.

    Raises
    ------
    ValueError
        If a tensor that is no parameter of the model requires a gradient.
    """

    def __init__(self, recorder: Recorder, parameter_names: Mapping[int, str]) -> None:
        self._recorder = recorder
        self._names = parameter_names
        self._elements = {
            parameter_names[id(leaf)]: leaf.numel()
            for leaf in recorder.accumulators.values()
            if id(leaf) in parameter_names
        }
        self._check_leaves()
        self._from_parameters = self._find_from_parameters(recorder.calls)
        self._position = self._find_operations(recorder.calls)
        self.drafts = [
            Draft(name, recorder.calls[index], [index])
            for name, index in zip(_unique_names(recorder.calls, self._position), self._position, strict=True)
        ]
        for draft in self.drafts:
            self._connect(draft)
        self._share_out()

    def parameters_behind(self, value: Tensor) -> frozenset[str]:
        """Return the trainable parameters that `value`, an argument of a call, is, or is made of alone."""
        if (name := self._names.get(id(value))) is not None:
            return frozenset({name} if value.requires_grad else ())
        return self._from_parameters.get(id(value), frozenset())

    def sources(self) -> frozenset[str]:
        """Return the parameters of the operations with nothing trainable behind them.

        Where these are trained, every other operation computes the gradient of its inputs.
        """
        return frozenset(name for draft in self.drafts if not draft.inputs for name in draft.tensors)

    def halves(self) -> tuple[frozenset[str], frozenset[str]]:
        """Part the trainable parameters in two of about the same size, with the sources in both.

        The parameters of an operation stay together. If operations share parameters so that they cannot, all
        of theirs are in both halves.
        """
        sources = self.sources()
        halves: tuple[set[str], set[str]] = (set(), set())
        elements = [0, 0]
        for draft in self.drafts:
            names = set(draft.tensors) - sources
            held = [half for half in (0, 1) if names & halves[half]]
            for half in held or [elements.index(min(elements))]:
                elements[half] += sum(self._elements[name] for name in names - halves[half])
                halves[half].update(names)
        return sources | halves[0], sources | halves[1]

    def _check_leaves(self) -> None:
        for leaf in self._recorder.accumulators.values():
            if id(leaf) not in self._names:
                raise ValueError(
                    f"a tensor of shape {tuple(leaf.shape)} requires a gradient and is no parameter of the "
                    "model, expected a batch and a loss that need none"
                )

    def _find_from_parameters(self, calls: list[Call]) -> dict[int, frozenset[str]]:
        """Map the `id` of every result that is made of parameters alone to their names."""
        made: dict[int, frozenset[str]] = {}
        for call in calls:
            read = [value for value in tree_leaves((call.args, call.kwargs)) if isinstance(value, Tensor)]
            if call.nodes and read and all(id(v) in self._names or id(v) in made for v in read):
                names = [
                    made.get(id(v), frozenset({self._names[id(v)]} if id(v) in self._names else ()))
                    for v in read
                    if v.requires_grad
                ]
                for value in tree_leaves(call.result):
                    if isinstance(value, Tensor):
                        made[id(value)] = frozenset().union(*names)
        return made

    def _only_parameters(self, call: Call) -> bool:
        results = [value for value in tree_leaves(call.result) if isinstance(value, Tensor)]
        return bool(results) and all(id(value) in self._from_parameters for value in results)

    def _find_operations(self, calls: list[Call]) -> dict[int, int]:
        """Map the index of each call that is an operation to its place among them."""
        found = [
            index
            for index, call in enumerate(calls)
            if not self._only_parameters(call) and (call.nodes or _computes(call))
        ]
        return {call: place for place, call in enumerate(found)}

    def _connect(self, draft: Draft) -> None:
        inputs: set[int] = set()
        tensors: dict[str, None] = {}
        pending, seen = list(draft.call.nodes), set(draft.call.nodes)
        while pending:
            for source, _ in pending.pop(0).next_functions:
                if source is None or source in seen:
                    continue
                seen.add(source)
                if source in self._recorder.accumulators:
                    tensors[self._names[id(self._recorder.accumulators[source])]] = None
                elif (place := self._position.get(self._recorder.call_of[source])) is not None:
                    inputs.add(place)
                else:
                    pending.append(source)
        draft.inputs, draft.tensors = sorted(inputs), list(tensors)

    def _share_out(self) -> None:
        """Count calls that are no operations as part of one: of what reads them, or of what comes next."""
        places = list(self._position)
        following = iter(places)
        place, upcoming = -1, -1
        for index, call in enumerate(self._recorder.calls):
            if index > upcoming:
                upcoming, place = next(following, upcoming), min(place + 1, len(places) - 1)
            if index not in self._position:
                self.drafts[self._reader(call, place)].calls.append(index)

    def _reader(self, call: Call, following: int) -> int:
        mine = set(call.nodes)
        if mine:
            for place, draft in enumerate(self.drafts):
                if mine & _behind(draft.call.nodes, self._recorder, self._position):
                    return place
        return following


def _behind(nodes: list[Node], recorder: Recorder, operations: Mapping[int, int]) -> set[Node]:
    """Return the nodes between `nodes` and the operations before them."""
    pending, found = list(nodes), set[Node]()
    while pending:
        for source, _ in pending.pop().next_functions:
            call = None if source is None else recorder.call_of.get(source)
            if source is None or source in found or call is None or call in operations:
                continue
            found.add(source)
            pending.append(source)
    return found


def _computes(call: Call) -> bool:
    """Whether a call outside the graph, in a frozen part, computes something that is not mere bookkeeping."""
    read = [v for v in tree_leaves((call.args, call.kwargs)) if isinstance(v, Tensor)]
    known = {value.untyped_storage().data_ptr() for value in read}
    return any(value.is_floating_point() for value in read) and any(
        value.is_floating_point() and value.untyped_storage().data_ptr() not in known
        for value in tree_leaves(call.result)
        if isinstance(value, Tensor)
    )


def _unique_names(calls: list[Call], operations: Mapping[int, int]) -> list[str]:
    names: list[str] = []
    counts: Counter[str] = Counter()
    for index in operations:
        call = calls[index]
        name = f"{call.module}.{call.kind}" if call.module else call.kind
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return names


class Storages:
    """What is saved for the backward pass, each storage once, parameters and buffers left out.

    Parameters
    ----------
    own : iterable of Tensor
        The model's parameters and buffers.
    """

    def __init__(self, own: Any) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._index: dict[Any, int] = {}
        self.sizes: list[int] = []

    def of_call(self, call: Call) -> list[int]:
        """Return the indices of what a recorded call saves."""
        return self._indices({_pointer(saved): saved for saved in call.saved})

    def of_replay(self, call: Call, saved: list[Tensor], result: Any) -> list[int]:
        """Return the indices of what a repetition of `call` saves: the call's own where it is the same."""
        outside = {_pointer(value) for value in _tensors((call.args, call.kwargs))}
        now, then = (list(dict.fromkeys(map(_pointer, _tensors(r)))) for r in (result, call.result))
        alias = dict(zip(now, then, strict=True))
        inner_then = [
            p for p in dict.fromkeys(map(_pointer, call.saved)) if p not in outside and p not in then
        ]
        keys: dict[Any, Tensor] = {}
        inner = 0
        for pointer, tensor in {_pointer(tensor): tensor for tensor in saved}.items():
            if pointer in outside or pointer in self._own:
                keys[pointer] = tensor
            elif pointer in alias:
                keys[alias[pointer]] = tensor
            else:
                keys[inner_then[inner] if inner < len(inner_then) else (id(call), inner)] = tensor
                inner += 1
        return self._indices(keys)

    def _indices(self, keys: Mapping[Any, Tensor]) -> list[int]:
        found = []
        for key, tensor in keys.items():
            if key in self._own:
                continue
            if key not in self._index:
                self._index[key] = len(self.sizes)
                self.sizes.append(tensor.untyped_storage().nbytes())
            found.append(self._index[key])
        return sorted(found)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
