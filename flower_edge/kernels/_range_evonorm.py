r"""Range-EvoNorm: a normalisation with its activation, without batch statistics, of floats and of bytes.

The channels of a sample are cut into groups of m elements each. With R the range of a group's elements,

.. math:: y = \gamma\, s\, x\, \mathrm{clip}(v x / 6 + 1/2, 0, 1) + \beta, \qquad s = 1 / (c R + \epsilon),

:math:`c = 0.175\, (1 + \sqrt{\pi \ln 4}) / \sqrt{2 \ln m}`. It is EvoNorm-S0 (Liu, Brock, Simonyan, Le,
NeurIPS 2020) with a piecewise linear sigmoid and, in place of the standard deviation, a range (Banner, Hubara,
Hoffer, Soudry, NeurIPS 2018), as Aketi, Kodge, Roy, 2021, have it for decentralised training in 8 bits.

R is the mean over chunks of max - min. A chunk is some neighbouring pixels, in the order of rows, with all
channels of the group: of K = min(16, H W) chunks, number k begins at pixel floor(k H W / K), so that they
differ by one pixel at most and none is empty. The gradient through max and min goes to the first element that
equals it, pixel by pixel and channel by channel.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._maps import check_map, empty_map, is_channels_last, is_served
from flower_edge.kernels._quantised import QuantisedTensor
from flower_edge.kernels._range_evonorm_reference import (
    normalised,
    normalised_backward,
    quantised,
    range_factor,
)

if TYPE_CHECKING:
    import torch

_MOST_CHUNK_ELEMENTS = 1 << 24
"""The kernels number the elements of a chunk in float32."""


class NormGradients(NamedTuple):
    """Gradients of a normalisation; those of absent parameters are None.

    Attributes
    ----------
    x : torch.Tensor
        Of the shape of x.
    weight, bias, v : torch.Tensor or None
        Shape ``(C,)``.
    bounds : (float, float)
        Least and greatest of the gradient of x and of 0, or somewhat wider.
    """

    x: "torch.Tensor"
    weight: "torch.Tensor | None"
    bias: "torch.Tensor | None"
    v: "torch.Tensor | None"
    bounds: tuple[float, float]


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
    _check_norm(tuple(x.shape), {"weight": weight, "bias": bias, "v": v}, groups, eps)
    channels_last, dtype = is_channels_last(x), x.dtype
    x = _computable(x)
    weight, bias, v = (_parameter(p, x) for p in (weight, bias, v))
    if _runs(x, groups):
        source = _channels_last(x)
        out = empty_map(tuple(x.shape), True)
        extremes = x.new_empty(extremes_shape(tuple(x.shape), groups))
        if x.numel():
            _forward(source, (0.0, 0), out, (0.0, 0), extremes, (weight, bias, v), groups, eps)
    else:
        out, extremes = normalised(x, weight, bias, v, groups, eps)
    return _laid_out(out, channels_last).to(dtype), extremes


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
        Of `x` with its dtype and layout, channels last or contiguous; of parameters in float32, or float64 for
        an `x` of float64.

    Raises
    ------
    TypeError, ValueError
        As in :func:`range_evonorm`; also if `grad` or `extremes` have another shape.
    """
    for tensor, name in ((grad, "grad"), (x, "x"), (extremes, "extremes")):
        check_map(tensor, name)
    _check_norm(tuple(x.shape), {"weight": weight, "v": v}, groups, eps)
    _check_shapes(grad, x, extremes, groups)
    channels_last, dtype = is_channels_last(x), x.dtype
    x, grad, extremes = _computable(x), _computable(grad), _computable(extremes).contiguous()
    weight, v = (_parameter(p, x) for p in (weight, v))
    if _runs(x, groups) and is_served(grad) and is_served(extremes):
        found = _backward(
            _channels_last(x), (0.0, 0), extremes, _channels_last(grad), (0.0, 0), (weight, v), groups, eps
        )
    else:
        found = _found(normalised_backward(grad.to(x.dtype), x, weight, v, groups, eps))
    return found._replace(x=_laid_out(found.x, channels_last).to(dtype))


def quantised_range_evonorm(
    x: QuantisedTensor,
    weight: "torch.Tensor | None",
    bias: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
    output: tuple[float, int] | None = None,
) -> "tuple[torch.Tensor | QuantisedTensor, torch.Tensor, tuple[float, float]]":
    """Normalise a map of bytes, to floats or to bytes again.

    Parameters
    ----------
    x : QuantisedTensor
        A map, channels last.
    weight, bias, v, groups, eps
        As in :func:`range_evonorm`; parameters are float32.
    output : (float, int), optional
        Scale and zero point of a quantised result; rounding is to the nearest, halves to even, and what lies
        outside is cut off. Default: the result is float32.

    Returns
    -------
    y : torch.Tensor or QuantisedTensor
        Of the shape of `x`, channels last.
    extremes : torch.Tensor
        Bytes, as of :func:`range_evonorm`.
    bounds : (float, float)
        Least and greatest of `y` and of 0, before rounding: from them the next scale can be chosen.

    Raises
    ------
    TypeError
        If `x` is not a QuantisedTensor, or parameters are not floating point numbers.
    ValueError
        If shapes do not fit, the map is not channels last, a group has a single element, or a tensor requires
        gradients in grad mode.
    """
    import torch

    values = _bytes(x, "x")
    shape = tuple(values.shape)
    _check_norm(shape, {"weight": weight, "bias": bias, "v": v}, groups, eps)
    parameters = tuple(None if p is None else p.to(torch.float32).contiguous() for p in (weight, bias, v))
    if output is not None:
        QuantisedTensor(values, *output)  # refuses a scale or zero point that is none
    if not _runs_bytes(values, groups):
        floats, extremes = normalised(_dequantised(x), *parameters, groups, eps)
        # Back from numbers to the bytes that they stand for, which is exact.
        extremes = (extremes / x.scale + x.zero_point).round().to(torch.uint8)
        bounds = _bounds(floats)
        return (floats if output is None else quantised(floats, *output)), extremes, bounds
    extremes = torch.empty(extremes_shape(shape, groups), dtype=torch.uint8)
    y = empty_map(shape, True) if output is None else torch.empty_like(values)
    bounds = (0.0, 0.0)
    if values.numel():
        into = output or (0.0, 0)
        bounds = _forward(values, (x.scale, x.zero_point), y, into, extremes, parameters, groups, eps)
    return (y if output is None else QuantisedTensor(y, *output)), extremes, bounds


def quantised_range_evonorm_backward(
    grad: "torch.Tensor | QuantisedTensor",
    x: QuantisedTensor,
    extremes: "torch.Tensor",
    weight: "torch.Tensor | None",
    v: "torch.Tensor | None",
    groups: int,
    eps: float,
) -> NormGradients:
    """Form the gradients of :func:`quantised_range_evonorm`, as if nothing had been rounded in it.

    Parameters
    ----------
    grad : torch.Tensor or QuantisedTensor
        Gradient of `y`, of its shape: floating point numbers, or bytes with channels last.
    x, weight, v, groups, eps
        As they were.
    extremes : torch.Tensor
        What :func:`quantised_range_evonorm` returned.

    Returns
    -------
    NormGradients
        In float32, of `x` channels last.

    Raises
    ------
    TypeError, ValueError
        As in :func:`quantised_range_evonorm`; also if `grad` or `extremes` do not fit.
    """
    import torch

    values = _bytes(x, "x")
    _check_norm(tuple(values.shape), {"weight": weight, "v": v}, groups, eps)
    parameters = tuple(None if p is None else p.to(torch.float32).contiguous() for p in (weight, v))
    grad_values, grad_numbers = grad, (0.0, 0)
    if isinstance(grad, QuantisedTensor):
        grad_values, grad_numbers = _bytes(grad, "grad"), (grad.scale, grad.zero_point)
    else:
        check_map(grad, "grad")
        grad_values = grad = _channels_last(grad.to(torch.float32))
    _check_shapes(grad_values, values, extremes, groups)
    if extremes.dtype != torch.uint8:
        raise TypeError(f"extremes is {extremes.dtype}, expected torch.uint8, as x has bytes")
    if _runs_bytes(values, groups) and grad_values.is_cpu and extremes.is_cpu:
        return _backward(
            values,
            (x.scale, x.zero_point),
            extremes.contiguous(),
            grad_values,
            grad_numbers,
            parameters,
            groups,
            eps,
        )
    floats = _dequantised(grad) if isinstance(grad, QuantisedTensor) else grad
    return _found(normalised_backward(floats, _dequantised(x), *parameters, groups, eps))


def extremes_shape(shape: tuple[int, ...], groups: int) -> tuple[int, int, int, int]:
    """Give the shape of the extremes of a map of shape (N, C, H, W)."""
    import torch

    chunks: Any = torch.sym_min(16, shape[2] * shape[3])
    return shape[0], chunks, groups, 2


def _check_norm(
    shape: tuple[int, ...], parameters: "dict[str, torch.Tensor | None]", groups: int, eps: float
) -> None:
    if len(shape) != 4:
        raise ValueError(f"x has shape {shape}, expected (N, C, H, W)")
    channels = shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups is {groups}, expected a divisor of the {channels} channels")
    if channels // groups * shape[2] * shape[3] == 1:
        raise ValueError(
            f"x has shape {shape} and groups is {groups}: groups of a single element have no range; use fewer groups"
        )
    if not 0.0 < eps < math.inf:
        raise ValueError(f"eps is {eps}, expected a positive finite number")
    for name, parameter in parameters.items():
        if parameter is None:
            continue
        check_map(parameter, name)
        if parameter.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(parameter.shape)}, expected ({channels},)")


def _check_shapes(grad: "torch.Tensor", x: "torch.Tensor", extremes: "torch.Tensor", groups: int) -> None:
    for tensor, name, expected in (
        (grad, "grad", tuple(x.shape)),
        (extremes, "extremes", extremes_shape(tuple(x.shape), groups)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


def _bytes(x: QuantisedTensor, name: str) -> "torch.Tensor":
    import torch

    if not isinstance(x, QuantisedTensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a QuantisedTensor")
    if x.values.ndim != 4 or not x.values.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"{name} has shape {tuple(x.values.shape)} and strides {x.values.stride()}, "
            "expected (N, C, H, W) with channels last"
        )
    return x.values


def _computable(x: "torch.Tensor") -> "torch.Tensor":
    import torch

    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def _parameter(parameter: "torch.Tensor | None", x: "torch.Tensor") -> "torch.Tensor | None":
    return None if parameter is None else parameter.to(x.dtype).contiguous()


def _runs(x: "torch.Tensor", groups: int) -> bool:
    return is_served(x) and _runs_shape(tuple(x.shape), groups)


def _runs_bytes(values: "torch.Tensor", groups: int) -> bool:
    return bool(values.is_cpu) and _runs_shape(tuple(values.shape), groups)


def _runs_shape(shape: tuple[int, ...], groups: int) -> bool:
    pixels = shape[2] * shape[3]
    return _dispatch.extension is not None and (pixels // 16 + 1) * shape[1] <= _MOST_CHUNK_ELEMENTS


def _channels_last(x: "torch.Tensor") -> "torch.Tensor":
    import torch

    return x.contiguous(memory_format=torch.channels_last)


def _laid_out(x: "torch.Tensor", channels_last: bool) -> "torch.Tensor":
    return _channels_last(x) if channels_last else x.contiguous()


def _dequantised(x: QuantisedTensor) -> "torch.Tensor":
    import torch

    return (x.values.to(torch.float32) - x.zero_point) * x.scale


def _bounds(x: "torch.Tensor") -> tuple[float, float]:
    if x.numel() == 0:
        return 0.0, 0.0
    low, high = x.aminmax()
    return min(0.0, float(low)), max(0.0, float(high))


def _found(gradients: "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]") -> NormGradients:
    return NormGradients(*gradients, _bounds(gradients[0]))


def _extension() -> Any:
    if _dispatch.extension is not None:
        _threads.connect(_dispatch.extension)
    return _dispatch.extension


def _address(tensor: "torch.Tensor | None") -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _numbers(shape: tuple[int, ...], groups: int, eps: float) -> tuple[float, ...]:
    samples, channels, height, width = shape
    factor = range_factor(channels // groups * height * width)
    return samples, height * width, channels, groups, factor, eps


def _forward(
    x: "torch.Tensor",
    x_numbers: tuple[float, int],
    y: "torch.Tensor",
    y_numbers: tuple[float, int],
    extremes: "torch.Tensor",
    parameters: "tuple[torch.Tensor | None, ...]",
    groups: int,
    eps: float,
) -> tuple[float, float]:
    bounds: tuple[float, float] = _extension().range_evonorm(
        _dispatch.ceiling(),
        *(x.data_ptr(), *x_numbers, y.data_ptr(), *y_numbers, extremes.data_ptr()),
        *map(_address, parameters),
        *_numbers(tuple(x.shape), groups, eps),
    )
    return bounds


def _backward(
    x: "torch.Tensor",
    x_numbers: tuple[float, int],
    extremes: "torch.Tensor",
    grad: "torch.Tensor",
    grad_numbers: tuple[float, int],
    parameters: "tuple[torch.Tensor | None, ...]",
    groups: int,
    eps: float,
) -> NormGradients:
    import torch

    shape = tuple(x.shape)
    weight, v = parameters
    grad_x = empty_map(shape, True)
    grad_weight, grad_bias, grad_v = (torch.zeros(shape[1]) for _ in range(3))
    bounds = (0.0, 0.0)
    if x.numel():
        bounds = _extension().range_evonorm_backward(
            _dispatch.ceiling(),
            *(x.data_ptr(), *x_numbers, extremes.data_ptr(), grad.data_ptr(), *grad_numbers),
            *map(_address, (grad_x, grad_weight, grad_bias, grad_v)),
            *(_address(weight), 0, _address(v)),
            *_numbers(shape, groups, eps),
        )
    return NormGradients(grad_x, grad_weight, grad_bias, grad_v, bounds)
