"""A convolution whose errors are pruned, and go back through the signs of its weights."""

from typing import Any

import torch
from torch import Tensor

from flower_edge.training import _ops, _sign_ops
from flower_edge.training._int8_ops import Geometry
from flower_edge.training.pruning import PrunedFeedback


def pruned_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, way: PrunedFeedback
) -> Tensor:
    """Convolve exactly, and have both gradients formed from a pruned one; that of the bias is exact.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``.
    weight : Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, dtype of `x`.
    bias : Tensor, optional
        Shape ``(C_out,)``.
    geometry : Geometry
        Stride, padding, dilation and groups.
    way : PrunedFeedback
        What is pruned, and which way back errors take.

    Returns
    -------
    Tensor
        As of :func:`torch.conv2d`.
    """
    place = _sign_ops.place_of(x, weight, way)
    if place is not None and place in way.pruner.settled:
        # Torch's own layer, so that it takes no longer than that.
        y: Tensor = torch.conv2d(x, weight, bias, *geometry)
        needs = (x.requires_grad, weight.requires_grad)
        y.register_hook(  # type: ignore[no-untyped-call]
            lambda grad: _sign_ops.count_exact(way.pruner, grad, weight, needs)
        )
        return y
    y = _PrunedConv2d.apply(x, weight, bias, geometry, way, place)  # type: ignore[no-untyped-call]
    return y


class _PrunedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        way: PrunedFeedback,
        place: tuple[object, ...] | None,
    ) -> Tensor:
        y = torch.conv2d(x, weight, bias, *geometry)
        # The weight is a parameter, which is there anyway; what is kept of it is no copy.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.geometry, ctx.way, ctx.place, ctx.x_shape = geometry, way, place, x.shape
        # Torch gives the exact grad_x the layout that it has chosen for y.
        ctx.channels_last = _ops.is_channels_last(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "sign feedback has no second derivative, and create_graph=True asks for one; "
                "use create_graph=False, or flower_edge.training.restore_(model) for exact gradients"
            )
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x = grad_weight = None
        if needs_x or needs_weight:
            if x is None:
                # Only its shape matters where the weight is frozen.
                x = grad.new_empty(1).expand(ctx.x_shape)
            grad_x, grad_weight = _sign_ops.backward(
                grad, weight, x, ctx.geometry, ctx.way, ctx.channels_last, (needs_x, needs_weight), ctx.place
            )
        return (
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            # Nothing is saved by pruning it, and its sum over a map averages less of the noise out.
            grad.sum((0, 2, 3)) if needs_bias else None,
            *(None, None, None),
        )
