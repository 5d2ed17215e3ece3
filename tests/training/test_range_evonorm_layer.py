"""Range-EvoNorm as a layer: differentiated, compiled, and in place of BatchNorm2d and ReLU."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks import mobilenet_v2, resnet20
from flower_edge.gossip.codec import Layout
from flower_edge.training import (
    LeanActivations,
    RangeEvoNorm,
    prepare_,
    replace_batchnorm_,
    restore_,
    saved_bytes,
)

pytestmark = pytest.mark.board

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def randomised(norm: RangeEvoNorm) -> RangeEvoNorm:
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.5, generator=generator)
    return norm


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("affine", "activation"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_gradients_are_those_of_float64(layout, affine, activation) -> None:
    """Float64 runs the slow twin, which `tests/kernels` holds against autograd."""
    norm = randomised(RangeEvoNorm(24, 4, 1e-3, affine, activation))
    x = torch.randn(3, 24, 9, 7).contiguous(memory_format=layout).requires_grad_()
    weights = torch.randn(3, 24, 9, 7)
    precise, exact_x = copy.deepcopy(norm).double(), x.detach().double().requires_grad_()

    (norm(x) * weights).sum().backward()
    (precise(exact_x) * weights).sum().backward()

    for found, exact in zip([x, *norm.parameters()], [exact_x, *precise.parameters()], strict=True):
        bound = 1e-5 * float(exact.grad.abs().max())
        torch.testing.assert_close(found.grad.double(), exact.grad, rtol=0, atol=bound)


def test_torchs_gradcheck() -> None:
    norm = randomised(RangeEvoNorm(6, 3).double())
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(norm, (x,), atol=1e-4)
    assert torch.autograd.gradcheck(
        lambda *parameters: torch.func.functional_call(
            norm, dict(zip(("weight", "bias", "v"), parameters, strict=True)), x.detach()
        ),
        (norm.weight, norm.bias, norm.v),
        atol=1e-4,
    )


def test_it_is_a_layer_like_torchs_own() -> None:
    norm = RangeEvoNorm(16, dtype=torch.float64)

    assert str(norm) == "RangeEvoNorm(16, groups=8, eps=1e-05, affine=True, activation=True)"
    assert {name: float(value.mean()) for name, value in norm.state_dict().items()} == {
        **{"weight": 1.0, "bias": 0.0, "v": 1.0}
    }
    assert {p.dtype for p in norm.parameters()} == {torch.float64}
    assert list(RangeEvoNorm(16, affine=False, activation=False).state_dict()) == []
    other = RangeEvoNorm(16)
    other.load_state_dict(randomised(norm).state_dict())
    assert torch.equal(other.v, norm.v.float())
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(other(x), other.eval()(x))


def test_the_sample_alone_decides() -> None:
    norm, x = RangeEvoNorm(16), torch.randn(4, 16, 6, 6)

    torch.testing.assert_close(norm(x)[2:3], norm(x[2:3]), rtol=0, atol=0)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="groups is 8, expected a divisor of num_channels, which is 12"):
        RangeEvoNorm(12)
    with pytest.raises(ValueError, match="eps is 0, expected a positive"):
        RangeEvoNorm(16, eps=0)
    with pytest.raises(ValueError, match=r"input has shape \(2, 8, 4, 4\), expected \(N, 16, H, W\)"):
        RangeEvoNorm(16)(torch.zeros(2, 8, 4, 4))


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(RangeEvoNorm(8)(x).square().sum(), x, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(layout, dynamic) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), randomised(RangeEvoNorm(16)), nn.Conv2d(16, 4, 1))
    model = model.to(memory_format=layout)
    x = torch.randn(2, 3, 9, 8).contiguous(memory_format=layout)
    expected = torch.autograd.grad(model(x).square().sum(), tuple(model.parameters()))

    # What other tests compiled counts against a limit.
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    found = torch.autograd.grad(compiled(x).square().sum(), tuple(model.parameters()))

    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_obey_torchs_own_checks(layout, dtype) -> None:
    x = torch.randn(2, 16, 5, 7).to(dtype).contiguous(memory_format=layout)
    weight, bias, v = torch.randn(3, 16).unbind()
    operators = torch.ops.flower_edge
    _, extremes = operators.range_evonorm(x, None, None, v, 8, 1e-5)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments in (
        (operators.range_evonorm, (x, weight.clone(), bias.clone(), v.clone(), 8, 1e-5)),
        (operators.range_evonorm, (x, None, None, None, 4, 1e-5)),
        (operators.range_evonorm_backward, (torch.randn_like(x), x, extremes, weight.clone(), None, 8, 1e-5)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


def test_amp() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), RangeEvoNorm(16))
    x = torch.randn(2, 3, 12, 12)

    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()

    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x), rtol=0.05, atol=0.05)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_only_what_is_asked_for_is_computed() -> None:
    norm = RangeEvoNorm(8)
    norm.v.requires_grad_(False)
    norm.weight.requires_grad_(False)
    norm(torch.randn(2, 8, 4, 4)).sum().backward()

    assert norm.bias.grad is not None
    assert norm.v.grad is norm.weight.grad is None


class Functional(nn.Module):
    """Its activations are functions, a method, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(5))
        self.norm = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm[0](self.conv[0](x)), inplace=True)
        x = torch.relu(self.norm[1](self.conv[1](x)))
        x = self.norm[2](self.conv[2](x)).relu_()
        y = self.act(self.norm[3](self.conv[3](x)))
        return self.act(self.norm[4](self.conv[4](y)) + x)

    def as_it_should_be(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = self.norm[i](self.conv[i](x))
        y = self.norm[3](self.conv[3](x))
        return torch.relu(self.norm[4](self.conv[4](y)) + x)


def norms_of(model: nn.Module) -> dict[str, RangeEvoNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RangeEvoNorm)}


def test_activations_go_away_wherever_they_are_called() -> None:
    model = Functional()
    names = set(model.state_dict())
    x = torch.randn(2, 16, 8, 8)

    assert replace_batchnorm_(model, activate="followed") is model

    assert isinstance(model, Functional)
    assert [norm.activation for norm in norms_of(model).values()] == [True, True, True, True, False]
    torch.testing.assert_close(model(x), model.as_it_should_be(x), rtol=0, atol=0)
    copied = copy.deepcopy(model)
    copied.norm[0].weight.data.zero_()
    assert not torch.equal(copied(x), model(x))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    lost = {name for name in names if "running" in name or "tracked" in name}
    assert set(model.state_dict()) == names - lost | {f"norm.{i}.v" for i in range(4)}


def test_residual_networks() -> None:
    model = replace_batchnorm_(resnet20(10), activate="followed")

    assert {name for name, norm in norms_of(model).items() if norm.activation} == {
        "bn1",
        *(f"layer{stage}.{block}.bn1" for stage in (1, 2, 3) for block in range(3)),
    }
    assert isinstance(model.relu, nn.Identity)
    block = model.layer2[0]
    x = torch.randn(2, 16, 8, 8)
    y = block.bn2(block.conv2(block.bn1(block.conv1(x))))
    torch.testing.assert_close(block(x), torch.relu(y + block.downsample(x)), rtol=0, atol=0)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_all_layers_activate_unless_told_otherwise() -> None:
    model = replace_batchnorm_(resnet20(10))

    assert {norm.activation for norm in norms_of(model).values()} == {True}
    block = model.layer1[0]
    x = torch.randn(2, 16, 8, 8)
    y = block.bn2(block.conv2(block.bn1(block.conv1(x))))
    torch.testing.assert_close(block(x), torch.relu(y + x), rtol=0, atol=0)


def test_plain_activations_become_identities() -> None:
    model = replace_batchnorm_(mobilenet_v2(10, 0.5), activate="followed")

    assert not any(isinstance(module, nn.ReLU6) for module in model.modules())
    assert all(type(module).__name__ != "Functional" for module in model.modules())
    assert [norm.activation for norm in norms_of(model.features[2]).values()] == [True, True, False]


def test_a_norm_with_two_names_becomes_one_layer() -> None:
    norm, relu = nn.BatchNorm2d(8), nn.ReLU()
    model = nn.Sequential(norm, relu, nn.Conv2d(8, 8, 1), norm, relu)

    replace_batchnorm_(model)

    assert model[0] is model[3]
    assert isinstance(model[0], RangeEvoNorm)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(model(x), model[0](model[2](model[0](x))), rtol=0, atol=0)


def test_parameters_stay_and_all_else_follows_the_norm() -> None:
    model = nn.Sequential(nn.BatchNorm2d(12), nn.SiLU(), nn.BatchNorm2d(7, affine=False), nn.ReLU()).double()
    weight, bias = model[0].weight, model[0].bias
    weight.requires_grad_(False)

    replace_batchnorm_(model.eval(), groups=8, eps=1e-3, activate="followed")

    first, second = norms_of(model).values()
    assert (first.weight, first.bias) == (weight, bias)
    assert (first.groups, second.groups) == (6, 7)
    assert (first.activation, second.activation) == (False, True)
    assert (first.affine, second.affine, first.eps) == (True, False, 1e-3)
    assert second.v.dtype == torch.float64
    assert not first.training
    assert isinstance(model[1], nn.SiLU)


class Unreadable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.sum() > 0 else x


def test_a_model_that_cannot_be_changed_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), Unreadable())
    with pytest.raises(ValueError, match="cannot trace the forward of '1', a Unreadable"):
        replace_batchnorm_(model)
    assert not norms_of(model)

    prepared = prepare_(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), LeanActivations())
    with pytest.raises(ValueError, match=r"layer '1' is prepared; call replace_batchnorm_ before"):
        replace_batchnorm_(prepared)
    hooked = restore_(prepared)
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"layer '0' has hooks"):
        replace_batchnorm_(hooked)
    with pytest.raises(ValueError, match=r"Linear contains no layer of class BatchNorm2d"):
        replace_batchnorm_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="activate is 'none', expected 'all' or 'followed'"):
        replace_batchnorm_(model, activate="none")
    with pytest.raises(ValueError, match="groups is 0, expected at least 1"):
        replace_batchnorm_(model, groups=0)
    with pytest.raises(TypeError, match=r"model is a str, expected a torch.nn.Module"):
        replace_batchnorm_("resnet")


class Dropping(nn.Module):
    """Its forward has another graph in each mode."""

    def __init__(self, activated: bool) -> None:
        super().__init__()
        self.norm, self.activated = nn.BatchNorm2d(8), activated

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        x = functional.relu(x) if self.activated else x
        return functional.dropout(x, 0.5, training=self.training)


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_of_two_modes_is_not_written_anew(training: bool) -> None:
    model = nn.Sequential(Dropping(True)).train(training)
    with pytest.raises(ValueError, match=r"'0', a Dropping, depends on self.training.*nn.Dropout"):
        replace_batchnorm_(model)
    assert type(model[0].norm) is nn.BatchNorm2d
    assert all(module.training is training for module in model.modules())

    model, x = replace_batchnorm_(Dropping(False).train(training)), torch.randn(2, 8, 3, 3)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_an_attribute_of_the_users_own_is_no_preparation() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
    model[1].rule = "mean"
    assert type(replace_batchnorm_(model)[0]) is RangeEvoNorm


def test_a_fleet_tells_the_two_models_apart() -> None:
    layout = Layout.of(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()).state_dict())

    with pytest.raises(ValueError, match=r"'0.running_mean' is missing"):
        layout.check(replace_batchnorm_(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())).state_dict())


def test_less_is_saved_than_by_batchnorm_and_relu() -> None:
    """The input and a few numbers a group; torch saves the output of the activation, too."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
    batch = torch.randn(8, 3, 32, 32), torch.zeros(8)
    activation = 8 * 16 * 32 * 32 * 4

    before = saved_bytes(model, batch, lambda y, _: y.sum())
    after = saved_bytes(replace_batchnorm_(model), batch, lambda y, _: y.sum())

    assert before.total - after.total > 0.9 * activation
