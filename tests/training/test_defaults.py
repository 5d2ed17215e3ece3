"""Torch's default dtype and device decide nothing of a float32 model on the CPU that exists already."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flower_edge.training import (
    FrozenNorm,
    FusedNorm,
    GradientFilter,
    Int8Training,
    LeanActivations,
    Method,
    SignFeedback,
    prepare_,
    replace_batchnorm_,
)


def everywhere(name: str, layer: nn.Module) -> bool:
    return True


METHODS: dict[str, tuple[Method, ...]] = {
    "Range-EvoNorm": (),
    "fused": (FusedNorm(fallback="never"), LeanActivations()),
    "frozen": (FrozenNorm(), GradientFilter(2, where=everywhere, basis="walsh", fallback="never")),
    "Fourier": (GradientFilter(where=everywhere, fallback="never"),),
    "pruned": (SignFeedback(feedback="sign", where=everywhere, fallback="never"),),
    "8 bits": (Int8Training(fallback="never"),),
    "chained": (Int8Training(fallback="never", chain=True),),
}


@contextmanager
def defaults(dtype: torch.dtype, device: str | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with nullcontext() if device is None else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)),
    )
    if name in ("Range-EvoNorm", "chained"):
        replace_batchnorm_(model)
    return prepare_(model, *METHODS[name]) if METHODS[name] else model


def step(model: nn.Module, x: Tensor, targets: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    cross_entropy(model(x), targets).backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.float64, None), (torch.bfloat16, None), (torch.float32, "meta")]
)
def test_a_step_is_the_same(name: str, dtype: torch.dtype, device: str | None) -> None:
    if device is not None and name == "chained":
        name = "Range-EvoNorm"  # modes of torch, as that of a default device, see layers that do not chain
    model = network(name)
    other = copy.deepcopy(model)
    x = torch.randn(4, 3, 27, 26).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(4)
    torch.manual_seed(1)
    expected = step(model, x, targets)
    torch.manual_seed(1)
    with defaults(dtype, device):
        received = step(other, x, targets)
    for ours, theirs in zip(received, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
