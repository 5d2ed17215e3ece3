"""ReLU and ReLU6 that keep one bit per element for the backward pass, in place of the whole activation.

The bit says whether the gradient passes: ``0 < x < cap``. Torch keeps the whole output, 32 times as much.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._maps import (
    are_gapless,
    check_floating,
    check_no_gradient,
    is_gapless,
    is_served,
    new_bytes,
)
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch

_BITS = tuple(1 << k for k in range(8))


def relu_bits(x: "torch.Tensor", cap: float | None = None) -> "tuple[torch.Tensor, torch.Tensor]":
    """Cut `x` to ``[0, cap]`` and note where its gradient passes, in one pass over memory.

    A NaN stays one and lets the gradient pass, as in :func:`torch.relu`; in torch's ReLU6 that depends on
    where in memory the NaN lies.

    Parameters
    ----------
    x : torch.Tensor
        Any shape and strides, a floating dtype. float32 on the CPU runs the kernel, all else the slow twin.
    cap : float, optional
        Upper bound, above 0, for example 6 for ReLU6. Default: none, which is ReLU.

    Returns
    -------
    y : torch.Tensor
        Shape and dtype of `x`, and its strides where these leave no gaps.
    bits : torch.Tensor
        Shape ``(ceil(x.numel() / 8),)``, uint8: bit ``i % 8`` of byte ``i // 8`` belongs to element ``i`` of
        `y` in the order of its memory.

    Raises
    ------
    TypeError
        If `x` is not a dense tensor of floating point numbers.
    ValueError
        If `cap` is not above 0, or `x` requires gradients in grad mode.
    """
    import torch

    _check(x, cap)
    if not _runs(x):
        return relu_bits_reference(x, cap)
    y = torch.empty_like(x)
    return y, _run_relu(y, x if x.stride() == y.stride() else y.copy_(x), cap)


def relu_bits_(x: "torch.Tensor", cap: float | None = None) -> "torch.Tensor":
    """Do what :func:`relu_bits` does in place.

    Parameters
    ----------
    x : torch.Tensor
        As in :func:`relu_bits`, but without gaps in memory; overwritten.
    cap : float, optional
        As in :func:`relu_bits`.

    Returns
    -------
    torch.Tensor
        The bits, as from :func:`relu_bits`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`relu_bits`; also if the memory of `x` has gaps.
    """
    _check(x, cap)
    if not is_gapless(x):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and strides {x.stride()}, expected memory without gaps; "
            "use relu_bits, which is not in place"
        )
    if _runs(x):
        return _run_relu(x, x, cap)
    y, bits = relu_bits_reference(x, cap)
    x.copy_(y)
    return bits


def mask_by_bits(x: "torch.Tensor", bits: "torch.Tensor", stride: Sequence[int]) -> "torch.Tensor":
    """Put zeros where bits let no gradient pass: the backward pass of :func:`relu_bits`.

    Parameters
    ----------
    x : torch.Tensor
        The gradient: shape and dtype of the activation, any strides.
    bits : torch.Tensor
        What :func:`relu_bits` returned.
    stride : sequence of int
        Strides of the ``y`` that came with `bits`: they tell which bit belongs to which element, and leave no
        gaps in memory.

    Returns
    -------
    torch.Tensor
        Shape and dtype of `x`, strides `stride`.

    Raises
    ------
    TypeError
        If `x` is not a dense tensor of floating point numbers.
    ValueError
        If there are not as many bits as elements, `stride` leaves gaps or lets elements meet, or `x` requires
        gradients in grad mode.
    """
    _check_bits(x, bits)
    extension = _dispatch.extension
    if extension is None or not _runs(x):
        return mask_by_bits_reference(x, bits, stride)
    # To touch fresh pages takes longer than the work.
    out = workspace().empty(tuple(x.shape), tuple(stride))
    source = x if x.stride() == out.stride() else out.copy_(x)
    if x.numel():
        _threads.connect(extension)
        addresses = out.data_ptr(), source.data_ptr(), bits.data_ptr()
        extension.mask_by_bits(_dispatch.ceiling(), *addresses, x.numel())
    return out


def relu_bits_reference(x: "torch.Tensor", cap: float | None = None) -> "tuple[torch.Tensor, torch.Tensor]":
    """Do what :func:`relu_bits` does, slowly and in plain torch.

    Parameters
    ----------
    x, cap
        As in :func:`relu_bits`; `x` may be on any device.

    Returns
    -------
    tuple of torch.Tensor
        As from :func:`relu_bits`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`relu_bits`.
    """
    import torch

    _check(x, cap)
    x = x if is_gapless(x) else torch.empty_like(x).copy_(x)
    flat = _in_memory_order(x)
    # Both comparisons are false for a NaN, so that it passes.
    stopped = flat <= 0 if cap is None else (flat <= 0) | (flat >= cap)
    padded = torch.nn.functional.pad((~stopped).to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    bits = (padded * padded.new_tensor(_BITS)).sum(1, dtype=torch.uint8)
    return torch.clamp(x, 0, cap, out=torch.empty_like(x)), bits


def mask_by_bits_reference(x: "torch.Tensor", bits: "torch.Tensor", stride: Sequence[int]) -> "torch.Tensor":
    """Do what :func:`mask_by_bits` does, slowly and in plain torch.

    Parameters
    ----------
    x, bits, stride
        As in :func:`mask_by_bits`; `x` may be on any device.

    Returns
    -------
    torch.Tensor
        As from :func:`mask_by_bits`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`mask_by_bits`.
    """
    import torch

    _check_bits(x, bits)
    if not are_gapless(x.shape, stride):
        raise ValueError(
            f"shape {tuple(x.shape)} has strides {tuple(stride)}, expected such as fill memory without gaps"
        )
    out = torch.empty_strided(x.shape, tuple(stride), dtype=x.dtype, device=x.device).copy_(x)
    stopped = (bits[:, None] & bits.new_tensor(_BITS)) == 0
    _in_memory_order(out).masked_fill_(stopped.view(-1)[: out.numel()], 0)
    return out


def _in_memory_order(x: "torch.Tensor") -> "torch.Tensor":
    return x.as_strided((x.numel(),), (1,))


def _runs(x: "torch.Tensor") -> bool:
    return _dispatch.extension is not None and is_served(x)


def _run_relu(out: "torch.Tensor", x: "torch.Tensor", cap: float | None) -> "torch.Tensor":
    bits = new_bytes(-(-x.numel() // 8))
    extension = _dispatch.extension
    if extension is not None and x.numel():
        _threads.connect(extension)
        addresses = out.data_ptr(), bits.data_ptr(), x.data_ptr()
        extension.relu_bits(_dispatch.ceiling(), *addresses, x.numel(), math.nan if cap is None else cap)
    return bits


def _check(x: "torch.Tensor", cap: float | None) -> None:
    check_floating(x, "x")
    check_no_gradient(x, "x")
    if cap is not None and not cap > 0:
        raise ValueError(f"cap is {cap}, expected a number above 0, or None for no cap")


def _check_bits(x: "torch.Tensor", bits: "torch.Tensor") -> None:
    import torch

    check_floating(x, "x")
    check_no_gradient(x, "x")
    expected = -(-x.numel() // 8)
    fits = bits.dtype == torch.uint8 and bits.shape == (expected,) and bits.is_contiguous()
    if not fits or bits.device != x.device:
        raise ValueError(
            f"bits has shape {tuple(bits.shape)}, {bits.dtype}, on {bits.device}, expected ({expected},), "
            f"torch.uint8, on {x.device}, contiguous: one bit for each of {x.numel()} elements"
        )
