"""Batch normalisations that activate in the same pass over memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from flower_edge.kernels._dispatch import has_vectors
from flower_edge.kernels._maps import is_channels_last, is_served
from flower_edge.training._activated import hand_over
from flower_edge.training._batch_norm_ops import batch_norm, measured
from flower_edge.training._choice import Measurement
from flower_edge.training._tracing import traced_calls
from flower_edge.training.lean_activations import LeanReLU, LeanReLU6
from flower_edge.training.rule import Method, Rule
from flower_edge.training.where import Where, check_where, chosen

_CAPS: Mapping[type[nn.Module], float] = {
    nn.ReLU: math.inf,
    LeanReLU: math.inf,
    nn.ReLU6: 6.0,
    LeanReLU6: 6.0,
}


def _everywhere(name: str, layer: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class FusedNorm:
    r"""Let BatchNorm2d normalise with the activation after it, in fewer passes over memory.

    Torch passes over a map seven times for a norm and its ReLU, and eight times on the way back. Here it is
    three times, and five times. Output, gradients and running statistics are those of torch but for rounding:
    sums over the batch are formed in blocks and in double precision. Saved for the backward pass are the
    input, as in torch, and one bit for each activated element.

    An activation is fused where :mod:`torch.fx` proves that the output of a norm goes to one module of class
    ReLU or ReLU6 and nowhere else; that module then passes on what it receives from the norm, and hooks on
    the two see that. A call of :func:`torch.relu` stays what it is, and so do all activations of a model that
    cannot be traced.

    float32 maps with channels last on the CPU, of 65536 elements on, in training: all else is torch's own,
    also under :func:`torch.compile`, which fuses by itself, and where there are no vector instructions.
    Second derivatives are refused.

    Parameters
    ----------
    where : callable, Last or AllButStem
        Which norms: a callable takes name and module. Default: all.
    fallback : {"measured", "never"}, default "measured"
        Whether the first training step with a new shape times both ways, and torch's is used where it is
        faster.

    Raises
    ------
    TypeError
        If `where` is none of these.
    ValueError
        If `fallback` is neither.
    """

    where: Where = _everywhere
    fallback: Literal["measured", "never"] = "measured"

    def __post_init__(self) -> None:
        check_where(self.where)
        if self.fallback not in ("measured", "never"):
            raise ValueError(f"fallback is {self.fallback!r}, expected 'measured' or 'never'")

    def __str__(self) -> str:
        return "FusedNorm()"

    def for_model(self, model: nn.Module) -> Method:
        """Find the norms, and the activations after them.

        Parameters
        ----------
        model : Module
            Is looked at, not changed.

        Returns
        -------
        Method
            Sets the forward pass of both.

        Raises
        ------
        ValueError
            If there is no norm, or none is chosen.
        """
        named = list(model.named_modules())
        norms = [(name, module) for name, module in named if _is_norm(module)]
        picked = [name for name, _ in chosen(self.where, norms)]
        if not picked:
            raise ValueError(
                f"{self} chooses none of the {len(norms)} layers of class BatchNorm2d in "
                f"{type(model).__name__}, expected at least one; change where=, or leave it out"
            )
        pairs = _traced_pairs(model, dict(named), frozenset(picked))
        caps = {norm: _CAPS[type(activation)] for norm, activation in pairs.items()}
        activations = frozenset(pairs.values())
        names = frozenset((*picked, *(name for name, module in named if module in activations)))
        return _FoundNorms(caps, names, self.fallback == "measured")


@dataclass(frozen=True)
class _FoundNorms:
    """What :class:`FusedNorm` is for one model: how far the norms reach that activate."""

    caps: Mapping[nn.Module, float]
    names: frozenset[str]
    measured: bool

    def where(self, name: str, layer: nn.Module) -> bool:
        """Choose norms, and activations that one of them may stand in for."""
        return name in self.names

    def __str__(self) -> str:
        return "FusedNorm()"

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Norms and activations."""
        return {nn.BatchNorm2d: FusedBatchNorm2d, nn.ReLU: LeanReLU, nn.ReLU6: LeanReLU6}

    def rule(self, layer: nn.Module) -> Rule:
        """Set the forward pass."""
        if isinstance(layer, nn.BatchNorm2d):
            return Rule(forward=Fused(self.caps.get(layer), self.measured))
        return Rule(forward=PassedOn())


@dataclass(frozen=True)
class Fused:
    """The forward pass of a norm.

    Attributes
    ----------
    cap : float or None
        The upper end of the activation after it, infinity for ReLU; None where nothing is fused.
    measured : bool
        Whether torch's own way is used where it is measured to be faster.
    """

    cap: float | None
    measured: bool

    def __str__(self) -> str:
        if self.cap is None:
            return "FusedNorm()"
        return f"FusedNorm({'ReLU' if math.isinf(self.cap) else 'ReLU6'})"


@dataclass(frozen=True)
class PassedOn:
    """The forward pass of an activation: what a norm has activated is passed on."""

    def __str__(self) -> str:
        return "FusedNorm()"


class FusedBatchNorm2d(nn.BatchNorm2d):
    """A batch normalisation in fewer passes; :func:`prepare_` makes it out of `nn.BatchNorm2d`.

    Attributes
    ----------
    rule : Rule
        Its forward pass says which activation it takes over.
    measurement : Measurement or None
        What the latest training step knew of the times of both ways.
    """

    original = nn.BatchNorm2d

    rule: Rule = Rule()
    measurement: Measurement | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch, and activate it where nobody else sees that."""
        way = self.rule.forward
        if not isinstance(way, Fused) or not self._is_served(input):
            return super().forward(input)
        if way.measured:
            self.measurement = measured(input, way.cap)
            if self.measurement is not None and self.measurement.exact_is_faster:
                return super().forward(input)
        y, statistics = batch_norm(input, self.weight, self.bias, self.eps, way.cap)
        self._follow(statistics)
        return y if way.cap is None else hand_over(y)

    def _is_served(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return False
        trained = any(parameter.requires_grad for parameter in self.parameters(False))
        return (
            torch.is_grad_enabled()
            and (x.requires_grad or trained)
            and (self.training or self.running_mean is None)
            and has_vectors("batch_norm")
            and x.dim() == 4
            and x.shape[1] == self.num_features
            and x.numel() >= _LEAST_ELEMENTS
            and x.numel() > self.num_features
            and is_channels_last(x)
            and all(is_served(t) for t in (x, self.weight, self.bias, self.running_mean) if t is not None)
        )

    def _follow(self, statistics: Tensor) -> None:
        """Let the running statistics move towards those of the batch."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        self.running_mean.lerp_(statistics[0], momentum or 0.0)
        self.running_var.lerp_(statistics[2], momentum or 0.0)

    def extra_repr(self) -> str:
        """Describe the normalisation and its rule."""
        norm = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{norm}, rule=({self.rule})"


# Below, a call takes longer than what it saves.
_LEAST_ELEMENTS = 65536


def _is_norm(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, FusedBatchNorm2d)


def _traced_pairs(
    model: nn.Module, modules: Mapping[str, nn.Module], picked: frozenset[str]
) -> dict[nn.Module, nn.Module]:
    """Find the norms whose output goes to one activation alone, in either mode, with that activation."""
    try:
        both = traced_calls(model)
    except Exception:
        return {}
    trained, evaluated = (_pairs_among(calls, modules, picked) for calls in both)
    calls_in_eval = {modules[str(node.target)] for node in both[1]}
    return {
        norm: to for norm, to in trained.items() if evaluated.get(norm) is to or norm not in calls_in_eval
    }


def _pairs_among(
    calls: Sequence[fx.Node], modules: Mapping[str, nn.Module], picked: frozenset[str]
) -> dict[nn.Module, nn.Module]:
    called = [modules[str(node.target)] for node in calls]
    pairs = {}
    for node, norm in zip(calls, called, strict=True):
        users = list(node.users)
        if not _is_norm(norm) or str(node.target) not in picked or called.count(norm) != 1 or len(users) != 1:
            continue
        if users[0].op == "call_module" and type(modules[str(users[0].target)]) in _CAPS:
            pairs[norm] = modules[str(users[0].target)]
    return pairs
