"""Norms with their activations in fewer passes: against torch's own, in float64 and in models."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flower_edge.training import (
    FrozenNorm,
    FusedNorm,
    GradientFilter,
    LeanActivations,
    all_but_stem,
    last,
    prepare_,
    restore_,
    saved_bytes,
)
from flower_edge.training.fused_norm import FusedBatchNorm2d
from flower_edge.training.lean_activations import LeanReLU, LeanReLU6

ALWAYS = FusedNorm(fallback="never")
# As many elements as a fused norm pays for.
SHAPE = (4, 24, 27, 26)


class Residual(nn.Module):
    """One ReLU after a norm and after an addition, a norm without one, and one that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.second = nn.BatchNorm2d(24)
        self.read_twice = nn.BatchNorm2d(24)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm(self.conv(x)))
        y = self.relu(self.second(y) + x)
        z = self.read_twice(y)
        return self.relu6(z) - 0.1 * z


class Branching(nn.Module):
    """Torch cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(24), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm(x)) if x.sum() < math.inf else x


def chain(*activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24), *activation)


def with_parameters(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            if norm.affine:
                nn.init.uniform_(norm.weight, -1, 2)
                nn.init.normal_(norm.bias)
            if norm.running_mean is not None:
                norm.running_mean.normal_()
    return model.to(memory_format=torch.channels_last)


def batch(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    x = (torch.randn(SHAPE) * torch.linspace(0.5, 2, 24).view(-1, 1, 1) + 1).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and all gradients, then all buffers."""
    x = x.clone().requires_grad_()
    y = model(x * 1)
    grad = torch.linspace(-1, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, [x, *trained], grad), *(b.clone() for b in model.buffers())]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 2e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other.double()).abs().max() <= tolerance * (1e-3 + other.double().abs().max())


def equals_torch(model: nn.Module, *methods: FusedNorm, steps: int = 2) -> None:
    """Steps of a prepared model are those of the original one in float64."""
    precise = copy.deepcopy(model).double()
    prepare_(model, *(methods or (ALWAYS,)))
    for _ in range(steps):
        assert_close(step(model, batch()), step(precise, batch(torch.float64)))


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(True)])
def test_output_gradients_and_statistics_are_torchs(activation: nn.Module | None) -> None:
    equals_torch(with_parameters(chain(*([] if activation is None else [activation]))))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(24, affine=False),
        nn.BatchNorm2d(24, momentum=None),
        nn.BatchNorm2d(24, momentum=0.0),
        nn.BatchNorm2d(24, momentum=0.7, eps=0.1),
        nn.BatchNorm2d(24, track_running_stats=False),
    ],
    ids=str,
)
def test_every_kind_of_norm(norm: nn.Module) -> None:
    equals_torch(with_parameters(nn.Sequential(copy.deepcopy(norm), nn.ReLU())), steps=3)


def test_a_norm_without_running_statistics_needs_no_training_mode() -> None:
    equals_torch(with_parameters(nn.Sequential(nn.BatchNorm2d(24, track_running_stats=False))).eval())


def test_counts_batches() -> None:
    model = prepare_(chain(nn.ReLU()), ALWAYS)
    for _ in range(3):
        model(batch())
    assert model[1].num_batches_tracked == 3


def test_what_goes_to_one_activation_alone_is_fused() -> None:
    model = Residual()
    equals_torch(with_parameters(model))

    norms = (model.norm, model.second, model.read_twice)
    assert all(type(norm) is FusedBatchNorm2d for norm in norms)
    assert [norm.rule.forward.cap for norm in norms] == [math.inf, None, None]
    assert (type(model.relu), type(model.relu6)) == (LeanReLU, nn.ReLU6)
    assert "forward: FusedNorm(ReLU)" in str(model)


def test_with_lean_activations_and_filters() -> None:
    model = with_parameters(Residual())
    equals_torch(copy.deepcopy(model), ALWAYS, LeanActivations())

    filtering = GradientFilter(2, where=lambda *_: True, basis="walsh", fallback="never")
    precise = step(prepare_(copy.deepcopy(model).double(), filtering), batch(torch.float64))
    # Means of the gradient, which sums to zero over each channel, have lost a digit.
    assert_close(step(prepare_(model, filtering, LeanActivations(), ALWAYS), batch()), precise, 1e-4)


def test_what_torch_cannot_trace_keeps_its_activations() -> None:
    model = Branching()
    equals_torch(with_parameters(model))
    assert model.norm.rule.forward.cap is None


class Watched(nn.Module):
    """A second head reads the norm, in training alone; it has a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        self.head = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return self.relu(y) + self.head(y) if self.training else self.relu(y)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_read_elsewhere_in_one_mode_is_not_fused(training: bool) -> None:
    model = with_parameters(Watched()).train(training)
    prepared = prepare_(copy.deepcopy(model), ALWAYS)
    assert [prepared.norm.rule.forward.cap, prepared.head[0].rule.forward.cap] == [None, math.inf]
    for mode in (True, False):
        precise = copy.deepcopy(model).double().train(mode)
        assert_close([copy.deepcopy(prepared).train(mode)(batch())], [precise(batch(torch.float64))])
    assert model.training is training


def test_a_map_that_was_written_into_is_activated_again() -> None:
    model = prepare_(chain(nn.ReLU()), ALWAYS)
    model[1].register_forward_hook(lambda module, inputs, y: y.sub_(1.0))
    assert model(batch()).min() == 0.0


def test_hooks_see_that_the_norm_activates() -> None:
    model, seen = prepare_(chain(nn.ReLU()), ALWAYS), []
    model[1].register_forward_hook(lambda module, inputs, y: seen.append(y))
    assert model(batch()) is seen[0]


def test_saves_a_bit_for_each_activated_element() -> None:
    model = with_parameters(chain(nn.ReLU(), nn.Sigmoid()))
    of_batch = batch(), torch.zeros(())
    before = saved_bytes(prepare_(copy.deepcopy(model), LeanActivations()), of_batch, lambda y, _: y.sum())
    after = saved_bytes(prepare_(model, LeanActivations(), ALWAYS), of_batch, lambda y, _: y.sum())

    assert after.by_module["1"] <= before.by_module["1"] + batch().numel() // 8 + 24 * 4
    assert "2" not in after.by_module
    assert after.total <= before.total + 24 * 4


@pytest.mark.parametrize("trained", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients(trained: tuple[bool, bool, bool]) -> None:
    model = with_parameters(nn.Sequential(nn.BatchNorm2d(24), nn.ReLU()))
    model[0].weight.requires_grad_(trained[1])
    model[0].bias.requires_grad_(trained[2])
    x = batch().requires_grad_(trained[0])
    given = [tensor for tensor in (x, *model.parameters()) if tensor.requires_grad]
    expected = torch.autograd.grad(model(x).square().sum(), given)
    prepare_(model, ALWAYS)
    assert_close(list(torch.autograd.grad(model(x).square().sum(), given)), list(expected))


def test_gradients_in_another_layout() -> None:
    model = with_parameters(nn.Sequential(nn.BatchNorm2d(24), nn.ReLU()))
    x, grad = batch().requires_grad_(), torch.randn(SHAPE)
    expected = torch.autograd.grad(model(x), x, grad)
    (found,) = torch.autograd.grad(prepare_(model, ALWAYS)(x), x, grad)
    assert_close([found], list(expected))
    assert found.is_contiguous(memory_format=torch.channels_last)


def served(model: nn.Module, x: torch.Tensor) -> bool:
    return "_BatchNorm" in str(model(x).grad_fn) and "Native" not in str(model(x).grad_fn)


def test_the_rest_is_torchs_own() -> None:
    norm = prepare_(nn.BatchNorm2d(24).to(memory_format=torch.channels_last), ALWAYS)
    x = batch()
    assert served(norm, x)
    assert not served(norm, x[:1])
    assert not served(norm, x.contiguous())
    assert not served(prepare_(nn.BatchNorm2d(24).double(), ALWAYS), x.double())
    with torch.no_grad():
        assert norm(x).grad_fn is None
    assert not served(norm.eval(), x)
    single = prepare_(nn.BatchNorm2d(65536), ALWAYS)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        single(torch.randn(1, 65536, 1, 1))
    with pytest.raises(ValueError, match="expected 4D"):
        prepare_(nn.BatchNorm2d(24), ALWAYS)(torch.randn(24, 300, 300))


def test_eval_mode_is_torchs() -> None:
    model = with_parameters(Residual()).eval()
    expected = step(model, batch())
    for one, other in zip(step(prepare_(model, ALWAYS), batch()), expected, strict=True):
        assert torch.equal(one, other)


def test_measured() -> None:
    model = prepare_(with_parameters(chain(nn.ReLU())), FusedNorm())
    model(batch())
    measurement = model[1].measurement
    assert measurement.exact_seconds > 0
    assert measurement.method_seconds > 0
    equals_torch(restore_(model), FusedNorm())


def test_prepared_and_restored() -> None:
    model = with_parameters(nn.Sequential(chain(nn.ReLU6()), nn.ReLU(), nn.BatchNorm2d(24)))
    keys = list(model.state_dict())

    prepare_(model, FusedNorm(), LeanActivations())
    assert [type(layer) for layer in model[0]] == [nn.Conv2d, FusedBatchNorm2d, LeanReLU6]
    assert str(model[0][2].rule) == "forward: FusedNorm(); saved: LeanActivations()"
    assert list(model.state_dict()) == keys
    model(batch())
    restore_(model)

    assert [type(layer) for layer in model[0]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU6]
    assert type(model[2]) is nn.BatchNorm2d
    assert not any({"rule", "measurement"} & set(vars(layer)) for layer in model.modules())


def test_where_chooses() -> None:
    model = nn.Sequential(chain(nn.ReLU()), chain(nn.ReLU()))
    prepare_(model, FusedNorm(where=last(1)))
    assert [type(part[1]) for part in model] == [nn.BatchNorm2d, FusedBatchNorm2d]
    assert [type(part[2]) for part in model] == [nn.ReLU, LeanReLU]
    with pytest.raises(TypeError, match="where is 3, expected"):
        FusedNorm(where=3)
    with pytest.raises(ValueError, match="fallback is 'often', expected"):
        FusedNorm(fallback="often")
    with pytest.raises(ValueError, match="chooses none of the 1 layers"):
        prepare_(chain(), FusedNorm(where=all_but_stem))
    with pytest.raises(ValueError, match="both set its forward"):
        prepare_(chain(), FusedNorm(), FrozenNorm())


def test_copies_and_files() -> None:
    model = prepare_(with_parameters(chain(nn.ReLU())), ALWAYS)
    expected = step(copy.deepcopy(model), batch())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(twin[1]) is FusedBatchNorm2d
        assert_close(step(twin, batch()), expected, 0.0)


def test_checkpoints() -> None:
    model = prepare_(with_parameters(chain(nn.ReLU(inplace=True))), FusedNorm(), LeanActivations())
    x = batch().requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), x)
    found = torch.autograd.grad(checkpoint(model, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(found[0], expected[0])


def test_second_derivatives_are_refused() -> None:
    model = prepare_(chain(nn.ReLU()), ALWAYS)
    x = batch().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_transforms_of_torch_func_are_torchs_own() -> None:
    model = with_parameters(nn.Sequential(nn.BatchNorm2d(24, track_running_stats=False), nn.ReLU()))
    expected = torch.func.grad(lambda x: model(x).square().sum())(batch())
    prepare_(model, ALWAYS)
    assert torch.equal(torch.func.grad(lambda x: model(x).square().sum())(batch()), expected)


@pytest.mark.parametrize("model", [chain(nn.ReLU()), Residual()], ids=["chain", "residual"])
def test_compiles_as_one_graph(model: nn.Module) -> None:
    model = with_parameters(copy.deepcopy(model))
    expected = step(copy.deepcopy(model), batch())
    prepare_(model, FusedNorm(), LeanActivations())
    assert_close(step(torch.compile(model, fullgraph=True, backend="aot_eager"), batch()), expected)


def test_amp() -> None:
    model = with_parameters(chain(nn.ReLU()))
    steps = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(batch())
        steps.append((y.detach(), *torch.autograd.grad(y.float().sum(), model[0].weight)))
        prepare_(model, ALWAYS) if len(steps) == 1 else None
    for fused, torchs in zip(*steps, strict=True):
        assert torch.equal(fused, torchs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("cap", [None, math.inf, 6.0])
def test_operators_obey_torchs_own_checks(layout: torch.memory_format, cap: float | None) -> None:
    x, grad = (torch.randn(2, 11, 4, 5).contiguous(memory_format=layout) for _ in range(2))
    weight, operators = torch.randn(11), torch.ops.flower_edge
    _, statistics, bits = operators.batch_norm(x, weight, weight, 1e-5, cap)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments in (
        (operators.batch_norm, (x, weight, weight, 1e-5, cap)),
        (operators.batch_norm, (x, None, None, 1e-5, cap)),
        (operators.batch_norm_backward, (grad, x, statistics, bits, weight, True)),
        (operators.batch_norm_backward, (grad, x, statistics, bits, None, False)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=checks)
