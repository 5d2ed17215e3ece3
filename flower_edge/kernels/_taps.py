"""Convolution weights summed over their taps, and gradients spread over them again."""

from typing import TYPE_CHECKING

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._maps import check_floating, check_no_gradient, inputs_are_innermost, is_served
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch


def collapse_taps(weight: "torch.Tensor", symbols: "torch.Tensor") -> "torch.Tensor":
    r"""Sum a weight over its taps, once for each component.

    :math:`\tilde W_u(c_o, c_i) = \sum_t M_{ut} W(c_o, c_i, t)`: Yang, Li, Marculescu, CVPR 2023, equation
    4, for one component, whose symbols are all 1.

    Parameters
    ----------
    weight : torch.Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``.
    symbols : torch.Tensor
        Shape ``(components, kh * kw)``, of the dtype and on the device of `weight`: how strongly a tap
        passes each component.

    Returns
    -------
    torch.Tensor
        Shape ``(components, C_out, C_in / groups)``; never a view of `weight`.

    Raises
    ------
    TypeError
        If a tensor is not floating, or dtypes or devices differ.
    ValueError
        If shapes do not fit, or `weight` requires gradients in grad mode.
    """
    _check(weight, symbols)
    if _runs(weight, symbols):
        return _collapse(weight, symbols.contiguous())
    return collapse_taps_reference(weight, symbols)


def spread_taps(
    gram: "torch.Tensor", symbols: "torch.Tensor", like: "torch.Tensor", scale: float = 1.0
) -> "torch.Tensor":
    r"""Spread the gradient of a collapsed weight over the taps: the transpose of :func:`collapse_taps`.

    Parameters
    ----------
    gram : torch.Tensor
        Shape ``(components, C_out, C_in / groups)``.
    symbols : torch.Tensor
        Shape ``(components, kh * kw)``, as in :func:`collapse_taps`.
    like : torch.Tensor
        The weight, shape ``(C_out, C_in / groups, kh, kw)``: gives shape and memory format; its values are
        not read.
    scale : float, optional
        Multiplies the result. Default: 1.

    Returns
    -------
    torch.Tensor
        ``scale * sum_u M[u, tap] * gram[u]``, of the shape of `like`, in its memory format.

    Raises
    ------
    TypeError
        If a tensor is not floating, or dtypes or devices differ.
    ValueError
        If shapes do not fit, or `gram` requires gradients in grad mode.
    """
    _check_spread(gram, symbols, like)
    if _runs(gram, symbols):
        return _spread(gram.contiguous(), symbols.contiguous(), like, scale)
    return spread_taps_reference(gram, symbols, like, scale)


def collapse_taps_reference(weight: "torch.Tensor", symbols: "torch.Tensor") -> "torch.Tensor":
    """Do what :func:`collapse_taps` does, in plain torch.

    Parameters
    ----------
    weight, symbols
        As in :func:`collapse_taps`; any floating dtype and device.

    Returns
    -------
    torch.Tensor
        Shape ``(components, C_out, C_in / groups)``.
    """
    return (weight.flatten(2) @ symbols.mT).permute(2, 0, 1)


def spread_taps_reference(
    gram: "torch.Tensor", symbols: "torch.Tensor", like: "torch.Tensor", scale: float = 1.0
) -> "torch.Tensor":
    """Do what :func:`spread_taps` does, in plain torch.

    Parameters
    ----------
    gram, symbols, like, scale
        As in :func:`spread_taps`; any floating dtype and device.

    Returns
    -------
    torch.Tensor
        Of the shape of `like`, in its memory format.
    """
    import torch

    grad = ((gram * scale).permute(1, 2, 0) @ symbols).reshape(like.shape)
    innermost = inputs_are_innermost(like)
    return grad.contiguous(memory_format=torch.channels_last if innermost else torch.contiguous_format)


def _runs(values: "torch.Tensor", symbols: "torch.Tensor") -> bool:
    return _dispatch.extension is not None and is_served(values) and not symbols.is_neg()


def _collapse(weight: "torch.Tensor", symbols: "torch.Tensor") -> "torch.Tensor":
    outputs, inputs = weight.shape[:2]
    components, taps = symbols.shape
    inner = inputs if inputs_are_innermost(weight) else 1
    weight = weight if inner > 1 else weight.contiguous()
    out = workspace().empty((components, outputs, inputs), (outputs * inputs, inputs, 1))
    if weight.numel() == 0:
        return out.zero_()
    extension = _dispatch.extension
    if extension is not None:
        _threads.connect(extension)
        addresses = out.data_ptr(), weight.data_ptr(), symbols.data_ptr()
        sizes = outputs * inputs, inner, taps, components
        extension.collapse_taps(_dispatch.ceiling(), *addresses, *sizes)
    return out


def _spread(
    gram: "torch.Tensor", symbols: "torch.Tensor", like: "torch.Tensor", scale: float
) -> "torch.Tensor":
    outputs, inputs, height, width = like.shape
    components, taps = symbols.shape
    if inputs_are_innermost(like):
        inner, strides = inputs, (taps * inputs, 1, width * inputs, inputs)
    else:
        inner, strides = 1, (inputs * taps, taps, width, 1)
    out = workspace().empty((outputs, inputs, height, width), strides)
    extension = _dispatch.extension
    if extension is not None and out.numel():
        _threads.connect(extension)
        addresses = out.data_ptr(), gram.data_ptr(), symbols.data_ptr()
        sizes = outputs * inputs, inner, taps, components
        extension.spread_taps(_dispatch.ceiling(), *addresses, *sizes, scale)
    return out


def _check(weight: "torch.Tensor", symbols: "torch.Tensor") -> None:
    check_floating(weight, "weight")
    check_no_gradient(weight, "weight")
    if weight.ndim != 4:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected (C_out, C_in / groups, kh, kw)")
    _check_symbols(symbols, weight, "weight")


def _check_symbols(symbols: "torch.Tensor", weight: "torch.Tensor", name: str) -> None:
    if symbols.dtype != weight.dtype or symbols.device != weight.device:
        raise TypeError(
            f"symbols is {symbols.dtype} on {symbols.device}, "
            f"expected {weight.dtype} on {weight.device} as {name}"
        )
    taps = weight.shape[2] * weight.shape[3]
    if symbols.ndim != 2 or symbols.shape[0] < 1 or symbols.shape[1] != taps:
        raise ValueError(f"symbols has shape {tuple(symbols.shape)}, expected (components, {taps})")


def _check_spread(gram: "torch.Tensor", symbols: "torch.Tensor", like: "torch.Tensor") -> None:
    check_floating(gram, "gram")
    check_no_gradient(gram, "gram")
    if like.ndim != 4:
        raise ValueError(f"like has shape {tuple(like.shape)}, expected (C_out, C_in / groups, kh, kw)")
    _check_symbols(symbols, like, "like")
    if gram.dtype != like.dtype or gram.device != like.device:
        raise TypeError(
            f"gram is {gram.dtype} on {gram.device}, expected {like.dtype} on {like.device} as like"
        )
    expected = (symbols.shape[0], like.shape[0], like.shape[1])
    if tuple(gram.shape) != expected:
        raise ValueError(f"gram has shape {tuple(gram.shape)}, expected {expected}")
