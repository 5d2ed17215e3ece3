"""Pruned gradients, and errors that go back through the signs of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from flower_edge.training.layers import EdgeConv2d
from flower_edge.training.pruning import PrunedFeedback, Pruner, Rising, check_sparsity
from flower_edge.training.rule import Rule
from flower_edge.training.where import Where, all_but_stem, check_where


@dataclass(frozen=True)
class SignFeedback:
    r"""Train convolutions with gradients of which most elements are zero, and skipped.

    The forward pass is exact, and the input is saved as it is. In the backward pass of a layer

    * the gradient :math:`\delta` of the output is pruned, so that the share of zeros is `sparsity`: what is
      at least :math:`\tau` stays, all else becomes :math:`\tau \operatorname{sign}(\delta)` with
      probability :math:`|\delta| / \tau`, and zero otherwise. Its mean is :math:`\delta`;
    * the gradient of the input is made of the pruned one and of the weight; with ``feedback="sign"``, of
      :math:`\alpha_k \operatorname{sign}(W_k)` in place of each filter :math:`W_k`, where :math:`\alpha_k` is
      the filter's mean absolute weight: one bit a weight, and one number a filter;
    * the gradient of the weight is made of the pruned one and of the true input.

    The gradient of the bias is the exact sum. Normalisations, activations and linear layers go back exactly.
    Compiled kernels skip the zeros: that is where time is gained.

    Method and energy figures: Hong, Yue, "EfficientGrad", 2021. There, one number P sets the threshold by a
    Gaussian fit, and is not the share of zeros: P = 0.9 leaves about 46 % of a Gaussian's elements. Here the
    threshold is solved for the share itself. Magnitudes of feedback are the weight's own per filter; there,
    they are random and fixed.

    Parameters
    ----------
    sparsity : float, default 0.8
        Share of zeros, at least 0 and less than 1. 0: only feedback is changed.
    feedback : {"sign", "exact"}, default "exact"
        What errors go back through: the signs of the weights, as published, or the weights themselves.
        Pruning is right on average; signs are not, and cost more accuracy.
    schedule : Rising or None, default Rising()
        Begins with a lower sparsity, which rises to `sparsity`: gradients of a network that has learned
        nothing yet have no large elements that could stand for the others. Steps are a layer's backward
        passes since it was prepared; see :func:`flower_edge.training.resume_schedule_`. None: it is constant.
    where : Last, AllButStem or callable, default all_but_stem
        Which convolutions: :func:`last`, :data:`all_but_stem`, or a callable that takes name and module.
    fallback : {"measured", "never"}, default "measured"
        "measured": the first backward pass with a new shape times both ways on its tensors, at the present
        sparsity and again whenever a schedule has moved it by 0.05, and a layer for which torch's exact one
        is faster uses that: it then has exact gradients, with nothing pruned. The choice may differ between
        machines and runs; "never" always prunes, for runs that must be reproducible.

    Raises
    ------
    TypeError
        If a value is of the wrong type.
    ValueError
        If a number is out of its range, or nothing would change.
    """

    sparsity: float = 0.8
    feedback: Literal["sign", "exact"] = "exact"
    schedule: Rising | None = field(default_factory=Rising)
    where: Where = all_but_stem
    fallback: Literal["measured", "never"] = "measured"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, "sparsity")
        if self.feedback not in ("sign", "exact"):
            raise ValueError(f"feedback is {self.feedback!r}, expected 'sign' or 'exact'")
        if self.schedule is not None and not isinstance(self.schedule, Rising):
            raise TypeError(f"schedule is {self.schedule!r:.200}, expected a Rising or None")
        check_where(self.where)
        if self.fallback not in ("measured", "never"):
            raise ValueError(f"fallback is {self.fallback!r}, expected 'measured' or 'never'")
        if self.sparsity == 0:
            self._check_unpruned()

    def _check_unpruned(self) -> None:
        if self.feedback == "exact":
            raise ValueError(
                'sparsity is 0 and feedback is "exact": nothing would change; leave the method out'
            )
        if self.fallback == "measured":
            raise ValueError(
                'sparsity is 0 and fallback is "measured", but feedback through signs alone is never faster '
                'than torch\'s own backward pass, so every layer would stay exact; choose fallback="never"'
            )

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Convolutions over two dimensions."""
        return {nn.Conv2d: EdgeConv2d}

    def rule(self, layer: nn.Module) -> Rule:
        """Set how both gradients are formed.

        Parameters
        ----------
        layer : Module
            A convolution.

        Returns
        -------
        Rule
            Its parts `grad_input` and `grad_weight`.

        Raises
        ------
        ValueError
            If it is no convolution, or complex.
        """
        if not isinstance(layer, nn.Conv2d):
            raise ValueError(f"it is a {type(layer).__name__}, expected a Conv2d")
        if not layer.weight.is_floating_point():
            raise ValueError(f"its weight is {layer.weight.dtype}, expected a real floating dtype")
        pruner = Pruner(self.sparsity, self.schedule)
        part = PrunedFeedback(self.feedback == "sign", self.fallback == "measured", pruner)
        return Rule(grad_input=part, grad_weight=part)
