"""Range-EvoNorm as operators of torch, with shapes for the compiler and with gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flower_edge import kernels
from flower_edge.kernels._range_evonorm_calls import extremes_shape
from flower_edge.training._ops import empty_like, is_eager

# Any: torch.library is annotated in part.
_library: Any = torch.library.Library("flower_edge", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "range_evonorm(Tensor x, Tensor? weight, Tensor? bias, Tensor? v, int groups, float eps) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "range_evonorm_backward(Tensor grad, Tensor x, Tensor extremes, Tensor? weight, Tensor? v, int groups, "
    "float eps) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _backward(
    grad: Tensor,
    x: Tensor,
    extremes: Tensor,
    weight: Tensor | None,
    v: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor | None, ...]:
    found = kernels.range_evonorm_backward(grad, x, extremes, weight, v, groups, eps)
    return found.x, found.weight, found.bias, found.v


def _computed_in(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, v: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    return empty_like(x), x.new_empty(
        extremes_shape((*x.shape[:2], *x.shape[2:]), groups), dtype=_computed_in(x)
    )


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    extremes: Tensor,
    weight: Tensor | None,
    v: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor, ...]:
    return empty_like(x), *(x.new_empty(x.shape[1], dtype=_computed_in(x)) for _ in range(3))


for _name, _runs, _fake in (
    ("range_evonorm", kernels.range_evonorm, _fake_forward),
    ("range_evonorm_backward", _backward, _fake_backward),
):
    _library.impl(_name, _runs, "CompositeExplicitAutograd")
    torch.library.register_fake(f"flower_edge::{_name}", _fake, lib=_library)


class _RangeEvoNorm(torch.autograd.Function):
    """Saves the input, and max and min of its chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        v: Tensor | None,
        groups: int,
        eps: float,
    ) -> Tensor:
        y: Tensor
        run = kernels.range_evonorm if is_eager(x) else torch.ops.flower_edge.range_evonorm.default
        y, extremes = run(x, weight, bias, v, groups, eps)
        ctx.save_for_backward(x, extremes, weight, v)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias, v)]
        ctx.numbers = groups, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, extremes, weight, v = ctx.saved_tensors
        run = _backward if is_eager(grad, x) else torch.ops.flower_edge.range_evonorm_backward.default
        gradients = run(grad, x, extremes, weight, v, *ctx.numbers)
        return (
            *(
                gradient.to(dtype) if needed else None
                for gradient, dtype, needed in zip(
                    gradients, ctx.dtypes, ctx.needs_input_grad[:4], strict=True
                )
            ),
            None,
            None,
        )


def range_evonorm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, v: Tensor | None, groups: int, eps: float
) -> Tensor:
    """Normalise a map, differentiably once.

    Parameters
    ----------
    x, weight, bias, v, groups, eps
        As of :func:`flower_edge.kernels.range_evonorm`.

    Returns
    -------
    Tensor
        Shape and dtype of `x`.
    """
    y: Tensor = _RangeEvoNorm.apply(x, weight, bias, v, groups, eps)  # type: ignore[no-untyped-call]
    return y
