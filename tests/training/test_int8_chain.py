"""Layers that hand bytes to each other: against the same mathematics in float64, and as tensors of torch."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.networks import resnet20
from flower_edge import kernels
from flower_edge.kernels import _dispatch
from flower_edge.kernels._int8_quantise import dequantise, quantise
from flower_edge.kernels._range_evonorm_reference import range_factor
from flower_edge.training import (
    EdgeRangeEvoNorm,
    Int8Training,
    RangeEvoNorm,
    explain,
    last,
    prepare_,
    profile,
    replace_batchnorm_,
    restore_,
    saved_bytes,
)
from flower_edge.training._quantised_map import Ends, QuantisedMap

pytestmark = pytest.mark.board

CHAIN = Int8Training(fallback="never", chain=True)
EXACTLY = Int8Training(fallback="never", chain=True, rounding="nearest")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Block(nn.Module):
    """What a residual network is made of."""

    def __init__(self, inputs: int, outputs: int, stride: int, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.norm1 = RangeEvoNorm(outputs, outputs // 4)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = RangeEvoNorm(outputs, outputs // 4, activation=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return self.relu(y + self.shortcut(x))


def network(bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False), RangeEvoNorm(8)
    blocks = Block(8, 12, 2, bias), Block(12, 12, 1)
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
    generator = torch.Generator().manual_seed(2)
    for norm in model.modules():
        if isinstance(norm, RangeEvoNorm):
            for parameter in norm.parameters():
                nn.init.normal_(parameter, 1.0, 0.3, generator=generator)
    return model


def batch(count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 13, 15, generator=generator), torch.arange(count) % 10


def step(model: nn.Module, count: int = 5) -> list[Tensor]:
    x, targets = batch(count)
    model.zero_grad()
    cross_entropy(model(x), targets).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def off(received: Tensor, expected: Tensor) -> float:
    return float(((received.double() - expected.double()).norm() / expected.double().norm()).detach())


class Rounded(torch.autograd.Function):
    """Quantisation in float64: to `levels` forward, of the gradient backward, by the ends of what comes."""

    @staticmethod
    def forward(ctx, x: Tensor, forwards: bool, errors: int) -> Tensor:
        ctx.errors = errors
        if not forwards:
            return x.clone()
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        scale = (high - low) / 255
        zero = round(-low / scale)
        return ((x / scale + zero).round().clamp(0, 255) - zero) * scale

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.errors:
            return grad, None, None
        scale = float(grad.abs().max()) / 127
        return (grad / scale).round() * scale, None, None


def of_weight(weight: Tensor, dim: tuple[int, ...]) -> Tensor:
    scale = weight.abs().amax(dim, keepdim=True) / 127
    return (weight / scale).round() * scale


class SlowConv(torch.autograd.Function):
    """A convolution in float64 of numbers that 8 bits can hold."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride, padding) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return torch.conv2d(x, of_weight(weight, (1, 2, 3)), None, stride, padding)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        scale = float(grad.abs().max()) / 127
        error = (grad / scale).round() * scale
        rest = (None, *ctx.geometry, (1, 1), False, [0, 0], 1)
        backward = torch.ops.aten.convolution_backward
        grad_x = backward(error, x, of_weight(weight, (0, 2, 3)), *rest, [True, False, False])[0]
        fine = float(grad.abs().max()) / (127 * 255 + 127)
        grad_weight = backward((grad / fine).round() * fine, x, weight, *rest, [False, True, False])[1]
        return grad_x, grad_weight, None, None


def with_a_step(norm: RangeEvoNorm, x: Tensor, step: float) -> RangeEvoNorm:
    """The range of bytes is known to a step, which is added to it."""
    made = copy.copy(norm)
    made.eps += step * range_factor(x[0].numel() // norm.groups)
    return made


def slowly(model: nn.Sequential, x: Tensor) -> Tensor:
    """The same network, in float64, rounded where it hands bytes on."""

    def quantised(x: Tensor) -> Tensor:
        return Rounded.apply(x, True, 0)

    def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return SlowConv.apply(x, layer.weight, layer.stride, layer.padding)

    def norm(layer: RangeEvoNorm, x: Tensor) -> Tensor:
        scale = float(x.detach().max().clamp(min=0) - x.detach().min().clamp(max=0)) / 255
        return quantised(with_a_step(layer, x, scale)(quantised(x)))

    x = norm(model[1], conv(model[0], quantised(x)))
    for block in (model[2], model[3]):
        y = norm(block.norm2, conv(block.conv2, norm(block.norm1, conv(block.conv1, x))))
        x = quantised(torch.relu(y + conv(block.shortcut, x)))
    return model[6](x.mean((2, 3)))


def test_a_step_is_that_of_the_same_mathematics_in_float64() -> None:
    model = network()
    slow = copy.deepcopy(model).double()
    prepare_(
        model,
        Int8Training(fallback="never", chain=True, rounding="nearest", where=lambda name, _: name != "6"),
    )
    x, targets = batch()
    y = model(x)
    cross_entropy(y, targets).backward()
    y_slow = slowly(slow, x.double())
    cross_entropy(y_slow, targets).backward()

    # A number between two levels may fall on either side, and changes what comes after it by a step; ends of
    # gradients may be taken somewhat wider. Those of the stem have been rounded to 8 bits five times.
    assert off(y, y_slow) < 0.01
    for name, parameter in slow.named_parameters():
        most = 0.35 if name.startswith(("0", "1")) else 0.15
        assert off(model.get_parameter(name).grad, parameter.grad) < most, name


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_a_convolution_and_its_norm_are_exact_but_for_rounding(bias: bool) -> None:
    """With 16 bits of error, the gradient of the weight is that of the bytes to within 1e-4."""
    torch.manual_seed(4)
    pair = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=bias), RangeEvoNorm(16, 4))
    exact = copy.deepcopy(pair).double()
    seen = torch.randn(3, 16, 9, 7)
    prepare_(pair, EXACTLY)
    x = torch.randn(3, 8, 9, 7)
    middle = pair[0](x)
    y = pair[1](middle)
    assert isinstance(y, QuantisedMap)
    (y * seen).sum().backward()

    # Of the bytes that the norm has read: what is before it and what is after it, apart.
    cells = middle.cells.quantised()
    of_norm = dequantise(cells).double().requires_grad_()
    (with_a_step(exact[1], of_norm, cells.scale)(of_norm) * seen.double()).sum().backward()
    read = quantise(x)
    exact[0](dequantise(read).double()).backward(of_norm.grad)

    for name in ("1.weight", "1.bias", "1.v"):
        wanted = exact.get_parameter(name).grad
        found = pair.get_parameter(name).grad.double()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert off(pair[0].weight.grad, exact[0].weight.grad) < 1e-3
    if bias:
        torch.testing.assert_close(pair[0].bias.grad.double(), exact[0].bias.grad, rtol=1e-4, atol=1e-4)


def test_every_map_between_layers_is_bytes() -> None:
    model = prepare_(network(), CHAIN)
    handed: dict[str, object] = {}

    def note(name: str, x: Tensor) -> None:
        assert isinstance(x, QuantisedMap), name
        handed[name] = x.cells.content

    for name, module in model.named_modules():
        if name and not name.startswith(("4", "5", "6")):
            module.register_forward_hook(lambda _m, _x, y, name=name: note(name, y))
    step(model)
    assert len(handed) == 16
    # Bytes of a convolution are made when they are asked for.
    kinds = {name for name, content in handed.items() if isinstance(content, Ends)}
    assert kinds == {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def test_a_quarter_is_saved_of_what_batchnorm_saves() -> None:
    torch.manual_seed(0)
    x, targets = torch.randn(4, 3, 32, 32), torch.arange(4)
    exact = saved_bytes(resnet20(10), (x, targets), cross_entropy)
    ours = saved_bytes(prepare_(replace_batchnorm_(resnet20(10)), CHAIN), (x, targets), cross_entropy)
    assert ours.total < 0.3 * exact.total
    assert ours.total > 0.2 * exact.total


def test_training_lowers_the_loss_as_without_a_chain() -> None:
    torch.set_num_threads(1)
    x, targets = batch(20)
    final = []
    for chain in (False, True):
        model = prepare_(network(), Int8Training(fallback="never", chain=chain))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        losses = []
        for _ in range(80):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), targets)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        final.append(sum(losses[-5:]) / 5)
        assert final[-1] < 0.85 * losses[0]
    assert final[1] < 1.3 * final[0]


def test_threads_instruction_sets_and_the_twin_agree() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(step(prepare_(network(), CHAIN)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    model = prepare_(network(), CHAIN)
    torch.manual_seed(6)
    assert not all(torch.equal(a, b) for a, b in zip(found[0], step(model), strict=True))
    for isa in kernels.available_isas():
        with kernels.use_isa(isa):
            again = step(prepare_(network(), CHAIN))
        # Where a sum in float32 decides between two levels, or between equal extremes, sets may differ.
        assert all(off(a, b) < 0.25 for a, b in zip(again, found[0], strict=True))


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = step(prepare_(network(), EXACTLY))
    monkeypatch.setattr(_dispatch, "extension", None)
    assert all(off(a, b) < 0.25 for a, b in zip(step(prepare_(network(), EXACTLY)), expected, strict=True))


def test_restore_eval_and_checkpoints_of_parameters() -> None:
    model = network()
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    x, _ = batch()
    expected = model(x)
    prepare_(model, CHAIN)
    assert type(model[1]) is EdgeRangeEvoNorm
    assert list(model.state_dict()) == keys
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    assert not torch.equal(model(x), expected)
    assert torch.equal(model.eval()(x), expected)
    assert {layer.path for layer in explain(model).layers} == {"exact"}
    assert {layer.path for layer in explain(model.train()).layers} == {"int8"}
    assert [type(module) for module in restore_(model).modules()] == classes
    assert torch.equal(model(x), expected)


def test_recomputed_layers_repeat_their_bytes() -> None:
    model = prepare_(network(), CHAIN)
    torch.manual_seed(5)
    expected = step(model)
    torch.manual_seed(5)
    x, targets = batch()
    model.zero_grad()
    hidden = model[1](model[0](x))
    for block in (model[2], model[3]):
        hidden = torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False)
    cross_entropy(model[4:](hidden), targets).backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, grad)


def made() -> tuple[QuantisedMap, Tensor]:
    pair = prepare_(nn.Sequential(nn.Conv2d(3, 4, 3), RangeEvoNorm(4, 2)), CHAIN)
    y = pair(batch()[0])
    assert isinstance(y, QuantisedMap)
    return y, dequantise(y.cells.quantised())


def test_other_operations_see_what_the_bytes_mean() -> None:
    y, floats = made()
    for operation in (
        lambda x: x * 2,
        lambda x: x.flatten(1),
        lambda x: torch.cat([x, x], 1),
        lambda x: nn.functional.max_pool2d(x, 2),
        lambda x: x[:, 1:, ::2],
        lambda x: x + 1,
        lambda x: x.bfloat16(),
        lambda x: x + torch.ones(4, 1, 1),
    ):
        result = operation(y)
        assert type(result) is Tensor
        assert torch.equal(result, operation(floats))
    assert "QuantisedMap" in repr(y)
    assert torch.equal((y.detach() + y.detach()).relu() * 1, (y + y).relu() * 1)


def test_what_is_written_in_place_is_not_lost() -> None:
    y, floats = made()
    y.detach().mul_(2)
    assert torch.equal(y * 1, 2 * floats)
    y.detach()[:, 0] = 7.0
    floats = 2 * floats
    floats[:, 0] = 7.0
    assert torch.equal(y * 1, floats)
    torch.add(y.detach(), 1.0, out=y.detach())
    assert torch.equal(y * 1, floats + 1)


def test_a_relu_in_place_changes_the_map_and_its_gradient() -> None:
    y, floats = made()
    given = y.detach().requires_grad_()
    total = given + given
    torch.relu_(total).sum().backward()
    assert isinstance(total, QuantisedMap)
    assert float(total.detach().min()) == 0.0
    step_of_sum = float(2 * floats.max()) / 255
    assert float((total.detach() - (2 * floats).relu()).abs().max()) <= 0.51 * step_of_sum
    passed = given.grad != 0
    assert torch.equal(passed, total.detach() > 0)
    assert torch.equal(given.grad[passed], torch.full((int(passed.sum()),), 2.0))


def test_frozen_parts_get_no_gradients() -> None:
    model = prepare_(network(), CHAIN)
    for part in (model[0], model[1], model[2].conv1.weight, model[2].norm2):
        part.requires_grad_(False)
    x, targets = batch()
    cross_entropy(model(x), targets).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_compiled_and_profiled_models_do_not_chain() -> None:
    def head(way: Int8Training) -> nn.Sequential:
        torch.manual_seed(0)
        parts = nn.Conv2d(3, 8, 3), RangeEvoNorm(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return prepare_(nn.Sequential(*parts, nn.Linear(8, 10)), way)

    model = head(EXACTLY)
    unchained = step(head(Int8Training(fallback="never", rounding="nearest")))
    compiled = torch.compile(model, backend="aot_eager")
    x, targets = batch()
    cross_entropy(compiled(x), targets).backward()
    for parameter, grad in zip(model.parameters(), unchained, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-4)
    assert profile(model, (x, targets), cross_entropy).forward_seconds > 0


def test_what_is_not_finite_raises() -> None:
    model = prepare_(network(), CHAIN)
    x, targets = batch()
    with torch.no_grad():
        model[1].weight[3] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        model(x)
    with torch.no_grad():
        model[1].weight[3] = 1.0
    loss = cross_entropy(model(x), targets)
    with pytest.raises(ValueError, match="NaN or an infinity"):
        (loss * float("nan")).backward()


def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match="chain is 1"):
        Int8Training(chain=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"its parameters are torch\.float64"):
        prepare_(nn.Sequential(nn.Conv2d(3, 8, 3), RangeEvoNorm(8).double()), CHAIN)
    model = prepare_(network(), CHAIN)
    with pytest.raises(ValueError, match="expected \\(N, 8, H, W\\)"):
        model[1](torch.randn(2, 7, 5, 5))
    with pytest.raises(ValueError, match="both set its"):
        prepare_(model, Int8Training(where=last(1)))
    loss = cross_entropy(model(batch()[0]), batch()[1])
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, model[0].weight, create_graph=True)
