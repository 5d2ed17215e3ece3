"""Both gradients of a convolution from low frequencies of tiles: in one pass where the kernels serve it."""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._maps import check_map, empty_map, inputs_are_innermost, is_served, needed
from flower_edge.kernels._spectral_slabs import spectral_slabs
from flower_edge.kernels._tiling import Tiling, tiling
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch

# Spectra of gradient and input that are kept at a time, in floats. But of no fewer points, since each slab
# reads the weight.
_SLAB_FLOATS = 1 << 20
_SLAB_POINTS = 128
# Products of fewer points spend their time on reading the weight's spectrum; those of more leave the cache.
_BAND_POINTS = 32
# Multiplications that are worth a thread.
_WORTH_A_THREAD = 5e5
# Of cext/spectrum/conv.c.
_PANEL, _OUTPUTS, _LANES, _GAP = 64, 32, 16, 16


class Tilings(NamedTuple):
    """How a convolution is cut, with the same frequencies everywhere.

    Attributes
    ----------
    y, x : Tiling
        Tiles of the output, and the windows of the input that they are made from.
    taps : Tiling
        The weight, as a map with one window for each output channel, whose channels are the inputs.
    """

    y: Tiling
    x: Tiling
    taps: Tiling


@lru_cache(maxsize=1024)
def tilings(
    y: Tiling, x: Tiling, weight_shape: tuple[int, int, int, int], dilation: tuple[int, int]
) -> Tilings:
    """Cut the weight of a convolution, too.

    Parameters
    ----------
    y, x : Tiling
        Of its output and its input.
    weight_shape : tuple of int
        ``(C_out, C_in / groups, kh, kw)``.
    dilation : tuple of int
        Cells between the taps.

    Raises
    ------
    ValueError
        If both are cut differently.
    """
    if (y.shape[0], y.tiles, y.frequencies) != (x.shape[0], x.tiles, x.frequencies):
        raise ValueError(
            f"output and input have {y.shape[0]} and {x.shape[0]} images in {y.tiles} and {x.tiles} tiles "
            f"with {len(y.frequencies)} and {len(x.frequencies)} frequencies, expected the same"
        )
    size = weight_shape[2:]
    taps = tiling(weight_shape, (1, 1), size, (0, 0), size, dilation, x.period, x.frequencies)
    return Tilings(y, x, taps)


def spectral_conv_backward(
    grad: "torch.Tensor",
    weight: "torch.Tensor",
    spectra: "torch.Tensor | None",
    cut: Tilings,
    groups: int = 1,
    *,
    channels_last: bool = True,
    needs_x: bool = True,
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    r"""Form both gradients of a convolution from the low frequencies of tiles.

    With :math:`\hat g` and :math:`\hat x` the spectra of a tile of `grad` and of its window of the input, and
    :math:`\theta_t` the angle by which tap t turns a frequency: `grad_x` is put together from
    :math:`\hat g \sum_t W_t e^{i \theta_t}`, and tap t of `grad_weight` is the sum of
    :math:`\overline{\hat g} \hat x e^{-i \theta_t}` over tiles and frequencies; both are divided by the cells
    of a period. Results do not depend on the number of threads.

    Parameters
    ----------
    grad : torch.Tensor
        Gradient of the output, shape ``(N, C_out, H, W)``, any strides.
    weight : torch.Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``.
    spectra : torch.Tensor or None
        The :func:`tile_spectra` of the input, shape ``(components, N * tiles, C_in)``; without it there is no
        gradient of the weight.
    cut : Tilings
        How all of them are cut.
    groups : int, default 1
        Of the convolution.
    channels_last : bool, default True
        The memory format of `grad_x`: channels last, or contiguous.
    needs_x : bool, default True
        Whether `grad_x` is wanted.

    Returns
    -------
    grad_x : torch.Tensor or None
        Of the shape of the input.
    grad_weight : torch.Tensor or None
        Of shape and memory format of `weight`.

    Raises
    ------
    TypeError
        If a tensor is not dense floating point numbers, or dtypes or devices differ.
    ValueError
        If a shape does not fit, or a tensor requires gradients in grad mode.
    """
    check_map(grad, "grad")
    needed(weight, "weight", grad)
    expected = {
        "grad": (grad, cut.y.shape),
        "weight": (weight, cut.taps.shape),
        "spectra": (spectra, (cut.x.rows, cut.x.points, cut.x.shape[1])),
    }
    if spectra is not None:
        needed(spectra, "spectra", grad)
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape} as the tilings say")
    if not (needs_x or spectra is not None):
        return None, None
    if groups == 1 and _runs(grad, weight, spectra):
        return _fused(grad, weight, spectra, cut, channels_last, needs_x)
    return spectral_slabs(grad, weight, spectra, cut, groups, channels_last, needs_x)


def _runs(*tensors: "torch.Tensor | None") -> bool:
    # Without vectors, torch's products are faster.
    return _dispatch.has_vectors("spectrum") and all(
        tensor is None or (is_served(tensor) and tensor.numel() > 0) for tensor in tensors
    )


class _Division(NamedTuple):
    """How the work is divided, and the floats that it needs on the way."""

    scratch: int
    pieces: int
    slab_images: int
    band_rows: int


@lru_cache(maxsize=1024)
def _division(cut: Tilings, threads: int) -> _Division:
    outputs, inputs = cut.y.shape[1], cut.x.shape[1]
    rows, images, tiles = 1 + 3 * len(cut.x.frequencies), cut.x.shape[0], cut.x.tiles[0] * cut.x.tiles[1]
    points = max(_SLAB_POINTS, _SLAB_FLOATS // (rows * (outputs + inputs)))
    slab_images = min(images, max(1, points // tiles))
    panels = -(-outputs // _PANEL)
    band_rows = min(slab_images * cut.x.tiles[0], max(1, _BAND_POINTS * min(8, panels) // cut.x.tiles[1]))
    operations = 2 * rows * slab_images * tiles * outputs * inputs
    pieces = max(1, min(threads, int(operations / _WORTH_A_THREAD)))
    wide_outputs, wide_inputs = (-(-channels // _LANES) * _LANES for channels in (outputs, inputs))
    gaps = _GAP * (panels + -(-inputs // _PANEL))
    shared = rows * (slab_images * tiles * (wide_outputs + wide_inputs) + gaps)
    taps = cut.taps.shape[2] * cut.taps.shape[3] * _OUTPUTS
    own = _PANEL * (rows * (band_rows * cut.x.tiles[1] + panels * (_PANEL + 1) + _OUTPUTS + 1) + taps)
    # Of few sizes, so that layers share them.
    return _Division(1 << (shared + pieces * own - 1).bit_length(), pieces, slab_images, band_rows)


@lru_cache(maxsize=1024)
def _numbers(cut: Tilings) -> tuple[bytes | int, ...]:
    """Give what the extension wants to know of the tilings, in its order."""
    numbers: list[bytes | int] = [cut.x.period[0] * cut.x.period[1]]
    for one in cut:
        numbers += one.tables
        numbers += one.numbers
    return tuple(numbers)


def _fused(
    grad: "torch.Tensor",
    weight: "torch.Tensor",
    spectra: "torch.Tensor | None",
    cut: Tilings,
    channels_last: bool,
    needs_x: bool,
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    import torch

    grad = grad.contiguous(memory_format=torch.channels_last)
    innermost = inputs_are_innermost(weight)
    weight = weight if innermost else weight.contiguous()
    spectra = None if spectra is None else spectra.contiguous()
    grad_x = empty_map(cut.x.shape, channels_last=True) if needs_x else None
    grad_weight = None if spectra is None else empty_map(cut.taps.shape, channels_last=innermost)
    division = _division(cut, torch.get_num_threads())
    scratch = workspace().empty((division.scratch,), (1,))
    addresses = (
        0 if tensor is None else tensor.data_ptr()
        for tensor in (grad_x, grad_weight, grad, spectra, weight, scratch)
    )
    extension = _dispatch.extension
    if extension is not None:
        _threads.connect(extension)
        extension.spectral_backward(_dispatch.ceiling(), *addresses, *division, innermost, *_numbers(cut))
    if grad_x is not None and not channels_last:
        grad_x = grad_x.contiguous()
    return grad_x, grad_weight
