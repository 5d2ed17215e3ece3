"""Checks of the feature maps and weights that kernels read, and the layouts that they come in."""

from typing import TYPE_CHECKING

from flower_edge.kernels._grid import Grid
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def check_floating(tensor: "torch.Tensor", name: str) -> None:
    """Refuse what is not a dense tensor of floating point numbers."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch tensor")
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is a {tensor.dtype} tensor with layout {tensor.layout}, expected floating point numbers "
            "with layout torch.strided"
        )


def check_no_gradient(tensor: "torch.Tensor", name: str) -> None:
    """Refuse a tensor whose gradient would silently end here."""
    import torch

    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} requires gradients, and kernels have none; call inside torch.no_grad() "
            f"or pass {name}.detach()"
        )


def is_served(tensor: "torch.Tensor") -> bool:
    """Tell whether the compiled kernels can read this tensor: float32 on the CPU."""
    import torch

    return tensor.dtype == torch.float32 and tensor.is_cpu and not tensor.is_neg()


def is_gapless(tensor: "torch.Tensor") -> bool:
    """Tell whether a tensor's elements fill a range of memory, each once, in whatever order of dimensions."""
    import torch

    # What compilers see through is asked first.
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    return are_gapless(tensor.shape, tensor.stride())


def are_gapless(shape: "Sequence[int]", strides: "Sequence[int]") -> bool:
    """Tell the same of strides."""
    length = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1 and stride != length:
            return 0 in shape
        length *= size
    return True


def is_channels_last(tensor: "torch.Tensor") -> bool:
    """Tell whether a map's memory is read as channels last; with a single channel, it is not."""
    import torch

    return tensor.shape[1] > 1 and tensor.is_contiguous(memory_format=torch.channels_last)


def laid_out_sums(sums: "torch.Tensor", channels_last: bool) -> "torch.Tensor":
    """Return components of patches in the memory order that goes with a map of this layout."""
    return sums.contiguous() if channels_last else sums.transpose(1, 2).contiguous()


def empty_map(shape: tuple[int, int, int, int], channels_last: bool) -> "torch.Tensor":
    """Make a map of this layout without setting its values."""
    _, channels, height, width = shape
    image = channels * height * width
    if channels_last:
        return workspace().empty(shape, (image, 1, width * channels, channels))
    return workspace().empty(shape, (image, height * width, width, 1))


def floats_like(x: "torch.Tensor") -> "torch.Tensor":
    """Make float32 of the shape and layout of a tensor without gaps, without setting their values."""
    return workspace().empty(x.shape, x.stride())


def new_floats(*shape: int) -> "torch.Tensor":
    """Make what a kernel writes float32 to, whatever torch's default dtype and device are."""
    import torch

    return torch.empty(shape, dtype=torch.float32, device="cpu")


def new_bytes(*shape: int) -> "torch.Tensor":
    """Make what a kernel writes bytes to, whatever torch's default device is."""
    import torch

    return torch.empty(shape, dtype=torch.uint8, device="cpu")


def inputs_are_innermost(weight: "torch.Tensor") -> bool:
    """Tell whether a convolution's weight lies in memory as (output, tap, input); a single tap's does not."""
    import torch

    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def check_map(tensor: "torch.Tensor", name: str) -> None:
    """Refuse what kernels cannot read, or what would lose a gradient."""
    check_floating(tensor, name)
    check_no_gradient(tensor, name)


def shape_of(tensor: "torch.Tensor", name: str) -> tuple[int, ...]:
    """Check a map and return its shape."""
    check_map(tensor, name)
    return tuple(tensor.shape)


def needed(tensor: "torch.Tensor | None", name: str, grad: "torch.Tensor") -> "torch.Tensor":
    """Return what a gradient is made from, or refuse it where it is missing or unlike the gradient."""
    if tensor is None:
        raise ValueError(f"{name} is None, but what needs asks for is made from it")
    check_map(tensor, name)
    if tensor.dtype != grad.dtype or tensor.device != grad.device:
        raise TypeError(
            f"{name} is {tensor.dtype} on {tensor.device}, expected {grad.dtype} on {grad.device} as grad"
        )
    return tensor


def check_points(tensor: "torch.Tensor", name: str, cut: Grid) -> None:
    """Refuse components of patches that are not those of a grid."""
    expected = (cut.components, cut.points, cut.shape[1])
    if tensor.shape != expected:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected {expected}: (components, N * PH * PW, C)"
        )
