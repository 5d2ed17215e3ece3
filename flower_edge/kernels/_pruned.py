"""A gradient of which most is zero, and a weight of which only the signs are kept."""

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._maps import empty_map
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch


class Remainder(NamedTuple):
    """What pruning left of a map, as the kernels keep it: chunks of pixels, each with room of its own.

    Attributes
    ----------
    places, values : torch.Tensor
        int32 and float32, shape ``(chunks, room)``: pixel of the chunk times 2**16 plus channel; element.
    counts : torch.Tensor
        int32, shape ``(chunks,)``: how much of the room is taken.
    bounds : torch.Tensor
        int32: for each pixel where its stretches of 32 channels begin, and where the last one ends.
    pixels, channels : int
        Of the map.
    """

    places: "torch.Tensor"
    values: "torch.Tensor"
    counts: "torch.Tensor"
    bounds: "torch.Tensor"
    pixels: int
    channels: int

    @property
    def arguments(self) -> tuple[int, ...]:
        """What the extension takes."""
        addresses = (
            self.places.data_ptr(),
            self.values.data_ptr(),
            self.counts.data_ptr(),
            self.bounds.data_ptr(),
        )
        return (*addresses, self.pixels, self.channels)


class Lists(NamedTuple):
    """The same for one convolution and instruction set: a list for each tile of the map and each output.

    Attributes
    ----------
    starts : torch.Tensor
        int32, shape ``(tiles, C_out + 1)``: where lists begin, and the last one ends.
    entries : torch.Tensor
        Pairs of an int32 and a float32.
    """

    starts: "torch.Tensor"
    entries: "torch.Tensor"


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
    left : Remainder or torch.Tensor
        These; or, from the slow twin, all elements, float32, channels last.
    """

    shape: tuple[int, int, int, int]
    threshold: float
    nonzeros: int
    left: "Remainder | torch.Tensor"
    # By instruction set and sizes: both gradients of a convolution go through the same ones.
    _lists: dict[tuple[str, tuple[int, ...]], Lists] = field(default_factory=dict, repr=False)

    @property
    def zero_fraction(self) -> float:
        """The part of the elements that is 0; 1 of nothing."""
        count = prod(self.shape)
        return 1.0 - self.nonzeros / count if count else 1.0

    def dense(self) -> "torch.Tensor":
        """Return all elements.

        Returns
        -------
        torch.Tensor
            float32, shape ``(N, C, H, W)``, channels last; not to be written to.
        """
        if not isinstance(self.left, Remainder):
            return self.left
        _threads.connect(_extension())
        x = empty_map(self.shape, channels_last=True)
        _extension().densify(x.data_ptr(), *self.left.arguments)
        return x

    def lists(self, isa: str, numbers: tuple[int, ...]) -> Lists:
        """Sort what is left for a convolution.

        Parameters
        ----------
        isa : str
            The ceiling under which the lists are read.
        numbers : tuple of int
            The convolution's.

        Returns
        -------
        Lists
            The same ones again for the same arguments.
        """
        import torch

        found = self._lists.get((isa, numbers))
        if found is not None:
            return found
        if not isinstance(self.left, Remainder):
            raise TypeError("this gradient is from the slow twin, and has no lists")
        extension = _extension()
        tiles = extension.sparse_tiles(isa, *numbers)
        starts = torch.empty((tiles, self.left.channels + 1), dtype=torch.int32, device="cpu")
        entries = workspace().empty((max(1, self.nonzeros), 2), (2, 1))
        addresses = (starts.data_ptr(), entries.data_ptr())
        extension.sparse_lists(isa, *addresses, *self.left.arguments, *numbers)
        self._lists[isa, numbers] = found = Lists(starts, entries)
        return found


def _extension() -> Any:
    return _dispatch.extension


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
