"""Pruning in torch's own operations, and with published thresholds: what accuracy runs use.

Random numbers of the kernels are slow to make in torch, where the extension is missing; torch's own have the
same distribution.

The published threshold: Hong, Yue, "EfficientGrad", 2021, following Ye et al., "Accelerating CNN Training by
Pruning Activation Gradients", ECCV 2020. Gradients are taken for a Gaussian, of whose elements the share P is
below the threshold. Of those, many are kept by chance, so that P is not the share of zeros.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from flower_edge.kernels._pruned import PrunedGradient
from flower_edge.training import Rule, SignFeedback
from flower_edge.training.pruning import PrunedFeedback, Pruner

_SAMPLED = 2**16


class TorchPruner(Pruner):
    """Prunes as the kernels do, by torch's random numbers."""

    def threshold(self, grad: Tensor) -> float:
        """Solve for the share of zeros, beginning with a sample."""
        magnitudes = grad.abs().permute(0, 2, 3, 1).flatten()
        wanted = self.sparsity_now()
        if int(magnitudes.count_nonzero()) <= (1 - wanted) * len(magnitudes):
            return 0.0
        first = float(magnitudes.mean()) / (1 - wanted)
        # An odd step, so that all channels are sampled.
        sample = magnitudes[:: len(magnitudes) // _SAMPLED | 1]
        return _solved(magnitudes, wanted, _solved(sample, wanted, first, 30), 1)

    def prune(self, grad: Tensor, threshold: float) -> PrunedGradient:
        """Keep what is large, and some of what is small."""
        generator = torch.Generator(grad.device).manual_seed(self.seed_now())
        chances = torch.empty_like(grad, memory_format=torch.channels_last).uniform_(generator=generator)
        kept = grad.abs() > chances.mul_(threshold)
        values = grad.abs().clamp_(min=threshold).copysign_(grad).mul_(kept)
        values = values.contiguous(memory_format=torch.channels_last)
        images, channels, height, width = grad.shape
        shape = (images, channels, height, width)
        return PrunedGradient(shape, threshold, int(values.count_nonzero()), values)


def _solved(magnitudes: Tensor, sparsity: float, threshold: float, steps: int) -> float:
    """Improve a threshold by Newton's method."""
    for _ in range(steps):
        below = magnitudes < threshold
        wanted = int(below.count_nonzero()) - sparsity * len(magnitudes)
        better = float(magnitudes @ below.to(magnitudes.dtype)) / wanted if wanted > 0 else 2 * threshold
        if abs(better - threshold) <= 1e-4 * threshold:
            return better
        threshold = better
    return threshold


class GaussianPruner(TorchPruner):
    """Prunes by a Gaussian fit; its `sparsity` is P."""

    def threshold(self, grad: Tensor) -> float:
        """Return the threshold below which the share P of a Gaussian with the same mean magnitude is."""
        deviation = float(grad.abs().mean()) * math.sqrt(math.pi / 2)
        return deviation * NormalDist().inv_cdf((1 + self.sparsity_now()) / 2)


@dataclass(frozen=True)
class TorchFeedback(SignFeedback):
    """Sign feedback that prunes in torch."""

    pruner: type[Pruner] = TorchPruner

    def rule(self, layer: nn.Module) -> Rule:
        """Set how both gradients are formed."""
        part = super().rule(layer).grad_weight
        assert isinstance(part, PrunedFeedback)
        part = PrunedFeedback(part.signs, part.measured, self.pruner(self.sparsity, self.schedule))
        return Rule(grad_input=part, grad_weight=part)
