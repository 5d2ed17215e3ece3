import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from flower_edge.training import (
    FrozenNorm,
    FusedNorm,
    GradientFilter,
    LeanActivations,
    _choice,
    explain,
    last,
    prepare_,
    restore_,
)
from flower_edge.training._choice import Measurement

pytestmark = pytest.mark.board

NEVER = GradientFilter(where=last(9), fallback="never", basis="walsh")


def model(channels: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, stride=2, groups=channels),
        nn.Conv2d(channels, 4, 1),
    )


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, 13, 10)), generator=torch.Generator().manual_seed(1))


def step(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    net.zero_grad()
    net(x).square().mean().backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


def assert_same(mine: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def differ(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(mine, theirs, strict=True))


@pytest.fixture
def clock(monkeypatch):
    """Let a test decide what the clock shows; it counts how often it was asked."""

    class Clock:
        def __init__(self) -> None:
            self.exact_seconds, self.filtered_seconds, self.asked = 2.0, 1.0, 0

        def measure(self, x, weight, conv) -> Measurement:
            self.asked += 1
            return Measurement(self.exact_seconds, self.filtered_seconds)

    clock = Clock()
    monkeypatch.setattr(_choice, "_known", {})
    monkeypatch.setattr(_choice, "_measure", clock.measure)
    return clock


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"patch_size": 0}, ValueError, "patch_size is 0, expected at least 1"),
        ({"patch_size": 2.0}, TypeError, "patch_size is 2.0, expected an int"),
        ({"patch_size": True}, TypeError, "patch_size is True"),
        ({"components": -1}, ValueError, "components is -1"),
        ({"components": 5}, ValueError, "components is 5, expected at most 4"),
        ({"patch_size": 3, "components": 2}, ValueError, "square of 2, 4, 8 or 16"),
        ({"patch_size": 32, "components": 2}, ValueError, "square of 2, 4, 8 or 16"),
        ({"where": "last"}, TypeError, "where is 'last', expected last"),
        ({"where": 4}, TypeError, "where is 4"),
        ({"fallback": "always"}, ValueError, "fallback is 'always', expected 'measured' or 'never'"),
    ],
)
def test_settings_are_checked(wrong, error, message) -> None:
    with pytest.raises(error, match=message):
        GradientFilter(**wrong, basis="walsh")


@pytest.mark.parametrize(
    ("count", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)]
)
def test_last_wants_a_number_of_layers(count, error) -> None:
    with pytest.raises(error, match=r"last\(\) takes"):
        last(count)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [1, 2, 3, (4, 5)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_padding_by_name(padding, kernel, dilation) -> None:
    layer = nn.Conv2d(3, 4, kernel, padding=padding, dilation=dilation)
    x = batch(2, 3, 32, 34).requires_grad_()
    exact = layer(x)
    prepare_(layer, NEVER)

    y = layer(x)

    torch.testing.assert_close(y, exact)
    grad = torch.zeros_like(y)
    # Where no tap reads padding, the means of both gradients are equal.
    grad[:, :, 8:-8, 8:-8] = torch.randn_like(grad[:, :, 8:-8, 8:-8])
    found, theirs = (torch.autograd.grad(out, x, grad)[0] for out in (y, exact))
    torch.testing.assert_close(found.sum((2, 3)), theirs.sum((2, 3)), rtol=1e-4, atol=1e-4)


def test_an_image_without_a_batch() -> None:
    net = prepare_(model(), NEVER)

    assert_same(step(net, batch(3, 13, 10)), step(net, batch(3, 13, 10)[None]))


def test_an_empty_batch() -> None:
    net = prepare_(model(), NEVER)

    net(torch.empty(0, 3, 8, 8)).sum().backward()

    assert all(not parameter.grad.any() for parameter in net.parameters())


def test_wrong_input_gets_torchs_own_error() -> None:
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 5 channels"):
        prepare_(model(), NEVER)(torch.randn(1, 5, 8, 8))


@pytest.mark.parametrize("frozen", ["weight", "bias", "both", "all but the first layer's"])
def test_frozen_parameters(frozen) -> None:
    net, x = prepare_(model(), NEVER), batch().requires_grad_()
    everything = dict(zip([name for name, _ in net.named_parameters()], step(net, x), strict=True))
    grad_x, x.grad = x.grad, None
    for name, parameter in net.named_parameters():
        kind = name.rpartition(".")[2]
        still = not name.startswith("0.") if frozen.startswith("all") else frozen in (kind, "both")
        parameter.requires_grad_(not still)

    net.zero_grad(set_to_none=True)
    net(x).square().mean().backward()

    torch.testing.assert_close(x.grad, grad_x)
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, everything[name])
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference_mode"])
def test_nothing_is_saved_or_measured_without_training(mode, clock) -> None:
    net, x = model(), batch()
    expected = net(x)
    prepare_(net, GradientFilter(where=last(9), basis="walsh"))
    nodes = set()

    if mode == "eval":
        y = net.eval()(x)
        nodes = {y.grad_fn.name()}
        assert_same(step(net, x), step(restore_(model()), x))
        assert {layer.why for layer in explain(net).layers} == {"in eval mode"}
    else:
        with getattr(torch, mode)():
            y = net(x)

    assert torch.equal(y, expected)
    assert clock.asked == 0
    assert not any("Filtered" in name for name in nodes)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(layout, components, dynamic) -> None:
    torch._dynamo.reset()
    net = prepare_(model(), GradientFilter(components=components, where=last(9), basis="walsh"))
    x = batch().contiguous(memory_format=layout)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)

    found = step(compiled, x)

    assert all(layer.measurement is None for layer in net if hasattr(layer, "measurement"))
    prepare_(
        restore_(net), GradientFilter(components=components, where=last(9), fallback="never", basis="walsh")
    )
    assert_same(found, step(net, x))


@pytest.mark.parametrize("method", [NEVER, GradientFilter(where=last(9), fallback="never")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compilers_see_what_no_kernel_serves(method, dynamic) -> None:
    """As on a GPU: torch's operations are in the graph; an operator of ours only where sizes are unknown."""
    # Of one process, torch compiles a code eight times.
    torch.compiler.reset()
    net, x = prepare_(model(), method).double(), batch().double()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_same(step(compiled, x), step(net, x), 1e-12)

    with torch.profiler.profile() as seen:
        step(compiled, x)

    assert dynamic or not any(event.key.startswith("flower_edge::") for event in seen.key_averages())
    assert_same(step(compiled, x[:1]), step(net, x[:1]), 1e-12)


def test_compiled_layers_do_what_was_measured_before(clock) -> None:
    torch._dynamo.reset()
    net, x = model(), batch()
    exact = step(net, x)
    prepare_(net, GradientFilter(where=last(9), basis="walsh"))
    clock.filtered_seconds = 3.0
    net(x)

    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")

    assert_same(step(compiled, x), exact)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast(layout) -> None:
    net = prepare_(model(), NEVER)
    x = batch().contiguous(memory_format=layout)
    expected = step(net, x)
    net.zero_grad()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
        loss = y.float().square().mean()
    loss.backward()

    assert y.dtype == torch.bfloat16
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert float((parameter.grad - gradient).norm()) < 0.05 * float(gradient.norm())


def test_backward_inside_autocast_keeps_float32() -> None:
    net, x = prepare_(nn.Sequential(model(), nn.Conv2d(4, 6, 3, groups=2)), NEVER), batch()
    expected = step(net, x)
    net.zero_grad()
    loss = net(x).square().mean()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.backward()

    assert_same([parameter.grad for parameter in net.parameters()], expected, 1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("fallback", ["measured", "never"])
def test_checkpointing(use_reentrant, fallback) -> None:
    net, x = (
        prepare_(model(), GradientFilter(where=last(9), fallback=fallback, basis="walsh")),
        batch().requires_grad_(),
    )
    expected = step(net, x)
    net.zero_grad()

    checkpoint(net, x, use_reentrant=use_reentrant).square().mean().backward()

    assert_same([parameter.grad for parameter in net.parameters()], expected)


def test_equal_layers_are_measured_once(clock) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)))
    prepare_(net, GradientFilter(where=last(3), basis="walsh"))

    for _ in range(3):
        step(net, batch(2, 4, 8, 8))
    assert clock.asked == 1

    step(net, batch(2, 4, 8, 8).contiguous(memory_format=torch.channels_last))
    step(net, batch(1, 4, 8, 8))
    assert clock.asked == 3

    net[3].weight.requires_grad_(False)
    net(batch(2, 4, 8, 8)).sum().backward()
    assert clock.asked == 4


def paths(net: nn.Module) -> set[str]:
    return {layer.path for layer in explain(net).layers}


def test_a_close_call_is_measured_again(clock) -> None:
    net, x = prepare_(nn.Conv2d(4, 4, 3), GradientFilter(where=last(1), basis="walsh")), batch(2, 4, 8, 8)
    clock.exact_seconds, clock.filtered_seconds = 2.0, 3.0
    for _ in range(15):
        step(net, x)
    assert clock.asked == 1
    assert paths(net) == {"exact"}

    # Another process has gone; now the exact pass is disturbed, and its earlier time stays.
    clock.exact_seconds, clock.filtered_seconds = 9.0, 1.5
    step(net, x)
    assert clock.asked == 2
    assert paths(net) == {"filtered"}
    assert net.measurement == Measurement(2.0, 1.5)

    clock.filtered_seconds = 1.0
    for _ in range(300):
        net(x)
    assert clock.asked == 3
    assert net.measurement == Measurement(2.0, 1.0)


def test_a_clear_call_is_measured_once(clock) -> None:
    net, x = prepare_(nn.Conv2d(4, 4, 3), GradientFilter(where=last(1), basis="walsh")), batch(2, 4, 8, 8)

    for _ in range(300):
        net(x)

    assert clock.asked == 1


def test_a_gain_below_a_twentieth_is_no_reason_to_keep_the_input(clock) -> None:
    net, x = prepare_(nn.Conv2d(4, 4, 3), GradientFilter(where=last(1), basis="walsh")), batch(2, 4, 8, 8)
    clock.exact_seconds, clock.filtered_seconds = 0.97, 1.0

    step(net, x)

    assert paths(net) == {"filtered"}


def test_what_is_checkpointed_keeps_its_path(clock) -> None:
    net, x = prepare_(nn.Conv2d(4, 4, 3), GradientFilter(where=last(1), basis="walsh")), batch(2, 4, 8, 8)
    clock.filtered_seconds = 3.0
    checkpoint(net, x, use_reentrant=False).sum().backward()
    clock.filtered_seconds = 1.0

    for _ in range(20):
        checkpoint(net, x, use_reentrant=False).sum().backward()

    assert clock.asked == 1
    assert paths(net) == {"exact"}


@pytest.mark.parametrize(("filtered_seconds", "path"), [(3.0, "exact"), (1.0, "filtered")])
def test_the_faster_path_is_taken_and_explained(clock, filtered_seconds, path) -> None:
    clock.filtered_seconds = filtered_seconds
    net, x = model(), batch()
    exact = step(net, x)
    prepare_(net, GradientFilter(where=last(2), basis="walsh"))

    found = step(net, x)

    assert differ(found, exact) == (path == "filtered")
    layers = explain(net).layers
    assert [(layer.name, layer.path) for layer in layers] == [("2", path), ("3", path)]
    assert {layer.exact_seconds for layer in layers} == {2.0}
    table = str(explain(net))
    assert f"{1e3 * filtered_seconds:.3f} ms" in table
    assert {"exact": "1.5x as fast as filtering", "filtered": "2.0x as fast as exact"}[path] in table


def test_a_real_clock_measures_both_paths() -> None:
    net = prepare_(model(5), GradientFilter(where=last(9), basis="walsh"))

    step(net, batch(2, 3, 11, 10))

    for layer in explain(net).layers:
        assert layer.exact_seconds > 0
        assert layer.method_seconds > 0
        known = net.get_submodule(layer.name).measurement
        assert (layer.path == "exact") == known.exact_is_faster


def test_never_measures_nothing(clock) -> None:
    step(prepare_(model(), NEVER), batch())

    assert clock.asked == 0


def test_explain_names_every_prepared_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    prepare_(model, LeanActivations(), FusedNorm())
    paths = [(layer.name, layer.path) for layer in explain(model).layers]
    assert paths == [("1", "fused"), ("2", "lean"), ("3", "lean")]
    assert {layer.path for layer in explain(model.eval()).layers} == {"exact"}
    frozen = prepare_(restore_(model), FrozenNorm())
    assert [layer.path for layer in explain(frozen).layers] == ["exact", "frozen"]


def test_explain() -> None:
    net = model()
    assert str(explain(net)) == "no layer is prepared: every backward pass is torch's own"

    prepare_(net, GradientFilter(where=last(1), basis="walsh"))
    assert "not measured before its first training step" in str(explain(net))

    prepare_(restore_(net), NEVER)
    net[2].requires_grad_(False)
    whys = [layer.why for layer in explain(net).layers]
    assert 'fallback="never"' in whys[0]
    assert [why.endswith("; its weight is frozen") for why in whys] == [False, True, False]
    with pytest.raises(TypeError, match="model is a int"):
        explain(3)


@pytest.mark.parametrize("transform", ["grad", "vmap"])
@pytest.mark.parametrize("method", [NEVER, GradientFilter(where=last(9), basis="walsh")])
def test_transforms_of_functions_are_refused(transform, method) -> None:
    net, x = prepare_(model(), method), batch()
    parameters = dict(net.named_parameters())

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(net, values, (x,)).sum()

    with pytest.raises(RuntimeError, match=r"transforms of torch.func.*restore_"):
        torch.func.grad(loss)(parameters) if transform == "grad" else torch.func.vmap(net)(x[:, None])
    net.eval()
    exact = torch.func.grad(loss)(parameters)
    assert exact.keys() == parameters.keys()


def test_shapes_without_data() -> None:
    net = prepare_(model().to("meta"), GradientFilter(where=last(9), basis="walsh"))

    net(batch().to("meta")).sum().backward()

    assert all(parameter.grad.is_meta for parameter in net.parameters())
    assert all(layer.exact_seconds is None for layer in explain(net).layers)


def test_tracers_see_operators_and_need_no_data() -> None:
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(function.name())
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), Watch():
        net = prepare_(model(), GradientFilter(where=last(9), basis="walsh"))
        net(torch.randn(2, 3, 8, 8)).sum().backward()

    assert net[0].weight.grad.shape == net[0].weight.shape
    assert {"flower_edge::conv2d_patch_sums", "flower_edge::conv2d_filtered_backward"} <= seen
    assert all(layer.exact_seconds is None for layer in explain(net).layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype) -> None:
    net = prepare_(model(), NEVER)
    expected = step(net, batch())

    found = step(net.to(dtype), batch().to(dtype))

    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert float((mine.float() - theirs).norm()) < 0.05 * float(theirs.norm())


def test_training_learns() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(model(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    x += labels.float()[:, None, None, None]
    prepare_(net, GradientFilter(components=2, where=last(9), fallback="never", basis="walsh"))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)

    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.5 * losses[0]
