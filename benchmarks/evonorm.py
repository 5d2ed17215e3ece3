"""EvoNorm-S0 in plain torch: what Range-EvoNorm is compared with, in time and in accuracy."""

import torch
from torch import Tensor, nn

from flower_edge.training import RangeEvoNorm


class EvoNorm(nn.Module):
    """EvoNorm-S0 (Liu, Brock, Simonyan, Le, NeurIPS 2020, table 2): x σ(v x) over the groups' deviation.

    Parameters
    ----------
    like : RangeEvoNorm
        Gives channels, groups, and whether to activate; its parameters become those of this layer.
    """

    def __init__(self, like: RangeEvoNorm) -> None:
        super().__init__()
        self.groups, self.eps = like.groups, like.eps
        self.weight, self.bias, self.v = like.weight, like.bias, like.v

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch of shape (N, C, H, W)."""
        n, c, h, w = x.shape
        grouped = x.reshape(n, self.groups, c // self.groups, h, w)
        variance = grouped.var((2, 3, 4), unbiased=False, keepdim=True).expand_as(grouped).reshape(x.shape)
        if self.v is not None:
            x = x * torch.sigmoid(x * self.v.view(-1, 1, 1))
        y = x / torch.sqrt(variance + self.eps)
        return y if self.weight is None else y * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def replace_range_evonorm_(model: nn.Module) -> nn.Module:
    """Replace every RangeEvoNorm with the EvoNorm that has its place and its parameters."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, RangeEvoNorm):
                setattr(module, name, EvoNorm(child))
    return model
