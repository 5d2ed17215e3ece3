"""What a tensor of 8-bit numbers means."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LEVELS = 255
"""Steps between the least and the greatest value of a byte."""

ERROR_ZERO = 128
"""The byte that means 0 in a quantised gradient: as many steps are below it as above."""

# Kernels have float32 scales, and multiply by their inverses.
_LEAST_SCALE = 2.0**-126
_LARGEST_SCALE = (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    r"""Numbers in 8 bits, one scale for all: :math:`x = \text{scale} \, (\text{values} - \text{zero})`.

    Zero itself is always a value, so that padding with zeros is exact.

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

    values: "torch.Tensor"
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        import torch

        if not isinstance(self.values, torch.Tensor) or self.values.dtype != torch.uint8:
            kind = getattr(self.values, "dtype", type(self.values).__name__)
            raise TypeError(f"values is {kind}, expected a torch tensor of torch.uint8")
        if not _LEAST_SCALE <= self.scale <= _LARGEST_SCALE:
            raise ValueError(f"scale is {self.scale}, expected one that is positive and normal in float32")
        if not 0 <= self.zero_point <= LEVELS:
            raise ValueError(f"zero_point is {self.zero_point}, expected 0 to {LEVELS}")
