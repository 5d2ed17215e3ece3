"""Batch normalisation with its activation as operators of torch, with shapes for compilers and gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flower_edge import kernels
from flower_edge.training import _choice
from flower_edge.training._ops import empty_like, is_eager
from flower_edge.training._quantised_map import QuantisedMap

# Any: torch.library is annotated in part.
_library: Any = torch.library.Library("flower_edge", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, float? cap) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "batch_norm_backward(Tensor grad, Tensor x, Tensor statistics, Tensor bits, Tensor? weight, "
    "bool needs_x) -> (Tensor, Tensor, Tensor)"
)


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    y, statistics, bits = kernels.batch_norm(x, weight, bias, eps, cap)
    return y, statistics, bits


def _backward(
    grad: Tensor, x: Tensor, statistics: Tensor, bits: Tensor, weight: Tensor | None, needs_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, *others = kernels.batch_norm_backward(grad, x, statistics, bits, weight, needs_x=needs_x)
    return grad.new_empty(0) if grad_x is None else grad_x, others[0], others[1]


def _fake_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    samples, channels, height, width = x.shape
    rows = (0,) if cap is None else (samples * height * width, (channels + 7) // 8)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return empty_like(x), x.new_empty(3, channels, dtype=dtype), x.new_empty(rows, dtype=torch.uint8)


def _fake_backward(
    grad: Tensor, x: Tensor, statistics: Tensor, bits: Tensor, weight: Tensor | None, needs_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = empty_like(x) if needs_x else grad.new_empty(0)
    return grad_x, statistics.new_empty(x.shape[1]), statistics.new_empty(x.shape[1])


for _name, _runs, _fake in (
    ("batch_norm", _forward, _fake_forward),
    ("batch_norm_backward", _backward, _fake_backward),
):
    _library.impl(_name, _runs, "CompositeExplicitAutograd")
    torch.library.register_fake(f"flower_edge::{_name}", _fake, lib=_library)


class _BatchNorm(torch.autograd.Function):
    """Saves the input, a few numbers for each channel and a bit for each activated element."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        run = _forward if is_eager(x) else torch.ops.flower_edge.batch_norm.default
        y, statistics, bits = run(x, weight, bias, eps, cap)
        ctx.save_for_backward(x, statistics, bits, weight)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, bits, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        run = _backward if is_eager(grad, x) else torch.ops.flower_edge.batch_norm_backward.default
        grad_x, grad_weight, grad_bias = run(grad, x, statistics, bits, weight, needs_x)
        return (
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            None,
            None,
        )


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Normalise a map, differentiably once.

    Parameters
    ----------
    x, weight, bias, eps, cap
        As of :func:`flower_edge.kernels.batch_norm`; all of one dtype, float32 or float64.

    Returns
    -------
    tuple of Tensor
        The map, and the statistics of the batch.
    """
    y: Tensor
    y, statistics = _BatchNorm.apply(x, weight, bias, eps, cap)  # type: ignore[no-untyped-call]
    return y, statistics


def measured(x: Tensor, cap: float | None) -> _choice.Measurement | None:
    """Measure a norm with its activation, forward and back, both ways, or look up what equal ones have shown.

    Parameters
    ----------
    x : Tensor
        The input, float32, channels last.
    cap : float or None
        As of :func:`batch_norm`.

    Returns
    -------
    Measurement or None
        None for tensors that hold no data, as in a tracer.
    """
    key = ("batch_norm", tuple(x.shape), cap is None, x.requires_grad, torch.get_num_threads())
    return _choice.looked_up(key, x, lambda: _measure(x, cap))


def _measure(x: Tensor, cap: float | None) -> _choice.Measurement:
    with torch.no_grad():
        # Values do not matter to the clock: the input stands in for the gradient of the output.
        needs_x, x = x.requires_grad, x.cells.floats() if isinstance(x, QuantisedMap) else x
        ones, zeros = (x.new_full((x.shape[1],), value, dtype=torch.float32) for value in (1.0, 0.0))
        aten = torch.ops.aten

        def exact() -> None:
            y, mean, inverse = aten.native_batch_norm(x, ones, zeros, None, None, True, 0.0, 1e-5)
            grad = x if cap is None else aten.threshold_backward(x, torch.relu_(y), 0)
            needs = [needs_x, True, True]
            aten.native_batch_norm_backward(grad, x, ones, None, None, mean, inverse, True, 1e-5, needs)

        def fused() -> None:
            _, statistics, bits = kernels.batch_norm(x, ones, zeros, 1e-5, cap)
            kernels.batch_norm_backward(x, x, statistics, bits, ones, needs_x=needs_x)

        return _choice.timed(exact, fused, x.device)
