"""What all faces of Range-EvoNorm share: checks of its arguments, and the calls of its kernels."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._int8_reference import value_range_reference
from flower_edge.kernels._maps import check_map, empty_map, new_floats
from flower_edge.kernels._range_evonorm_reference import CHUNKS, range_factor

if TYPE_CHECKING:
    import torch

Shape: TypeAlias = tuple[int, int, int, int]

MOST_CHUNK_ELEMENTS = 1 << 24
"""The kernels number the elements of a chunk in float32."""


class Norm(NamedTuple):
    """A normalisation: parameters of shape ``(C,)`` or None, number of groups, and eps."""

    weight: "torch.Tensor | None"
    bias: "torch.Tensor | None"
    v: "torch.Tensor | None"
    groups: int
    eps: float

    def to(self, dtype: "torch.dtype") -> "Norm":
        """Return it with contiguous parameters of a dtype."""
        for p in self[:3]:
            if p is not None and not (p.dtype == dtype and p.is_contiguous()):
                break
        else:
            return self
        weight, bias, v = (None if p is None else p.to(dtype).contiguous() for p in self[:3])
        return Norm(weight, bias, v, self.groups, self.eps)


class Map(NamedTuple):
    """A map in memory, channels last: floats, or bytes that mean scale * (byte - zero)."""

    values: "torch.Tensor"
    scale: float = 0.0
    zero_point: int = 0


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


def check_norm(shape: tuple[int, ...], norm: Norm) -> Shape:
    """Refuse a normalisation that is none of maps of this shape; return the shape."""
    if len(shape) != 4:
        raise ValueError(f"x has shape {shape}, expected (N, C, H, W)")
    samples, channels, height, width = shape
    if norm.groups < 1 or channels % norm.groups:
        raise ValueError(f"groups is {norm.groups}, expected a divisor of the {channels} channels")
    if channels // norm.groups * height * width == 1:
        raise ValueError(
            f"x has shape {shape} and groups is {norm.groups}: a group of a single element has no range; "
            "use fewer groups"
        )
    if not 0.0 < norm.eps < math.inf:
        raise ValueError(f"eps is {norm.eps}, expected a positive finite number")
    for name, parameter in (("weight", norm.weight), ("bias", norm.bias), ("v", norm.v)):
        if parameter is None:
            continue
        check_map(parameter, name)
        if parameter.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(parameter.shape)}, expected ({channels},)")
    return samples, channels, height, width


def check_shapes(grad: "torch.Tensor", shape: Shape, extremes: "torch.Tensor", groups: int) -> None:
    """Refuse what does not go with a map of this shape."""
    for tensor, name, expected in (
        (grad, "grad", shape),
        (extremes, "extremes", extremes_shape(shape, groups)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


def extremes_shape(shape: Shape, groups: int) -> Shape:
    """Give the shape of the extremes of a map of shape (N, C, H, W)."""
    import torch

    pixels = shape[2] * shape[3]
    # Tracers count pixels in symbols.
    chunks: int = min(CHUNKS, pixels) if type(pixels) is int else torch.sym_min(CHUNKS, pixels)  # type: ignore[no-untyped-call]
    return shape[0], chunks, groups, 2


def serves(shape: Shape) -> bool:
    """Tell whether there are kernels, and they can number the elements of a chunk."""
    _, channels, height, width = shape
    return (
        _dispatch.extension is not None and (height * width // CHUNKS + 1) * channels <= MOST_CHUNK_ELEMENTS
    )


def channels_last(x: "torch.Tensor") -> "torch.Tensor":
    """Lay a map out as kernels read it."""
    import torch

    return x.contiguous(memory_format=torch.channels_last)


def with_bounds(gradients: "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]") -> NormGradients:
    """Give gradients from the slow twin."""
    return NormGradients(*gradients, value_range_reference(gradients[0]))


def run_forward(x: Map, y: Map, extremes: "torch.Tensor", norm: Norm) -> tuple[float, float]:
    """Call the kernel, unless there is nothing to do; return the bounds of y and of 0."""
    if x.values.numel() == 0:
        return 0.0, 0.0
    bounds: tuple[float, float] = _extension().range_evonorm(
        _dispatch.ceiling(), *_map(x), *_map(y), extremes.data_ptr(), *_numbers(x, norm)
    )
    return bounds


def run_extremes(x: Map, extremes: "torch.Tensor", norm: Norm) -> tuple[float, float]:
    """Call the kernel that finds `extremes` alone; return bounds of y and 0, NaN first for NaN."""
    if x.values.numel() == 0:
        return 0.0, 0.0
    bounds: tuple[float, float] = _extension().range_evonorm_extremes(
        _dispatch.ceiling(), *_map(x), extremes.data_ptr(), *_numbers(x, norm)
    )
    return bounds


def run_normalise(x: Map, y: Map, extremes: "torch.Tensor", norm: Norm) -> None:
    """Call the kernel that normalises with `extremes` that are known."""
    if x.values.numel():
        _extension().range_evonorm_normalise(
            _dispatch.ceiling(), *_map(x), *_map(y), extremes.data_ptr(), *_numbers(x, norm)
        )


def run_backward(x: Map, extremes: "torch.Tensor", grad: Map, norm: Norm) -> NormGradients:
    """Call the kernel, unless there is nothing to do."""
    shape = x.values.shape
    grad_x = empty_map((shape[0], shape[1], shape[2], shape[3]), True)
    # Apart from each other: what an operator returns may not share memory.
    weight, bias, v = (new_floats(shape[1]) for _ in range(3))
    if grad_x.numel() == 0:
        return NormGradients(grad_x, weight.zero_(), bias.zero_(), v.zero_(), (0.0, 0.0))
    results = (tensor.data_ptr() for tensor in (grad_x, weight, bias, v))
    bounds = _extension().range_evonorm_backward(
        _dispatch.ceiling(), *_map(x), extremes.data_ptr(), *_map(grad), *results, *_numbers(x, norm)
    )
    return NormGradients(grad_x, weight, bias, v, bounds)


def _extension() -> Any:
    if _dispatch.extension is not None:
        _threads.connect(_dispatch.extension)
    return _dispatch.extension


def _map(of: Map) -> tuple[int, float, int]:
    return of.values.data_ptr(), of.scale, of.zero_point


def _numbers(x: Map, norm: Norm) -> tuple[float, ...]:
    samples, channels, height, width = x.values.shape
    addresses = (0 if p is None else p.data_ptr() for p in (norm.weight, norm.bias, norm.v))
    factor = range_factor(channels // norm.groups * height * width)
    return *addresses, samples, height * width, channels, norm.groups, factor, norm.eps
