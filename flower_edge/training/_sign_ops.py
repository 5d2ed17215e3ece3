"""The backward pass of a convolution with pruned gradients and one-bit weights, as an operator of torch."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flower_edge.kernels._sparse_backward import sparse_backward
from flower_edge.kernels._sparse_grad import pack_signs
from flower_edge.training import _choice, _ops
from flower_edge.training._int8_ops import Geometry
from flower_edge.training.pruning import PrunedFeedback, Pruner

_ops.library.define(  # type: ignore[no-untyped-call]
    "conv2d_pruned_backward(Tensor grad, Tensor weight, Tensor x, int[] stride, int[] padding, "
    "int[] dilation, int groups, bool channels_last, bool needs_x, bool needs_weight, bool signs, "
    "bool measured, int pruner) -> (Tensor, Tensor)"
)

Needs = tuple[bool, bool]
Gradients = tuple[Tensor | None, Tensor | None]
Place = tuple[object, ...]


class Found(NamedTuple):
    """Both gradients, where they are wanted, and what pruning has left, where something is pruned."""

    gradients: Gradients
    nonzeros: int | None = None


# A schedule that has moved by so much since a layer was measured has it measured again.
_SPARSITY_STEP = 0.05
# Pruning adds noise: it has to save so much time, and then what the clock is off by makes no layer slower.
_WORTH_WHILE = 0.9


def place_of(x: Tensor, weight: Tensor, way: PrunedFeedback) -> Place | None:
    """Name a pass by all that decides which way back is faster; None where it has to be asked every time.

    Parameters
    ----------
    x, weight : Tensor
        As of :func:`backward`.
    way : PrunedFeedback
        What is pruned, and which way back errors take.

    Returns
    -------
    tuple or None
        Its layer aside.
    """
    if not way.measured or not _ops.is_eager(x) or _choice.saved_tensors_are_hooked():
        return None
    return (
        *(x.shape, x.stride(), x.dtype, x.device, x.requires_grad),
        *(weight.stride(), weight.requires_grad, torch.get_num_threads(), way.pruner.sparsity_now()),
    )


def backward(
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    geometry: Geometry,
    way: PrunedFeedback,
    channels_last: bool,
    needs: Needs,
    place: Place | None = None,
) -> tuple[Tensor, Tensor]:
    """Form the gradients of input and weight of a convolution, and count what was left out.

    Parameters
    ----------
    grad : Tensor
        Gradient of the output, shape ``(N, C_out, H_y, W_y)``, any strides.
    weight, x : Tensor
        Shapes ``(C_out, C_in / groups, kh, kw)`` and ``(N, C_in, H, W)``, dtype of `grad`.
    geometry : Geometry
        The convolution.
    way : PrunedFeedback
        What is pruned, and which way back errors take.
    channels_last : bool
        Memory format of the gradient of the input.
    needs : tuple of bool
        Which of the two are wanted; the others are empty tensors.
    place : tuple, optional
        What to remember the pass by, if ever it is known to be exact for good.

    Returns
    -------
    tuple of Tensor
        Gradients of input and weight.
    """
    settings = (channels_last, *needs, way.signs, way.measured)
    with _ops.without_autocast(grad.device.type):
        if _ops.is_eager(grad, x):
            return _backward(grad, weight, x, geometry, *settings, way.pruner, place)
        found: tuple[Tensor, Tensor] = torch.ops.flower_edge.conv2d_pruned_backward.default(
            grad, weight, x, *geometry, *settings, way.pruner.number
        )
    return found


def _backward(
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    geometry: Geometry,
    channels_last: bool,
    needs_x: bool,
    needs_weight: bool,
    signs: bool,
    measured: bool,
    pruner: Pruner,
    place: Place | None = None,
) -> tuple[Tensor, Tensor]:
    needs = (needs_x, needs_weight)
    if measured:
        pruner.measurement = _measured(grad, weight, x, geometry, needs, signs, pruner, place)
    (grad_x, grad_weight), nonzeros = _by_the_faster_way(
        grad, weight, x, geometry, needs, signs, measured, pruner
    )
    _count(pruner, grad, weight, needs, nonzeros)
    return (
        grad.new_empty(0) if grad_x is None else _laid_out(grad_x, channels_last, grad),
        grad.new_empty(0) if grad_weight is None else _laid_out(grad_weight, _is_channels_last(weight), grad),
    )


def _by_the_faster_way(
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    geometry: Geometry,
    needs: Needs,
    signs: bool,
    measured: bool,
    pruner: Pruner,
) -> Found:
    if measured and _is_exact(pruner.measurement):
        pruner.path = "exact"
        return Found(_exact(grad, weight, x, geometry, needs))
    return _by_the_method(grad, weight, x, geometry, needs, signs, pruner)


def _by_the_method(
    grad: Tensor, weight: Tensor, x: Tensor, geometry: Geometry, needs: Needs, signs: bool, pruner: Pruner
) -> Found:
    sparsity, threshold = pruner.sparsity_now(), None
    if sparsity > 0:
        threshold = pruner.threshold(_precise(grad))
    elif signs:
        pruner.path = "dense"
        return Found(_dense(grad, weight, x, geometry, needs))
    if sparsity == 0 or (threshold is not None and not math.isfinite(threshold)):
        # What is infinite or no number must stay so: a GradScaler looks for it.
        pruner.path = "exact"
        return Found(_exact(grad, weight, x, geometry, needs))
    pruner.path = "sparse"
    tensors = (_precise(grad), _precise(weight), _precise(x) if needs[1] else x)
    numbers: tuple[Any, ...] = (sparsity, pruner.seed_now(), *geometry)
    *gradients, nonzeros = sparse_backward(*tensors, *numbers, signs=signs, threshold=threshold, needs=needs)
    return Found((gradients[0], gradients[1]), nonzeros)


def _exact(grad: Tensor, weight: Tensor, x: Tensor, geometry: Geometry, needs: Needs) -> Gradients:
    rest = (*geometry[:3], False, [0, 0], geometry.groups, [*needs, False])
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)
    return grad_x, grad_weight


def _dense(grad: Tensor, weight: Tensor, x: Tensor, geometry: Geometry, needs: Needs) -> Gradients:
    """Form both gradients with nothing pruned: through the signs, and exactly."""
    signs = pack_signs(_precise(weight)).unpacked().to(grad.dtype) if needs[0] else weight
    return (
        _exact(grad, signs, x, geometry, (needs[0], False))[0],
        _exact(grad, weight, x, geometry, (False, needs[1]))[1],
    )


def _measured(
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    geometry: Geometry,
    needs: Needs,
    signs: bool,
    pruner: Pruner,
    place: Place | None,
) -> _choice.Measurement | None:
    # Of every backward pass, so it has to be made quickly.
    key = (
        *("pruned", x.shape, weight.shape, geometry, needs, signs, type(pruner)),
        *(grad.stride(), x.stride(), weight.stride(), grad.dtype, grad.device, torch.get_num_threads()),
        round(pruner.sparsity_now() / _SPARSITY_STEP),
    )

    def exact() -> object:
        return _exact(grad, weight, x, geometry, needs)

    def ours() -> object:
        return _by_the_method(grad, weight, x, geometry, needs, signs, pruner)

    known = _choice.looked_up(key, grad, lambda: _choice.timed(exact, ours, grad.device))
    has_risen = pruner.sparsity_now() == pruner.sparsity
    if place is not None and has_risen and _is_exact(known) and _choice.is_known_for_good(key):
        pruner.settled.add(place)
    return known


def _is_exact(known: _choice.Measurement | None) -> bool:
    return known is not None and _WORTH_WHILE * known.exact_seconds <= known.method_seconds


def count_exact(pruner: Pruner, grad: Tensor, weight: Tensor, needs: Needs) -> None:
    """Count a backward pass that torch has made alone."""
    pruner.path = "exact"
    _count(pruner, grad, weight, needs, None)


def _count(pruner: Pruner, grad: Tensor, weight: Tensor, needs: Needs, nonzeros: int | None) -> None:
    tally = pruner.tally
    tally.passes += 1
    # Of every backward pass, so no tensor is made for it.
    each = weight.numel() // weight.shape[0] * sum(needs)
    tally.macs += grad.numel() * each
    if nonzeros is not None:
        zeros = grad.numel() - nonzeros
        tally.elements += grad.numel()
        tally.zeros += zeros
        tally.skipped_macs += zeros * each


def _precise(x: Tensor) -> Tensor:
    """Take as float32, which is all that kernels know."""
    return x if x.dtype == torch.float32 else x.float()


def _is_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def _laid_out(gradient: Tensor, channels_last: bool, like: Tensor) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if gradient.dtype == like.dtype and gradient.is_contiguous(memory_format=layout):
        return gradient
    return gradient.to(like.dtype).contiguous(memory_format=layout)


def _operator(
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    needs_x: bool,
    needs_weight: bool,
    signs: bool,
    measured: bool,
    pruner: int,
) -> tuple[Tensor, Tensor]:
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    settings = (channels_last, needs_x, needs_weight, signs, measured)
    return _backward(grad, weight, x, geometry, *settings, Pruner.numbered(pruner))


def _fake(
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    needs_x: bool,
    needs_weight: bool,
    signs: bool,
    measured: bool,
    pruner: int,
) -> tuple[Tensor, Tensor]:
    saved = x if needs_weight else None
    return _ops.fake_gradients(grad, weight, saved, x.shape, channels_last, needs_x, None)[:2]


_ops.library.impl("conv2d_pruned_backward", _operator, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("flower_edge::conv2d_pruned_backward", _fake, lib=_ops.library)
