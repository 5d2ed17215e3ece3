"""Max pooling that saves bytes: outputs and gradients are torch's own, bit for bit."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from flower_edge.training import LeanActivations, prepare_, restore_, saved_bytes
from flower_edge.training.lean_activations import LeanMaxPool2d

pytestmark = pytest.mark.board

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def pooled(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and gradient, with a gradient from above that differs everywhere."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    (grad_x,) = torch.autograd.grad(y, x, grad)
    return y.detach(), grad_x


def assert_is_torchs(layer: nn.MaxPool2d, x: torch.Tensor) -> None:
    expected = pooled(layer, x)
    prepare_(layer, LeanActivations())
    assert type(layer) is LeanMaxPool2d
    found = pooled(layer, x)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
        assert one.stride() == other.stride()


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_output_and_gradient_are_torchs(data: st.DataObject) -> None:
    integers = st.integers
    kernel = data.draw(st.tuples(integers(1, 4), integers(1, 4)))
    stride = data.draw(st.one_of(st.none(), integers(1, 4), st.tuples(integers(1, 4), integers(1, 4))))
    padding = tuple(data.draw(integers(0, side // 2)) for side in kernel)
    dilation = data.draw(st.tuples(integers(1, 3), integers(1, 3)))
    height, width = data.draw(integers(40, 60)), data.draw(st.sampled_from([41, 60, 130, 200]))
    layer = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=data.draw(st.booleans()))
    torch.manual_seed(data.draw(integers(0, 99)))
    # Few values, so that windows have ties; some windows have nothing but NaN or -inf.
    x = torch.randint(-2, 3, (2, 70000 // (2 * height * width) + 1, height, width)).float()
    x[0, 0, :9, :9] = data.draw(st.sampled_from([0.0, torch.nan, -torch.inf]))
    x[1, 0, 5, 6] = torch.nan
    x = x.to(data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))
    x = x.contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS)))
    assume(x.numel() >= 65536)

    assert_is_torchs(layer, x)


def test_other_shapes_and_strides() -> None:
    assert_is_torchs(nn.MaxPool2d(3, 2, 1), torch.randn(16, 70, 70))
    assert_is_torchs(nn.MaxPool2d((3,), (2,)), torch.randn(2, 16, 70, 140)[..., ::2])
    assert_is_torchs(nn.MaxPool2d((40, 3), 2, (3, 1)), torch.randn(1, 1, 50, 1400))


def test_saves_a_byte_per_output() -> None:
    batch = torch.randn(8, 4, 64, 64), torch.zeros(())
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Sigmoid())

    def loss(y: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return y.sum()

    before = saved_bytes(model, batch, loss).by_module["1"]
    after = saved_bytes(prepare_(model, LeanActivations()), batch, loss).by_module["1"]

    outputs = 8 * 4 * 32 * 32
    assert before == 4 * 4 * outputs + 8 * outputs
    assert after == outputs


def test_what_is_left_to_torch() -> None:
    layer = prepare_(nn.MaxPool2d(2), LeanActivations())
    small = layer(torch.randn(1, 2, 8, 8, requires_grad=True))
    assert "Lean" not in small.grad_fn.name()
    with torch.no_grad():
        assert layer(torch.randn(4, 16, 64, 64, requires_grad=True)).grad_fn is None
    indexed = prepare_(nn.MaxPool2d(2, return_indices=True), LeanActivations())
    y, indices = indexed(torch.randn(4, 16, 64, 64, requires_grad=True))
    assert y.shape == indices.shape


def test_wrong_input_gets_torchs_own_error() -> None:
    layer = prepare_(nn.MaxPool2d(300), LeanActivations())
    with pytest.raises(RuntimeError, match="too small"):
        layer(torch.randn(4, 16, 64, 64, requires_grad=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_copied_and_checkpointed(layout) -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 16, 65, 64).contiguous(memory_format=layout)
    expected = pooled(nn.MaxPool2d(3, 2, 1), x)
    layer = prepare_(nn.MaxPool2d(3, 2, 1), LeanActivations())

    for other in (
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        copy.deepcopy(layer),
        lambda x: checkpoint(layer, x, use_reentrant=False),
    ):
        for one, two in zip(pooled(other, x), expected, strict=True):
            assert torch.equal(one, two)


def test_second_derivatives_are_refused() -> None:
    layer = prepare_(nn.MaxPool2d(2), LeanActivations())
    x = torch.randn(4, 16, 64, 64, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_prepared_and_restored() -> None:
    model = prepare_(nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2)), LeanActivations())
    assert [type(layer) for layer in model] == [LeanMaxPool2d, nn.AvgPool2d]
    restore_(model)
    assert [type(layer) for layer in model] == [nn.MaxPool2d, nn.AvgPool2d]
