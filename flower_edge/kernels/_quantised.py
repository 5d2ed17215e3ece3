"""What a tensor of 8-bit numbers means."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LEVELS = 255
"""Steps between the least and the greatest value of a byte."""

ERROR_ZERO = 128
"""The byte that means 0 in a quantised gradient: as many steps are below it as above."""


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
        What one step means; positive and finite.
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
        if not 0.0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}, expected a positive finite number")
        if not 0 <= self.zero_point <= LEVELS:
            raise ValueError(f"zero_point is {self.zero_point}, expected 0 to {LEVELS}")
