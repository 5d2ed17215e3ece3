"""Activations that save one bit per element: in models, compiled, copied, and against torch's own."""

import copy

import pytest
import torch
from torch import nn

from flower_edge.training.gradient_filter import GradientFilter
from flower_edge.training.layers import EdgeConv2d
from flower_edge.training.lean_activations import LeanActivations, LeanReLU, LeanReLU6
from flower_edge.training.memory import saved_bytes
from flower_edge.training.prepare import prepare_, restore_

pytestmark = pytest.mark.board

# As many elements as one bit pays for.
SHAPE = (4, 16, 33, 32)


def activations(x: torch.Tensor, layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and gradient, with a gradient from above that differs everywhere."""
    x = x.clone().requires_grad_()
    y = layer(x * 1)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    (grad_x,) = torch.autograd.grad(y, x, grad)
    return y.detach(), grad_x


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_and_gradient_are_torchs(inplace, kind, layout, dtype) -> None:
    x = (8 * torch.randn(SHAPE)).to(dtype).contiguous(memory_format=layout)
    layer = kind(inplace)
    expected = activations(x, layer)

    prepare_(layer, LeanActivations())
    found = activations(x, layer)

    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == x.stride()


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6])
def test_in_place_is_in_place(kind) -> None:
    layer = prepare_(kind(inplace=True), LeanActivations())
    x = torch.randn(SHAPE, requires_grad=True) * 1
    address = x.data_ptr()

    y = layer(x)

    assert y.data_ptr() == address
    assert (x >= 0).all()


def test_in_place_on_what_another_layer_has_saved_is_found_out() -> None:
    layer = prepare_(nn.ReLU(inplace=True), LeanActivations())
    x = torch.randn(SHAPE, requires_grad=True)
    squared = x * 1
    y = squared.square()
    layer(squared)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_with_gaps_is_left_to_torch() -> None:
    layer = prepare_(nn.ReLU(inplace=True), LeanActivations())
    x = torch.randn(SHAPE, requires_grad=True)
    y = layer((x * 1).expand(2, *SHAPE)[0][..., ::2])
    assert torch.equal(y, torch.relu(x)[..., ::2])


def test_saves_one_bit_per_element() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Sigmoid())
    batch = torch.randn(4, 3, 33, 32), torch.zeros(())

    before = saved_bytes(model, batch, lambda y, _: y.sum()).by_module
    after = saved_bytes(prepare_(model, LeanActivations()), batch, lambda y, _: y.sum()).by_module

    elements = 4 * 16 * 33 * 32
    assert before["1"] == 4 * elements
    assert after["1"] == elements // 8


def test_small_activations_and_steps_without_gradients_are_torchs_own() -> None:
    layer = prepare_(nn.ReLU(), LeanActivations())
    small = layer(torch.randn(100, requires_grad=True))
    assert type(small.grad_fn).__name__ == "ReluBackward0"
    with torch.no_grad():
        assert layer(torch.randn(SHAPE, requires_grad=True)).grad_fn is None
    assert layer(torch.randn(SHAPE)).grad_fn is None


def test_prepared_and_restored() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU6(inplace=True), nn.LeakyReLU())
    keys = list(model.state_dict())

    prepare_(model, LeanActivations(), GradientFilter(where=lambda *_: True, basis="walsh"))
    assert [type(layer) for layer in model] == [EdgeConv2d, LeanReLU, LeanReLU6, nn.LeakyReLU]
    assert list(model.state_dict()) == keys
    assert model[2].inplace
    restore_(model)

    assert [type(layer) for layer in model] == [nn.Conv2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU]
    assert not any("rule" in vars(layer) for layer in model)


def test_where_chooses() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    prepare_(model, LeanActivations(where=lambda name, _: name == "1"))
    assert [type(layer) for layer in model] == [nn.ReLU, LeanReLU]
    with pytest.raises(TypeError, match="where is 3, expected"):
        LeanActivations(where=3)


def test_copies_are_lean_too() -> None:
    model = prepare_(nn.Sequential(nn.ReLU()), LeanActivations())
    twin = copy.deepcopy(model)
    assert type(twin[0]) is LeanReLU
    assert str(twin[0].rule) == "saved: LeanActivations()"


def test_second_derivatives_are_refused() -> None:
    layer = prepare_(nn.ReLU(), LeanActivations())
    x = torch.randn(SHAPE, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_as_one_graph(inplace) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU6(inplace))
    x = torch.randn(4, 3, 33, 32)
    expected = torch.autograd.grad(model(x).square().sum(), model[0].weight)
    prepare_(model, LeanActivations())

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x).square().sum(), model[0].weight)

    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operators_obey_torchs_own_checks(layout) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    operators = torch.ops.flower_edge
    _, bits = operators.relu_bits(x, None)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments in (
        (operators.relu_bits, (x, None)),
        (operators.relu_bits, (x, 6.0)),
        (operators.relu_bits_, (x.clone(), None)),
        (operators.mask_by_bits, (torch.randn(2, 3, 4, 5), bits, x.stride())),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


def test_amp() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
    x = torch.randn(4, 3, 33, 32)
    steps = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        steps.append((y.detach(), *torch.autograd.grad(y.float().sum(), model[0].weight)))
        prepare_(model, LeanActivations()) if len(steps) == 1 else None
    for lean, torchs in zip(*steps, strict=True):
        assert torch.equal(lean, torchs)
