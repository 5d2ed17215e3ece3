"""Checks of the vectors that kernels read and write through raw addresses."""

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    Vector: TypeAlias = "npt.NDArray[np.float32] | torch.Tensor"


class Span(NamedTuple):
    """A vector in memory: its first byte's address and its number of float32 elements."""

    address: int
    length: int

    def overlaps_partly(self, other: "Span") -> bool:
        """Tell whether two vectors share bytes without being one and the same."""
        return self.address != other.address and (
            self.address < other.address + 4 * other.length and other.address < self.address + 4 * self.length
        )


def is_tensor(vector: object) -> bool:
    """Tell whether this is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(vector, torch.Tensor)


def span(vector: Any, name: str) -> Span:
    """Find where a vector lies, after checking that it is one that a kernel can read.

    Parameters
    ----------
    vector : ndarray or torch.Tensor
        Shape ``(n,)``, float32, contiguous; a tensor must be on the CPU and must not require gradients.
    name : str
        What the caller calls it, for the error.

    Returns
    -------
    Span
        Address and length; valid while the vector lives.

    Raises
    ------
    TypeError
        If it is neither array nor tensor, or has another dtype, device or layout.
    ValueError
        If it has not one dimension, is not contiguous, or requires gradients.
    """
    if isinstance(vector, np.ndarray):
        if vector.dtype != np.float32:
            raise TypeError(
                f"{name} has dtype {vector.dtype}, expected float32; convert it with .astype(numpy.float32)"
            )
        if vector.ndim != 1 or not vector.flags.c_contiguous:
            raise ValueError(
                f"{name} has shape {vector.shape} and strides {vector.strides}, "
                "expected one contiguous dimension; use numpy.ascontiguousarray(...).reshape(-1)"
            )
        return Span(vector.__array_interface__["data"][0], vector.size)
    if is_tensor(vector):
        return _tensor_span(vector, name)
    raise TypeError(f"{name} is a {type(vector).__name__}, expected a numpy array or a torch tensor")


def _tensor_span(tensor: "torch.Tensor", name: str) -> Span:
    torch = sys.modules["torch"]
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is a {tensor.dtype} tensor on {tensor.device} with layout {tensor.layout}, "
            "expected torch.float32 on cpu with layout torch.strided"
        )
    if tensor.ndim != 1 or not tensor.is_contiguous() or tensor.is_neg():
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}"
            f"{' and a pending negation' if tensor.is_neg() else ''}, expected one contiguous dimension; "
            "use .resolve_neg().reshape(-1).contiguous()"
        )
    if tensor.requires_grad:
        raise ValueError(
            f"{name} requires gradients, and kernels on raw memory have none; pass {name}.detach()"
        )
    return Span(tensor.data_ptr(), tensor.numel())


def as_array(vector: "Vector") -> npt.NDArray[np.float32]:
    """View a checked vector as a numpy array over the same memory."""
    array: npt.NDArray[np.float32] = vector if isinstance(vector, np.ndarray) else vector.numpy()
    return array


def check_writable(vector: "Vector", name: str) -> None:
    """Refuse an array that must not be written."""
    if isinstance(vector, np.ndarray) and not vector.flags.writeable:
        raise ValueError(f"{name} is a read-only array, expected a writable one; pass a copy")


def mark_written(vector: "Vector") -> None:
    """Tell autograd of a write behind its back, so that a backward that saved the tensor fails, not lies."""
    if is_tensor(vector) and not vector.is_inference():  # type: ignore[union-attr]
        sys.modules["torch"].autograd.graph.increment_version(vector)
