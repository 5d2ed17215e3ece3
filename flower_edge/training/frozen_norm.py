"""Normalisations with frozen statistics, folded into the convolutions before them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from flower_edge.training._folded_conv import Fold, scale_and_shift
from flower_edge.training._tracing import traced_calls
from flower_edge.training.layers import EdgeConv2d
from flower_edge.training.rule import Method, Rule

_CONVS = (nn.Conv2d, EdgeConv2d)


@dataclass(frozen=True)
class FrozenNorm:
    r"""Freeze the statistics of all batch normalisations, and fold these into the convolutions before them.

    For fine-tuning. Normalising with running statistics is one multiplication and one addition per channel
    (Ioffe, Szegedy, "Batch Normalization", ICML 2015, algorithm 2), which the convolution before can take
    over: :math:`W' = W \gamma / \sigma` and :math:`b' = \beta + (b - \mu) \gamma / \sigma`. Nothing is saved
    for the normalisation then, and its passes over the activations are gone. What is trained stays
    :math:`W, b, \gamma, \beta`, with the gradients that they have in torch's eval mode.

    Statistics neither change in ``train()`` mode nor are read from the batch. The output of a folded
    convolution is that of the normalisation, which itself passes on what it receives; hooks on the two see
    that. A normalisation that does not follow a convolution, or one whose input is used elsewhere as well, is
    computed in its place; where its weight is not trained, without saving anything.

    Parameters
    ----------
    pairs : sequence of (str, str), optional
        Names of convolutions and of the normalisations that directly follow them. Default: they are found
        with :mod:`torch.fx`, which needs a model whose forward pass does not branch on its data.

    Raises
    ------
    TypeError
        If `pairs` is not a sequence of pairs of names.
    """

    pairs: Sequence[tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        if self.pairs is None:
            return
        listed = isinstance(self.pairs, list | tuple)
        if not listed or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
            for pair in self.pairs
        ):
            raise TypeError(
                f"pairs is {self.pairs!r:.200}, expected pairs of names, for example [('conv1', 'bn1')]"
            )
        object.__setattr__(self, "pairs", tuple((conv, norm) for conv, norm in self.pairs))

    def __str__(self) -> str:
        return "FrozenNorm()"

    def for_model(self, model: nn.Module) -> Method:
        """Find what to fold.

        Parameters
        ----------
        model : Module
            Is looked at, not changed.

        Returns
        -------
        Method
            Sets the forward pass of convolutions and normalisations.

        Raises
        ------
        ValueError
            If no normalisation has running statistics, the model cannot be traced, or a pair is none.
        """
        modules = dict(model.named_modules())
        norms = [name for name, module in modules.items() if _is_norm(module)]
        if not norms:
            raise ValueError(
                f"{self} found no BatchNorm2d with running statistics in {type(model).__name__}; there is "
                "nothing to freeze: leave it out"
            )
        pairs = _traced_pairs(model, modules) if self.pairs is None else self.pairs
        _check(pairs, modules)
        folds = {modules[conv]: modules[norm] for conv, norm in pairs}
        return _FoundNorms(folds, frozenset((*norms, *(conv for conv, _ in pairs))))


@dataclass(frozen=True)
class _FoundNorms:
    """What :class:`FrozenNorm` is for one model: a norm for each convolution that takes one over."""

    folds: Mapping[nn.Module, nn.Module]
    names: frozenset[str]

    def where(self, name: str, layer: nn.Module) -> bool:
        """Choose all normalisations, and the convolutions that take one over."""
        return name in self.names

    def __str__(self) -> str:
        return "FrozenNorm()"

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Convolutions and normalisations over two dimensions."""
        return {nn.Conv2d: EdgeConv2d, nn.BatchNorm2d: FrozenBatchNorm2d}

    def rule(self, layer: nn.Module) -> Rule:
        """Set the forward pass."""
        norm = self.folds.get(layer)
        if isinstance(norm, nn.BatchNorm2d):
            return Rule(forward=Fold(norm))
        return Rule(forward=Frozen(folded=layer in self.folds.values()))


@dataclass(frozen=True)
class Frozen:
    """The forward pass of a normalisation whose statistics are frozen.

    Attributes
    ----------
    folded : bool
        Whether the convolution before computes it.
    """

    folded: bool

    def __str__(self) -> str:
        return "FrozenNorm()"


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch normalisation with frozen statistics; :func:`prepare_` makes it out of `nn.BatchNorm2d`.

    Attributes
    ----------
    rule : Rule
        Its forward pass says whether the convolution before does the work.
    """

    original = nn.BatchNorm2d

    rule: Rule = Rule()

    def forward(self, input: Tensor) -> Tensor:
        """Normalise with the running statistics, or pass on what has been normalised."""
        way = self.rule.forward
        if isinstance(way, Frozen) and way.folded:
            return input
        scale, shift = scale_and_shift(self)
        if scale.requires_grad and torch.is_grad_enabled():
            # The gradient of the weight needs the input: torch's own saves no more than that.
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        per_channel = (scale.to(input.dtype).view(-1, 1, 1), shift.to(input.dtype).view(-1, 1, 1))
        return torch.addcmul(per_channel[1], input, per_channel[0])

    def extra_repr(self) -> str:
        """Describe the normalisation and its rule."""
        norm = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{norm}, rule=({self.rule})"


def _is_norm(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, FrozenBatchNorm2d) and module.running_mean is not None


def _traced_pairs(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    try:
        both = traced_calls(model)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({type(error).__name__}: {error}); name what to "
            "fold: FrozenNorm(pairs=[('a convolution', 'the norm after it'), ...])"
        ) from error
    trained, evaluated = (_pairs_among(calls, modules) for calls in both)
    calls_in_eval = {str(node.target) for node in both[1]}
    return [pair for pair in trained if pair in evaluated or calls_in_eval.isdisjoint(pair)]


def _pairs_among(calls: Sequence[fx.Node], modules: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    called = [modules[str(node.target)] for node in calls]
    pairs = []
    for node in calls:
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        alone = len(before.users) == 1 and called.count(conv) == 1 and called.count(norm) == 1
        if type(conv) in _CONVS and _is_norm(norm) and alone:
            pairs.append((str(before.target), str(node.target)))
    return pairs


def _check(pairs: Sequence[tuple[str, str]], modules: Mapping[str, nn.Module]) -> None:
    for conv_name, norm_name in pairs:
        for name in (conv_name, norm_name):
            if name not in modules:
                raise ValueError(f"pairs names {name!r}, expected one of the model's modules")
        conv, norm = modules[conv_name], modules[norm_name]
        if not isinstance(conv, nn.Conv2d) or type(conv) not in _CONVS or not _is_norm(norm):
            raise ValueError(
                f"pairs has ({conv_name!r}, {norm_name!r}), a {type(conv).__name__} and a "
                f"{type(norm).__name__}, expected a Conv2d and a BatchNorm2d with running statistics"
            )
        if conv.out_channels != norm.num_features:
            raise ValueError(
                f"pairs has ({conv_name!r}, {norm_name!r}) with {conv.out_channels} and {norm.num_features} "
                "channels, expected the same number"
            )
    for place in (0, 1):
        names = [pair[place] for pair in pairs]
        if len({id(modules[name]) for name in names}) < len(names):
            raise ValueError(f"pairs names a module twice: {names}, expected each one once")
