"""Both gradients of a filtered convolution: pooling, products and filling, slab by slab where that pays."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._grid import Grid, Pair, grid, pair
from flower_edge.kernels._maps import (
    check_points,
    empty_map,
    is_channels_last,
    is_served,
    laid_out_sums,
    needed,
    shape_of,
)
from flower_edge.kernels._patches import patch_fill, patch_means
from flower_edge.kernels._patches_reference import patch_fill_reference, patch_means_reference
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch

# Means and products of a slab, in floats: half a megabyte lies in a core's second cache.
_SLAB_FLOATS = 1 << 17
# Products of fewer patches spend their time on packing the weight.
_LEAST_POINTS = 256
# Rows and columns of a packed matrix are rounded up to a multiple of it.
_PANEL = 32
# Operations that are worth a thread.
_WORTH_A_THREAD = 2e6


def conv_filter_backward(
    grad: "torch.Tensor",
    x_sums: "torch.Tensor | None",
    tap_sums: "torch.Tensor | None",
    x_shape: Sequence[int],
    patch_size: Pair,
    offset: Pair,
    patches: Pair,
    upsampling: Pair = 1,
    *,
    channels_last: bool = True,
    needs: tuple[bool, bool] = (True, True),
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    r"""Form both gradients of a filtered convolution without groups.

    With :math:`\tilde g` the :func:`patch_means` of `grad`: `grad_x` is the :func:`patch_fill` of
    :math:`\tilde g_u \tilde W_u`, and the gram is :math:`\sum_p \tilde g_u(p)^T \tilde x_u(p)`: Yang, Li,
    Marculescu, CVPR 2023, section 3.

    Where everything has channels last and the CPU has vectors, patches are taken in slabs, whose means and
    products stay in cache, and each thread has its own slabs. Then the gram's last bits depend on the number
    of threads, but on nothing else.

    Parameters
    ----------
    grad : torch.Tensor
        Gradient of the output, shape ``(N, C_out, H, W)``, any strides.
    x_sums : torch.Tensor or None
        The :func:`patch_sums` of the input, shape ``(components, N * PH * PW, C_in)``; needed for the gram.
    tap_sums : torch.Tensor or None
        The collapsed weight, shape ``(components, C_out, C_in)``; needed for `grad_x`.
    x_shape : sequence of int
        Of the input: ``(N, C_in, H_x, W_x)``.
    patch_size : int or (int, int)
        Cells of a patch of `grad`; a window of the input has ``upsampling`` times as many along each axis.
    offset : int or (int, int)
        Of the windows of the input, as in :func:`patch_sums`.
    patches : int or (int, int)
        Number of patches along height and width, PH and PW.
    upsampling : int or (int, int), optional
        The stride of the convolution. Default: 1.
    channels_last : bool, optional
        The memory format of `grad_x`: channels last (the default), or contiguous.
    needs : tuple of bool, optional
        Whether `grad_x` and the gram are wanted. Default: both.

    Returns
    -------
    grad_x : torch.Tensor or None
        Of `x_shape`.
    gram : torch.Tensor or None
        Shape ``(components, C_out, C_in)``.

    Raises
    ------
    TypeError
        If a tensor is not dense floating point numbers, or dtypes or devices differ.
    ValueError
        If sizes do not fit, or a tensor that is wanted is missing or requires gradients in grad mode.
    """
    shape = shape_of(grad, "grad")
    given = [
        needed(tensor, name, grad)
        for tensor, name, need in ((tap_sums, "tap_sums", needs[0]), (x_sums, "x_sums", needs[1]))
        if need
    ]
    if not given:
        return None, None
    plan = _plan(
        shape,
        tuple(x_shape),
        pair(patch_size, "patch_size"),
        pair(offset, "offset"),
        pair(patches, "patches"),
        given[0].shape[0],
        pair(upsampling, "upsampling"),
        _number_of_threads(),
    )
    x_sums, tap_sums = x_sums if needs[1] else None, tap_sums if needs[0] else None
    if x_sums is not None:
        check_points(x_sums, "x_sums", plan.x_cut)
    expected = (plan.cut.components, shape[1], plan.x_cut.shape[1])
    if tap_sums is not None and tap_sums.shape != expected:
        raise ValueError(f"tap_sums has shape {tuple(tap_sums.shape)}, expected {expected}")
    if channels_last and _runs(grad, given):
        return _in_slabs(grad, x_sums, tap_sums, plan)
    return _whole(grad, x_sums, tap_sums, plan, channels_last)


def conv_filter_backward_reference(
    grad: "torch.Tensor",
    x_sums: "torch.Tensor | None",
    tap_sums: "torch.Tensor | None",
    x_shape: Sequence[int],
    patch_size: Pair,
    offset: Pair,
    patches: Pair,
    upsampling: Pair = 1,
    *,
    channels_last: bool = True,
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """Do what :func:`conv_filter_backward` does, in plain torch.

    Parameters
    ----------
    grad, x_sums, tap_sums, x_shape, patch_size, offset, patches, upsampling, channels_last
        As in :func:`conv_filter_backward`; any floating dtype and device. What is made from a tensor that is
        None is not formed.

    Returns
    -------
    grad_x, gram : torch.Tensor or None
        As of :func:`conv_filter_backward`.
    """
    given = tap_sums if x_sums is None else x_sums
    if given is None:
        return None, None
    sides, steps = pair(patch_size, "patch_size"), pair(upsampling, "upsampling")
    means = patch_means_reference(grad, sides, patches, given.shape[0])
    grad_x = None
    if tap_sums is not None:
        window = (sides[0] * steps[0], sides[1] * steps[1])
        products = means @ tap_sums
        grad_x = patch_fill_reference(
            products, x_shape, window, offset, patches, steps, channels_last=channels_last
        )
    return grad_x, None if x_sums is None else means.mT @ x_sums


class _Plan(NamedTuple):
    """How gradient and input are cut, and how the work on them is divided."""

    cut: Grid
    x_cut: Grid
    stride: tuple[int, int]
    pieces: int
    slab_rows: int
    scratch: int


@lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    patch_size: tuple[int, int],
    offset: tuple[int, int],
    patches: tuple[int, int],
    components: int,
    stride: tuple[int, int],
    threads: int,
) -> _Plan:
    cut = grid(shape, patch_size, (0, 0), patches, components, (1, 1))
    window = (patch_size[0] * stride[0], patch_size[1] * stride[1])
    x_cut = grid(x_shape, window, offset, patches, components, stride)
    if x_cut.shape[0] != cut.shape[0]:
        raise ValueError(f"x_shape is {x_cut.shape}, expected the {cut.shape[0]} images of grad")
    outputs, inputs = cut.shape[1], x_cut.shape[1]
    rows = max(1, cut.shape[0] * patches[0])
    operations = 4 * components * cut.points * outputs * inputs
    pieces = max(1, min(threads, rows, int(operations / _WORTH_A_THREAD)))
    points = max(_LEAST_POINTS, _SLAB_FLOATS // max(1, components * (outputs + inputs)))
    slab_rows = max(1, min(points // patches[1], -(-rows // pieces)))
    wide_points, wide_outputs, wide_inputs = (
        -(-length // _PANEL) * _PANEL for length in (slab_rows * patches[1], outputs, inputs)
    )
    a_slab = wide_points * (wide_outputs + wide_inputs)
    scratch = components * pieces * (a_slab + wide_outputs * wide_inputs)
    # Of few sizes, so that layers share them.
    return _Plan(cut, x_cut, stride, pieces, slab_rows, 1 << (scratch - 1).bit_length())


def _number_of_threads() -> int:
    import torch

    return torch.get_num_threads()


def _runs(grad: "torch.Tensor", given: "list[torch.Tensor]") -> bool:
    # Without vectors, torch's products are faster.
    return (
        _dispatch.has_vectors("gradient_filter")
        and is_served(grad)
        and is_channels_last(grad)
        and grad.numel() > 0
        and not any(tensor.is_neg() or tensor.numel() == 0 for tensor in given)
    )


def _in_slabs(
    grad: "torch.Tensor", x_sums: "torch.Tensor | None", tap_sums: "torch.Tensor | None", plan: _Plan
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    cut, x_cut = plan.cut, plan.x_cut
    x_sums = None if x_sums is None else laid_out_sums(x_sums, channels_last=True)
    tap_sums = None if tap_sums is None else tap_sums.contiguous()
    grad_x = None if tap_sums is None else empty_map(x_cut.shape, channels_last=True)
    if grad_x is not None and grad_x.numel() == 0:
        return _whole(grad, x_sums, tap_sums, plan, channels_last=True)
    gram = None if x_sums is None else _empty(cut.components, cut.shape[1], x_cut.shape[1])
    scratch = workspace().empty((plan.scratch,), (1,))
    addresses = (
        0 if tensor is None else tensor.data_ptr()
        for tensor in (grad_x, gram, grad, x_sums, tap_sums, scratch)
    )
    extension = _dispatch.extension
    if extension is not None:
        _threads.connect(extension)
        division = plan.scratch, plan.pieces, plan.slab_rows
        extension.conv_backward(
            _dispatch.ceiling(), *addresses, *division, cut.slots, *cut.numbers, *x_cut.numbers
        )
    return grad_x, gram


def _whole(
    grad: "torch.Tensor",
    x_sums: "torch.Tensor | None",
    tap_sums: "torch.Tensor | None",
    plan: _Plan,
    channels_last: bool,
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    cut, x_cut = plan.cut, plan.x_cut
    means = patch_means(grad, cut.window, cut.patches, cut.components)
    grad_x = None
    if tap_sums is not None:
        # In the layout that grad_x will have.
        products = _product(means, tap_sums) if channels_last else _product(tap_sums.mT, means.mT).mT
        grad_x = patch_fill(
            products,
            x_cut.shape,
            x_cut.window,
            x_cut.offset,
            x_cut.patches,
            plan.stride,
            channels_last=channels_last,
        )
    return grad_x, None if x_sums is None else _product(means.mT, x_sums)


def _product(left: "torch.Tensor", right: "torch.Tensor") -> "torch.Tensor":
    import torch

    if left.dtype != torch.float32 or left.device.type != "cpu":
        return torch.bmm(left, right)
    # Fresh memory for the largest of these takes longer to get than to fill.
    return torch.bmm(left, right, out=_empty(left.shape[0], left.shape[1], right.shape[2]))


def _empty(components: int, rows: int, columns: int) -> "torch.Tensor":
    return workspace().empty((components, rows, columns), (rows * columns, columns, 1))
