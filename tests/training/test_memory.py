"""Bytes that a forward pass holds: against counts by hand."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flower_edge.training.memory import saved_bytes

pytestmark = pytest.mark.board

FLOATS = 4


def batch(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)


def total(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return output.sum()


def test_counts_what_layers_save() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 2, 1))

    found = saved_bytes(model, batch(4, 3, 6, 5), total)

    hidden = 4 * 8 * 6 * 5 * FLOATS
    # The second convolution saves what the first activation has saved already.
    assert found.by_module == {"1": hidden, "0": 4 * 3 * 6 * 5 * FLOATS}
    assert found.total == sum(found.by_module.values())
    assert list(found.by_module) == ["1", "0"]


def test_views_of_one_storage_count_once() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:3] * self.weight[:3] + x[3:] * self.weight[3:] + x.flip(0)[:3].abs()

    x = torch.randn(6)
    found = saved_bytes(Views(), (x, x), total)

    assert found.total == 6 * FLOATS


def test_parameters_and_buffers_do_not_count() -> None:
    model = nn.Linear(1000, 10, bias=False)
    assert saved_bytes(model, batch(2, 1000), total).total == 2 * 1000 * FLOATS
    # A layer that is not trained saves no input, and for the gradient of its input only its weight.
    model.weight.requires_grad_(False)
    stem = nn.Linear(10, 1000, bias=False)
    assert saved_bytes(nn.Sequential(stem, model), batch(2, 10), total).total == 2 * 10 * FLOATS


def test_the_loss_counts_under_no_name() -> None:
    found = saved_bytes(nn.Linear(3, 5), batch(4, 3), cross_entropy)
    assert found.by_module[""] >= 4 * 5 * FLOATS


def test_nothing_changes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    given = batch(2, 3, 5, 5)
    random = torch.get_rng_state()

    saved_bytes(model, given, total)

    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_go_when_the_model_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 6))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        saved_bytes(model, batch(2, 3), total)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        assert saved_bytes(nn.Linear(3, 5), batch(4, 3), total).total == 4 * 3 * FLOATS


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter of the model requires gradients"):
        saved_bytes(nn.Linear(3, 5).requires_grad_(False), batch(4, 3), total)
