"""Sign feedback: layers against float64 and their definition, and what goes around them."""

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from slow_pruning import slow_
from small_models import BATCH, Chain
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from flower_edge.kernels import PackedSigns, pack_signs, prune, pruning_threshold
from flower_edge.training import (
    EdgeConv2d,
    ElasticTrainer,
    FrozenNorm,
    GradientFilter,
    Int8Training,
    LeanActivations,
    Rising,
    SignFeedback,
    Time,
    _choice,
    all_but_stem,
    explain,
    gradient_angle,
    last,
    prepare_,
    profile,
    pruning_report,
    restore_,
    resume_schedule_,
    saved_bytes,
)
from flower_edge.training._choice import Measurement
from flower_edge.training.pruning import pruners

pytestmark = pytest.mark.board


def everywhere(name: str, layer: nn.Module) -> bool:
    return True


def always(sparsity: float = 0.8, **settings: object) -> SignFeedback:
    usual = {"feedback": "sign", "schedule": None, "where": everywhere, "fallback": "never"}
    return SignFeedback(sparsity, **{**usual, **settings})


class Clock:
    """Stands in for the clock: both ways take what it says."""

    exact_seconds, method_seconds, asked = 2.0, 1.0, 0

    def timed(self, *_: object) -> Measurement:
        self.asked += 1
        return Measurement(self.exact_seconds, self.method_seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(_choice, "_known", {})
    monkeypatch.setattr(_choice, "timed", made.timed)
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.Conv2d(12, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def step(net: nn.Module, x: Tensor = BATCH[0], targets: Tensor = BATCH[1]) -> list[Tensor | None]:
    net.zero_grad()
    cross_entropy(net(x), targets).backward()
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def off(received: Tensor, expected: Tensor) -> float:
    return float(((received.double() - expected.double()).norm() / expected.double().norm()).detach())


LAYERS = [
    (nn.Conv2d(5, 7, 3, padding=1), (2, 5, 6, 7)),
    (nn.Conv2d(16, 33, 3, stride=2, padding=1, bias=False), (3, 16, 9, 8)),
    (nn.Conv2d(8, 12, (3, 2), dilation=(1, 2), groups=4, padding="same"), (2, 8, 7, 7)),
    (nn.Conv2d(4, 6, 4, padding="same", padding_mode="reflect"), (2, 4, 9, 9)),
    (nn.Conv2d(31, 97, 1), (7, 31, 5, 5)),
    (nn.Conv2d(15, 15, 3, padding=1, groups=15), (2, 15, 8, 8)),
    (nn.Conv2d(33, 15, 1, stride=2, padding="valid"), (1, 33, 7, 7)),
    (nn.Conv2d(3, 4, 3), (3, 6, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("feedback", ["sign", "exact"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_pruned_gradient(
    layer: nn.Conv2d, shape: tuple[int, ...], feedback: str, layout: torch.memory_format
) -> None:
    torch.manual_seed(3)
    x = torch.randn(shape)
    x = x.contiguous(memory_format=layout) if len(shape) == 4 else x
    expected_y = layer(x)
    seen = torch.randn_like(expected_y)
    net = prepare_(copy.deepcopy(layer), always(0.7, feedback=feedback))
    pruner = net.rule.grad_weight.pruner
    given = x.clone().requires_grad_()

    y = net(given)
    y.backward(seen)

    batched = seen if seen.dim() == 4 else seen[None]
    dense = prune(batched, pruning_threshold(batched, 0.7), pruner.seed).dense().double()
    assert 0.4 < float((dense == 0).double().mean()) < 0.9
    grads = []
    for signs in (feedback == "sign", False):
        exact = copy.deepcopy(layer).double()
        if signs:
            exact.weight.data = pack_signs(layer.weight.detach()).unpacked().double()
        exact_x = x.double().requires_grad_()
        exact(exact_x).backward(dense if seen.dim() == 4 else dense[0])
        grads.append((exact_x.grad, exact.weight.grad))
    assert torch.equal(y, expected_y)
    assert off(given.grad, grads[0][0]) <= 1e-5
    assert off(net.weight.grad, grads[1][1]) <= 1e-5
    if layer.bias is not None:
        torch.testing.assert_close(net.bias.grad, batched.sum((0, 2, 3)))


@pytest.mark.parametrize("feedback", ["sign", "exact"])
def test_a_slow_training_goes_the_same_way(feedback: str) -> None:
    fast = prepare_(model(), always(0.8, feedback=feedback, schedule=Rising(0.2, 3)))
    slow = slow_(model().double(), fast, feedback == "sign", 0.2, 3)
    optimizers = [torch.optim.SGD(net.parameters(), 0.05, momentum=0.9) for net in (fast, slow)]

    for _ in range(5):
        found, expected = step(fast), step(slow, BATCH[0].double())
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()


def test_feedback_alone_prunes_nothing() -> None:
    net, exact = prepare_(model(), always(0.0)), model()
    found, expected = step(net), step(exact)

    # Behind the last convolution errors have not gone through any.
    assert torch.equal(found[-3], expected[-3])
    assert not torch.equal(found[0], expected[0])
    assert 0.5 < torch.cosine_similarity(found[0].flatten(), expected[0].flatten(), 0) < 1
    report = pruning_report(net)
    assert (report.sparsity, report.skipped_macs) == (0.0, 0)
    assert report.macs > 0
    assert {layer.path for layer in report.layers} == {"dense"}


def test_pruning_is_unbiased() -> None:
    torch.manual_seed(0)
    net = prepare_(nn.Conv2d(3, 4, 3, padding=1), always(0.8, feedback="exact"))
    x = torch.randn(2, 3, 6, 6)
    seen = torch.randn(2, 4, 6, 6)
    exact = torch.nn.grad.conv2d_weight(x, net.weight.shape, seen, padding=1)

    found = []
    for _ in range(600):
        net.zero_grad()
        net(x).backward(seen)
        found.append(net.weight.grad.clone())

    draws = torch.stack(found).double()
    errors = (draws.mean(0) - exact) / (draws.std(0) / len(draws) ** 0.5)
    assert float(errors.abs().max()) < 4.5
    assert 0.7 < float(errors.square().mean()) < 1.4


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
def test_as_many_zeros_as_asked_for_are_counted(sparsity: float) -> None:
    torch.manual_seed(1)
    net = prepare_(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)), always(sparsity))
    net(torch.randn(8, 3, 20, 20)).square().sum().backward()

    report = pruning_report(net)

    assert report.sparsity == pytest.approx(sparsity, abs=0.01)
    assert report.steps == 1
    first, second = report.layers
    assert [layer.name for layer in report.layers] == ["0", "1"]
    # The gradient of the images is not wanted.
    assert first.macs == 8 * 400 * 16 * 27
    assert second.macs == 8 * 400 * 8 * 16 * 2
    assert first.skipped_macs == round(first.sparsity * first.macs)
    assert report.skipped_macs == first.skipped_macs + second.skipped_macs
    assert report.skipped_share == report.skipped_macs / report.macs


def test_sparsity_rises_with_backward_passes() -> None:
    net = prepare_(model(), always(0.9, schedule=Rising(0.5, 4)))
    (_, pruner), *_ = pruners(net)
    asked = []
    for _ in range(6):
        asked.append(pruner.sparsity_now())
        net(BATCH[0])  # a forward pass alone is no step
        step(net)

    assert asked == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    assert pruning_report(net).steps == 6
    again = resume_schedule_(prepare_(model(), always(0.9, schedule=Rising(0.5, 4))), 2)
    assert next(pruners(again))[1].sparsity_now() == pytest.approx(0.7)


@pytest.mark.parametrize(("asked", "first"), [(0.8, 0.5), (0.5, 0.5), (0.3, 0.3)])
def test_by_default_sparsity_rises_from_a_half_and_a_lower_one_is_constant(
    asked: float, first: float
) -> None:
    net = prepare_(model(), SignFeedback(asked))
    (_, pruner), *_ = pruners(net)
    assert pruner.schedule == Rising()
    assert pruner.sparsity_now() == first
    resume_schedule_(net, Rising().steps)
    assert pruner.sparsity_now() == pytest.approx(asked)


def test_the_state_dict_is_untouched_and_restore_undoes_all() -> None:
    net = model()
    keys, classes = list(net.state_dict()), [type(layer) for layer in net]
    parameters = [id(parameter) for parameter in net.parameters()]

    prepare_(net, SignFeedback(), LeanActivations())
    step(net)

    assert type(net[3]) is EdgeConv2d
    assert type(net[0]) is nn.Conv2d
    assert list(net.state_dict()) == keys
    assert [id(parameter) for parameter in net.parameters()] == parameters
    model().load_state_dict(net.state_dict())
    assert [type(layer) for layer in restore_(net)] == classes
    assert pruning_report(net).layers == ()
    assert all(torch.equal(a, b) for a, b in zip(step(net), step(copy.deepcopy(net)), strict=True))


def pickled(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_go_on_alike_and_on_their_own(copied) -> None:
    net = prepare_(model(), always(0.8, schedule=Rising(0.5, 10)))
    for _ in range(3):
        step(net)

    other = copied(net)

    assert [p.number for _, p in pruners(other)] != [p.number for _, p in pruners(net)]
    assert pruning_report(other) == pruning_report(net)
    assert all(torch.equal(a, b) for a, b in zip(step(other), step(net), strict=True))
    step(other)
    assert (pruning_report(net).steps, pruning_report(other).steps) == (4, 5)


def test_a_seed_repeats_a_run_and_other_random_numbers_stay() -> None:
    runs = []
    for seed in (7, 7, 8):
        net = model()
        torch.manual_seed(seed)
        prepare_(net, always())
        before = torch.get_rng_state()
        runs.append((step(net), step(net)))
        assert torch.equal(torch.get_rng_state(), before)

    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert not torch.equal(runs[0][0][0], runs[2][0][0])
    assert not torch.equal(runs[0][0][0], runs[0][1][0])


def test_in_eval_mode_and_without_gradients_layers_are_exact() -> None:
    net = prepare_(model(), always())
    with torch.no_grad():
        net(BATCH[0])
    exact = step(model().eval())
    found = step(net.eval().requires_grad_())
    # Running statistics have moved with the one pass in training mode.
    assert off(found[-1], exact[-1]) < 1
    assert pruning_report(net).steps == 0
    assert {layer.path for layer in explain(net).layers} == {"exact"}


def test_frozen_weights_and_inputs_get_no_gradients() -> None:
    layer = prepare_(nn.Conv2d(4, 5, 3), always())
    layer.weight.requires_grad_(False)
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert x.grad is not None
    half = pruning_report(layer).macs
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None
    assert pruning_report(layer).macs == 2 * half
    layer.weight.requires_grad_(False)
    layer(x.detach()).sum().backward()
    assert pruning_report(layer).macs == 2 * half


def test_as_much_is_saved_as_for_exact_gradients() -> None:
    exact, ours = (saved_bytes(net, BATCH, cross_entropy) for net in (model(), prepare_(model(), always())))
    assert ours.total == exact.total


def test_elastic_training_leaves_out_what_it_has_not_chosen() -> None:
    net = prepare_(Chain(), always(0.8, schedule=Rising(0.5, 10)))
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    trainer = ElasticTrainer(net, optimizer, cross_entropy, Time(0.5))

    choice = trainer.select(BATCH)

    # Profiling and probing are no steps of the schedule.
    assert pruning_report(net).steps == 0
    step(net)
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert trained == set(choice.names)
    assert len(trained) < len(list(net.parameters()))
    assert pruning_report(net).steps <= 1


def test_a_folded_normalisation_is_part_of_the_weight() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    net[1].weight.data.normal_()
    exact = copy.deepcopy(net).double().eval()
    prepare_(net, always(0.6, feedback="exact"), FrozenNorm([("0", "1")]))
    x, seen = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 6, 6, 6)

    y = net(x)
    y.backward(seen)

    pruner = net[0].rule.grad_weight.pruner
    dense = prune(seen, pruning_threshold(seen, 0.6), pruner.seed).dense().double()
    exact_x = x.detach().double().requires_grad_()
    exact(exact_x).backward(dense)
    torch.testing.assert_close(y, exact(exact_x).float(), rtol=1e-4, atol=1e-4)
    assert off(x.grad, exact_x.grad) < 1e-5
    assert off(net[0].weight.grad, exact[0].weight.grad) < 1e-5
    # Shifts are biases: their gradient is of all that there was.
    torch.testing.assert_close(net[1].bias.grad, seen.sum((0, 2, 3)))


def test_methods_share_a_model_but_not_a_layer() -> None:
    for other in (Int8Training(where=last(9)), GradientFilter(where=last(9), basis="walsh")):
        net = model()
        with pytest.raises(ValueError, match=r"both set its grad_input"):
            prepare_(net, always(), other)
        assert type(net[0]) is nn.Conv2d
    first, rest = (lambda name, layer: name == "0"), (lambda name, layer: name in ("3", "6"))
    net = prepare_(
        model(), Int8Training(where=first, fallback="never"), always(where=rest), LeanActivations()
    )
    step(net)
    paths = [layer.path for layer in explain(net).layers]
    assert [path for path in paths if path != "lean"] == ["int8", "sparse", "sparse"]


@pytest.mark.parametrize(("seconds", "path"), [(3.0, "exact"), (2.0, "exact"), (1.0, "sparse")])
def test_the_faster_way_is_taken_and_explained(clock: Clock, seconds: float, path: str) -> None:
    clock.method_seconds = seconds
    exact = step(model())
    net = prepare_(model(), SignFeedback())
    assert "not measured before its first backward pass" in str(explain(net))

    found = step(net)

    assert torch.equal(found[0], exact[0]) == (path == "exact")
    layers = explain(net).layers
    assert {layer.path for layer in layers} == {path}
    assert all(layer.method_seconds == seconds for layer in layers)
    assert {"exact": "as fast as pruning", "sparse": "2.00x as fast as exact"}[path] in layers[0].why
    assert ("zeros so far" in layers[0].why) == (path == "sparse")
    assert (pruning_report(net).skipped_macs > 0) == (path == "sparse")
    assert pruning_report(net).steps == 1
    assert "in eval mode" in str(explain(net.eval()))


def test_a_layer_is_measured_again_when_its_schedule_has_moved(clock: Clock) -> None:
    method = SignFeedback(0.9, schedule=Rising(0.5, 16), where=everywhere)
    net = prepare_(nn.Conv2d(3, 5, 3), method)
    clock.method_seconds = 3.0
    asked = []
    for _ in range(18):
        net(BATCH[0]).sum().backward()
        asked.append(clock.asked)
    # From 0.5 to 0.9 there are nine multiples of 0.05.
    assert asked[0] == 1
    assert asked[-1] == 9
    # Exact for now, but its schedule goes on.
    assert pruning_report(net).steps == 18
    assert pruning_report(net).sparsity == 0


def test_a_layer_that_is_exact_for_good_is_torchs_own(clock: Clock) -> None:
    clock.method_seconds = 3.0
    net = prepare_(nn.Conv2d(3, 5, 3), SignFeedback(0.8, schedule=Rising(0.5, 100), where=everywhere))
    alone = nn.Conv2d(3, 5, 3)
    alone.load_state_dict(net.state_dict())
    nodes, macs = [], 0
    for passes in range(1, 240):
        y = net(BATCH[0])
        nodes.append(type(y.grad_fn).__name__)
        y.square().sum().backward()
        macs += y.numel() * 27
        assert pruning_report(net).steps == passes
        assert pruning_report(net).macs == macs
    # From the 93rd pass on the sparsity is 0.8 within 0.025, and the last look is at the 128th of those.
    assert nodes.index("ConvolutionBackward0") == 92 + 128
    assert set(nodes[220:]) == {"ConvolutionBackward0"}
    assert explain(net).layers[0].path == "exact"
    assert explain(net).layers[0].method_seconds == 3.0

    net.zero_grad()
    net(BATCH[0]).square().sum().backward()
    alone(BATCH[0]).square().sum().backward()
    for ours, theirs in zip(net.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)

    # What the clock has not seen is asked about anew: another batch, a schedule that begins again, a copy.
    for again, x in ((net, BATCH[0][:1]), (resume_schedule_(copy.deepcopy(net), 0), BATCH[0])):
        assert type(again(x).grad_fn).__name__ != "ConvolutionBackward0"
    checkpoint(net, BATCH[0].clone().requires_grad_(), use_reentrant=False).sum().backward()
    assert pruning_report(net).steps == 241


def test_both_ways_are_really_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_choice, "_known", {})
    net = prepare_(model(), SignFeedback())
    step(net)
    for layer in explain(net).layers:
        assert layer.exact_seconds > 0
        assert layer.method_seconds > 0
        assert (layer.path == "exact") == (0.9 * layer.exact_seconds <= layer.method_seconds)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast(layout: torch.memory_format) -> None:
    x = BATCH[0].contiguous(memory_format=layout)
    nets = [prepare_(model(), always(0.5)) for _ in range(2)]
    torch.manual_seed(0)
    for net in nets:
        for _, pruner in pruners(net):
            pruner.seed = 5
    expected = step(nets[0], x)
    nets[1].zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = nets[1](x)
        loss = cross_entropy(y.float(), BATCH[1])
    loss.backward()

    assert y.dtype == torch.bfloat16
    assert {parameter.grad.dtype for parameter in nets[1].parameters()} == {torch.float32}
    # The head's gradient is not pruned; what is pruned by chance may differ in any element.
    assert off(nets[1][-1].weight.grad, expected[-2]) < 0.05


def test_backward_inside_autocast_keeps_float32() -> None:
    net = prepare_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, groups=1)), always())
    other = copy.deepcopy(net)
    net(BATCH[0]).square().mean().backward()
    loss = other(BATCH[0]).square().mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.backward()
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert off(mine.grad, theirs.grad) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = prepare_(nn.Conv2d(4, 6, 3, padding=1), always(0.5)).to(dtype)
    x = torch.randn(2, 4, 7, 7, dtype=dtype, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == dtype
    assert bool(layer.weight.grad.isfinite().all())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden(value: float) -> None:
    """A GradScaler has to see it."""
    layer = prepare_(nn.Conv2d(4, 6, 3, padding=1), always())
    x = torch.randn(2, 4, 7, 7, requires_grad=True)
    seen = torch.randn(2, 6, 7, 7)
    seen[0, 2, 3, 3] = value
    layer(x).backward(seen)
    assert not bool(layer.weight.grad.isfinite().all())
    assert not bool(x.grad.isfinite().all())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("fallback", ["measured", "never"])
def test_checkpointing(use_reentrant: bool, fallback: str, clock: Clock) -> None:
    nets = [prepare_(model(), always(fallback=fallback)) for _ in range(2)]
    for net in nets:
        for _, pruner in pruners(net):
            pruner.seed = 5
    x = BATCH[0].clone().requires_grad_()
    expected = step(nets[0], x)

    cross_entropy(checkpoint(nets[1], x, use_reentrant=use_reentrant), BATCH[1]).backward()

    assert all(
        off(parameter.grad, grad) < 1e-6
        for parameter, grad in zip(nets[1].parameters(), expected, strict=True)
    )
    assert pruning_report(nets[1]).steps == 1


def test_models_compile() -> None:
    net = prepare_(model(), always(0.7, schedule=Rising(0.5, 4)))
    eager = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        expected = step(eager)
        net.zero_grad()
        cross_entropy(compiled(BATCH[0]), BATCH[1]).backward()
        for parameter, grad in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5)
    assert pruning_report(net).steps == 2
    assert pruning_report(net).skipped_macs == pruning_report(eager).skipped_macs


def test_the_operator_passes_torchs_own_checks() -> None:
    torch.manual_seed(0)
    layer = prepare_(nn.Conv2d(5, 8, 3), always())
    pruner = layer.rule.grad_weight.pruner
    x, weight = torch.randn(2, 5, 6, 7), layer.weight.detach()
    grad = torch.randn(2, 8, 3, 5)
    operator = torch.ops.flower_edge.conv2d_pruned_backward.default
    geometry = ([2, 1], [1, 0], [1, 1], 1)
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            operator,
            (grad, weight, x, *geometry, True, *needs, True, False, pruner.number),
            test_utils=("test_schema", "test_faketensor"),
        )
    number = pruner.number
    del layer, pruner
    with pytest.raises(RuntimeError, match="compile the model again"):
        operator(grad, weight, x, *geometry, True, True, True, True, False, number)


def test_shapes_without_data() -> None:
    with FakeTensorMode():
        net = prepare_(model(), SignFeedback())
        net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert net[3].weight.grad.shape == net[3].weight.shape
    assert pruning_report(net).steps == 0


def test_second_derivatives_and_transforms_are_refused() -> None:
    layer = prepare_(nn.Conv2d(2, 3, 3), always())
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"transforms of torch\.func"):
        torch.func.grad(lambda z: layer(z).sum())(x.detach())


def test_a_model_learns_as_an_exact_one_does() -> None:
    final = []
    for net in (model(), prepare_(model(), always())):
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            loss = cross_entropy(net(BATCH[0]), BATCH[1])
            loss.backward()
            optimizer.step()
        final.append(float(loss.detach()))
    assert final[1] < 0.5
    assert final[1] < final[0] + 0.4


def test_the_angle_is_between_this_gradient_and_the_exact_one() -> None:
    net = prepare_(nn.Sequential(nn.Dropout(0.2), model()), always(0.8, schedule=Rising(0.5, 4)))
    before, state, report = copy.deepcopy(net.state_dict()), torch.get_rng_state(), pruning_report(net)
    ours = step(copy.deepcopy(net))
    torch.set_rng_state(state)
    exact = step(restore_(copy.deepcopy(net)))
    torch.set_rng_state(state)

    found = gradient_angle(net, BATCH, cross_entropy)

    cosine = torch.cosine_similarity(
        torch.cat([grad.flatten() for grad in ours]).double(),
        torch.cat([grad.flatten() for grad in exact]).double(),
        0,
    )
    assert found.degrees == pytest.approx(float(torch.rad2deg(torch.acos(cosine))), abs=1e-3)
    assert list(found.by_tensor) == [name for name, _ in net.named_parameters()]
    assert found.by_tensor["1.9.weight"] == pytest.approx(0, abs=0.1)
    assert 1 < found.by_tensor["1.0.weight"] < 90
    # Nothing is left behind.
    assert pruning_report(net) == report
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net[1][0].rule.grad_weight is not None


def test_an_exact_fall_back_has_no_angle(clock: Clock) -> None:
    clock.method_seconds = 3.0
    net = prepare_(model(), SignFeedback())
    assert gradient_angle(net, BATCH, cross_entropy).degrees == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="no layer in training mode with SignFeedback"):
        gradient_angle(net.eval(), BATCH, cross_entropy)


def test_a_profile_shows_that_signs_need_few_bytes() -> None:
    """One bit a weight, one number a filter: of wide layers, a thirtieth."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    batch = (BATCH[0][:2], BATCH[1][:2])
    exact = profile(net, batch, cross_entropy, repeats=1)
    method = SignFeedback(feedback="sign", fallback="never")
    ours = profile(prepare_(net, method), batch, cross_entropy, repeats=1)

    weight, head = net[1].weight, net[4].weight
    signs: PackedSigns = pack_signs(weight.detach())
    assert exact.feedback_bytes == weight.nbytes + head.nbytes
    assert ours.feedback_bytes == signs.nbytes + head.nbytes
    assert signs.nbytes <= weight.nbytes / 30
    assert next(o for o in ours.operations if o.module == "1").feedback_bytes == signs.nbytes
    assert type(ours).from_json(ours.to_json()) == ours


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: SignFeedback(1.0), ValueError, "sparsity is 1.0, expected at least 0 and less than 1"),
        (lambda: SignFeedback(True), TypeError, "sparsity is True, expected a number"),
        (lambda: SignFeedback(feedback="random"), ValueError, "feedback is 'random'"),
        (lambda: SignFeedback(schedule=0.5), TypeError, "schedule is 0.5, expected a Rising"),
        (lambda: SignFeedback(where=3), TypeError, "where is 3"),
        (lambda: SignFeedback(fallback="always"), ValueError, "fallback is 'always'"),
        (lambda: SignFeedback(0.0, "sign"), ValueError, "every layer would stay exact"),
        (lambda: SignFeedback(0.0, "exact", fallback="never"), ValueError, "nothing would change"),
        (lambda: Rising(-0.1), ValueError, "start is -0.1"),
        (lambda: Rising("0.1"), TypeError, "start is '0.1'"),
        (lambda: Rising(steps=0), ValueError, "steps is 0, expected at least 1"),
        (lambda: Rising(steps=1.5), TypeError, "steps is 1.5, expected an int"),
        (lambda: prepare_(nn.Conv2d(2, 2, 3).to(torch.cfloat), always()), ValueError, "complex64"),
        (lambda: prepare_(nn.Linear(2, 2), always()), ValueError, "found no layer of class Conv2d"),
        (lambda: always().rule(nn.Linear(2, 2)), ValueError, "it is a Linear, expected a Conv2d"),
        (lambda: pruning_report(3), TypeError, "model is a int"),
        (lambda: resume_schedule_(model(), -1), ValueError, "steps is -1"),
        (lambda: resume_schedule_(model(), True), TypeError, "steps is True"),
        (lambda: gradient_angle(model(), BATCH, cross_entropy), ValueError, "no layer in training mode"),
        (lambda: gradient_angle(model(), 3, cross_entropy), ValueError, "batch is a int"),
    ],
)
def test_bad_input_is_refused(make, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_all_but_the_stem_by_default() -> None:
    assert SignFeedback().where is all_but_stem
