"""Gradient filtering on patches as operators of torch, so that compilers see through to the shapes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import _len_torch_dispatch_stack  # type: ignore[attr-defined]

from flower_edge import kernels
from flower_edge.kernels import _maps
from flower_edge.kernels._constants import made_once
from flower_edge.training._tap_symbols import tap_symbols

if TYPE_CHECKING:
    from flower_edge.training._filtered_conv import ConvFilter

_Run: TypeAlias = Callable[..., Any]

library = torch.library.Library("flower_edge", "FRAGMENT")  # type: ignore[no-untyped-call]
library.define(  # type: ignore[no-untyped-call]
    "conv2d_patch_sums(Tensor x, SymInt[] patches, int[] kernel_size, int[] stride, int[] padding, "
    "int[] dilation, int patch_size, int components) -> Tensor"
)
library.define(  # type: ignore[no-untyped-call]
    "conv2d_filtered_backward(Tensor grad, Tensor weight, Tensor? sums, SymInt[] x_shape, int[] stride, "
    "int[] padding, int[] dilation, int groups, int patch_size, int components, bool channels_last, "
    "bool needs_x, Tensor? scale=None) -> (Tensor, Tensor, Tensor)"
)


def patch_sums(x: Tensor, y_shape: Sequence[int], weight_shape: Sequence[int], conv: "ConvFilter") -> Tensor:
    """Sum the input of a convolution over the windows of its output's patches.

    Parameters
    ----------
    x : Tensor
        Shape ``(N, C_in, H, W)``.
    y_shape, weight_shape : sequence of int
        Shapes of output and weight.
    conv : ConvFilter
        The convolution.

    Returns
    -------
    Tensor
        Shape ``(components, N * patches, C_in)``.
    """
    run = chosen(x, _patch_sums, _seen_patch_sums, torch.ops.flower_edge.conv2d_patch_sums.default)
    with without_autocast(x.device.type):
        sums: Tensor = run(
            x,
            _patches(y_shape, conv.patch_size),
            weight_shape[2:],
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.patch_size,
            conv.components,
        )
    return sums


def backward(
    grad: Tensor,
    weight: Tensor,
    sums: Tensor | None,
    x_shape: Sequence[int],
    conv: "ConvFilter",
    channels_last: bool,
    needs_x: bool,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Form the gradients of a filtered convolution.

    Parameters
    ----------
    grad : Tensor
        Gradient of the output, shape ``(N, C_out, H_y, W_y)``, any strides.
    weight : Tensor
        Shape ``(C_out, C_in / groups, kh, kw)``.
    sums : Tensor, optional
        Result of :func:`patch_sums`; without it there is no gradient of the weight.
    x_shape : sequence of int
        ``(N, C_in, H, W)``.
    conv : ConvFilter
        The convolution.
    channels_last : bool
        Memory format of the gradient of the input.
    needs_x : bool
        Whether the gradient of the input is wanted.
    scale : Tensor, optional
        Shape ``(C_out,)``: the convolution was one with ``weight * scale``. Default: 1.

    Returns
    -------
    tuple of Tensor
        Gradients of input, weight and scale; one that is not wanted is an empty tensor.
    """
    run = chosen(grad, _backward, _seen_backward, torch.ops.flower_edge.conv2d_filtered_backward.default)
    with without_autocast(grad.device.type):
        gradients: tuple[Tensor, Tensor, Tensor] = run(
            grad, weight, sums, x_shape, *conv.numbers(), channels_last, needs_x, scale
        )
    return gradients


def is_channels_last(x: Tensor) -> bool:
    """Tell a map's layout by its strides, which say more than `is_contiguous` where there is but one cell."""
    strides = x.stride()
    return strides[1] == 1 and max(strides[2:]) > 1


def autocast_enabled(device: str) -> bool:
    """Tell whether autocast is on; the meta device has none."""
    # torch.amp.is_autocast_available would know of other devices, but torch 2.10 cannot compile it.
    return device != "meta" and torch.is_autocast_enabled(device)


def empty_like(x: Tensor) -> Tensor:
    """Make a map of the shape, dtype and layout of a normalisation's result, without setting its values."""
    layout = torch.channels_last if _maps.is_channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=layout)


def is_eager(*tensors: Tensor) -> bool:
    """Tell whether code may be called on tensors itself, without the dispatcher's overhead.

    It may where no tracer listens, and none of them is a wrapper around others, whose memory is elsewhere.
    """
    return (
        not torch.compiler.is_compiling()
        and all(type(tensor) is Tensor for tensor in tensors)
        and not _len_torch_dispatch_stack()
    )


def chosen(x: Tensor, code: _Run, seen: _Run, operator: _Run) -> _Run:
    """Choose what is called on a tensor: code, what lets tracers see it, or what hides it from them.

    Where kernels serve a tensor, they are what makes it fast. Elsewhere, on a GPU for example, it is torch's
    compiler, which fuses operations that it sees.

    Parameters
    ----------
    x : Tensor
        What is worked on.
    code : callable
        For tensors that no tracer follows.
    seen : callable
        The same by :func:`seen_through`.
    operator : callable
        Of torch, with `code` behind it.
    """
    if is_eager(x):
        return code
    # Not by `is_served`, whose question for negative views torch cannot compile.
    return operator if x.dtype == torch.float32 and x.is_cpu else seen


def seen_through(code: _Run, operator: _Run) -> _Run:
    """Make a function whose operations a compiler sees; where sizes are unknown, it calls the operator."""

    def run(*args: Any) -> Any:
        tensors = (argument for argument in args if isinstance(argument, Tensor))
        unknown = any(isinstance(size, torch.SymInt) for tensor in tensors for size in tensor.shape)
        return operator(*args) if unknown else code(*args)

    made: _Run = torch.compiler.allow_in_graph(run)  # type: ignore[no-untyped-call]
    return made


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Keep products in the dtype of their operands, where the backward pass is called inside autocast."""
    return torch.autocast(device, enabled=False) if autocast_enabled(device) else nullcontext()


def _patches(y_shape: Sequence[int], patch_size: int) -> tuple[int, int]:
    return -(-y_shape[2] // patch_size), -(-y_shape[3] // patch_size)


def _windows(
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    patch_size: int,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Give the size of a patch's window of the input, and how many cells before it the first begins."""
    window = (stride[0] * patch_size, stride[1] * patch_size)
    # A window lies where the kernel's centre falls.
    offset = (
        padding[0] - dilation[0] * (kernel_size[0] - 1) // 2,
        padding[1] - dilation[1] * (kernel_size[1] - 1) // 2,
    )
    return window, offset


@made_once
def _scaled_symbols(
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    patch_size: int,
    components: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    symbols = tap_symbols(kernel_size, stride, dilation, patch_size, components)
    # A window has that many cells for each cell of its patch, and they share its gradient.
    return (symbols / (stride[0] * stride[1])).to(dtype=dtype, device=device)


def _patch_sums(
    x: Tensor,
    patches: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    patch_size: int,
    components: int,
) -> Tensor:
    window, offset = _windows(kernel_size, stride, padding, dilation, patch_size)
    sums = kernels.patch_sums(x, window, offset, patches, components, stride)
    # What compilers are told of the layout must hold for the slow twins, too.
    return sums.contiguous() if is_channels_last(x) else sums.mT.contiguous().mT


def _backward(
    grad: Tensor,
    weight: Tensor,
    sums: Tensor | None,
    x_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    patch_size: int,
    components: int,
    channels_last: bool,
    needs_x: bool,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel_size = weight.shape[2:]
    window, offset = _windows(kernel_size, stride, padding, dilation, patch_size)
    patches = _patches(grad.shape, patch_size)
    symbols = _scaled_symbols(
        tuple(kernel_size),
        tuple(stride),
        tuple(dilation),
        patch_size,
        components,
        weight.dtype,
        weight.device,
    )
    grad_x = gram = grad_scale = None
    # A single tap that passes all is its own sum.
    alone = components == 1 and tuple(kernel_size) == tuple(stride) == (1, 1)
    unscaled = None
    if needs_x or scale is not None:
        unscaled = weight.reshape(1, *weight.shape[:2]) if alone else kernels.collapse_taps(weight, symbols)
    collapsed = unscaled if unscaled is None or scale is None else unscaled * scale[:, None]
    if groups == grad.shape[1] == x_shape[1]:
        grad_x, gram = kernels.depthwise_filter_backward(
            grad.contiguous(memory_format=_layout(channels_last)),
            sums,
            None if collapsed is None else collapsed.flatten(1),
            x_shape,
            patch_size,
            offset,
            patches,
            stride,
            needs=(needs_x, sums is not None),
        )
        gram = None if gram is None else gram.unsqueeze(-1)
    elif groups == 1:
        grad_x, gram = kernels.conv_filter_backward(
            grad,
            sums,
            collapsed,
            x_shape,
            patch_size,
            offset,
            patches,
            stride,
            channels_last=channels_last,
            needs=(needs_x, sums is not None),
        )
    else:
        means = _grouped(kernels.patch_means(grad, patch_size, patches, components), groups)
        if needs_x and collapsed is not None:
            grad_x = kernels.patch_fill(
                _back_through(collapsed, means),
                x_shape,
                window,
                offset,
                patches,
                stride,
                channels_last=channels_last,
            )
        if sums is not None:
            gram = torch.einsum("umgo,umgi->ugoi", means, _grouped(sums, groups)).flatten(1, 2)
    if gram is not None and scale is not None and unscaled is not None:
        # On the few numbers of the gram, where it costs nothing: the weight has a factor of taps more.
        grad_scale = (gram * unscaled).sum((0, 2))
        gram = gram * scale[:, None]
    grad_weight = grad.new_empty(0)
    if gram is not None:
        grad_weight = gram.view(weight.shape) if alone else kernels.spread_taps(gram, symbols, weight)
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        grad_weight,
        grad.new_empty(0) if grad_scale is None else grad_scale,
    )


def _back_through(collapsed: Tensor, means: Tensor) -> Tensor:
    """Multiply each patch's coefficients with the transposed weight of their group."""
    components, _, groups, outputs = means.shape
    in_groups = collapsed.reshape(components, groups, outputs, collapsed.shape[2])
    return torch.einsum("ugoi,umgo->umgi", in_groups, means).flatten(2)


def _grouped(points: Tensor, groups: int) -> Tensor:
    components, count, channels = points.shape
    return points.reshape(components, count, groups, channels // groups)


def _fake_patch_sums(
    x: Tensor,
    patches: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    patch_size: int,
    components: int,
) -> Tensor:
    points, channels = x.shape[0] * patches[0] * patches[1], x.shape[1]
    if is_channels_last(x):
        return x.new_empty(components, points, channels)
    return x.new_empty(components, channels, points).mT


def _fake_backward(
    grad: Tensor,
    weight: Tensor,
    sums: Tensor | None,
    x_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    patch_size: int,
    components: int,
    channels_last: bool,
    needs_x: bool,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(grad, weight, sums, x_shape, channels_last, needs_x, scale)


def fake_gradients(
    grad: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    x_shape: Sequence[int],
    channels_last: bool,
    needs_x: bool,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make tensors with the shapes and memory formats of a filtered convolution's gradients."""
    grad_x, grad_weight = grad.new_empty(0), grad.new_empty(0)
    if needs_x:
        grad_x = torch.empty(
            *x_shape, dtype=grad.dtype, device=grad.device, memory_format=_layout(channels_last)
        )
    if saved is not None:
        grad_weight = torch.empty(
            weight.shape,
            dtype=grad.dtype,
            device=grad.device,
            memory_format=_layout(
                not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
            ),
        )
    grad_scale = grad.new_empty(0 if scale is None or saved is None else len(scale))
    return grad_x, grad_weight, grad_scale


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


for _name, _run, _fake in (
    ("conv2d_patch_sums", _patch_sums, _fake_patch_sums),
    ("conv2d_filtered_backward", _backward, _fake_backward),
):
    library.impl(_name, _run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"flower_edge::{_name}", _fake, lib=library)

_seen_patch_sums = seen_through(_patch_sums, torch.ops.flower_edge.conv2d_patch_sums.default)
_seen_backward = seen_through(_backward, torch.ops.flower_edge.conv2d_filtered_backward.default)
