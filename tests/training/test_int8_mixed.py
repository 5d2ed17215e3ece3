"""Layers that hand bytes to each other beside layers that do not, other parameters, and readers of maps."""

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flower_edge.kernels._int8_quantise import dequantise
from flower_edge.training import (
    FusedNorm,
    Int8Training,
    LeanActivations,
    Method,
    RangeEvoNorm,
    SignFeedback,
    prepare_,
    saved_bytes,
)
from flower_edge.training._quantised_map import QuantisedMap

pytestmark = pytest.mark.board

CHAIN = Int8Training(fallback="never", chain=True)
EXACTLY = Int8Training(fallback="never", chain=True, rounding="nearest")


def pairs() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [(nn.Conv2d(8, 8, 3, padding=1), RangeEvoNorm(8, 2)) for _ in range(3)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def gradients(model: nn.Module, size: tuple[int, ...] = (4, 8, 13, 15)) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(size, dtype=next(model.parameters()).dtype).requires_grad_()
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


def off(received: list[Tensor], expected: list[Tensor]) -> float:
    mine, theirs = (
        torch.cat([tensor.double().flatten() for tensor in them]) for them in (received, expected)
    )
    return float((mine - theirs).norm() / theirs.norm())


def without_norm_1(name: str, layer: nn.Module) -> bool:
    return name != "1"


@pytest.mark.parametrize(
    ("methods", "tolerance"),
    [
        ((Int8Training(fallback="never", chain=True, where=without_norm_1),), 0.1),
        ((Int8Training(fallback="never", chain=True, where=lambda name, _: name != "2"),), 0.1),
        (
            (
                Int8Training(fallback="never", chain=True, where=lambda name, _: name != "2"),
                # As good as nothing is pruned.
                SignFeedback(0.01, schedule=None, fallback="never", where=lambda name, _: name == "2"),
            ),
            0.15,
        ),
    ],
    ids=["a norm in floats", "a convolution in floats", "a pruned convolution"],
)
def test_a_layer_of_floats_reads_maps_of_bytes(methods: tuple[Method, ...], tolerance: float) -> None:
    expected = gradients(pairs())
    assert off(gradients(prepare_(pairs(), *methods)), expected) < tolerance


def test_a_norm_in_eval_mode_reads_maps_of_bytes() -> None:
    expected = gradients(pairs())
    model = prepare_(pairs(), CHAIN)
    model[1].eval()
    assert off(gradients(model), expected) < 0.1


@pytest.mark.parametrize("fallback", ["never", "measured"])
def test_fused_norms_read_maps_of_bytes(fallback: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    model = model.to(memory_format=torch.channels_last)
    expected = gradients(copy.deepcopy(model), (8, 8, 32, 32))
    received = gradients(prepare_(model, CHAIN, FusedNorm(fallback=fallback)), (8, 8, 32, 32))
    assert off(received, expected) < 0.1


@pytest.mark.parametrize(
    "change",
    [nn.Module.double, nn.Module.bfloat16],
    ids=["float64", "bfloat16"],
)
def test_parameters_of_norms_in_another_dtype(change: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(pairs()[0], pairs()[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    expected = gradients(prepare_(copy.deepcopy(model), EXACTLY))
    prepare_(model, EXACTLY)
    change(model[1])
    received = gradients(model)
    for mine, theirs in zip(received, expected, strict=True):
        assert off([mine], [theirs]) < (0.01 if mine.dtype == torch.bfloat16 else 1e-6)


def test_parameters_with_gaps_in_memory() -> None:
    model = prepare_(pairs(), EXACTLY)
    expected = gradients(copy.deepcopy(model))
    for layer in model:
        for name, parameter in list(layer.named_parameters()):
            if parameter.dim() == 1:
                spread = torch.zeros(2 * len(parameter))
                spread[::2] = parameter.detach()
                setattr(layer, name, nn.Parameter(spread[::2]))
    assert model[1].v.stride() == (2,)
    assert all(map(torch.equal, gradients(model), expected))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = RangeEvoNorm(channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.conv(x)


@pytest.mark.parametrize(("channels", "side"), [(16, 1), (1, 8), (8, 4)])
def test_sums_of_maps_with_sides_of_1(channels: int, side: int) -> None:
    torch.manual_seed(0)
    model = Residual(channels)
    expected = gradients(copy.deepcopy(model), (4, channels, side, side))
    assert off(gradients(prepare_(model, CHAIN), (4, channels, side, side)), expected) < 0.2


def made() -> tuple[QuantisedMap, Tensor]:
    y = prepare_(pairs(), CHAIN)[:2](torch.randn(2, 8, 5, 7)).detach()
    assert isinstance(y, QuantisedMap)
    return y, dequantise(y.cells.quantised())


def test_a_view_and_its_map_see_each_other() -> None:
    y, floats = made()
    other, more = made()
    view = y[:, :4]
    y += other
    assert torch.equal(view, (floats + more)[:, :4])
    torch.relu_(y)
    assert torch.equal(view, (floats + more).relu()[:, :4])
    prepare_(RangeEvoNorm(8, 2), CHAIN)(y)
    view.zero_()
    assert not (y[:, :4]).any()
    assert y[:, 4:].any()


def test_maps_can_be_read_as_usual_tensors_can() -> None:
    y, floats = made()
    assert np.array_equal(y.numpy(), floats.numpy())
    assert np.array_equal(np.asarray(y.cpu()), floats.numpy())
    assert y.tolist() == floats.tolist()
    copied = copy.deepcopy(y)
    assert type(copied) is Tensor
    assert torch.equal(copied, floats)
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    assert torch.equal(torch.load(file), floats)
    leaf = y.detach().requires_grad_()
    with pytest.raises(RuntimeError, match="requires grad"):
        leaf.numpy()
    assert np.array_equal(leaf.numpy(force=True), floats.numpy())
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(leaf * 1 + leaf)


def test_lean_activations_leave_bytes_alone() -> None:
    torch.manual_seed(0)
    norm = RangeEvoNorm(16, 2, activation=False)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(16, 8, 1))
    x = torch.randn(4, 8, 33, 33)
    alone, both = (prepare_(copy.deepcopy(model), *them) for them in ((CHAIN,), (CHAIN, LeanActivations())))
    assert type(both[:3](x)) is QuantisedMap
    saved = [saved_bytes(net, (x, x), lambda y, _: y.sum()).total for net in (alone, both)]
    assert saved[0] == saved[1]
