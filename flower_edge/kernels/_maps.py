"""Checks of the feature maps and weights that kernels read, and the layouts that they come in."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and not tensor.is_neg()


def is_channels_last(tensor: "torch.Tensor") -> bool:
    """Tell whether a map's memory is read as channels last; with a single channel, it is not."""
    import torch

    return tensor.shape[1] > 1 and tensor.is_contiguous(memory_format=torch.channels_last)
