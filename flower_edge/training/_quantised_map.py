"""A feature map of bytes that modules hand to each other as a tensor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from flower_edge.kernels._byte_sums import mask_by_bytes, quantised_relu, quantised_sum
from flower_edge.kernels._int8_quantise import QuantisedError, dequantise, dequantise_error, quantise
from flower_edge.kernels._quantised import QuantisedTensor

aten = torch.ops.aten


class Ends(NamedTuple):
    """Floats that become bytes where bytes are wanted; the least and the greatest of them and 0, if known."""

    floats: Tensor
    ends: tuple[float, float] | None


class Sum(NamedTuple):
    """Two maps that become one where it is wanted: by then it is known whether it is activated."""

    first: QuantisedTensor
    second: QuantisedTensor


Content: TypeAlias = Ends | Sum | QuantisedTensor | QuantisedError


class Cells:
    """What a map holds, shared by all tensors that stand for it.

    Attributes
    ----------
    content : Content
        It changes its form as layers want it.
    is_viewed : bool
        Whether usual tensors look at its floats: then these stay, and what is written shows on both sides.
    """

    __slots__ = ("content", "is_viewed")

    def __init__(self, content: Content) -> None:
        self.content = content
        self.is_viewed = False

    def become(self, content: Content) -> None:
        """Hold the same in another form."""
        if not self.is_viewed:
            self.content = content

    def quantised(self) -> QuantisedTensor:
        """Give bytes; from now on there is nothing else, unless somebody looks at the floats."""
        content = self.content
        if isinstance(content, Ends):
            content = quantise(content.floats, content.ends)
        elif isinstance(content, Sum):
            content = quantised_sum(content.first, content.second)
        elif isinstance(content, QuantisedError):
            content = quantise(dequantise_error(content))
        self.become(content)
        return content

    def floats(self) -> Tensor:
        """Give what it means, in float32."""
        content = self.content
        if isinstance(content, Ends):
            return content.floats
        if isinstance(content, QuantisedError):
            return dequantise_error(content)
        return dequantise(self.quantised())


class ErrorFormat(NamedTuple):
    """How whoever made a map wants its gradient quantised: arguments of `quantise_error`."""

    bits: int
    seed: int | None


class QuantisedMap(Tensor):
    """A map of shape (N, C, H, W) that is float32 to whoever asks, and bytes in memory.

    Additions and ReLUs of such maps give such maps; the convolutions and normalisations of
    :class:`flower_edge.training.Int8Training` read the bytes. Everything else that torch does with one, it
    does with what the bytes mean, and gives a usual tensor. Autograd sees no difference.

    Attributes
    ----------
    cells : Cells
        What it holds.
    errors : ErrorFormat or None
        How whoever made it wants its gradient quantised; None for floats.
    """

    cells: Cells
    errors: ErrorFormat | None

    @staticmethod
    def __new__(cls, cells: Cells, shape: Sequence[int], errors: ErrorFormat | None = None) -> "QuantisedMap":
        """Make a map that holds `cells`."""
        _, channels, height, width = shape
        strides = (channels * height * width, 1, width * channels, channels)
        made: QuantisedMap = Tensor._make_wrapper_subclass(cls, shape, strides=strides, dtype=torch.float32)
        made.cells, made.errors = cells, errors
        return made

    def __init__(self, cells: Cells, shape: Sequence[int], errors: ErrorFormat | None = None) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"QuantisedMap(shape={tuple(self.shape)}, {self.cells.content})"

    def numpy(self, *, force: bool = False) -> Any:
        """Give what it means as an array; its memory is that of the map only where this is floats."""
        if self.requires_grad and not force:
            raise RuntimeError(
                "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
            )
        return self.cells.floats().numpy()

    def tolist(self) -> Any:
        """Give what it means as nested lists."""
        return self.cells.floats().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy what it means, as a usual tensor."""
        if not self.is_leaf:
            # It refuses.
            return super().__deepcopy__(memo)  # type: ignore[no-untyped-call,no-any-return]
        copied = memo[id(self)] = self.cells.floats().clone().requires_grad_(self.requires_grad)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle what it means, as a usual tensor."""
        floats = self.cells.floats().clone().requires_grad_(self.requires_grad)
        return floats.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def storages(self) -> list[torch.UntypedStorage]:
        """List the memory that it keeps."""
        content = self.cells.content
        if isinstance(content, Ends):
            tensors = [content.floats]
        elif isinstance(content, Sum):
            tensors = [content.first.values, content.second.values]
        elif isinstance(content, QuantisedError):
            halves = [half for half in (content.high, content.low) if half is not None]
            tensors = [content.values.values, *halves]
        else:
            tensors = [content.values]
        return [tensor.untyped_storage() for tensor in tensors]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute with bytes what can be, and all else with floats."""
        own = _OWN.get(func)
        found = NotImplemented if own is None else own(*args, **(kwargs or {}))
        return _on_floats(func, args, kwargs or {}) if found is NotImplemented else found


def _alias(x: QuantisedMap) -> QuantisedMap:
    return QuantisedMap(x.cells, x.shape, x.errors)


def _add(x: Any, y: Any, *, alpha: float = 1) -> Any:
    if not (isinstance(x, QuantisedMap) and isinstance(y, QuantisedMap)) or x.shape != y.shape or alpha != 1:
        return NotImplemented
    if any(isinstance(each.cells.content, QuantisedError) for each in (x, y)):
        return NotImplemented
    return QuantisedMap(Cells(Sum(x.cells.quantised(), y.cells.quantised())), x.shape)


def _add_(x: Any, y: Any, *, alpha: float = 1) -> Any:
    total = NotImplemented if _is_viewed(x) else _add(x, y, alpha=alpha)
    if total is not NotImplemented:
        x.cells.content = total.cells.content
        return x
    return NotImplemented


def _is_viewed(x: Any) -> bool:
    return isinstance(x, QuantisedMap) and x.cells.is_viewed


def _activated(content: Content) -> Any:
    if isinstance(content, Sum):
        return quantised_sum(content.first, content.second, relu=True)
    if isinstance(content, QuantisedTensor):
        return quantised_relu(content)
    if isinstance(content, Ends) and content.ends is not None:
        # What is below the least level becomes it.
        return quantise(content.floats, (0.0, content.ends[1]))
    return NotImplemented


def _relu(x: QuantisedMap) -> Any:
    content = _activated(x.cells.content)
    return content if content is NotImplemented else QuantisedMap(Cells(content), x.shape)


def _relu_(x: QuantisedMap) -> Any:
    content = NotImplemented if _is_viewed(x) else _activated(x.cells.content)
    if content is NotImplemented:
        return content
    x.cells.content = content
    return x


def _threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Any:
    if not isinstance(x, QuantisedMap) or threshold != 0:
        return NotImplemented
    if not isinstance(x.cells.content, QuantisedTensor):
        return NotImplemented
    floats = grad.cells.floats() if isinstance(grad, QuantisedMap) else grad
    return mask_by_bytes(floats, x.cells.content)


_OWN: dict[Any, Callable[..., Any]] = {
    aten.detach.default: _alias,
    aten.alias.default: _alias,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add_,
    aten.relu.default: _relu,
    aten.relu_.default: _relu_,
    aten.threshold_backward.default: _threshold_backward,
}


def _on_floats(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    floats: dict[Cells, Tensor] = {}
    written = {id(x) for x in _written(func, args, kwargs)}

    def plain(x: QuantisedMap) -> Tensor:
        # One tensor for a map that is given twice: what is written to one has to show in the other.
        made = floats.setdefault(x.cells, x.cells.floats())
        if func.is_view or id(x) in written:
            # The map goes on as these floats: it has to be seen in it what is written to them, now or later.
            x.cells.content = Ends(made, None)
            x.cells.is_viewed |= func.is_view
        return made

    found = func(
        *tree_map_only(QuantisedMap, plain, args), **tree_map_only(QuantisedMap, plain, dict(kwargs))
    )
    # An operator in place returns what it was given.
    given = [x for x in (*args, *kwargs.values()) if id(x) in written and isinstance(x, QuantisedMap)]
    return next((x for x in given if floats[x.cells] is found), found)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[object]:
    """List what an operator writes to."""
    if not func._schema.is_mutable:
        return []
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
    given |= kwargs
    return [
        given.get(argument.name)
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
