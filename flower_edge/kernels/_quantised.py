"""What a tensor of 8-bit numbers means."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

    import torch

LEVELS = 255
"""Steps between the least and the greatest value of a byte."""

ERROR_ZERO = 128
"""The byte that means 0 in a quantised gradient: as many steps are below it as above."""

# Kernels have float32 scales, and multiply by their inverses.
_LEAST_SCALE = 2.0**-126
_LARGEST_SCALE = (2 - 2.0**-23) * 2.0**127


class _Fields(NamedTuple):
    values: "torch.Tensor"
    scale: float
    zero_point: int


class QuantisedTensor(_Fields):
    r"""Numbers in 8 bits, one scale for all: :math:`x = \text{scale} \, (\text{values} - \text{zero})`.

    Zero itself is always a value, so that padding with zeros is exact. ``QuantisedTensor._make`` checks
    nothing: it is for what a kernel has just made.

    Parameters
    ----------
    values : torch.Tensor
        uint8, on the CPU or elsewhere. A feature map, of shape ``(N, C, H, W)``, has channels last in memory;
        rows of features are contiguous.
    scale : float
        What one step means; positive and normal in float32, 1.2e-38 to 3.4e38.
    zero_point : int
        The value that means 0, 0 to 255.

    Raises
    ------
    TypeError
        If `values` is not a tensor of uint8.
    ValueError
        If `scale` or `zero_point` is out of its range.
    """

    __slots__ = ()

    def __new__(cls, values: "torch.Tensor", scale: float, zero_point: int) -> "Self":
        """Check what is given."""
        import torch

        if not isinstance(values, torch.Tensor) or values.dtype != torch.uint8:
            kind = getattr(values, "dtype", type(values).__name__)
            raise TypeError(f"values is {kind}, expected a torch tensor of torch.uint8")
        if not _LEAST_SCALE <= scale <= _LARGEST_SCALE:
            raise ValueError(f"scale is {scale}, expected one that is positive and normal in float32")
        if not 0 <= zero_point <= LEVELS:
            raise ValueError(f"zero_point is {zero_point}, expected 0 to {LEVELS}")
        return super().__new__(cls, values, scale, zero_point)
