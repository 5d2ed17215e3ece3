r"""Range-EvoNorm: a normalisation with its activation, without batch statistics, of floats and of bytes.

The channels of a sample are cut into groups of m elements each. With R the range of a group's elements,

.. math:: y = \gamma\, s\, x\, \mathrm{clip}(v x / 6 + 1/2, 0, 1) + \beta, \qquad s = 1 / (c R + \epsilon),

:math:`c = 0.175\, (1 + \sqrt{\pi \ln 4}) / \sqrt{2 \ln m}`. It is EvoNorm-S0 (Liu, Brock, Simonyan, Le,
NeurIPS 2020) with a piecewise linear sigmoid and, in place of the standard deviation, a range (Banner,
Hubara, Hoffer, Soudry, NeurIPS 2018), as Aketi, Kodge, Roy, 2021, have it for decentralised training in
8 bits.

R is the mean over chunks of max - min. A chunk is some neighbouring pixels, in the order of rows, with all
channels of the group: of K = min(16, H W) chunks, number k begins at pixel floor(k H W / K), so that they
differ by one pixel at most and none is empty. The gradient through max and min goes to the first element that
equals it, pixel by pixel and channel by channel.
"""

from typing import TYPE_CHECKING

from flower_edge.kernels._maps import check_map, empty_map, is_channels_last, is_served, new_floats
from flower_edge.kernels._range_evonorm_calls import (
    Map,
    Norm,
    NormGradients,
    channels_last,
    check_norm,
    check_shapes,
    extremes_shape,
    run_backward,
    run_forward,
    serves,
    with_bounds,
)
from flower_edge.kernels._range_evonorm_reference import normalised, normalised_backward

if TYPE_CHECKING:
    import torch


def range_evonorm(
    x: "torch.Tensor",
    weight: "torch.Tensor | None",
    bias: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
) -> "tuple[torch.Tensor, torch.Tensor]":
    r"""Normalise a map of floating point numbers.

    float16 and bfloat16 are computed in float32. float32 on the CPU runs the kernel, all else the slow twin.

    Parameters
    ----------
    x : torch.Tensor
        Shape ``(N, C, H, W)``. Kernels work on channels last; another layout is copied.
    weight, bias : torch.Tensor or None
        :math:`\gamma` and :math:`\beta`, shape ``(C,)``; None for 1 and 0.
    v : torch.Tensor or None
        Shape ``(C,)``; None for no activation: :math:`y = \gamma s x + \beta`.
    groups : int
        Divides C.
    eps : float
        Above 0.

    Returns
    -------
    y : torch.Tensor
        Shape and dtype of `x`, channels last where `x` is, else contiguous.
    extremes : torch.Tensor
        Max and min of each chunk, shape ``(N, K, groups, 2)``: what the backward pass needs beside `x`.

    Raises
    ------
    TypeError
        If a tensor is not dense floating point numbers.
    ValueError
        If shapes do not fit, a group has a single element, or a tensor requires gradients in grad mode.
    """
    check_map(x, "x")
    norm = Norm(weight, bias, v, groups, eps)
    shape = check_norm(tuple(x.shape), norm)
    is_last, dtype = is_channels_last(x), x.dtype
    x = _computable(x)
    norm = norm.to(x.dtype)
    if is_served(x) and serves(shape):
        y = empty_map(shape, True)
        extremes = new_floats(*extremes_shape(shape, groups))
        run_forward(Map(channels_last(x)), Map(y), extremes, norm)
    else:
        y, extremes = normalised(x, *norm)
    return _laid_out(y, is_last).to(dtype), extremes


def range_evonorm_backward(
    grad: "torch.Tensor",
    x: "torch.Tensor",
    extremes: "torch.Tensor",
    weight: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
) -> NormGradients:
    """Form the gradients of :func:`range_evonorm`.

    Parameters
    ----------
    grad : torch.Tensor
        Gradient of `y`, of its shape.
    x, weight, v, groups, eps
        As they were.
    extremes : torch.Tensor
        What :func:`range_evonorm` returned.

    Returns
    -------
    NormGradients
        Of `x` with its dtype and layout, channels last or contiguous; of parameters in float32, or in float64
        where `x` is.

    Raises
    ------
    TypeError, ValueError
        As in :func:`range_evonorm`; also if `grad` or `extremes` have another shape.
    """
    for tensor, name in ((grad, "grad"), (x, "x"), (extremes, "extremes")):
        check_map(tensor, name)
    norm = Norm(weight, None, v, groups, eps)
    shape = check_norm(tuple(x.shape), norm)
    check_shapes(grad, shape, extremes, groups)
    is_last, dtype = is_channels_last(x), x.dtype
    x = _computable(x)
    grad, extremes, norm = grad.to(x.dtype), extremes.to(x.dtype).contiguous(), norm.to(x.dtype)
    if is_served(x) and serves(shape):
        found = run_backward(Map(channels_last(x)), extremes, Map(channels_last(grad)), norm)
    else:
        found = with_bounds(normalised_backward(grad, x, norm.weight, norm.v, groups, eps))
    return found._replace(x=_laid_out(found.x, is_last).to(dtype))


def _computable(x: "torch.Tensor") -> "torch.Tensor":
    import torch

    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def _laid_out(x: "torch.Tensor", is_last: bool) -> "torch.Tensor":
    return channels_last(x) if is_last else x.contiguous()
