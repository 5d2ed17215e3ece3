"""Thresholds as their authors published them: what ours, solved for the share of zeros, are compared with.

Hong, Yue, "EfficientGrad", 2021, following Ye et al., "Accelerating CNN Training by Pruning Activation
Gradients", ECCV 2020: gradients are taken for a Gaussian, of whose elements the share P is below the
threshold. Of those, many are kept by chance, so that P is not the share of zeros.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor, nn

from flower_edge.training import Rule, SignFeedback
from flower_edge.training.pruning import PrunedFeedback, Pruner


class GaussianPruner(Pruner):
    """Prunes by a Gaussian fit; its `sparsity` is P."""

    def threshold(self, grad: Tensor) -> float:
        """Return the threshold below which the share P of a Gaussian with the same mean magnitude is."""
        deviation = float(grad.abs().mean()) * math.sqrt(math.pi / 2)
        return deviation * NormalDist().inv_cdf((1 + self.sparsity_now()) / 2)


@dataclass(frozen=True)
class PublishedFeedback(SignFeedback):
    """Sign feedback with published thresholds; `sparsity` is P."""

    def rule(self, layer: nn.Module) -> Rule:
        """Set how both gradients are formed."""
        part = super().rule(layer).grad_weight
        assert isinstance(part, PrunedFeedback)
        part = PrunedFeedback(part.signs, part.measured, GaussianPruner(self.sparsity, self.schedule))
        return Rule(grad_input=part, grad_weight=part)
