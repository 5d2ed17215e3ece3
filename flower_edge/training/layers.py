"""Layers that carry a rule: torch's own, computed in another way."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flower_edge.training._choice import Measurement, measured
from flower_edge.training._filter_ops import saves_operations
from flower_edge.training._filtered_conv import ConvFilter, PatchFilter, filtered_conv2d
from flower_edge.training._folded_conv import Fold, scaled, scaled_conv2d
from flower_edge.training._int8_chain import chained_conv2d, chained_range_evonorm, hands_bytes
from flower_edge.training._int8_conv import Int8Arithmetic, int8_conv2d
from flower_edge.training._int8_conv import measured as measured_in_8_bits
from flower_edge.training._int8_ops import Geometry
from flower_edge.training._ops import autocast_enabled
from flower_edge.training._sign_conv import pruned_conv2d
from flower_edge.training.pruning import PrunedFeedback
from flower_edge.training.range_evonorm import RangeEvoNorm
from flower_edge.training.rule import Rule


class EdgeConv2d(nn.Conv2d):
    """A convolution that trains by a rule; :func:`flower_edge.training.prepare_` makes it out of `nn.Conv2d`.

    Parameters, buffers, hooks and ``state_dict`` are those of `nn.Conv2d`. So is the output, unless the rule
    folds a normalisation into it or computes in 8 bits. In eval mode, and where no gradient is wanted, the
    forward pass is all.

    Attributes
    ----------
    rule : Rule
        How it computes.
    measurement : Measurement or None
        What the latest training step knew of the times of both paths.
    saves_operations : bool
        Whether, by count, filtering was worth while in the latest training step.
    """

    original = nn.Conv2d

    rule: Rule = Rule()
    measurement: Measurement | None = None
    saves_operations: bool = True

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, exactly or in 8 bits; the rule says what the backward pass will do."""
        way, fold = self.rule.grad_weight, self.rule.forward
        if isinstance(fold, Int8Arithmetic):
            return self._in_8_bits(input, fold)
        approximates = isinstance(way, PatchFilter | PrunedFeedback) and self.training
        if not approximates and not isinstance(fold, Fold):
            return super().forward(input)
        scale, bias = fold.scale_and_shift(self.bias) if isinstance(fold, Fold) else (None, self.bias)
        if not _trains(input, self.weight, scale):
            y: Tensor = self._conv_forward(input, scaled(self.weight, scale), bias)
            return y
        if input.dim() == 3:
            return self._convolved(input[None], scale, bias)[0]
        return self._convolved(input, scale, bias)

    def _in_8_bits(self, input: Tensor, way: Int8Arithmetic) -> Tensor:
        weight, bias = self.weight, self.bias
        if not self.training or not _trains(input, weight) or not _suits(input, weight):
            return super().forward(input)
        if input.dim() == 3:
            return self._in_8_bits(input[None], way)[0]
        x, padding = self._padded(input)
        geometry = Geometry(self.stride, padding, self.dilation, self.groups)
        if not pays_in_8_bits(self, x, weight, geometry, way):
            return super().forward(input)
        if way.chained and hands_bytes(x):
            return chained_conv2d(x, weight, bias, geometry, way.error_bits, way.stochastic)
        return int8_conv2d(x, weight, bias, geometry, way)

    def _convolved(self, x: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
        weight = self.weight
        if autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            scale, bias = (None if t is None else t.to(dtype) for t in (scale, bias))
        x, padding = self._padded(x)
        way = self.rule.grad_weight
        if isinstance(way, PatchFilter) and self.training:
            filtering = (way.patch_size, way.components, way.basis)
            conv = ConvFilter(self.stride, padding, self.dilation, self.groups, *filtering)
            if self._filters(x, weight, conv, way):
                return filtered_conv2d(x, weight, bias, conv, scale)
        geometry = Geometry(self.stride, padding, self.dilation, self.groups)
        if isinstance(way, PrunedFeedback) and self.training:
            _refuse_transforms("sign feedback")
            return pruned_conv2d(x, scaled(weight, scale), bias, geometry, way)
        if scale is None or bias is None:
            return torch.conv2d(x, weight, bias, *geometry)
        return scaled_conv2d(x, weight, scale, bias, *geometry)

    def _filters(self, x: Tensor, weight: Tensor, conv: ConvFilter, way: PatchFilter) -> bool:
        """Tell whether this step filters, and remember what is known of the times of both ways."""
        compiling = torch.compiler.is_compiling()
        _refuse_transforms("gradient filtering")
        if not saves_operations(x.shape, weight.shape, conv):
            self.saves_operations = False
            return False
        self.saves_operations = True
        if way.measured and not compiling:
            self.measurement = measured(x, weight, conv)
        return not (way.measured and self.measurement is not None and self.measurement.exact_is_faster)

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad what torch's convolution would not, and give the padding that is left to it."""
        if self.padding_mode == "zeros" and not isinstance(self.padding, str):
            return x, (self.padding[0], self.padding[1])
        if self.padding_mode != "zeros":
            return pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
        padding, uneven = resolved_padding(self)
        return pad(x, (0, uneven[1], 0, uneven[0])) if any(uneven) else x, padding

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


class EdgeLinear(nn.Linear):
    """A linear layer that trains in 8 bits; :func:`prepare_` makes it out of `nn.Linear`.

    Parameters, hooks and ``state_dict`` are those of `nn.Linear`. In eval mode, and where no gradient is
    wanted, so is the output.

    Attributes
    ----------
    rule : Rule
        How it computes.
    measurement : Measurement or None
        What the latest training step knew of the times of both ways.
    """

    original = nn.Linear

    rule: Rule = Rule()
    measurement: Measurement | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Multiply, exactly or in 8 bits."""
        way = self.rule.forward
        trains = self.training and _trains(input, self.weight)
        if not isinstance(way, Int8Arithmetic) or not trains:
            return super().forward(input)
        if input.shape[-1:] != self.weight.shape[1:] or not _suits(input, self.weight):
            return super().forward(input)
        # Rows are maps of one cell, and a matrix is a kernel of one tap.
        x, weight = input.reshape(-1, self.in_features, 1, 1), self.weight[:, :, None, None]
        geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
        if not pays_in_8_bits(self, x, weight, geometry, way):
            return super().forward(input)
        return int8_conv2d(x, weight, self.bias, geometry, way).reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Describe the layer and its rule."""
        return f"{super().extra_repr()}, rule=({self.rule})"


class EdgeRangeEvoNorm(RangeEvoNorm):
    """A Range-EvoNorm that trains on bytes; :func:`prepare_` makes it out of :class:`RangeEvoNorm`.

    Parameters, hooks and ``state_dict`` are those of :class:`RangeEvoNorm`. In eval mode, and where no
    gradient is wanted, so is the output.

    Attributes
    ----------
    rule : Rule
        How it computes.
    """

    original = RangeEvoNorm

    rule: Rule = Rule()

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch of shape ``(N, C, H, W)``, in floats or in bytes."""
        way = self.rule.forward
        weight, bias, v = self.weight, self.bias, self.v
        trains = self.training and _trains(input, weight, bias, v)
        if not isinstance(way, Int8Arithmetic) or not trains or not hands_bytes(input):
            return super().forward(input)
        self.check_input(input)
        return chained_range_evonorm(input, weight, bias, v, self.groups, self.eps)

    def extra_repr(self) -> str:
        """Describe the layer and its rule."""
        return f"{super().extra_repr()}, rule=({self.rule})"


def _trains(input: Tensor, *parameters: Tensor | None) -> bool:
    """Tell whether a graph for the backward pass is wanted, and something would be in it."""
    if not torch.is_grad_enabled() or input.numel() == 0:
        return False
    if input.requires_grad:
        return True
    return any(parameter is not None and parameter.requires_grad for parameter in parameters)


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Tell whether torch's own layer would take this input: what it refuses is left to it to name."""
    return x.dtype == weight.dtype or autocast_enabled(x.device.type)


def pays_in_8_bits(
    layer: EdgeConv2d | EdgeLinear, x: Tensor, weight: Tensor, geometry: Geometry, way: Int8Arithmetic
) -> bool:
    """Tell whether this step computes in 8 bits, and remember what is known of the times of both ways."""
    _refuse_transforms("training in 8 bits")
    if not way.measured:
        return True
    measurement = layer.measurement
    if not torch.compiler.is_compiling():
        measurement = measured_in_8_bits(x, weight, geometry, way, isinstance(layer, EdgeLinear))
        if measurement is not layer.measurement:  # nn.Module is slow to set what is there
            layer.measurement = measurement
    return measurement is None or not measurement.exact_is_faster


def _refuse_transforms(what: str) -> None:
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{what} does not work under the transforms of torch.func (grad, vmap, ...); "
            "call flower_edge.training.restore_(model) or model.eval() for exact gradients"
        )
