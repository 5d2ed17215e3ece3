"""One step of any eager model, seen call by call.

The forward pass is cut at the torch functions that the model calls; each autograd node belongs to the call
that made it, so the backward pass is cut at the same places. A pass that is repeated makes the same calls,
which is why a call's index in the pass is its identity.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, TypeAlias

import torch
import torch.nn.functional
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Loss: TypeAlias = Callable[[Any, Any], Tensor]

LOSS = "loss"
"""Module name of what is called outside the model."""

BOOKKEEPING = ("__get__", "__set__", "_set_grad_enabled")
ACCUMULATE = "torch::autograd::AccumulateGrad"
REENTRANT_CHECKPOINT = "CheckpointFunctionBackward"


def clock() -> float:
    """Return the time that counts here, in seconds.

    Other processes do not disturb the CPU time of this thread; but it does not see the work of other threads,
    so wall time has to do where torch uses several.
    """
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


@dataclass
class Call:
    """A torch function that the model called; or nodes of a custom autograd function, found after it.

    Attributes
    ----------
    kind : str
        Name of the function, or of the autograd node.
    module : str
        Name of the innermost module that was running.
    forward_seconds : float
        Since the call before it, so that the calls' times add up to that of the pass.
    nodes : list of Node
        The autograd nodes that it made.
    macs : int
        Multiply-accumulates, where they were counted.
    saved : list of Tensor
        What its nodes keep for the backward pass, where that was watched.
    function, args, kwargs, result
        The call itself, where it was kept; `function` is None for custom autograd functions.
    output : tuple of (Node, int)
        The node of the first result that has one, and which of that node's outputs it is. An in-place
        function that comes later gives the same tensor another node.
    """

    kind: str
    module: str
    forward_seconds: float = 0.0
    nodes: list[Node] = field(default_factory=list)
    macs: int = 0
    saved: list[Tensor] = field(default_factory=list)
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    output: tuple[Node, int] | None = None


class Recorder(TorchFunctionMode):
    """Cut one forward pass into calls, and let its backward pass tell when each call's nodes begin.

    Parameters
    ----------
    module_names : mapping from int to str
        Name of each module, by its `id`.
    keep : bool, default False
        Also keep what was called, what is saved and the multiply-accumulates: not for a pass that is timed.
    """

    def __init__(self, module_names: Mapping[int, str], *, keep: bool = False) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.call_of: dict[Node, int] = {}
        self.accumulators: dict[Node, Tensor] = {}
        self.stamps: list[tuple[Node, float]] = []
        self._names = module_names
        self._modules: list[str] = []
        self._keep = keep
        self._packed: list[Tensor] = []
        self._watching = False
        self._handles: list[Any] = []
        self._macs = 0
        self._last = 0.0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one function of the model."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.multi_head_attention_forward:
            # Alone among torch's functions it reads parameters in several places: calls of their own.
            with self:
                return _unguarded(func)(*args, **kwargs)
        if self._last == 0 or getattr(func, "__name__", "") in BOOKKEEPING:
            return func(*args, **kwargs)
        if not torch.is_grad_enabled():
            # Inside a custom autograd function, say: part of the call that is found next.
            with self._counting() as macs:
                result = func(*args, **kwargs)
            self._macs += macs()
            return result
        entered = clock()
        self._find_custom((args, kwargs), entered)
        call = Call(func.__name__ if hasattr(func, "__name__") else str(func), self.module)
        started = clock()
        glue = max(0.0, entered - self._last)
        if self._watching:
            self._packed = call.saved if self._keep else []
            self._check_not_checkpointed()
        result = self._kept(call, func, args, kwargs) if self._keep else func(*args, **kwargs)
        call.forward_seconds = glue + clock() - started
        self._claim(call, self._unknown(result))
        self._last = clock()
        return result

    @property
    def module(self) -> str:
        """Name of the innermost module that is running."""
        return self._modules[-1] if self._modules else LOSS

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is called inside."""

        def enter(module: nn.Module, args: Any) -> None:
            try:
                settle(args)
            finally:
                self._modules.append(self._names.get(id(module), self.module))

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            settle(result)
            self._modules.pop()

        def settle(values: Any) -> None:
            if self._last:
                entered = clock()
                self._find_custom(values, entered)
                # What this took is no time of the model's.
                self._last += clock() - entered

        hooks = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            with self:
                self._last = clock()
                yield
                self._last = 0.0
        finally:
            for hook in hooks:
                hook.remove()

    def stamp_nodes(self) -> None:
        """Let every node found so far note when it begins, and that of every parameter's gradient."""
        for node in [*self.call_of, *self.accumulators]:
            self._handles.append(node.register_prehook(self._stamp(node)))

    def release(self) -> None:
        """Take all hooks from the nodes."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _stamp(self, node: Node) -> Callable[[Any], None]:
        stamps, now = self.stamps, clock

        def stamp(gradients: Any) -> None:
            stamps.append((node, now()))

        return stamp

    def _kept(
        self, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        with self._counting() as macs:
            result = func(*args, **kwargs)
        self._packed = []
        call.macs = macs()
        call.function, call.args, call.kwargs, call.result = func, args, kwargs, result
        for value in reversed(tree_leaves(result)):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                call.output = value.grad_fn, value.output_nr
        return result

    @contextmanager
    def _counting(self) -> Iterator[Callable[[], int]]:
        if not self._keep:
            yield lambda: 0
            return
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as flops:
            yield lambda: flops.get_total_flops() // 2

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what is saved for the backward pass, and refuse what hides it."""

        def pack(tensor: Tensor) -> Tensor:
            self._packed.append(tensor)
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            self._watching = True
            yield
            self._watching = False

    def _check_not_checkpointed(self) -> None:
        probe = torch.ones((), requires_grad=True)
        before = len(self._packed)
        with torch.enable_grad():
            probe.exp()
        if len(self._packed) == before:
            raise ValueError(
                f"module {self.module!r} runs under hooks for saved tensors (a checkpoint, or off-loading), "
                "whose backward time is not that of its operations: profile it without them"
            )
        del self._packed[before:]

    def _find_custom(self, values: Any, entered: float) -> None:
        """Make a call of nodes that no call made: those of custom autograd functions."""
        nodes = self._unknown(values)
        if nodes:
            call = Call(nodes[0].name(), self.module, max(0.0, entered - self._last))
            self._last = entered
            if self._keep:
                call.saved, self._packed = self._packed, []
            self._claim(call, nodes)

    def _claim(self, call: Call, nodes: list[Node]) -> None:
        call.nodes = nodes
        call.macs += self._macs
        self._macs = 0
        for node in nodes:
            if node.name() == REENTRANT_CHECKPOINT:
                raise ValueError(
                    f"module {call.module!r} is checkpointed, so its operations run again in the backward "
                    "pass: profile it without the checkpoint"
                )
            self.call_of[node] = len(self.calls)
        self.calls.append(call)

    def _unknown(self, values: Any) -> list[Node]:
        """Return the nodes behind `values` that no call has made, without those of parameters."""
        pending = [value.grad_fn for value in tree_leaves(values) if isinstance(value, Tensor)]
        found: dict[Node, None] = {}
        while pending:
            node = pending.pop()
            if node is None or node in self.call_of or node in found or node in self.accumulators:
                continue
            if node.name() == ACCUMULATE:
                self.accumulators[node] = node.variable  # type: ignore[attr-defined]
                continue
            found[node] = None
            pending += [source for source, _ in node.next_functions]
        return list(found)


def _unguarded(func: Any) -> Any:
    """Return a function of torch.nn.functional that does not ask whether it is to be intercepted."""
    return FunctionType(
        func.__code__,
        {**func.__globals__, "has_torch_function": lambda _: False},
        func.__name__,
        func.__defaults__,
    )


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    *batch, rows, width = query
    pairs = rows * key[-2]
    heads = 1
    for size in batch:
        heads *= size
    return int(2 * heads * pairs * (width + value[-1]))


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""Torch counts every other kernel of scaled_dot_product_attention itself."""
