"""A gradient of which most is zero, and a weight of which only the signs are kept."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class PrunedGradient:
    """A gradient of a convolution's output after pruning; :func:`flower_edge.kernels.prune` makes it.

    Attributes
    ----------
    shape : tuple of int
        ``(N, C, H, W)``.
    threshold : float
        What smaller elements became, or 0.
    nonzeros : int
        Elements that are not 0.
    values : torch.Tensor
        All elements, float32, channels last.
    """

    shape: tuple[int, int, int, int]
    threshold: float
    nonzeros: int
    values: "torch.Tensor"

    @property
    def zero_fraction(self) -> float:
        """The part of the elements that is 0; 1 of nothing."""
        images, channels, height, width = self.shape
        count = images * channels * height * width
        return 1.0 - self.nonzeros / count if count else 1.0

    def dense(self) -> "torch.Tensor":
        """Return all elements.

        Returns
        -------
        torch.Tensor
            float32, shape ``(N, C, H, W)``, channels last; not to be written to.
        """
        return self.values


@dataclass(frozen=True, slots=True, eq=False)
class PackedSigns:
    r"""The signs of a weight, one bit each, and a scale for each filter: :math:`s \, \mathrm{sign}(W)`.

    Attributes
    ----------
    shape : tuple of int
        Of the weight: ``(C_out, C_in / groups, kh, kw)``.
    bits : torch.Tensor
        uint8. For each filter and tap a row of ``ceil(C_in / groups / 8)`` bytes, and in the end one more.
        Bit i of byte b says whether input ``8 b + i`` is negative.
    scales : torch.Tensor
        float32, shape ``(C_out,)``: mean magnitude of the filter.
    """

    shape: tuple[int, int, int, int]
    bits: "torch.Tensor"
    scales: "torch.Tensor"

    @property
    def nbytes(self) -> int:
        """Bytes of bits and scales."""
        return self.bits.nbytes + self.scales.nbytes

    def unpacked(self) -> "torch.Tensor":
        """Return the weight that bits and scales stand for.

        Returns
        -------
        torch.Tensor
            float32, shape ``(C_out, C_in / groups, kh, kw)``, channels last.
        """
        import torch

        outputs, inputs, rows, columns = self.shape
        octets = self.bits[:-1].view(outputs, rows, columns, -1, 1)
        places = torch.arange(8, dtype=torch.uint8, device=octets.device)
        negative = (octets >> places & 1).flatten(-2)[..., :inputs].permute(0, 3, 1, 2)
        scales = self.scales[:, None, None, None]
        weight = torch.where(negative.bool(), -scales, scales)
        return weight.contiguous(memory_format=torch.channels_last)
