"""Training in 8 bits: layers against their definition in float64, and what goes around them."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flower_edge.kernels._int8_quantise import dequantise, quantise
from flower_edge.training import (
    EdgeConv2d,
    EdgeLinear,
    FrozenNorm,
    GradientFilter,
    Int8Training,
    LeanActivations,
    _choice,
    explain,
    last,
    prepare_,
    restore_,
    saved_bytes,
)
from flower_edge.training._choice import Measurement

pytestmark = pytest.mark.board

ALWAYS = Int8Training(fallback="never")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding="valid"),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
        nn.Conv2d(24, 32, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 13, 13, generator=generator), torch.arange(count) % 10


def step(model: nn.Module, count: int = 4) -> list[Tensor]:
    x, targets = batch(count)
    model.zero_grad()
    nn.functional.cross_entropy(model(x), targets).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def off(received: Tensor, expected: Tensor) -> float:
    return float(((received - expected).norm() / expected.norm()).detach())


LAYERS = [
    (nn.Conv2d(5, 7, 3, padding=1), (2, 5, 6, 7)),
    (nn.Conv2d(16, 33, 3, stride=2, padding=1, bias=False), (3, 16, 9, 8)),
    (nn.Conv2d(8, 12, (3, 2), dilation=(1, 2), groups=4, padding="same"), (2, 8, 7, 7)),
    (nn.Conv2d(4, 6, 4, padding="same", padding_mode="reflect"), (2, 4, 9, 9)),
    (nn.Conv2d(31, 1, 1), (31, 5, 5)),
    (nn.Linear(97, 15), (7, 97)),
    (nn.Linear(33, 31, bias=False), (33,)),
    (nn.Linear(16, 7), (2, 3, 16)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("error_bits", [8, 16])
def test_gradients_are_those_of_the_quantised_numbers(
    layer: nn.Module, shape: tuple[int, ...], error_bits: int
) -> None:
    torch.manual_seed(3)
    x = torch.randn(shape)
    seen = torch.randn_like(layer(x))
    exact = copy.deepcopy(layer)
    exact_x = dequantise(quantise(x)).requires_grad_()
    prepared = prepare_(
        copy.deepcopy(layer), Int8Training(error_bits=error_bits, rounding="nearest", fallback="never")
    )
    given = x.clone().requires_grad_()

    y = prepared(given)
    y.backward(seen)
    y_exact = exact(exact_x)
    y_exact.backward(seen)

    # What is left is the rounding of weight and gradient, in steps of a 254th of their range.
    assert y.shape == y_exact.shape
    assert y.dtype == given.grad.dtype == torch.float32
    assert off(y, y_exact) < 0.01
    assert off(given.grad, exact_x.grad) < 0.03
    assert off(prepared.weight.grad, exact.weight.grad) < (0.015 if error_bits == 8 else 1e-3)
    if layer.bias is not None:
        torch.testing.assert_close(prepared.bias.grad, exact.bias.grad)


def test_a_step_is_close_to_an_exact_one_and_repeats() -> None:
    exact = step(small_model())
    model = prepare_(small_model(), ALWAYS)
    torch.manual_seed(5)
    first = step(model)
    torch.manual_seed(5)
    again = step(model)

    assert all(off(a, b) < 0.2 for a, b in zip(first, exact, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, step(model), strict=True))


def test_gradients_do_not_depend_on_threads() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model = prepare_(small_model(), Int8Training(where=lambda name, _: name == "2", fallback="never"))
        x = torch.randn(8, 16, 20, 20, generator=torch.Generator().manual_seed(2), requires_grad=True)
        torch.manual_seed(5)
        y = model[2](x)
        y.backward(torch.ones_like(y))
        found.append((y.detach(), x.grad, model[2].weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_model_learns_as_an_exact_one_does() -> None:
    x, targets = batch(20)
    final = []
    for model in (small_model(), prepare_(small_model(), ALWAYS)):
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(40):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), targets)
            loss.backward()
            optimizer.step()
        final.append(float(loss.detach()))
    assert final[1] < 1.2 * final[0] + 0.05
    assert final[1] < 1.0


def test_the_state_dict_is_untouched_and_restore_undoes_all() -> None:
    model = small_model()
    keys = list(model.state_dict())
    parameters = [id(parameter) for parameter in model.parameters()]
    classes = [type(layer) for layer in model]

    prepare_(model, Int8Training(), LeanActivations())
    step(model)

    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert (type(model[0]), type(model[8])) == (EdgeConv2d, EdgeLinear)
    other = prepare_(small_model(), ALWAYS)
    other.load_state_dict(model.state_dict())
    assert [type(layer) for layer in restore_(model)] == classes
    assert not {"rule", "measurement"} & vars(model[8]).keys()


def test_in_eval_mode_and_without_gradients_layers_are_exact() -> None:
    x, _ = batch()
    expected = small_model()(x)
    model = prepare_(small_model(), ALWAYS)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    assert not torch.equal(model(x), expected)
    assert torch.equal(model.eval()(x), expected)


def test_frozen_weights_and_inputs_get_no_gradients() -> None:
    layer = prepare_(nn.Conv2d(4, 5, 3), ALWAYS)
    layer.weight.requires_grad_(False)
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


def test_what_is_saved_is_a_quarter() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)) for _ in "ab"]
    x = torch.randn(8, 32, 16, 16)

    def loss(y: Tensor, target: Tensor) -> Tensor:
        return (y * target).mean()

    exact = saved_bytes(layers[0], (x, torch.tensor(2.0)), loss).by_module
    ours = saved_bytes(prepare_(layers[1], ALWAYS), (x, torch.tensor(2.0)), loss).by_module
    assert ours["1"] <= 0.3 * exact["1"]


def test_parts_that_another_method_sets_are_refused() -> None:
    for other in (GradientFilter(where=last(1)), FrozenNorm([("0", "1")])):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        with pytest.raises(ValueError, match="both set its"):
            prepare_(model, Int8Training(), other)
        assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize(("seconds", "path"), [(3.0, "exact"), (1.0, "int8")])
def test_the_faster_way_is_taken_and_explained(
    monkeypatch: pytest.MonkeyPatch, seconds: float, path: str
) -> None:
    monkeypatch.setattr(_choice, "_known", {})
    monkeypatch.setattr(_choice, "timed", lambda *_: Measurement(2.0, seconds))
    x, _ = batch()
    expected = small_model()(x)
    model = prepare_(small_model(), Int8Training())
    assert "not measured before its first training step" in str(explain(model))

    y = model(x)

    assert torch.equal(y, expected) == (path == "exact")
    paths = explain(model)
    assert {layer.path for layer in paths.layers} == {path}
    assert all(layer.method_seconds == seconds for layer in paths.layers)
    assert "in eval mode" in str(explain(model.eval()))


def test_both_ways_are_really_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_choice, "_known", {})
    model = prepare_(small_model(), Int8Training())
    step(model)
    for layer in explain(model).layers:
        assert layer.exact_seconds > 0
        assert layer.method_seconds > 0


@pytest.mark.filterwarnings("ignore:.*Input was padded")
def test_autocast_and_checkpoints() -> None:
    layer = prepare_(nn.Conv2d(8, 8, 3, padding=1), ALWAYS)
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    torch.manual_seed(1)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        y = layer(x)
        half = layer(x.bfloat16())
    assert torch.equal(y, expected)
    assert off(half, expected) < 0.02
    torch.manual_seed(1)
    recomputed = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    recomputed.sum().backward()
    grad, x.grad = x.grad, None
    expected.sum().backward()
    assert torch.equal(grad, x.grad)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(5, 3), torch.randn(4, 10)),
        (nn.Linear(5, 3), torch.randn(4, 5, dtype=torch.float64)),
        (nn.Conv2d(5, 3, 1), torch.randn(2, 5, 4, 4, dtype=torch.float64)),
        (nn.Conv2d(5, 3, 1), torch.ones(2, 5, 4, 4, dtype=torch.int64)),
    ],
)
def test_what_torch_refuses_is_refused_in_its_words(layer: nn.Module, x: Tensor) -> None:
    with pytest.raises(RuntimeError) as torchs:
        layer(x)
    with pytest.raises(RuntimeError) as ours:
        prepare_(layer, Int8Training(fallback="never"))(x)
    assert str(ours.value) == str(torchs.value)


def test_operators_pass_torchs_own_checks() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 6, 7), torch.randn(8, 5, 3, 3), torch.randn(8)
    geometry = ([2, 1], [1, 0], [1, 1], 1)
    forward = torch.ops.flower_edge.int8_conv2d.default
    torch.library.opcheck(
        forward, (x, weight, bias, *geometry), test_utils=("test_schema", "test_faketensor")
    )
    y, values, meaning = forward(x, weight, bias, *geometry)
    torch.library.opcheck(
        torch.ops.flower_edge.int8_conv2d_backward.default,
        (torch.randn_like(y), weight, values, meaning, torch.tensor(3), *geometry, 16, True, True, True),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_models_compile() -> None:
    model = prepare_(small_model(), Int8Training(rounding="nearest", fallback="never"))
    expected = step(model)
    compiled = torch.compile(model, backend="aot_eager")
    x, targets = batch()
    model.zero_grad()
    nn.functional.cross_entropy(compiled(x), targets).backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-4)


def test_second_derivatives_and_transforms_are_refused() -> None:
    layer = prepare_(nn.Conv2d(2, 3, 3), ALWAYS)
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"transforms of torch\.func"):
        torch.func.grad(lambda z: layer(z).sum())(x.detach())


def test_what_is_not_finite_raises() -> None:
    layer = prepare_(nn.Linear(4, 3), ALWAYS)
    with pytest.raises(ValueError, match="NaN or an infinity"):
        layer(torch.tensor([[1.0, float("nan"), 2.0, 3.0]]))
    y = layer(torch.ones(1, 4))
    with pytest.raises(ValueError, match="NaN or an infinity"):
        y.backward(torch.full_like(y, float("inf")))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Int8Training(error_bits=12), ValueError, "error_bits is 12, expected 8 or 16"),
        (lambda: Int8Training(rounding="up"), ValueError, "rounding is 'up'"),
        (lambda: Int8Training(fallback="always"), ValueError, "fallback is 'always'"),
        (lambda: Int8Training(where=3), TypeError, "where is 3"),
        (lambda: prepare_(nn.Conv2d(2, 2, 17), ALWAYS), ValueError, "kernels of at most 15"),
        (lambda: prepare_(nn.Linear(70_000, 2), ALWAYS), ValueError, "70000 products"),
        (lambda: prepare_(nn.Linear(3, 2).double(), ALWAYS), ValueError, "its weight is torch.float64"),
    ],
)
def test_bad_input_is_refused(make, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("chain", [False, True])
def test_a_linear_layer_is_compared_with_products_of_matrices(
    chain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[set[str]] = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            ways[-1].add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def timed(exact: Callable[[], object], method: Callable[[], object], device: torch.device) -> Measurement:
        for way in (exact, method):
            ways.append(set())
            with Operators():
                way()
        return Measurement(2.0, 1.0)

    monkeypatch.setattr(_choice, "timed", timed)
    monkeypatch.setattr(_choice, "_known", {})
    layer = prepare_(nn.Linear(64, 10), Int8Training(chain=chain))
    layer(torch.randn(32, 64, requires_grad=True)).sum().backward()
    exact, method = ways
    assert "mm" in exact
    assert not any("conv" in name for name in exact)
    assert "int8_conv2d" in method
    assert "int8_conv2d_backward" in method
