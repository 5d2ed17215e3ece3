"""One training step of every method, on any machine: `python steps.py` fails if one of them does not work."""

import platform
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flower_edge.kernels import explain
from flower_edge.training import (
    ElasticTrainer,
    FrozenNorm,
    GradientFilter,
    Int8Training,
    LeanActivations,
    SignFeedback,
    Time,
    all_but_stem,
    prepare_,
    replace_batchnorm_,
)

Prepare = Callable[[nn.Module], object]


def prepared(*methods: object) -> Prepare:
    """Return what puts methods on a model."""
    return lambda model: prepare_(model, *methods)


FOURIER = GradientFilter(where=all_but_stem, fallback="never")
INT8 = Int8Training(fallback="never")
METHODS: dict[str, Prepare | None] = {
    "exact": lambda model: model,
    "filtered gradients, Fourier": prepared(FOURIER),
    "filtered gradients, 2×2 means": prepared(
        GradientFilter(2, where=all_but_stem, fallback="never", basis="walsh")
    ),
    "filtered gradients, 4×4 Walsh, lean activations, frozen norm": prepared(
        GradientFilter(4, where=all_but_stem, fallback="never", basis="walsh"),
        LeanActivations(),
        FrozenNorm(),
    ),
    "lean activations": prepared(LeanActivations()),
    "frozen norm": prepared(FrozenNorm()),
    "8 bits": prepared(INT8),
    "Range-EvoNorm": replace_batchnorm_,
    "8 bits, Range-EvoNorm": lambda model: prepare_(replace_batchnorm_(model), INT8),
    "8 bits from layer to layer, Range-EvoNorm": lambda model: prepare_(
        replace_batchnorm_(model), Int8Training(fallback="never", chain=True)
    ),
    "pruned gradients": prepared(SignFeedback(fallback="never")),
    "pruned gradients, sign feedback": prepared(SignFeedback(feedback="sign", fallback="never")),
    "elastic training": None,
}


def network() -> nn.Module:
    """Two convolutions with what stands beside them in real networks."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)),
        *(nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    ).to(memory_format=torch.channels_last)


def step(prepare: Prepare | None) -> tuple[float, float]:
    """Take two steps on the same batch; return the loss before the first and after it."""
    model = network().train()
    if prepare:
        prepare(model)
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    if prepare is None:
        ElasticTrainer(model, optimizer, cross_entropy, Time(0.6)).select(batch)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[1]


def trainer(node: int) -> tuple[dict, Callable]:
    """Return what a node of a gossip trains: the network, on a batch of its own."""
    model = network().train()
    generator = torch.Generator().manual_seed(node)
    batch = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def train(arrays: dict, round: int) -> tuple[dict, dict]:
        model.load_state_dict(arrays)
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return model.state_dict(), {"loss": loss.item()}

    return model.state_dict(), train


if __name__ == "__main__":
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    print(explain())
    for name, prepare in METHODS.items():
        begin = time.perf_counter()
        before, after = step(prepare)
        assert after < before, f"{name}: loss {before} before the step, {after} after it"
        print(
            f"{name}: loss {before:.4f} → {after:.4f} ({time.perf_counter() - begin:.1f} s, emulated or not)"
        )
