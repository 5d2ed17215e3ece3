"""Sums over patches of feature maps, and maps filled from patches: what gradient filtering is made of.

A map is cut into windows, one for each patch. On a patch lives the Walsh-Hadamard basis, of which the first
few components are kept; one component is the constant alone. Yang, Li, Marculescu, "Efficient On-device
Training via Gradient Filtering", CVPR 2023, section 3, is the case of one component; Yang, Li, Marculescu,
"Efficient Low-rank Backpropagation for Vision Transformer Adaptation", NeurIPS 2023, section 3, brings the
basis.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._grid import Grid, Pair, grid, pair
from flower_edge.kernels._maps import (
    check_map,
    check_points,
    empty_map,
    is_channels_last,
    is_served,
    laid_out_sums,
    needed,
    shape_of,
)
from flower_edge.kernels._patches_reference import (
    depthwise_filter_backward_reference,
    patch_fill_reference,
    patch_means_reference,
    patch_sums_reference,
)
from flower_edge.kernels._workspace import workspace

if TYPE_CHECKING:
    import torch


def patch_sums(
    x: "torch.Tensor",
    patch_size: Pair,
    offset: Pair,
    patches: Pair,
    components: int = 1,
    upsampling: Pair = 1,
) -> "torch.Tensor":
    r"""Sum a map over windows with each basis function: what a filtered convolution saves of its input.

    :math:`\tilde x_u(p, c) = \sum_i b_u(i)\, x(i, c)` over the cells i of window p that lie in the map.

    Parameters
    ----------
    x : torch.Tensor
        Shape ``(N, C, H, W)``, channels last or contiguous; anything else is copied first.
    patch_size : int or (int, int)
        Cells of a window along height and width.
    offset : int or (int, int)
        Window p covers rows ``[p * patch_size - offset, (p + 1) * patch_size - offset)``, and columns
        likewise; negative where the first rows are in no window.
    patches : int or (int, int)
        Number of windows along height and width, PH and PW.
    components : int, optional
        How many basis functions; more than 1 needs windows of ``upsampling`` times 2, 4, 8 or 16 cells a
        side. Default: 1.
    upsampling : int or (int, int), optional
        How many cells of the window a cell of the basis covers: the stride of the convolution. Default: 1.

    Returns
    -------
    torch.Tensor
        Shape ``(components, N * PH * PW, C)``. From a contiguous map it is the transposed view of memory
        laid out as ``(components, C, N * PH * PW)``, which matrix products read without a copy.

    Raises
    ------
    TypeError
        If `x` is not a dense tensor of floating point numbers.
    ValueError
        If sizes do not fit, or `x` requires gradients in grad mode.
    """
    cut = grid(
        shape_of(x, "x"),
        pair(patch_size, "patch_size"),
        pair(offset, "offset"),
        pair(patches, "patches"),
        components,
        pair(upsampling, "upsampling"),
    )
    if _runs(x):
        return _pool(x, cut, means=False)
    return patch_sums_reference(x, cut.window, cut.offset, cut.patches, components, upsampling)


def patch_means(grad: "torch.Tensor", patch_size: Pair, patches: Pair, components: int = 1) -> "torch.Tensor":
    r"""Average a gradient over patches, once with each basis function.

    The first component is the mean over the cells of the patch that lie in the map. A patch at the border
    is completed with its mean before the other components are formed, as means over all its cells:
    :math:`\tilde g_u = \frac{1}{r^2} \left(\sum_i b_u(i)\, g(i) - \tilde g_0 \sum_i b_u(i)\right)` over the
    cells in the map.

    Parameters
    ----------
    grad : torch.Tensor
        Shape ``(N, C, H, W)``, channels last or contiguous; anything else is copied first.
    patch_size : int or (int, int)
        Cells of a patch along height and width; the first begins at the corner of the map.
    patches : int or (int, int)
        Number of patches along height and width, PH and PW.
    components : int, optional
        How many basis functions; more than 1 needs square patches of 2, 4, 8 or 16 cells a side. Default: 1.

    Returns
    -------
    torch.Tensor
        Shape ``(components, N * PH * PW, C)``, laid out as by :func:`patch_sums`; 0 for a patch beyond the
        map.

    Raises
    ------
    TypeError
        If `grad` is not a dense tensor of floating point numbers.
    ValueError
        If sizes do not fit, or `grad` requires gradients in grad mode.
    """
    cut = grid(
        shape_of(grad, "grad"),
        pair(patch_size, "patch_size"),
        (0, 0),
        pair(patches, "patches"),
        components,
        (1, 1),
    )
    if _runs(grad):
        return _pool(grad, cut, means=True)
    return patch_means_reference(grad, cut.window, cut.patches, components)


def patch_fill(
    coefficients: "torch.Tensor",
    shape: Sequence[int],
    patch_size: Pair,
    offset: Pair,
    patches: Pair,
    upsampling: Pair = 1,
    scale: float = 1.0,
    *,
    channels_last: bool = True,
) -> "torch.Tensor":
    r"""Fill a map from the coefficients of its patches: the transpose of :func:`patch_sums`.

    Cell i of window p becomes :math:`\mathrm{scale} \cdot \sum_u b_u(i)\, c_u(p)`; cells in no window
    become 0.

    Parameters
    ----------
    coefficients : torch.Tensor
        Shape ``(components, N * PH * PW, C)``; in memory also ``(components, C, N * PH * PW)``, transposed.
    shape : sequence of int
        Of the map: ``(N, C, H, W)``.
    patch_size, offset, patches, upsampling
        As in :func:`patch_sums`.
    scale : float, optional
        Multiplies the result. Default: 1.
    channels_last : bool, optional
        The memory format of the result: channels last (the default), or contiguous.

    Returns
    -------
    torch.Tensor
        Of `shape`.

    Raises
    ------
    TypeError
        If `coefficients` is not a dense tensor of floating point numbers.
    ValueError
        If sizes do not fit, or `coefficients` requires gradients in grad mode.
    """
    check_map(coefficients, "coefficients")
    if coefficients.ndim != 3:
        raise ValueError(
            f"coefficients has shape {tuple(coefficients.shape)}, expected (components, N * PH * PW, C)"
        )
    cut = grid(
        tuple(shape),
        pair(patch_size, "patch_size"),
        pair(offset, "offset"),
        pair(patches, "patches"),
        coefficients.shape[0],
        pair(upsampling, "upsampling"),
    )
    check_points(coefficients, "coefficients", cut)
    if _runs(coefficients):
        return _fill(coefficients, cut, scale, channels_last)
    return patch_fill_reference(
        coefficients,
        cut.shape,
        cut.window,
        cut.offset,
        cut.patches,
        upsampling,
        scale,
        channels_last=channels_last,
    )


def depthwise_filter_backward(
    grad: "torch.Tensor",
    x_sums: "torch.Tensor | None",
    tap_sums: "torch.Tensor | None",
    x_shape: Sequence[int],
    patch_size: Pair,
    offset: Pair,
    patches: Pair,
    upsampling: Pair = 1,
    scale: float = 1.0,
    needs: tuple[bool, bool] = (True, True),
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    r"""Form both gradients of a filtered depthwise convolution in one pass over the gradient of its output.

    With :math:`\tilde g` the :func:`patch_means` of `grad`: `grad_x` is the :func:`patch_fill` of
    :math:`\tilde W_u \tilde g_u`, and the gram is :math:`\sum_p \tilde g_u(p)\, \tilde x_u(p)`; both times
    `scale`.

    Parameters
    ----------
    grad : torch.Tensor
        Gradient of the output, shape ``(N, C, H, W)``, channels last or contiguous; anything else is copied
        first.
    x_sums : torch.Tensor or None
        The :func:`patch_sums` of the input, shape ``(components, N * PH * PW, C)``; needed for the gram.
    tap_sums : torch.Tensor or None
        The weight summed over its taps, shape ``(components, C)``; needed for `grad_x`.
    x_shape : sequence of int
        Of the input: ``(N, C, H_x, W_x)``.
    patch_size : int or (int, int)
        Cells of a patch of `grad`; a window of the input has ``upsampling`` times as many along each axis.
    offset : int or (int, int)
        Of the windows of the input, as in :func:`patch_sums`.
    patches : int or (int, int)
        Number of patches along height and width, PH and PW.
    upsampling : int or (int, int), optional
        The stride of the convolution. Default: 1.
    scale : float, optional
        Multiplies both results. Default: 1.
    needs : tuple of bool, optional
        Whether `grad_x` and the gram are wanted. Default: both.

    Returns
    -------
    grad_x : torch.Tensor or None
        Of `x_shape`, in the memory format of `grad`.
    gram : torch.Tensor or None
        Shape ``(components, C)``.

    Raises
    ------
    TypeError
        If a tensor is not dense floating point numbers, or dtypes or devices differ.
    ValueError
        If sizes do not fit, or a tensor that is wanted is missing or requires gradients in grad mode.
    """
    shape = shape_of(grad, "grad")
    window, stride = pair(patch_size, "patch_size"), pair(upsampling, "upsampling")
    number = pair(patches, "patches")
    given = [
        needed(tensor, name, grad)
        for tensor, name, need in ((tap_sums, "tap_sums", needs[0]), (x_sums, "x_sums", needs[1]))
        if need
    ]
    if not given:
        return None, None
    components = given[0].shape[0]
    cut = grid(shape, window, (0, 0), number, components, (1, 1))
    x_window = (window[0] * stride[0], window[1] * stride[1])
    x_cut = grid(tuple(x_shape), x_window, pair(offset, "offset"), number, components, stride)
    if x_cut.shape[:2] != cut.shape[:2]:
        raise ValueError(
            f"x_shape is {x_cut.shape}, expected the images and channels of grad: {cut.shape[:2]}"
        )
    if needs[0] and tap_sums is not None and tap_sums.shape != (components, shape[1]):
        raise ValueError(f"tap_sums has shape {tuple(tap_sums.shape)}, expected {(components, shape[1])}")
    if needs[1] and x_sums is not None:
        check_points(x_sums, "x_sums", cut)
    if _runs(grad) and not any(tensor.is_neg() for tensor in given):
        return _depthwise(
            grad, x_sums if needs[1] else None, tap_sums if needs[0] else None, cut, x_cut, scale
        )
    return depthwise_filter_backward_reference(
        grad, x_sums, tap_sums, x_shape, window, offset, number, stride, scale, needs
    )


def _runs(tensor: "torch.Tensor") -> bool:
    return _dispatch.extension is not None and is_served(tensor)


def _extension() -> Any:
    if _dispatch.extension is not None:
        _threads.connect(_dispatch.extension)
    return _dispatch.extension


def _laid_out(x: "torch.Tensor") -> "tuple[torch.Tensor, bool]":
    """Return the map in a layout that kernels read, and whether that is channels last."""
    if is_channels_last(x):
        return x, True
    return x.contiguous(), False


def _pool(x: "torch.Tensor", cut: Grid, means: bool) -> "torch.Tensor":
    x, channels_last = _laid_out(x)
    channels = cut.shape[1]
    strides = (channels, 1) if channels_last else (1, cut.points)
    out = workspace().empty((cut.components, cut.points, channels), (cut.points * channels, *strides))
    if x.numel() == 0:
        return out.zero_()
    _extension().patch_pool(
        _dispatch.ceiling(), out.data_ptr(), x.data_ptr(), channels_last, means, cut.slots, *cut.numbers
    )
    return out


def _fill(coefficients: "torch.Tensor", cut: Grid, scale: float, channels_last: bool) -> "torch.Tensor":
    coefficients = laid_out_sums(coefficients, channels_last)
    out = empty_map(cut.shape, channels_last)
    if out.numel():
        addresses = out.data_ptr(), coefficients.data_ptr()
        _extension().patch_fill(
            _dispatch.ceiling(), *addresses, channels_last, scale, cut.slots, *cut.numbers
        )
    return out


def _depthwise(
    grad: "torch.Tensor",
    x_sums: "torch.Tensor | None",
    tap_sums: "torch.Tensor | None",
    cut: Grid,
    x_cut: Grid,
    scale: float,
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    grad, channels_last = _laid_out(grad)
    x_sums = None if x_sums is None else laid_out_sums(x_sums, channels_last)
    tap_sums = None if tap_sums is None else tap_sums.contiguous()
    grad_x = None if tap_sums is None else empty_map(x_cut.shape, channels_last)
    gram = None if x_sums is None else grad.new_empty(cut.components, cut.shape[1])
    if grad.numel() == 0 or (grad_x is not None and grad_x.numel() == 0):
        return (None if grad_x is None else grad_x.zero_(), None if gram is None else gram.zero_())
    addresses = (
        0 if tensor is None else tensor.data_ptr() for tensor in (grad_x, gram, grad, x_sums, tap_sums)
    )
    _extension().depthwise_backward(
        _dispatch.ceiling(), *addresses, channels_last, scale, cut.slots, *cut.numbers, *x_cut.numbers
    )
    return grad_x, gram
