"""Layers that carry a rule: torch's own, with another backward pass."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flower_edge.training._choice import Measurement, measured
from flower_edge.training._filtered_conv import ConvFilter, PatchFilter, filtered_conv2d
from flower_edge.training._ops import autocast_enabled
from flower_edge.training.rule import Rule


class EdgeConv2d(nn.Conv2d):
    """A convolution that trains by a rule; :func:`flower_edge.training.prepare_` makes it out of `nn.Conv2d`.

    Parameters, buffers, hooks and ``state_dict`` are those of `nn.Conv2d`, and so is the output. In eval
    mode, and where no gradient is wanted, it does what `nn.Conv2d` does.

    Attributes
    ----------
    rule : Rule
        How it computes.
    measurement : Measurement or None
        What the latest training step knew of the times of both paths.
    """

    original = nn.Conv2d

    rule: Rule = Rule()
    measurement: Measurement | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, exactly; the rule says what the backward pass will do."""
        way = self.rule.grad_weight
        if not isinstance(way, PatchFilter) or not self._trains(input):
            return super().forward(input)
        if input.dim() == 3:
            return self._filtered(input[None], way)[0]
        return self._filtered(input, way)

    def _trains(self, input: Tensor) -> bool:
        wanted = input.requires_grad or self.weight.requires_grad
        return self.training and wanted and torch.is_grad_enabled() and input.numel() > 0

    def _filtered(self, x: Tensor, way: PatchFilter) -> Tensor:
        weight, bias = self.weight, self.bias
        if autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        padding, uneven = resolved_padding(self)
        if any(uneven):
            x = pad(x, (0, uneven[1], 0, uneven[0]))
        conv = ConvFilter(self.stride, padding, self.dilation, self.groups, way.patch_size, way.components)
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "gradient filtering does not work under the transforms of torch.func (grad, vmap, ...); "
                "call flower_edge.training.restore_(model) or model.eval() for exact gradients"
            )
        if way.measured and not torch.compiler.is_compiling():
            self.measurement = measured(x, weight, conv)
        if self.measurement is not None and way.measured and self.measurement.exact_is_faster:
            return torch.conv2d(x, weight, bias, *conv[:4])
        return filtered_conv2d(x, weight, bias, conv)

    def extra_repr(self) -> str:
        """Describe the convolution and its rule."""
        convolution = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{convolution}, rule=({self.rule})"


def resolved_padding(layer: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Give padding in cells: on both sides, and what 'same' adds below and on the right of an even kernel."""
    if not isinstance(layer.padding, str):
        return (layer.padding[0], layer.padding[1]), (0, 0)
    if layer.padding == "same":
        total = tuple(d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return (total[0] // 2, total[1] // 2), (total[0] % 2, total[1] % 2)
    return (0, 0), (0, 0)
