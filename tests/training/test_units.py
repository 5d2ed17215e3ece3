"""Which tensors are of one layer."""

import torch
from small_models import Tied
from torch import Tensor, nn
from torch.nn import functional

from flower_edge.training import profile
from flower_edge.training.units import layer_units


def units(model: nn.Module, inputs: Tensor) -> set[frozenset[str]]:
    targets = torch.zeros(len(inputs), dtype=torch.long)
    measured = profile(model, (inputs, targets), functional.cross_entropy, repeats=1)
    found = layer_units(measured)
    assert sorted(name for unit in found for name in unit) == sorted(measured.graph.tensor_names)
    return {frozenset(unit) for unit in found}


class Mixed(nn.Module):
    """Normalisations after a layer, after a sum, after an activation, and after another normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.twice = nn.RMSNorm(6)
        self.second, self.sum_norm = nn.Linear(6, 6, bias=False), nn.LayerNorm(6)
        self.third, self.late_norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.first_norm(self.first(x)))
        x = self.sum_norm(x + self.second(x))
        return self.late_norm(torch.tanh(self.third(x)))


def test_a_normalisation_is_of_the_layer_that_it_reads_directly() -> None:
    assert units(Mixed(), torch.randn(5, 6)) == {
        frozenset({"first.weight", "first.bias", "first_norm.weight", "first_norm.bias"}),
        frozenset({"twice.weight"}),
        frozenset({"second.weight"}),
        frozenset({"sum_norm.weight", "sum_norm.bias"}),
        frozenset({"third.weight", "third.bias"}),
        frozenset({"late_norm.weight", "late_norm.bias"}),
    }


def test_layers_that_share_a_tensor_are_one() -> None:
    assert units(Tied(), torch.arange(6).reshape(2, 3)) == {
        frozenset({"embedding.weight"}),
        frozenset({"layer.weight", "layer.bias"}),
    }
