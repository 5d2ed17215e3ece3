"""Both gradients of a convolution from a gradient that is pruned on the way, in one call of the extension."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._grid import Pair
from flower_edge.kernels._maps import empty_map, is_served
from flower_edge.kernels._sparse_grad import (
    check_dense,
    check_sparsity,
    check_threshold,
    is_prunable,
    pack_signs,
    prune,
    pruning_threshold,
    sparse_grad_input,
    sparse_grad_weight,
)
from flower_edge.kernels._sparse_grad_shape import sparse_conv
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch


class SparseGradients(NamedTuple):
    """What :func:`sparse_backward` forms.

    Attributes
    ----------
    grad_x, grad_weight : torch.Tensor or None
        float32, channels last; None where it was not wanted.
    nonzeros : int
        Elements of the gradient of the output that pruning has left.
    """

    grad_x: "torch.Tensor | None"
    grad_weight: "torch.Tensor | None"
    nonzeros: int


def sparse_backward(
    grad: "torch.Tensor",
    weight: "torch.Tensor",
    x: "torch.Tensor",
    sparsity: float,
    seed: int,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    signs: bool = False,
    threshold: float | None = None,
    needs: tuple[bool, bool] = (True, True),
) -> SparseGradients:
    """Prune the gradient of a convolution's output, and form those of its input and weight from what is left.

    The same as :func:`pruning_threshold`, :func:`prune`, :func:`sparse_grad_input` and
    :func:`sparse_grad_weight` one after the other, to the last bit.

    Parameters
    ----------
    grad : torch.Tensor
        Shape ``(N, C_out, H_out, W_out)``, float32; channels last are fastest, here and below.
    weight : torch.Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``, float32.
    x : torch.Tensor
        The input, shape ``(N, C_in, H, W)``, float32. Where the gradient of the weight is not wanted, only
        its shape counts.
    sparsity : float
        Wanted share of zeros, ``0 <= sparsity < 1``.
    seed : int
        64 bits count.
    stride, padding, dilation : int or (int, int), optional
        Along height and width. Default: 1, 0, 1.
    groups : int, optional
        Default: 1.
    signs : bool, optional
        Whether errors go back through the signs of the weight; see :func:`pack_signs`. Default: False.
    threshold : float, optional
        Finite, at least 0. Default: the one that is expected to leave `sparsity` of zeros.
    needs : tuple of bool, optional
        Whether the gradients of input and weight are wanted. Default: both.

    Returns
    -------
    SparseGradients
        The same for every number of threads.

    Raises
    ------
    TypeError
        If a tensor is not a dense one of float32.
    ValueError
        If shapes do not fit together, a number is out of its range, or a tensor requires gradients in grad
        mode.
    """
    import torch

    check_dense(grad, "grad")
    check_dense(weight, "weight")
    if needs[1]:
        check_dense(x, "x")
    if threshold is None:
        check_sparsity(sparsity)
    else:
        check_threshold(threshold)
    geometry = (stride, padding, dilation, groups)
    conv = sparse_conv(tuple(x.shape), tuple(weight.shape), *geometry, tuple(grad.shape))
    extension = _dispatch.extension
    served = is_served(grad) and is_served(weight) and (is_served(x) or not needs[1])
    if extension is None or not served or not is_prunable(grad):
        if threshold is None:
            threshold = pruning_threshold(grad, sparsity)
        pruned = prune(grad, threshold, seed)
        back = pack_signs(weight) if signs else weight
        return SparseGradients(
            sparse_grad_input(pruned, back, conv.x_shape, *geometry) if needs[0] else None,
            sparse_grad_weight(pruned, x, conv.weight_shape, *geometry) if needs[1] else None,
            pruned.nonzeros,
        )
    _threads.connect(extension)
    isa = _dispatch.ceiling()
    grad, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (grad, weight))
    x_address = grad_x_address = grad_weight_address = 0
    grad_x = grad_weight = None
    if needs[0]:
        grad_x = empty_map(conv.x_shape, channels_last=True)
        grad_x_address = grad_x.data_ptr()
    if needs[1]:
        x = x.contiguous(memory_format=torch.channels_last)
        grad_weight = empty_map(conv.weight_shape, channels_last=True)
        x_address, grad_weight_address = x.data_ptr(), grad_weight.data_ptr()
    scratch = workspace().empty((_scratch_floats(isa, conv.numbers),), (1,))
    addresses = (grad_x_address, grad_weight_address, scratch.data_ptr(), grad.data_ptr(), x_address)
    pruning = (-1.0 if threshold is None else threshold, sparsity, seed)
    rest = (weight.data_ptr(), signs, *pruning, torch.get_num_threads())
    nonzeros = extension.sparse_backward(isa, *addresses, *rest, *conv.numbers)
    return SparseGradients(grad_x, grad_weight, nonzeros)


@lru_cache(maxsize=4096)
def _scratch_floats(isa: str, numbers: tuple[int, ...]) -> int:
    extension: Any = _dispatch.extension
    return -(-int(extension.sparse_scratch(isa, *numbers)) // 4)
