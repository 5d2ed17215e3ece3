"""Every method on a GPU: nothing insists on the CPU, and gradients are those that the CPU finds."""

import copy
from collections.abc import Iterator

import pytest
import torch
from small_models import BATCH, Chain
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flower_edge.gossip import Layout
from flower_edge.training import (
    ElasticTrainer,
    FrozenNorm,
    FusedNorm,
    GradientFilter,
    Int8Training,
    LeanActivations,
    Method,
    ModelMethod,
    RangeEvoNorm,
    SignFeedback,
    Time,
    explain,
    gradient_angle,
    prepare_,
    profile,
    pruning_report,
    replace_batchnorm_,
    restore_,
    saved_bytes,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DEVICE = "cuda"


def everywhere(name: str, layer: nn.Module) -> bool:
    return True


def filtering(
    patch_size: int, components: int, basis: str = "walsh", fallback: str = "never"
) -> GradientFilter:
    return GradientFilter(patch_size, components, everywhere, fallback, basis)


def pruning(feedback: str = "exact", fallback: str = "never") -> SignFeedback:
    return SignFeedback(0.8, feedback=feedback, schedule=None, where=everywhere, fallback=fallback)


def in_bytes(error_bits: int, fallback: str = "never", **settings: object) -> Int8Training:
    return Int8Training(error_bits, rounding="nearest", fallback=fallback, **settings)


FILTERS = {
    "one mean a patch": filtering(2, 1),
    "four terms": filtering(4, 4),
    "low frequencies": filtering(8, 9, "fourier"),
}
OTHERS = {
    "pruned": pruning(),
    "pruned, through signs": pruning("sign"),
    "8 bits": in_bytes(8),
    "8 and 16 bits": in_bytes(16),
}
LAYERS = {
    "3×3": (nn.Conv2d(7, 15, 3, padding=1), (3, 7, 15, 9)),
    "stride 2": (nn.Conv2d(8, 33, 3, stride=2, padding=1, bias=False), (2, 8, 31, 7)),
    "1×1": (nn.Conv2d(31, 7, 1), (2, 31, 8, 8)),
    "depthwise": (nn.Conv2d(15, 15, 3, padding=1, groups=15, bias=False), (2, 15, 9, 16)),
    "groups": (nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4), (2, 8, 11, 8)),
}
WHOLE = {
    "filtered": (filtering(2, 1), LeanActivations(), FusedNorm(fallback="never")),
    "filtered, measured": (filtering(2, 1, fallback="measured"), LeanActivations(), FusedNorm()),
    "frozen": (filtering(2, 1), LeanActivations(), FrozenNorm()),
    "default": (GradientFilter(where=everywhere),),
    "pruned": (SignFeedback(where=everywhere),),
    "8 bits": (Int8Training(),),
    "8 bits, chained": (in_bytes(16, chain=True),),
}


@pytest.fixture(autouse=True)
def _float32_is_exact() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def off(received: Tensor, expected: Tensor) -> float:
    return float((received.detach().cpu() - expected.detach()).norm() / expected.detach().norm())


def found(layer: nn.Conv2d, method: Method, x: Tensor, seen: Tensor, device: str) -> list[Tensor]:
    """Return the output and all gradients of a layer that was prepared and moved."""
    prepared = prepare_(nn.Sequential(copy.deepcopy(layer)), method).to(device)
    given = x.detach().clone().to(device).requires_grad_()
    torch.manual_seed(7)
    y = prepared(given)
    y.backward(seen.to(device))
    return [y, given.grad, *(parameter.grad for parameter in prepared.parameters())]


def losses(model: nn.Module, device: str, steps: int = 4) -> list[float]:
    model = model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, targets = (part.to(device) for part in BATCH)
    reached = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), targets)
        loss.backward()
        optimizer.step()
        reached.append(loss.item())
    return reached


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", [*FILTERS, *OTHERS])
def test_gradients_are_those_of_the_cpu(method: str, name: str, layout: torch.memory_format) -> None:
    layer, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    seen = torch.randn(layer(x).shape, generator=generator).contiguous(memory_format=layout)
    chosen = {**FILTERS, **OTHERS}[method]

    on_cpu = found(layer, chosen, x, seen, "cpu")
    on_gpu = found(layer, chosen, x, seen, DEVICE)

    for received, expected in zip(on_gpu, on_cpu, strict=True):
        assert received.device.type == DEVICE
        assert off(received, expected) < 1e-5


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_learns_as_on_the_cpu(name: str) -> None:
    torch.manual_seed(2)
    model = Chain()
    methods: tuple[Method | ModelMethod, ...] = WHOLE[name]

    on_cpu = losses(prepare_(copy.deepcopy(model), *methods), "cpu")
    on_gpu = losses(prepare_(copy.deepcopy(model), *methods), DEVICE)

    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-2)
    assert on_gpu[-1] == pytest.approx(on_cpu[-1], rel=0.15)
    assert on_gpu[-1] < on_gpu[0]


def test_layers_without_batch_statistics() -> None:
    torch.manual_seed(3)
    model = replace_batchnorm_(Chain())
    assert any(isinstance(module, RangeEvoNorm) for module in model.modules())

    on_cpu, on_gpu = losses(copy.deepcopy(model), "cpu"), losses(copy.deepcopy(model), DEVICE)

    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("name", ["filtered", "default", "pruned", "8 bits"])
def test_autocast(name: str) -> None:
    model = prepare_(Chain(), *WHOLE[name]).to(DEVICE)
    x, targets = (part.to(DEVICE) for part in BATCH)

    with torch.autocast(DEVICE, torch.bfloat16):
        loss = cross_entropy(model(x), targets)
    loss.backward()

    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("method", FILTERS)
def test_compiles_whole(method: str) -> None:
    torch.manual_seed(4)
    model = prepare_(Chain(), FILTERS[method]).to(DEVICE)
    x, targets = (part.to(DEVICE) for part in BATCH)
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        cross_entropy(run(x), targets).backward()
        gradients.append([parameter.grad.cpu() for parameter in model.parameters()])

    assert all(off(compiled, eager) < 1e-4 for eager, compiled in zip(*gradients, strict=True))


def test_what_reports_on_a_model() -> None:
    model = prepare_(Chain(), pruning()).to(DEVICE)
    x, targets = (part.to(DEVICE) for part in BATCH)
    losses(model, DEVICE)

    assert pruning_report(model).sparsity == pytest.approx(0.8, abs=0.02)
    assert 0 < gradient_angle(model, (x, targets), cross_entropy).degrees < 90
    assert saved_bytes(model, (x, targets), cross_entropy).total > 0
    assert len(explain(model).layers) == 3
    assert type(restore_(model)[2]) is nn.Conv2d


def test_profiles_are_of_the_cpu() -> None:
    model = Chain().to(DEVICE)
    batch = tuple(part.to(DEVICE) for part in BATCH)

    with pytest.raises(ValueError, match="expected a model on the CPU"):
        profile(model, batch, cross_entropy)
    trainer = ElasticTrainer(model, torch.optim.SGD(model.parameters(), 0.1), cross_entropy, Time(0.5))
    with pytest.raises(ValueError, match="expected a model on the CPU"):
        trainer.select(batch)


def test_a_model_becomes_the_vector_that_nodes_send() -> None:
    model = Chain().to(DEVICE)
    layout = Layout.of(model.state_dict())

    vector, carried = layout.flatten(model.state_dict())
    model.load_state_dict(layout.unflatten_torch(vector * 2, carried))

    torch.testing.assert_close(layout.flatten(model.state_dict())[0], vector * 2)
