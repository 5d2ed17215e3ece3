"""Small models to train some tensors of."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
BATCH = (IMAGES, CLASSES)


class Chain(nn.Sequential):
    """A stem, two convolutions with normalisations, and a head: 10 tensors."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        )


class TwoBranches(nn.Module):
    """A residual block between stem and head, a convolution in its shortcut, and dropout: 10 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.main = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.main_norm = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.main_norm(self.main(x))
        y += self.shortcut(x)
        y = functional.adaptive_avg_pool2d(self.relu(y), 1).flatten(1)
        return self.head(self.dropout(y))


class Checkpointed(nn.Module):
    """Its body runs again in the backward pass, if `kind` is True (re-entrant) or False."""

    def __init__(self, kind: bool | None) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(192, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 5)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        x = self.body(x) if self.kind is None else checkpoint(self.body, x, use_reentrant=self.kind)
        return self.head(x)


class Tied(nn.Module):
    """Its head reads the embedding's weight again."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)).mean(1))
