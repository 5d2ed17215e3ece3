"""Frozen normalisations: against torch's eval mode, alone, folded, and in convolutions that are filtered."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flower_edge.training import (
    EdgeConv2d,
    FrozenNorm,
    GradientFilter,
    prepare_,
    restore_,
    saved_bytes,
)
from flower_edge.training.frozen_norm import FrozenBatchNorm2d

pytestmark = pytest.mark.board


class Block(nn.Module):
    """Norms after a stem, a depthwise layer and a stride, one of its own, and one behind a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.strided = nn.Conv2d(8, 4, 3, stride=2, padding=1, bias=False)
        self.strided_norm = nn.BatchNorm2d(4, affine=False)
        self.alone = nn.BatchNorm2d(4)
        self.branched = nn.Conv2d(4, 4, 1)
        self.branched_norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = x + torch.relu(self.depthwise_norm(self.depthwise(x)))
        x = self.alone(torch.tanh(self.strided_norm(self.strided(x))))
        y = self.branched(x)
        return y + self.branched_norm(y)


FOLDED = ["stem_norm", "depthwise_norm", "strided_norm"]


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.3, 3, generator=generator)
            if norm.affine:
                nn.init.uniform_(norm.weight, -2, 2, generator=generator)
                nn.init.normal_(norm.bias, generator=generator)
    return model


def block(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(Block()).to(dtype).train()


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of the input and of all that is trained."""
    x = x.clone().requires_grad_()
    y = model(x)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [
        y.detach(),
        *torch.autograd.grad(y, [x, *filter(lambda p: p.requires_grad, model.parameters())], grad),
    ]


def eval_step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return step(restore_(copy.deepcopy(model)).eval(), x)


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-10) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * (1 + other.abs().max())


def everything(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def test_train_mode_is_torchs_eval_mode() -> None:
    model, x = block(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    expected, before = eval_step(model, x), everything(model)

    prepare_(model, FrozenNorm())

    assert_close(step(model, x), expected)
    assert_close(step(model.eval(), x), expected)
    with torch.no_grad():
        assert_close([model(x)], expected[:1])
    assert torch.equal(everything(model), before)


def test_what_follows_a_convolution_directly_is_folded() -> None:
    model = prepare_(block(), FrozenNorm())
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}

    assert all(type(norm) is FrozenBatchNorm2d for norm in norms.values())
    assert [name for name, norm in norms.items() if norm.rule.forward.folded] == FOLDED
    assert [type(c) for c in (model.stem, model.depthwise, model.strided)] == [EdgeConv2d] * 3
    assert type(model.branched) is nn.Conv2d
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    assert model.stem_norm(x) is x


@settings(deadline=None)
@given(data=st.data())
def test_one_convolution_of_any_kind(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 4]), label="groups")
    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * 2), label="kernel")
    dilation = data.draw(st.integers(1, 2), label="dilation")
    mode = data.draw(st.sampled_from(["zeros", "reflect", "circular"]), label="padding_mode")
    stride = data.draw(st.integers(1, 2), label="stride")
    padding = data.draw(st.sampled_from(["valid", 0, 1, *(["same"] if stride == 1 else [])]), label="padding")
    bias = data.draw(st.booleans(), label="bias")
    conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias, mode)
    model = with_statistics(nn.Sequential(conv, nn.BatchNorm2d(8))).double()
    for parameter in model.parameters():
        parameter.requires_grad_(data.draw(st.booleans(), label="trained"))
    x = torch.randn(data.draw(st.integers(1, 2), label="N"), 4, 7, 6, dtype=torch.float64)
    expected = eval_step(model, x)

    prepare_(model, FrozenNorm())

    assert_close(step(model, x), expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("groups", "outputs"), [(1, 8), (2, 8), (4, 4)])
@pytest.mark.parametrize("components", [1, 3])
def test_filtered_convolutions_are_filtered_with_the_folded_weight(
    stride, groups, outputs, components
) -> None:
    """The oracle filters a plain convolution with the product for a weight; autograd does the rest."""
    torch.manual_seed(stride)
    conv = nn.Conv2d(4, outputs, 3, stride, 1, groups=groups)
    model = with_statistics(nn.Sequential(conv, nn.BatchNorm2d(outputs))).double()
    norm = model[1]
    plain = copy.deepcopy(conv)
    way = GradientFilter(2, components, where=lambda *_: True, fallback="never", basis="walsh")
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)

    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    bias = norm.bias + (conv.bias - norm.running_mean) * scale
    with torch.no_grad():
        plain.weight.copy_(weight)
        plain.bias.copy_(bias)
    y = prepare_(plain, way)(x)
    grad = torch.randn_like(y)
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, [x, *plain.parameters()], grad)
    trained = list(model.parameters())
    expected = torch.autograd.grad([weight, bias], trained, [grad_weight, grad_bias])

    for methods in ((FrozenNorm(), way), (way, FrozenNorm())):
        found = restore_(model) and prepare_(model, *methods)(x)
        assert_close([found], [y])
        assert_close([*torch.autograd.grad(found, [x, *trained], grad)], [grad_x, *expected])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_runs_the_kernels_to_the_same_result(layout) -> None:
    way = GradientFilter(where=lambda *_: True, fallback="never", basis="walsh")
    model, x = block(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    expected = step(prepare_(model, FrozenNorm(), way), x)

    found = step(model.float(), x.float().contiguous(memory_format=layout))

    assert_close([t.double() for t in found], expected, 1e-5)


def test_nothing_is_saved_for_folded_norms_nor_the_products() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64))
    batch = torch.randn(2, 3, 8, 8), torch.zeros(())

    before = saved_bytes(model, batch, lambda y, _: y.sum()).by_module
    after = saved_bytes(prepare_(model, FrozenNorm()), batch, lambda y, _: y.sum()).by_module

    assert before["1"] > 4 * 2 * 64 * 36
    # The input, and a few numbers per channel; the scaled weight alone would be 6912 bytes.
    assert set(after) == {"0"}
    assert after["0"] <= batch[0].nbytes + 4 * 64 * 4


def test_a_norm_of_its_own_saves_its_input_only_if_its_weight_is_trained() -> None:
    model = nn.Sequential(nn.Sigmoid(), with_statistics(nn.BatchNorm2d(4)))
    prepare_(model, FrozenNorm())
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    saved = []
    for trained in (True, False):
        model[1].weight.requires_grad_(trained)
        found = saved_bytes(model, (x, x), lambda y, _: y.sum())
        saved.append(found.by_module.get("1", 0))
        assert_close(step(model, x), eval_step(model, x), 1e-5)
    assert saved[0] >= 4 * 4
    # Its output is the sigmoid's, which is saved there; here only what is left is counted.
    assert saved[1] <= 2 * 4 * 4


def test_restored_copied_and_loaded() -> None:
    model, x = block(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    classes = [type(module) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    expected = eval_step(model, x)
    prepare_(model, FrozenNorm())
    assert list(model.state_dict()) == list(state)

    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    # The copy folds its own norms, not those of the original.
    assert_close(step(twin, x), expected)
    model.load_state_dict(state)
    assert_close(step(model, x), expected)
    restore_(model)

    assert [type(module) for module in model.modules()] == classes
    assert not any("rule" in vars(module) for module in model.modules())


def test_an_optimizer_trains_what_it_did() -> None:
    model, x = block(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = copy.deepcopy(model).eval()
    prepare_(model, FrozenNorm())
    for net in (model, plain):
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    assert_close([everything(model)], [everything(plain)])


def test_pairs_by_name() -> None:
    model, x = block(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = eval_step(model, x)
    prepare_(model, FrozenNorm(pairs=[("stem", "stem_norm")]))
    assert model.stem_norm.rule.forward.folded
    assert not model.depthwise_norm.rule.forward.folded
    assert_close(step(model, x), expected)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_a_model_that_cannot_be_traced_asks_for_pairs() -> None:
    model = Branching()
    with pytest.raises(ValueError, match=r"torch.fx cannot trace Branching.*FrozenNorm\(pairs=\["):
        prepare_(model, FrozenNorm())
    assert type(model.norm) is nn.BatchNorm2d
    prepare_(model, FrozenNorm(pairs=[("conv", "norm")]))
    assert model.norm.rule.forward.folded


class Watched(nn.Module):
    """A second head reads the convolution, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + self.head(y) if self.training else self.norm(y)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_read_elsewhere_in_one_mode_is_not_folded(training: bool) -> None:
    model, x = with_statistics(Watched()).double().train(training), torch.randn(2, 3, 5, 5).double()
    with torch.no_grad():
        y = model.conv(x)
        expected = model.eval().norm(y) + model.head(y)
    prepare_(model.train(training), FrozenNorm())
    assert not model.norm.rule.forward.folded
    assert_close([model.train()(x)], [expected])


def shared_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)


def shared_conv() -> nn.Module:
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3))


@pytest.mark.parametrize("build", [shared_norm, shared_conv])
def test_modules_that_are_used_twice_are_not_folded(build: Callable[[], nn.Module]) -> None:
    model, x = with_statistics(build()).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = eval_step(model, x)
    prepare_(model, FrozenNorm())
    assert not any(norm.rule.forward.folded for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
    assert_close(step(model, x), expected)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("stem", "nothing")], "pairs names 'nothing', expected one of the model's modules"),
        ([("stem_norm", "stem")], "a BatchNorm2d and a Conv2d, expected a Conv2d and a BatchNorm2d"),
        ([("stem", "alone")], "with 8 and 4 channels, expected the same number"),
        ([("stem", "stem_norm"), ("depthwise", "stem_norm")], "names a module twice"),
    ],
)
def test_wrong_pairs_are_refused_before_anything_changes(pairs, message) -> None:
    model = block()
    with pytest.raises(ValueError, match=message):
        prepare_(model, FrozenNorm(pairs=pairs))
    assert not any("rule" in vars(module) for module in model.modules())


def test_bad_input_is_refused() -> None:
    for pairs in ("stem", [("stem",)], [("stem", 3)], 5):
        with pytest.raises(TypeError, match="expected pairs of names"):
            FrozenNorm(pairs=pairs)
    with pytest.raises(ValueError, match="found no BatchNorm2d with running statistics in Sequential"):
        prepare_(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), FrozenNorm())
    with pytest.raises(ValueError, match="both set its forward"):
        prepare_(block(), FrozenNorm(), FrozenNorm())


def test_compiles_as_one_graph() -> None:
    model, x = block(torch.float32), torch.randn(2, 3, 8, 8)
    prepare_(model, FrozenNorm(), GradientFilter(where=lambda *_: True, fallback="never", basis="walsh"))
    expected = step(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(step(compiled, x), expected, 1e-5)


def test_amp() -> None:
    model, x = block(torch.float32), torch.randn(2, 3, 8, 8)
    exact = eval_step(model, x)[0]
    prepare_(model, FrozenNorm())
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_second_derivatives_are_refused() -> None:
    model = prepare_(with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), FrozenNorm())
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
