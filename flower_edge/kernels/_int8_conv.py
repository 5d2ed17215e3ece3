"""Convolutions of bytes: forward, for the gradient of the input, and for that of the weight."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._int8_quantise import QuantisedError, finite_ends
from flower_edge.kernels._int8_reference import (
    int8_conv_reference,
    int8_grad_weight_reference,
    quantise_weight_reference,
    round_reference,
    value_range_reference,
)
from flower_edge.kernels._int8_shape import ConvShape
from flower_edge.kernels._maps import check_floating, check_no_gradient, empty_map, is_served
from flower_edge.kernels._quantised import LEVELS, QuantisedTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in 8 bits with a scale for each channel of the result, in the order of one instruction set.

    Attributes
    ----------
    shape : ConvShape
        The convolution that it is for.
    transposed : bool
        Whether it is for the gradient of the input.
    isa : str or None
        The instruction set; None for the slow twin.
    values, sums, scales : torch.Tensor
        For the kernel or the twin of that convolution alone.
    """

    shape: ConvShape
    transposed: bool
    isa: str | None
    values: "torch.Tensor"
    sums: "torch.Tensor"
    scales: "torch.Tensor"


def pack_weight(weight: "torch.Tensor", shape: ConvShape, *, transposed: bool = False) -> PackedWeight:
    """Quantise a weight for a convolution or for the gradient of its input.

    Each channel of the result has a scale of its own, its largest magnitude over 127; so the two have other
    bytes. Rounds to nearest, half to even.

    Parameters
    ----------
    weight : torch.Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, a floating dtype; channels last are fastest.
    shape : ConvShape
        The convolution.
    transposed : bool, optional
        For the gradient of the input. Default: False.

    Returns
    -------
    PackedWeight
        For :func:`int8_conv`.

    Raises
    ------
    TypeError
        If `weight` is not a dense tensor of floating point numbers.
    ValueError
        If it has another shape than the convolution's, is not finite, or requires gradients in grad mode.
    """
    import torch

    check_floating(weight, "weight")
    check_no_gradient(weight, "weight")
    if weight.shape != shape.weight_shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected {shape.weight_shape}")
    extension = _dispatch.extension
    if extension is None or not is_served(weight):
        if not torch.isfinite(weight).all():
            raise ValueError(_NOT_FINITE)
        values, scales = quantise_weight_reference(weight, shape.groups, transposed)
        return PackedWeight(shape, transposed, None, values, values, scales)
    _threads.connect(extension)
    weight = weight.contiguous(memory_format=torch.channels_last)
    isa = _dispatch.ceiling()
    lengths = _packed_sizes(isa, transposed, shape.numbers)
    dtypes = (torch.int8, torch.int32, torch.float32)
    packed = [
        torch.empty(length, dtype=dtype, device="cpu") for length, dtype in zip(lengths, dtypes, strict=True)
    ]
    addresses = (tensor.data_ptr() for tensor in packed)
    try:
        extension.int8_pack(isa, *addresses, weight.data_ptr(), transposed, *shape.numbers)
    except FloatingPointError as error:
        raise ValueError(_NOT_FINITE) from error
    return PackedWeight(shape, transposed, isa, *packed)


@lru_cache(maxsize=4096)
def _packed_sizes(isa: str, transposed: bool, numbers: tuple[int, ...]) -> tuple[int, ...]:
    extension: Any = _dispatch.extension
    # A transposed convolution may have no taps at all.
    return tuple(max(1, length) for length in extension.int8_packed_sizes(isa, transposed, *numbers))


_NOT_FINITE = "weight has a NaN or an infinity, expected finite numbers to quantise; lower the learning rate"


def int8_conv(x: QuantisedTensor, weight: PackedWeight, bias: "torch.Tensor | None" = None) -> "torch.Tensor":
    r"""Convolve bytes with bytes: exact sums in 32 bits, then one factor for each channel.

    :math:`y = s_x s_w \sum (x - z)\, w + b`. Padding means 0.

    Parameters
    ----------
    x : QuantisedTensor
        The input, shape ``(N, C_in, H, W)``; or, for a transposed weight, the gradient of the output.
    weight : PackedWeight
        From :func:`pack_weight`.
    bias : torch.Tensor, optional
        Shape ``(C,)`` with the channels of the result, float32. Default: none.

    Returns
    -------
    torch.Tensor
        float32, channels last: the output; or the gradient of the input.

    Raises
    ------
    ValueError
        If `x` or `bias` has another shape than the convolution says.
    """
    return int8_conv_with_ends(x, weight, bias)[0]


def int8_conv_with_ends(
    x: QuantisedTensor, weight: PackedWeight, bias: "torch.Tensor | None" = None
) -> "tuple[torch.Tensor, tuple[float, float]]":
    """Do what :func:`int8_conv` does, and say what is needed to quantise the result.

    Parameters
    ----------
    x, weight, bias
        As in :func:`int8_conv`.

    Returns
    -------
    y : torch.Tensor
        As of :func:`int8_conv`.
    ends : tuple of float
        The least and the greatest of it and 0; NaN or infinite where it has a number that is.

    Raises
    ------
    ValueError
        As :func:`int8_conv`.
    """
    x = _checked_input(x, weight, bias)
    if _dispatch.extension is None or weight.isa is None:
        y = _twin(x, weight, bias)
        return y, value_range_reference(y)
    y = empty_map(_result_shape(weight), channels_last=True)
    return y, _run(x, weight, bias, (y.data_ptr(), 0), (1.0, 0))


def int8_conv_to_bytes(
    x: QuantisedTensor, weight: PackedWeight, bias: "torch.Tensor | None", scale: float, zero_point: int
) -> tuple[QuantisedTensor, tuple[float, float]]:
    """Do what :func:`int8_conv` does, and quantise the result before it reaches memory.

    Parameters
    ----------
    x, weight, bias
        As in :func:`int8_conv`.
    scale : float
        Of the result; what lies beyond its 256 levels is cut.
    zero_point : int
        Likewise, 0 to 255.

    Returns
    -------
    y : QuantisedTensor
        The result, rounded to nearest.
    ends : tuple of float
        The least and the greatest of the result before it was cut, and 0: for the scale of the next one.

    Raises
    ------
    ValueError
        As :func:`int8_conv`; also if `scale` or `zero_point` is out of its range, or a result is not finite.
    """
    import torch

    x = _checked_input(x, weight, bias)
    values = torch.empty(
        _result_shape(weight), dtype=torch.uint8, device="cpu", memory_format=torch.channels_last
    )
    y = QuantisedTensor(values, scale, zero_point)
    if _dispatch.extension is None or weight.isa is None:
        floats = _twin(x, weight, bias)
        ends = finite_ends(floats, *value_range_reference(floats))
        values = round_reference(floats, 1 / scale, zero_point, 0, LEVELS, None)
        return QuantisedTensor(values, scale, zero_point), ends
    ends = _run(x, weight, bias, (0, values.data_ptr()), (1 / scale, zero_point))
    return y, finite_ends(values, *ends)


def _result_shape(weight: PackedWeight) -> tuple[int, int, int, int]:
    return weight.shape.x_shape if weight.transposed else weight.shape.y_shape


def _checked_input(x: QuantisedTensor, weight: PackedWeight, bias: "torch.Tensor | None") -> QuantisedTensor:
    values = _checked(x.values, "x", weight.shape.y_shape if weight.transposed else weight.shape.x_shape)
    channels = _result_shape(weight)[1]
    if bias is not None and (bias.shape != (channels,) or bias.dtype != weight.scales.dtype):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)} and is {bias.dtype}, expected ({channels},), torch.float32"
        )
    return QuantisedTensor(values, x.scale, x.zero_point)


def _twin(x: QuantisedTensor, weight: PackedWeight, bias: "torch.Tensor | None") -> "torch.Tensor":
    return int8_conv_reference(x, weight.values, weight.scales, bias, weight.shape, weight.transposed)


def _run(
    x: QuantisedTensor,
    weight: PackedWeight,
    bias: "torch.Tensor | None",
    to: tuple[int, int],
    rounding: tuple[float, int],
) -> tuple[float, float]:
    extension: Any = _dispatch.extension
    _threads.connect(extension)
    packed = weight.values.data_ptr(), weight.sums.data_ptr(), weight.scales.data_ptr()
    bias = None if bias is None else bias.detach().contiguous()
    address = 0 if bias is None else bias.data_ptr()
    ends = extension.int8_conv(
        *(weight.isa, *to, x.values.data_ptr(), x.zero_point, x.scale, *packed, address, weight.transposed),
        *(*rounding, 0, LEVELS, None),
        *weight.shape.numbers,
    )
    return float(ends[0]), float(ends[1])


def int8_grad_weight(x: QuantisedTensor, error: QuantisedError, shape: ConvShape) -> "torch.Tensor":
    """Sum the products of a convolution's input and of the gradient of its output over all pixels, exactly.

    Parameters
    ----------
    x : QuantisedTensor
        The input, shape ``(N, C_in, H, W)``.
    error : QuantisedError
        The gradient of the output; its 16 bits are used where it has them.
    shape : ConvShape
        The convolution.

    Returns
    -------
    torch.Tensor
        float32, shape of the weight, channels last. The same for every number of threads.

    Raises
    ------
    ValueError
        If a tensor has another shape than the convolution says.
    """
    import torch

    values = _checked(x.values, "x", shape.x_shape)
    high = error.values.values if error.high is None else error.high
    high = _checked(high, "error", shape.y_shape)
    low = None if error.low is None else _checked(error.low, "error", shape.y_shape)
    scale = x.scale * (error.values.scale if low is None else error.half_scale)
    extension = _dispatch.extension
    if extension is None or not values.is_cpu:
        return int8_grad_weight_reference(x, high, low, scale, shape)
    _threads.connect(extension)
    grad = empty_map(shape.weight_shape, channels_last=True)
    extension.int8_grad_weight(
        *(_dispatch.ceiling(), grad.data_ptr(), values.data_ptr(), x.zero_point, scale),
        *(high.data_ptr(), 0 if low is None else low.data_ptr(), torch.get_num_threads()),
        *shape.numbers,
    )
    return grad


def _checked(values: "torch.Tensor", name: str, shape: tuple[int, ...]) -> "torch.Tensor":
    import torch

    if values.shape != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected {shape}")
    return values.contiguous(memory_format=torch.channels_last)
