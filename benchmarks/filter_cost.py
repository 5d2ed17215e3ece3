"""What the backward pass of filtered convolutions costs: operations counted, seconds measured."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from flower_edge.training import EdgeConv2d
from flower_edge.training._filtered_conv import ConvFilter, PatchFilter
from flower_edge.training._spectral_geometry import operations
from flower_edge.training.layers import resolved_padding


@dataclass(frozen=True)
class Cost:
    """A backward pass of all filtered layers together, with exact gradients and with filtered ones.

    Attributes
    ----------
    exact_operations, filtered_operations : int
        Counted: a multiplication with its addition is one; filtering also pays one for each number that it
        reads to pool, or writes to fill a patch, and each component.
    exact_seconds, filtered_seconds : float
        Measured by the layers on this machine, pooling of the input included.
    step_operations : int
        Counted: exact forward and backward passes of all convolutions that are trained or lie behind one that
        is, and forward passes of the others.
    """

    exact_operations: int
    filtered_operations: int
    exact_seconds: float
    filtered_seconds: float
    step_operations: int

    @property
    def operations_ratio(self) -> float:
        """How many times fewer operations."""
        return self.exact_operations / self.filtered_operations

    @property
    def seconds_ratio(self) -> float:
        """How many times less time."""
        return self.exact_seconds / self.filtered_seconds

    @property
    def share(self) -> float:
        """Share that the filtered layers' exact backward pass has in the operations of a step."""
        return self.exact_operations / self.step_operations


def backward_cost(model: nn.Module, x: Tensor) -> Cost:
    """Find the cost of a training step of a prepared model.

    Parameters
    ----------
    model : Module
        Prepared with `GradientFilter(..., fallback="measured")`: its layers time both ways on real tensors.
    x : Tensor
        A batch of its input.
    """
    exact = filtered = step = 0
    exact_seconds = filtered_seconds = 0.0

    def watch(layer: nn.Conv2d) -> Callable[..., None]:
        def seen(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            nonlocal exact, filtered, step, exact_seconds, filtered_seconds
            (given,) = inputs
            products = given.requires_grad + layer.weight.requires_grad
            forward = y.numel() * prod(layer.weight.shape[1:])
            step += forward * (1 + products)
            if isinstance(layer, EdgeConv2d) and layer.measurement is not None:
                assert isinstance(layer.rule.saved, PatchFilter)
                exact += forward * products
                filtered += _filtered_operations(layer, layer.rule.saved, given, y, products)
                exact_seconds += layer.measurement.exact_seconds
                filtered_seconds += layer.measurement.method_seconds

        return seen

    hooks = [m.register_forward_hook(watch(m)) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        model.train()
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(exact, filtered, exact_seconds, filtered_seconds, step)


def _filtered_operations(layer: EdgeConv2d, part: PatchFilter, x: Tensor, y: Tensor, products: int) -> int:
    if part.basis == "fourier":
        return _spectral_operations(layer, part, x, products)
    patches = y.shape[0] * prod(-(-cells // part.patch_size) for cells in y.shape[2:])
    matrices = products * patches * layer.weight.shape[0] * layer.weight.shape[1]
    # The input is pooled for the gradient of the weight, and filled with its own gradient.
    return part.components * (matrices + y.numel() + products * x.numel())


def _spectral_operations(layer: EdgeConv2d, part: PatchFilter, x: Tensor, products: int) -> int:
    padding, _ = resolved_padding(layer)
    filtering = (part.patch_size, part.components, part.basis)
    conv = ConvFilter(layer.stride, padding, layer.dilation, layer.groups, *filtering)
    counted = operations(x.shape, layer.weight.shape, conv)
    # Counted for both gradients; the first layer of all wants one.
    return counted.filtered * products // 2
