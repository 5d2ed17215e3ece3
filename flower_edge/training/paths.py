"""What each prepared layer does, and why."""

from dataclasses import dataclass
from typing import TypeAlias, get_args

from torch import nn

from flower_edge.training._choice import Measurement
from flower_edge.training._filtered_conv import PatchFilter
from flower_edge.training._int8_conv import Int8Arithmetic
from flower_edge.training.frozen_norm import FrozenBatchNorm2d
from flower_edge.training.fused_norm import FusedBatchNorm2d
from flower_edge.training.layers import EdgeConv2d, EdgeLinear, EdgeRangeEvoNorm
from flower_edge.training.lean_activations import LeanMaxPool2d, LeanReLU, LeanReLU6
from flower_edge.training.pruning import PrunedFeedback

_Prepared: TypeAlias = (
    EdgeConv2d
    | EdgeLinear
    | EdgeRangeEvoNorm
    | FusedBatchNorm2d
    | FrozenBatchNorm2d
    | LeanReLU
    | LeanReLU6
    | LeanMaxPool2d
)
_PREPARED = get_args(_Prepared)


@dataclass(frozen=True)
class LayerPath:
    """What one prepared layer does in training.

    Attributes
    ----------
    name : str
        Name of the layer in its model.
    path : str
        "filtered", "int8", "sparse" (pruned, with zeros skipped), "dense" (feedback through signs, nothing
        pruned), "fused" (normalised and activated in one pass), "lean" (saves little), "frozen" or "exact".
    why : str
        Why this path.
    exact_seconds, method_seconds : float or None
        Measured times of torch's way and of the method's; None where nothing has been measured.
    """

    name: str
    path: str
    why: str
    exact_seconds: float | None
    method_seconds: float | None


@dataclass(frozen=True)
class Paths:
    """What the prepared layers of a model do; ``str()`` of it is a table for people.

    Attributes
    ----------
    layers : tuple of LayerPath
        In the order of the model.
    """

    layers: tuple[LayerPath, ...]

    def __str__(self) -> str:
        if not self.layers:
            return "no layer is prepared: every backward pass is torch's own"
        rows = [("layer", "path", "exact", "method", "why")]
        for layer in self.layers:
            times = _milliseconds(layer.exact_seconds), _milliseconds(layer.method_seconds)
            rows.append((layer.name, layer.path, *times, layer.why))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            f"{name:<{widths[0]}}  {path:<{widths[1]}}  {exact:>{widths[2]}}  {method:>{widths[3]}}  {why}"
            for name, path, exact, method, why in rows
        )


def explain(model: nn.Module) -> Paths:
    """Say for each prepared layer which way it takes in training, and why.

    Parameters
    ----------
    model : Module
        One that :func:`prepare_` has been called on, or any.

    Returns
    -------
    Paths
        Its ``str()`` is a table.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, _PREPARED))
    return Paths(tuple(_path(name or "(the model)", layer) for name, layer in layers))


def _path(name: str, layer: _Prepared) -> LayerPath:
    if isinstance(layer, EdgeConv2d | EdgeLinear):
        return _of_products(name, layer)
    if isinstance(layer, FusedBatchNorm2d) and layer.measurement is not None and layer.training:
        known = layer.measurement
        gain = known.exact_seconds / known.method_seconds
        path = "exact" if known.exact_is_faster else "fused"
        why = f"{layer.rule.forward}, measured to be {gain:.1f}x as fast as torch's own"
        return LayerPath(name, path, why, known.exact_seconds, known.method_seconds)
    if isinstance(layer, FrozenBatchNorm2d):
        return LayerPath(name, "frozen", str(layer.rule.forward), None, None)
    if not layer.training:
        return LayerPath(name, "exact", "in eval mode", None, None)
    if isinstance(layer, EdgeRangeEvoNorm | FusedBatchNorm2d) or layer.rule.saved is None:
        path = "int8" if isinstance(layer, EdgeRangeEvoNorm) else "fused"
        return LayerPath(name, path, str(layer.rule.forward), None, None)
    return LayerPath(name, "lean", str(layer.rule.saved), None, None)


def _of_products(name: str, layer: EdgeConv2d | EdgeLinear) -> LayerPath:
    way, known = layer.rule.grad_weight, layer.measurement
    if isinstance(way, PrunedFeedback):
        known = way.pruner.measurement
    seconds = (None, None) if known is None else (known.exact_seconds, known.method_seconds)
    if isinstance(way, Int8Arithmetic):
        path, why = _in_8_bits(layer, way, known)
    elif isinstance(way, PrunedFeedback):
        path, why = _pruned(layer, way, known)
    elif isinstance(layer, EdgeConv2d):
        path, why = _decision(layer, way, known)
    else:
        path, why = "exact", "no method sets its gradients"
    return LayerPath(name, path, why, *seconds)


def _decision(layer: EdgeConv2d, way: object, known: Measurement | None) -> tuple[str, str]:
    if not isinstance(way, PatchFilter):
        return "exact", "no method sets its gradients"
    if not layer.training:
        return "exact", "in eval mode"
    if not layer.saves_operations:
        return "exact", f"{way} does not suit it: too few operations saved, or too small maps"
    frozen = "" if layer.weight.requires_grad else "; its weight is frozen"
    if not way.measured:
        return "filtered", f'{way}, fallback="never"{frozen}'
    if known is None:
        return "filtered", f"{way}, not measured before its first training step{frozen}"
    gain = known.exact_seconds / known.method_seconds
    if known.exact_is_faster:
        return "exact", f"measured to be {1 / gain:.1f}x as fast as filtering{frozen}"
    return "filtered", f"{way}, measured to be {gain:.1f}x as fast as exact{frozen}"


def _pruned(
    layer: EdgeConv2d | EdgeLinear, way: PrunedFeedback, known: Measurement | None
) -> tuple[str, str]:
    if not layer.training:
        return "exact", "in eval mode"
    frozen = "" if layer.weight.requires_grad else "; its weight is frozen"
    path = way.pruner.path
    if path is None:
        kind = "dense" if way.pruner.sparsity_now() == 0 else "sparse"
        asked = "not measured before its first backward pass" if way.measured else 'fallback="never"'
        return kind, f"{way}, {asked}{frozen}"
    zeros = f", {way.pruner.tally.share:.1%} zeros so far" if way.pruner.tally.elements else ""
    if not way.measured or known is None:
        return path, f'{way}, fallback="never"{zeros}{frozen}'
    gain = known.exact_seconds / known.method_seconds
    if path == "exact":
        return path, f"measured to be {1 / gain:.2f}x as fast as pruning{zeros}{frozen}"
    return path, f"{way}, measured to be {gain:.2f}x as fast as exact{zeros}{frozen}"


def _in_8_bits(
    layer: EdgeConv2d | EdgeLinear, way: Int8Arithmetic, known: Measurement | None
) -> tuple[str, str]:
    if not layer.training:
        return "exact", "in eval mode"
    if not way.measured:
        return "int8", f'{way}, fallback="never"'
    if known is None:
        return "int8", f"{way}, not measured before its first training step"
    gain = known.exact_seconds / known.method_seconds
    if known.exact_is_faster:
        return "exact", f"measured to be {1 / gain:.1f}x as fast as 8 bits"
    return "int8", f"{way}, measured to be {gain:.1f}x as fast as exact"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f} ms"
