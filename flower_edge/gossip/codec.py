"""Named arrays ↔ one flat fp32 vector.

Gossip averages vectors; frameworks hold named arrays (a torch ``state_dict``, a Flower ``ArrayRecord``). A
`Layout` is the fixed correspondence between the two, found once per model.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Vector: TypeAlias = npt.NDArray[np.float32]
Arrays: TypeAlias = Mapping[str, Any]
Carried: TypeAlias = dict[str, npt.NDArray[Any]]

MIXED_DTYPES = frozenset({"float32", "float16", "bfloat16"})
CARRIED_DTYPES = frozenset({"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})


@dataclass(frozen=True)
class ArraySpec:
    """Name, shape and dtype of one array of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def mixed(self) -> bool:
        """Whether the array is averaged; integer and boolean buffers are carried along unchanged."""
        return self.dtype in MIXED_DTYPES

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name!r} ({self.dtype}, shape {self.shape})"


@dataclass(frozen=True)
class Layout:
    """Where each named array of a model lies in its flat fp32 vector.

    Floating arrays (float32, float16, bfloat16) follow each other in the vector in the order of `specs`:
    they are what gossip mixes. Integer and boolean arrays (BatchNorm's ``num_batches_tracked``) are
    *carried*: they stay with their node. Both directions are exact, since every mixed dtype is a subset of
    fp32.

    Parameters
    ----------
    specs : tuple of ArraySpec
        One entry an array, in the model's own order.

    Examples
    --------
    >>> layout = Layout.of(model.state_dict())
    >>> vector, carried = layout.flatten(model.state_dict())
    >>> model.load_state_dict(layout.unflatten_torch(vector, carried))
    """

    specs: tuple[ArraySpec, ...]

    @classmethod
    def of(cls, arrays: Arrays) -> "Layout":
        """Read the layout of named numpy arrays or torch tensors.

        Raises
        ------
        TypeError
            For an array of any other dtype: float64, say, which fp32 cannot hold exactly, or one in another
            byte order.
        ValueError
            If there is nothing to mix.
        """
        specs = tuple(_spec(name, array) for name, array in arrays.items())
        for spec in specs:
            if spec.dtype not in MIXED_DTYPES | CARRIED_DTYPES:
                raise TypeError(
                    f"array {spec} can neither be mixed without loss nor carried: expected float32, float16, "
                    "bfloat16, an integer type or bool, in this machine's byte order. Convert the model "
                    'first, for example with model.float() or array.astype("float32")'
                )
        layout = cls(specs)
        if layout.size == 0:
            raise ValueError(
                f"no floating-point parameters to mix among {len(specs)} arrays: {sorted(arrays)}"
            )
        return layout

    @cached_property
    def size(self) -> int:
        """Number of fp32 elements in the flat vector."""
        return sum(spec.size for spec in self.specs if spec.mixed)

    @property
    def nbytes(self) -> int:
        """Bytes of the flat vector: what one node sends over one link in one round."""
        return 4 * self.size

    def check(self, arrays: Arrays) -> None:
        """Raise a ValueError that names the first array which does not fit this layout."""
        self.check_names(arrays)
        for expected in self.specs:
            received = _spec(expected.name, arrays[expected.name])
            if received != expected:
                raise ValueError(f"received array {received}, expected {expected}")

    def check_names(self, arrays: Mapping[str, Any]) -> None:
        """Raise a ValueError that names the first array which is missing or unexpected."""
        names = [spec.name for spec in self.specs]
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(
                f"array {missing[0]!r} is missing; expected {len(names)} arrays, received {len(arrays)}"
            )
        self.check_known(arrays)

    def check_known(self, names: Collection[str]) -> None:
        """Raise a ValueError that names the first array which the layout lacks."""
        if unexpected := sorted(set(names) - {spec.name for spec in self.specs}):
            raise ValueError(
                f"unexpected array {unexpected[0]!r}; expected {len(self.specs)} arrays, "
                f"received {len(names)}"
            )

    def flatten(self, arrays: Arrays, out: Vector | None = None) -> tuple[Vector, Carried]:
        """Copy named arrays into one flat vector.

        Parameters
        ----------
        arrays : mapping of str to ndarray or Tensor
            The arrays of one model; their names, shapes and dtypes have to be those of the layout.
        out : ndarray of float32, shape (size,), optional
            Where to write; a new vector by default.

        Returns
        -------
        vector : ndarray of float32, shape (size,)
            All floating arrays.
        carried : dict of str to ndarray
            Copies of the others.

        Raises
        ------
        ValueError
            If an array is missing, unexpected, or of another shape or dtype.
        """
        self.check(arrays)
        vector = np.empty(self.size, np.float32) if out is None else out
        carried: Carried = {}
        offset = 0
        for spec in self.specs:
            array = _as_numpy(arrays[spec.name])
            if spec.mixed:
                vector[offset : offset + spec.size] = array.reshape(-1)
                offset += spec.size
            else:
                carried[spec.name] = array.copy()
        return vector, carried

    def unflatten(
        self, vector: Vector, carried: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Cut a flat vector into named numpy arrays.

        float32 arrays are views of `vector` where possible. Raises a TypeError for bfloat16, which numpy
        lacks (use `unflatten_torch`), and a ValueError for a vector of another size.
        """
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise ValueError(
                f"received a vector of {vector.dtype} {vector.shape}, expected float32 ({self.size},)"
            )
        arrays: dict[str, npt.NDArray[Any]] = {}
        offset = 0
        for spec in self.specs:
            if not spec.mixed:
                arrays[spec.name] = carried[spec.name]
                continue
            if spec.dtype == "bfloat16":
                raise TypeError(f"numpy has no bfloat16 for array {spec}: use unflatten_torch")
            part = vector[offset : offset + spec.size].reshape(spec.shape)
            arrays[spec.name] = part.astype(spec.dtype, copy=False)
            offset += spec.size
        return arrays

    def unflatten_torch(
        self, vector: Vector, carried: Mapping[str, npt.NDArray[Any]]
    ) -> "dict[str, torch.Tensor]":
        """Cut a flat vector into a torch ``state_dict`` that shares no memory with `vector`."""
        import torch

        as_fp32 = Layout(
            tuple(ArraySpec(s.name, s.shape, "float32" if s.mixed else s.dtype) for s in self.specs)
        )
        arrays = as_fp32.unflatten(vector, carried)
        return {
            spec.name: torch.tensor(arrays[spec.name], dtype=getattr(torch, spec.dtype))
            for spec in self.specs
        }


def is_finite(vector: Vector) -> bool:
    """Whether a vector has neither NaN nor infinity.

    A finite sum proves it in one pass without a temporary; only a sum that overflows or is NaN needs the
    exact look.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(vector.sum())) or bool(np.isfinite(vector).all())


def _spec(name: str, array: Any) -> ArraySpec:
    return ArraySpec(
        name, tuple(int(length) for length in array.shape), str(array.dtype).removeprefix("torch.")
    )


def _as_numpy(array: Any) -> npt.NDArray[Any]:
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    tensor = array.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    return np.asarray(tensor.numpy())
