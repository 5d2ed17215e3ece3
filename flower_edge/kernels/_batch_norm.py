r"""Batch normalisation by the statistics of the batch, with the activation after it.

.. math:: y = \mathrm{act}(\gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta)

(Ioffe, Szegedy, "Batch Normalization", ICML 2015). Kept for the backward pass are x, a few numbers for each
channel and, where there is an activation, one bit for each element. In torch a norm and a ReLU pass over
their map seven times; here three times, and five times in place of eight on the way back.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._maps import check_map, empty_map, is_channels_last, is_served, new_bytes, new_floats
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch

_BITS = tuple(1 << k for k in range(8))


class NormalisedBatch(NamedTuple):
    r"""A normalised map, and what its backward pass needs beside its input.

    Attributes
    ----------
    y : torch.Tensor
        Shape, dtype and layout of `x`.
    statistics : torch.Tensor
        Shape ``(3, C)``: mean, :math:`1 / \sqrt{\sigma^2 + \epsilon}`, and the unbiased variance; float32,
        or float64 where `x` is.
    bits : torch.Tensor
        uint8, shape ``(N * H * W, ceil(C / 8))``: bit ``c % 8`` of byte ``c // 8`` says whether the gradient
        of channel c passes the activation. Without an activation, of shape ``(0,)``.
    """

    y: "torch.Tensor"
    statistics: "torch.Tensor"
    bits: "torch.Tensor"


def batch_norm(
    x: "torch.Tensor",
    weight: "torch.Tensor | None",
    bias: "torch.Tensor | None",
    eps: float,
    cap: float | None = None,
) -> NormalisedBatch:
    r"""Normalise a map by its own statistics.

    float16 and bfloat16 are computed in float32. float32 on the CPU runs the kernel, all else the slow twin.

    Parameters
    ----------
    x : torch.Tensor
        Shape ``(N, C, H, W)``, at least one element for each channel. Kernels work on channels last; another
        layout is copied.
    weight, bias : torch.Tensor or None
        :math:`\gamma` and :math:`\beta`, shape ``(C,)``; None for 1 and 0.
    eps : float
        At least 0.
    cap : float, optional
        Activate: cut to ``[0, cap]``; infinity is ReLU, 6 is ReLU6. Default: no activation.

    Returns
    -------
    NormalisedBatch
        The result, statistics and bits.

    Raises
    ------
    TypeError
        If a tensor is not dense floating point numbers.
    ValueError
        If shapes do not fit, `eps` or `cap` has no meaning, or a tensor requires gradients in grad mode.
    """
    import torch

    _check(x, weight, bias, eps)
    if cap is not None and not cap > 0:
        raise ValueError(f"cap is {cap}, expected a number above 0, or None for no activation")
    is_last, given = is_channels_last(x), x.dtype
    computed_in = torch.float64 if given == torch.float64 else torch.float32
    x = x.to(computed_in)
    weight, bias = (None if t is None else t.to(computed_in).contiguous() for t in (weight, bias))
    extension = _dispatch.extension
    if extension is None or not is_served(x):
        y, statistics, bits = _slow(x, weight, bias, eps, cap)
    else:
        source = x.contiguous(memory_format=torch.channels_last)
        y, statistics = _empty_like(x), new_floats(3, x.shape[1])
        bits = _empty_bits(x) if cap is not None else new_bytes(0)
        _threads.connect(extension)
        extension.batch_norm(
            *(_dispatch.ceiling(), source.data_ptr(), y.data_ptr(), bits.data_ptr(), statistics.data_ptr()),
            *_numbers(x, weight, bias, eps, cap),
        )
    return NormalisedBatch(_laid_out(y, is_last).to(given), statistics, bits)


def batch_norm_backward(
    grad: "torch.Tensor",
    x: "torch.Tensor",
    statistics: "torch.Tensor",
    bits: "torch.Tensor",
    weight: "torch.Tensor | None",
    *,
    needs_x: bool = True,
) -> "tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]":
    """Form the gradients of :func:`batch_norm`.

    Parameters
    ----------
    grad : torch.Tensor
        Gradient of `y`, of its shape.
    x, weight
        As they were.
    statistics, bits : torch.Tensor
        What :func:`batch_norm` returned.
    needs_x : bool, default True
        Whether the gradient of `x` is wanted.

    Returns
    -------
    tuple of torch.Tensor
        Gradients of `x`, with its dtype and layout, channels last or contiguous, or None; of weight and bias,
        with the dtype of `statistics`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`batch_norm`; also if `grad`, `statistics` or `bits` do not go with `x`.
    """
    import torch

    _check(x, weight, None, 0.0)
    _check_saved(grad, x, statistics, bits)
    is_last, given = is_channels_last(x), x.dtype
    computed_in = statistics.dtype
    x, grad = x.to(computed_in), grad.to(computed_in)
    weight = None if weight is None else weight.to(computed_in).contiguous()
    extension = _dispatch.extension
    grad_x: torch.Tensor | None
    if extension is None or not is_served(x):
        grad_x, grad_weight, grad_bias = _slow_backward(grad, x, statistics, bits, weight)
    else:
        channels = x.shape[1]
        source, error = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
        statistics = statistics.contiguous()
        grad_x = _empty_like(x) if needs_x else None
        grad_weight, grad_bias = new_floats(channels), new_floats(channels)
        _threads.connect(extension)
        extension.batch_norm_backward(
            *(_dispatch.ceiling(), source.data_ptr(), statistics.data_ptr(), bits.data_ptr()),
            *(error.data_ptr(), 0 if grad_x is None else grad_x.data_ptr()),
            *(grad_weight.data_ptr(), grad_bias.data_ptr()),
            *_numbers(x, weight, None, 0.0, None),
        )
    if grad_x is None or not needs_x:
        return None, grad_weight, grad_bias
    return _laid_out(grad_x, is_last).to(given), grad_weight, grad_bias


def _check(x: "torch.Tensor", weight: "torch.Tensor | None", bias: "torch.Tensor | None", eps: float) -> None:
    check_map(x, "x")
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, C, H, W) with at least one element")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps is {eps}, expected a finite number, at least 0")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        check_map(parameter, name)
        if parameter.shape != x.shape[1:2]:
            raise ValueError(f"{name} has shape {tuple(parameter.shape)}, expected ({x.shape[1]},)")


def _check_saved(
    grad: "torch.Tensor", x: "torch.Tensor", statistics: "torch.Tensor", bits: "torch.Tensor"
) -> None:
    import torch

    samples, channels, height, width = x.shape
    check_map(grad, "grad")
    check_map(statistics, "statistics")
    for tensor, name, expected in ((grad, "grad", tuple(x.shape)), (statistics, "statistics", (3, channels))):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
    rows = samples * height * width, -(-channels // 8)
    if bits.dtype != torch.uint8 or not bits.is_contiguous() or tuple(bits.shape) not in ((0,), rows):
        raise ValueError(
            f"bits has shape {tuple(bits.shape)}, {bits.dtype}, expected {rows}, torch.uint8, contiguous, or "
            "(0,) where nothing was activated"
        )


def _numbers(
    x: "torch.Tensor",
    weight: "torch.Tensor | None",
    bias: "torch.Tensor | None",
    eps: float,
    cap: float | None,
) -> tuple[float, ...]:
    samples, channels, height, width = x.shape
    addresses = (0 if p is None else p.data_ptr() for p in (weight, bias))
    bound = math.nan if cap is None or math.isinf(cap) else cap
    return *addresses, samples * height * width, channels, eps, bound


def _empty_like(x: "torch.Tensor") -> "torch.Tensor":
    return empty_map((x.shape[0], x.shape[1], x.shape[2], x.shape[3]), True)


def _empty_bits(x: "torch.Tensor") -> "torch.Tensor":
    samples, channels, height, width = x.shape
    bytes_each = -(-channels // 8)
    return workspace().empty_bytes((samples * height * width, bytes_each), (bytes_each, 1))


def _laid_out(x: "torch.Tensor", is_last: bool) -> "torch.Tensor":
    import torch

    return x.contiguous(memory_format=torch.channels_last) if is_last else x.contiguous()


def _slow(
    x: "torch.Tensor",
    weight: "torch.Tensor | None",
    bias: "torch.Tensor | None",
    eps: float,
    cap: float | None,
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    import torch

    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    inverse = torch.rsqrt(variance + eps)
    pixels = x.numel() // x.shape[1]
    statistics = torch.stack((mean, inverse, variance * (pixels / (pixels - 1) if pixels > 1 else math.nan)))
    y = (x - _of_channels(mean)) * _of_channels(inverse if weight is None else inverse * weight)
    if bias is not None:
        y = y + _of_channels(bias)
    if cap is None:
        return y, statistics, x.new_empty(0, dtype=torch.uint8)
    # Both comparisons are false for a NaN, so that it passes.
    passes = ~((y <= 0) | (y >= cap)) if cap < math.inf else ~(y <= 0)
    rows = passes.permute(0, 2, 3, 1).flatten(0, 2).to(torch.uint8)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 8)).view(len(rows), -1, 8)
    return y.clamp(0, cap), statistics, (padded * padded.new_tensor(_BITS)).sum(2, dtype=torch.uint8)


def _slow_backward(
    grad: "torch.Tensor",
    x: "torch.Tensor",
    statistics: "torch.Tensor",
    bits: "torch.Tensor",
    weight: "torch.Tensor | None",
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    samples, channels, height, width = x.shape
    if bits.numel():
        passes = (bits[:, :, None] & bits.new_tensor(_BITS)).flatten(1)[:, :channels] != 0
        grad = grad * passes.view(samples, height, width, channels).permute(0, 3, 1, 2)
    mean, inverse, _ = statistics
    normalised = (x - _of_channels(mean)) * _of_channels(inverse)
    grad_bias, grad_weight = grad.sum((0, 2, 3)), (grad * normalised).sum((0, 2, 3))
    pixels = samples * height * width
    inner = grad - _of_channels(grad_bias / pixels) - normalised * _of_channels(grad_weight / pixels)
    return inner * _of_channels(inverse if weight is None else inverse * weight), grad_weight, grad_bias


def _of_channels(values: "torch.Tensor") -> "torch.Tensor":
    return values.view(-1, 1, 1)
