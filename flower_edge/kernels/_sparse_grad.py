"""Gradients of convolutions from a pruned gradient of the output: zeros are skipped, not multiplied."""

from typing import TYPE_CHECKING

import numpy as np

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._grid import Pair
from flower_edge.kernels._maps import check_no_gradient, empty_map, is_served, new_bytes, new_floats
from flower_edge.kernels._pruned import PackedSigns, PrunedGradient, Remainder
from flower_edge.kernels._sparse_grad_reference import (
    pack_signs_reference,
    prune_reference,
    pruning_threshold_reference,
    sparse_grad_input_reference,
    sparse_grad_weight_reference,
)
from flower_edge.kernels._sparse_grad_shape import sparse_conv
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch


def pruning_threshold(grad: "torch.Tensor", sparsity: float) -> float:
    r"""Find the threshold with which :func:`prune` is expected to make a given part of a gradient zero.

    That is the :math:`\tau` for which the mean of :math:`\max(0, 1 - |g| / \tau)` over all elements is
    `sparsity`. It is found from how many magnitudes have which exponent and leading bits, and their sums; of
    a gradient of more than 2**15 elements, from a sample of so many, spread over all of it.

    Parameters
    ----------
    grad : torch.Tensor
        Shape ``(N, C, H, W)``, float32. NaNs and infinities are not counted, and magnitudes below 2**-128 are
        counted as zeros.
    sparsity : float
        Wanted part of zeros, ``0 <= sparsity < 1``. Elements that are 0 already count.

    Returns
    -------
    float
        The threshold, a float32; 0.0 where that part of `grad` is 0 already. The same for every instruction
        set and number of threads.

    Raises
    ------
    TypeError
        If `grad` is not a dense tensor of float32.
    ValueError
        If it has not four dimensions or requires gradients in grad mode, or `sparsity` is out of its range.
    """
    import torch

    check_dense(grad, "grad")
    check_sparsity(sparsity)
    extension = _dispatch.extension
    if extension is None or not is_served(grad):
        return pruning_threshold_reference(grad, sparsity)
    if not grad.numel():
        return 0.0
    _threads.connect(extension)
    grad = grad.contiguous(memory_format=torch.channels_last)
    return float(extension.pruning_threshold(grad.data_ptr(), grad.numel(), sparsity))


def prune(grad: "torch.Tensor", threshold: float, seed: int) -> PrunedGradient:
    r"""Set small elements of a gradient to 0 at random, so that its mean stays what it is.

    With the threshold :math:`\tau`, elements of :math:`|g| \ge \tau` stay; others become
    :math:`\tau \, \mathrm{sign}(g)` with probability :math:`|g| / \tau`, else 0: Hong, Yue, EfficientGrad,
    2021. The random numbers have 16 bits, which is how exact the probability is, and are a function of the
    seed and of the element's place alone. NaNs stay.

    Parameters
    ----------
    grad : torch.Tensor
        Shape ``(N, C, H, W)``, float32; channels last are fastest.
    threshold : float
        Finite, at least 0; taken as float32. See :func:`pruning_threshold`.
    seed : int
        64 bits count.

    Returns
    -------
    PrunedGradient
        The same for every instruction set and number of threads.

    Raises
    ------
    TypeError
        If `grad` is not a dense tensor of float32.
    ValueError
        If it has not four dimensions or requires gradients in grad mode, or `threshold` is out of its range.
    """
    import torch

    check_dense(grad, "grad")
    check_threshold(threshold)
    extension = _dispatch.extension
    if extension is None or not is_served(grad) or not is_prunable(grad):
        return prune_reference(grad, threshold, seed)
    _threads.connect(extension)
    grad = grad.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = grad.shape
    pixels = images * height * width
    chunks, room, bounds_of_pixel = extension.pruned_chunks(pixels, channels)
    # One block, which a gradient of the same layer finds again.
    both = workspace().empty((2, chunks, room), (chunks * room, room, 1))
    counts = torch.empty(chunks, dtype=torch.int32, device="cpu")
    bounds = torch.empty(pixels * bounds_of_pixel, dtype=torch.int32, device="cpu")
    left = Remainder(both[0].view(torch.int32), both[1], counts, bounds, pixels, channels)
    rest = (grad.data_ptr(), threshold, seed)
    nonzeros = extension.prune(_dispatch.ceiling(), *left.arguments, *rest)
    return PrunedGradient((images, channels, height, width), float(np.float32(threshold)), nonzeros, left)


# The largest float32.
_LARGEST = 3.4028234663852886e38
# Channels that a place in a remainder can name, and elements that its bounds can count.
_MOST_CHANNELS, _MOST_PRUNED = 1 << 16, 1 << 30


def is_prunable(grad: "torch.Tensor") -> bool:
    """Tell whether the extension can prune a map of this size."""
    return grad.shape[1] <= _MOST_CHANNELS and 0 < grad.numel() <= _MOST_PRUNED


def check_sparsity(sparsity: float) -> None:
    """Refuse what is no share of zeros."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}, expected 0 <= sparsity < 1")


def check_threshold(threshold: float) -> None:
    """Refuse what no element can be compared with."""
    if not 0 <= threshold <= _LARGEST:
        raise ValueError(f"threshold is {threshold}, expected a finite float32 of at least 0")


def pack_signs(weight: "torch.Tensor") -> PackedSigns:
    """Keep one bit of each weight, its sign, and the mean magnitude of each filter.

    Parameters
    ----------
    weight : torch.Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, float32; channels last are fastest. The sign of 0 is +1.

    Returns
    -------
    PackedSigns
        For :func:`sparse_grad_input`.

    Raises
    ------
    TypeError
        If `weight` is not a dense tensor of float32.
    ValueError
        If it has not four dimensions or requires gradients in grad mode.
    """
    import torch

    check_dense(weight, "weight")
    extension = _dispatch.extension
    if extension is None or not is_served(weight) or not weight.numel():
        return pack_signs_reference(weight)
    _threads.connect(extension)
    outputs, inputs, rows, columns = weight.shape
    weight = weight.contiguous(memory_format=torch.channels_last)
    bits = new_bytes(outputs * rows * columns * -(-inputs // 8) + 1)
    bits[-1] = 0
    scales = new_floats(outputs)
    addresses = (bits.data_ptr(), scales.data_ptr(), weight.data_ptr())
    extension.pack_signs(_dispatch.ceiling(), *addresses, outputs, rows * columns, inputs)
    return PackedSigns((outputs, inputs, rows, columns), bits, scales)


def sparse_grad_input(
    pruned: PrunedGradient,
    weight: "torch.Tensor | PackedSigns",
    input_shape: "tuple[int, ...]",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> "torch.Tensor":
    """Form the gradient of a convolution's input from the non-zeros of that of its output.

    Parameters
    ----------
    pruned : PrunedGradient
        Of the output, shape ``(N, C_out, H_out, W_out)``.
    weight : torch.Tensor or PackedSigns
        Shape ``(C_out, C_in / groups, kh, kw)``, float32, channels last are fastest; or what stands for it in
        the backward pass.
    input_shape : tuple of int
        ``(N, C_in, H, W)``.
    stride, padding, dilation : int or (int, int), optional
        Along height and width. Default: 1, 0, 1.
    groups : int, optional
        Default: 1.

    Returns
    -------
    torch.Tensor
        float32, shape `input_shape`, channels last. The same for every number of threads.

    Raises
    ------
    TypeError
        If `weight` is neither a dense tensor of float32 nor PackedSigns.
    ValueError
        If shapes do not fit together, or `weight` requires gradients in grad mode.
    """
    import torch

    if not isinstance(weight, PackedSigns):
        check_dense(weight, "weight")
    conv = sparse_conv(
        tuple(input_shape), tuple(weight.shape), stride, padding, dilation, groups, pruned.shape
    )
    extension = _dispatch.extension
    floats = weight.scales if isinstance(weight, PackedSigns) else weight
    if extension is None or not isinstance(pruned.left, Remainder) or not is_served(floats):
        return sparse_grad_input_reference(pruned, weight, input_shape, stride, padding, dilation, groups)
    if isinstance(weight, PackedSigns):
        addresses = (0, weight.bits.data_ptr(), weight.scales.data_ptr())
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)
        addresses = (weight.data_ptr(), 0, 0)
    _threads.connect(extension)
    isa = _dispatch.ceiling()
    lists = (0, 0)
    if conv.groups > 1:
        found = pruned.lists(isa, conv.numbers)
        lists = (found.starts.data_ptr(), found.entries.data_ptr())
    grad = empty_map(conv.x_shape, channels_last=True)
    of = (grad.data_ptr(), *lists, *pruned.left.arguments)
    extension.sparse_grad_input(isa, *of, *addresses, *conv.numbers)
    return grad


def sparse_grad_weight(
    pruned: PrunedGradient,
    x: "torch.Tensor",
    weight_shape: "tuple[int, ...]",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> "torch.Tensor":
    """Form the gradient of a convolution's weight from the non-zeros of that of its output.

    Parameters
    ----------
    pruned : PrunedGradient
        Of the output, shape ``(N, C_out, H_out, W_out)``.
    x : torch.Tensor
        The input, shape ``(N, C_in, H, W)``, float32; channels last are fastest.
    weight_shape : tuple of int
        ``(C_out, C_in / groups, kh, kw)``.
    stride, padding, dilation : int or (int, int), optional
        Along height and width. Default: 1, 0, 1.
    groups : int, optional
        Default: 1.

    Returns
    -------
    torch.Tensor
        float32, shape `weight_shape`, channels last. The same for every number of threads.

    Raises
    ------
    TypeError
        If `x` is not a dense tensor of float32.
    ValueError
        If shapes do not fit together, or `x` requires gradients in grad mode.
    """
    import torch

    check_dense(x, "x")
    conv = sparse_conv(tuple(x.shape), tuple(weight_shape), stride, padding, dilation, groups, pruned.shape)
    extension = _dispatch.extension
    if extension is None or not isinstance(pruned.left, Remainder) or not is_served(x):
        return sparse_grad_weight_reference(pruned, x, weight_shape, stride, padding, dilation, groups)
    x = x.contiguous(memory_format=torch.channels_last)
    _threads.connect(extension)
    isa = _dispatch.ceiling()
    lists = pruned.lists(isa, conv.numbers)
    grad = empty_map(conv.weight_shape, channels_last=True)
    of = (grad.data_ptr(), lists.starts.data_ptr(), lists.entries.data_ptr(), x.data_ptr())
    extension.sparse_grad_weight(isa, *of, torch.get_num_threads(), *conv.numbers)
    return grad


def check_dense(tensor: "torch.Tensor", name: str) -> None:
    """Refuse what is no map or weight of float32, or what would lose a gradient."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch tensor")
    if tensor.dtype != torch.float32 or tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is a {tensor.dtype} tensor with layout {tensor.layout}, expected torch.float32 with "
            "layout torch.strided"
        )
    check_no_gradient(tensor, name)
    if tensor.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected four dimensions")
