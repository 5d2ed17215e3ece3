"""Layers that train by low frequencies of tiles: everything around their gradients."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from flower_edge.training import (
    EdgeConv2d,
    FrozenNorm,
    GradientFilter,
    _choice,
    explain,
    last,
    prepare_,
    restore_,
    saved_bytes,
)
from flower_edge.training._choice import Measurement

pytestmark = pytest.mark.board


def fourier(patch_size: int = 8, components: int = 9, fallback: str = "never") -> GradientFilter:
    return GradientFilter(patch_size, components, where=last(9), basis="fourier", fallback=fallback)


def model(channels: int = 8) -> nn.Sequential:
    """Three layers that filtering pays for, and one that it does not."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 4, 1),
    )


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, 13, 10)), generator=torch.Generator().manual_seed(1))


def step(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    net.zero_grad()
    net(x).square().mean().backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


def assert_same(mine: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


def differ(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"components": 2}, 'components is 2, expected an odd number with basis="fourier"'),
        ({"components": 20}, "the mean, and two for each frequency"),
        ({"components": 0}, "components is 0, expected at least 1"),
        ({"basis": "cosine"}, "basis is 'cosine', expected 'fourier' or 'walsh'"),
        ({"basis": None}, "basis is None"),
        ({"patch_size": 33}, 'patch_size is 33, expected at most 32 with basis="fourier"'),
    ],
)
def test_settings_are_checked(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        GradientFilter(**({"patch_size": 8, "components": 21, "basis": "fourier"} | wrong))


def test_defaults() -> None:
    method = GradientFilter()

    assert (method.basis, method.patch_size, method.components) == ("fourier", 8, 21)
    assert GradientFilter(patch_size=5).components == 21
    with pytest.raises(ValueError, match="components is 21, expected at most 16"):
        GradientFilter(patch_size=4)


@pytest.mark.parametrize(("patch_size", "components"), [(1, 1), (3, 9), (7, 49), (8, 21), (32, 999)])
def test_every_patch_size_takes_odd_numbers_up_to_its_cells(patch_size, components) -> None:
    net = prepare_(model(), fourier(patch_size, components))

    assert all(gradient.isfinite().all() for gradient in step(net, batch()))


@pytest.mark.parametrize(
    ("kernel", "dilation", "reach"), [((1, 33), 1, 33), ((17, 3), (2, 1), 33), (3, (1, 20), 41)]
)
def test_a_kernel_that_no_window_holds_is_refused_before_anything_changes(kernel, dilation, reach) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, kernel, dilation=dilation))

    with pytest.raises(ValueError, match=rf"reaches over {reach} cells.*serves at most 32"):
        prepare_(net, fourier())

    assert not any(isinstance(layer, EdgeConv2d) for layer in net)
    prepare_(net, GradientFilter(where=last(9), basis="walsh"))


def test_more_components_train_more_as_exact_gradients_do() -> None:
    x = batch(2, 3, 14, 14)
    exact = torch.cat([gradient.flatten() for gradient in step(model(), x)])
    distances = []

    for components in (1, 9, 21, 49):
        found = step(prepare_(model(), fourier(7, components)), x)
        distances.append(float((torch.cat([gradient.flatten() for gradient in found]) - exact).norm()))

    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[-1] > 0


def test_layers_that_would_not_save_half_of_their_operations_stay_exact() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 4, 1)
    )
    x = batch(2, 8, 12, 12)
    exact = step(net, x)

    found = step(prepare_(net, fourier()), x)

    assert differ(found[:1], exact[:1])
    assert_same(found[1:], exact[1:])
    layers = explain(net).layers
    assert [layer.path for layer in layers] == ["filtered", "exact", "exact"]
    assert "too few operations saved" in layers[1].why
    # Of a single cell, no frequency can be left out.
    step(net, x[:, :, :1, :1])
    assert [layer.path for layer in explain(net).layers] == ["exact"] * 3
    assert "saves_operations" not in vars(restore_(net)[0])


def test_both_bases_in_one_model() -> None:
    x, net = batch(), model()
    prepare_(net, GradientFilter(8, 9, where=lambda name, _: name == "0", basis="fourier", fallback="never"))
    prepare_(net, GradientFilter(where=lambda name, _: name != "0", basis="walsh", fallback="never"))

    found = step(net, x)

    whys = [layer.why for layer in explain(net).layers]
    assert whys[0] == "GradientFilter(patch_size=8, components=9, basis='fourier'), fallback=\"never\""
    assert "basis='walsh'" in whys[1]
    # The last two layers know nothing of the first one's basis.
    walsh = step(prepare_(model(), GradientFilter(where=last(9), basis="walsh", fallback="never")), x)
    assert_same(found[2:], walsh[2:])
    assert differ(found[:1], walsh[:1])


def test_a_run_can_be_repeated_and_its_state_is_that_of_the_original() -> None:
    nets = [
        nn.Sequential(model(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2)
    ]
    before = {name: tensor.clone() for name, tensor in nets[0].state_dict().items()}
    x, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    x += labels.float()[:, None, None, None]
    losses = []

    for net in nets:
        prepare_(net, fourier())
        assert {name: tensor.shape for name, tensor in net.state_dict().items()} == {
            name: tensor.shape for name, tensor in before.items()
        }
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(40):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    assert losses[:40] == losses[40:]
    assert losses[-1] < 0.5 * losses[0]
    for name, tensor in nets[0].state_dict().items():
        assert torch.equal(tensor, nets[1].state_dict()[name])
    restore_(nets[0]).load_state_dict(before)


def test_copies_compute_what_the_original_does() -> None:
    net, x = prepare_(model(), fourier()), batch()
    expected = step(net, x)

    assert_same(step(copy.deepcopy(net), x), expected, 0)


@pytest.mark.parametrize(("patch_size", "components"), [(4, 5), (4, 9), (8, 9), (8, 21)])
@pytest.mark.parametrize(("channels", "kernel", "stride"), [(16, 3, 1), (16, 3, 2), (33, 5, 1)])
def test_what_is_saved_is_the_components_of_each_tile(
    channels, kernel, stride, patch_size, components
) -> None:
    conv = nn.Conv2d(channels, 16, kernel, stride, kernel // 2)
    x = torch.randn(2, channels, 32 * stride, 32 * stride)
    layer = prepare_(conv, fourier(patch_size, components))

    saved = saved_bytes(layer, (x, torch.zeros(())), lambda y, _: y.sum()).total

    share = components / (patch_size * stride) ** 2
    assert saved == pytest.approx(share * x.nbytes, abs=0.5)


@pytest.mark.parametrize("frozen", ["weight", "bias", "both", "all but the first layer's"])
def test_frozen_parameters(frozen) -> None:
    net, x = prepare_(model(), fourier()), batch().requires_grad_()
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


def test_images_without_a_batch_and_batches_without_images() -> None:
    net = prepare_(model(), fourier())

    assert_same(step(net, batch(3, 13, 10)), step(net, batch(3, 13, 10)[None]))
    net.zero_grad()
    net(torch.empty(0, 3, 8, 8)).sum().backward()
    assert all(not parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(layout, dynamic) -> None:
    torch._dynamo.reset()
    net = prepare_(model(), fourier())
    x = batch().contiguous(memory_format=layout)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)

    assert_same(step(compiled, x), step(net, x))


def test_compiled_once_more_for_a_map_of_which_no_layer_is_filtered() -> None:
    torch._dynamo.reset()
    net = prepare_(model(), fourier())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    step(compiled, batch())

    found = step(compiled, batch()[:, :, :2, :2])

    assert {layer.path for layer in explain(net).layers} == {"exact"}
    assert_same(found, step(net, batch()[:, :, :2, :2]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast(layout) -> None:
    net = prepare_(model(), fourier())
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
    net, x = prepare_(nn.Sequential(model(), nn.Conv2d(4, 6, 3, groups=2)), fourier()), batch()
    expected = step(net, x)
    net.zero_grad()
    loss = net(x).square().mean()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.backward()

    assert_same([parameter.grad for parameter in net.parameters()], expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype) -> None:
    net = prepare_(model(), fourier())
    expected = step(net, batch())

    found = step(net.to(dtype), batch().to(dtype))

    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert float((mine.float() - theirs).norm()) < 0.05 * float(theirs.norm())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant) -> None:
    net, x = prepare_(model(), fourier()), batch().requires_grad_()
    expected = step(net, x)
    net.zero_grad()

    checkpoint(net, x, use_reentrant=use_reentrant).square().mean().backward()

    assert_same([parameter.grad for parameter in net.parameters()], expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_folded_norms_train_as_the_filter_of_their_product(stride, groups) -> None:
    """The oracle filters a plain convolution with the product for a weight; autograd does the rest."""
    torch.manual_seed(stride)
    conv, norm = nn.Conv2d(8, 16, 3, stride, 1, groups=groups), nn.BatchNorm2d(16)
    net = nn.Sequential(conv, norm).double()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 3)
    nn.init.uniform_(norm.weight, -2, 2)
    plain = copy.deepcopy(conv)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64, requires_grad=True)

    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    bias = norm.bias + (conv.bias - norm.running_mean) * scale
    with torch.no_grad():
        plain.weight.copy_(weight)
        plain.bias.copy_(bias)
    y = prepare_(plain, fourier())(x)
    grad = torch.randn_like(y)
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, [x, *plain.parameters()], grad)
    trained = list(net.parameters())
    expected = torch.autograd.grad([weight, bias], trained, [grad_weight, grad_bias])

    found = prepare_(net, FrozenNorm(), fourier())(x)

    assert [layer.path for layer in explain(net).layers] == ["filtered", "frozen"]
    assert_same([found], [y], 1e-10)
    assert_same([*torch.autograd.grad(found, [x, *trained], grad)], [grad_x, *expected], 1e-10)


@pytest.mark.parametrize(("filtered_seconds", "path"), [(3.0, "exact"), (1.0, "filtered")])
def test_the_faster_path_is_taken_and_explained(monkeypatch, filtered_seconds, path) -> None:
    asked = []

    def measure(x, weight, conv) -> Measurement:
        asked.append(conv)
        return Measurement(2.0, filtered_seconds)

    monkeypatch.setattr(_choice, "_known", {})
    monkeypatch.setattr(_choice, "_measure", measure)
    net, x = model(), batch()
    exact = step(net, x)
    prepare_(net, fourier(fallback="measured"))

    found = step(net, x)

    assert differ(found, exact) == (path == "filtered")
    assert [layer.path for layer in explain(net).layers] == [path] * 3 + ["exact"]
    # What is known of one basis says nothing of the other.
    prepare_(restore_(net), GradientFilter(8, 9, where=last(9), basis="walsh"))
    step(net, x)
    assert [conv.basis for conv in asked] == ["fourier"] * 3 + ["walsh"] * 4
    step(prepare_(restore_(net), fourier()), x)
    assert len(asked) == 7


def test_a_real_clock_measures_both_paths() -> None:
    net = prepare_(model(5), fourier(fallback="measured"))

    step(net, batch(2, 3, 11, 12))

    *layers, pointwise = explain(net).layers
    for layer in layers:
        assert layer.exact_seconds > 0
        assert layer.method_seconds > 0
    assert pointwise.exact_seconds is None


def test_second_derivatives_and_transforms_are_refused() -> None:
    net, x = prepare_(model(), fourier()), batch().requires_grad_()

    with pytest.raises(RuntimeError, match=r"no second derivative.*restore_"):
        torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"transforms of torch.func"):
        torch.func.vmap(net)(x[:, None])


def test_shapes_without_data() -> None:
    net = prepare_(model().to("meta"), fourier())

    net(batch().to("meta")).sum().backward()

    assert all(parameter.grad.is_meta for parameter in net.parameters())
    with FakeTensorMode():
        net = prepare_(model(), fourier())
        net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert net[0].weight.grad.shape == net[0].weight.shape


def test_maps_that_are_too_small_for_their_frequencies_stay_exact() -> None:
    net = prepare_(nn.Conv2d(8, 16, 3, padding=1), fourier(8, 21))

    step(net, batch(2, 8, 2, 2))
    assert explain(net).layers[0].path == "exact"
    step(net, batch(2, 8, 8, 8))
    assert explain(net).layers[0].path == "filtered"
