"""The methods that the benchmark times compute what they say, and it draws and claims what it found."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d

from benchmarks import filter_layers, published_filter
from benchmarks import gradient_filter as bench
from benchmarks.filter_layers import Layer, Problem, both_published
from benchmarks.gradient_filter import COMPILED, EXACT, OURS, PUBLISHED
from benchmarks.harness import DEVICE, Benchmark, Timing
from benchmarks.networks import resnet20
from flower_edge.training import EdgeConv2d, GradientFilter, last, prepare_
from flower_edge.training._choice import Measurement

DENSE = Layer(6, 10, 8, 12)
LAYERS = (DENSE, Layer(6, 10, 8, 12, kernel_size=1), Layer(8, 8, 8, 12, depthwise=True))


@pytest.fixture(autouse=True)
def _small_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_layers, "BATCH", 2)
    torch.set_num_threads(1)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_published_formulation_and_ours_agree_at_stride_1(
    layer: Layer, patch_size: int, layout: torch.memory_format
) -> None:
    problem = Problem.of(layer, "cpu", layout)

    published = problem.published(both_published, patch_size)()
    ours = problem.ours(patch_size)()

    for theirs, mine in zip(published, ours, strict=False):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_published_formulation_is_the_gradient_of_a_patch_constant_layer(layer: Layer) -> None:
    """The method's definition: exact gradients of pooling, a 1×1 kernel of summed taps, and upsampling."""
    problem = Problem.of(layer, "cpu", torch.contiguous_format)
    x, grad, weight = (t.double() for t in (problem.x, problem.grad, problem.weight))
    x.requires_grad_()
    summed = weight.sum((2, 3), keepdim=True).requires_grad_()
    coarse = conv2d(avg_pool2d(x, 2), summed, groups=problem.groups)
    coarse.repeat_interleave(2, 2).repeat_interleave(2, 3).backward(grad)  # type: ignore[no-untyped-call]

    grad_x, grad_weight = both_published(x.detach(), grad, weight, 2, 2, problem.groups)

    torch.testing.assert_close(grad_x, x.grad)
    assert summed.grad is not None
    torch.testing.assert_close(grad_weight, summed.grad.expand_as(weight))


def test_published_stride_2_is_four_times_ours() -> None:
    """The flaw of the published code that its documentation here speaks of."""
    problem = Problem.of(Layer(6, 10, 8, 12, stride=2), "cpu", torch.channels_last)

    published = problem.published(both_published, 2)()
    ours = problem.ours(2)()

    for theirs, mine in zip(published, ours, strict=False):
        torch.testing.assert_close(4 * mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [*LAYERS, Layer(6, 6, 9, 7, stride=2, depthwise=True)], ids=str)
def test_exact_is_what_autograd_says(layer: Layer) -> None:
    problem = Problem.of(layer, "cpu", torch.channels_last)
    x, weight = problem.x.clone().requires_grad_(), problem.weight.clone().requires_grad_()
    conv2d(x, weight, None, layer.stride, layer.kernel_size // 2, 1, problem.groups).backward(problem.grad)  # type: ignore[no-untyped-call]

    grad_x, grad_weight = problem.exact()()

    torch.testing.assert_close(grad_x, x.grad)
    torch.testing.assert_close(grad_weight, weight.grad)


def test_published_model_filters_all_layers_but_the_stem() -> None:
    torch.manual_seed(0)
    model = resnet20(10)
    reference = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d)]

    published_filter.use_published_(model, 4)
    model(torch.randn(2, 3, 32, 32)).sum().backward()

    def is_constant(grad: torch.Tensor) -> bool:
        return bool((grad == grad[..., :1, :1]).all())

    constant = [is_constant(weight.grad) for weight in reference if weight.grad is not None]
    assert len(constant) == 21
    assert not constant[0]
    assert all(constant[1:])


def test_rows_claims_and_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A whole run over two small layers, `torch.compile` left out for its minutes of compiling."""
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(bench, "PAPER", (DENSE,))
    monkeypatch.setattr(bench, "MOBILENET", (bench.DEPTHWISE, bench.POINTWISE))
    found = Benchmark("gradient_filter", quick=False)

    ratios = {
        layer: bench.layer_rows(found, layer, "cpu", 2) for layer in (DENSE, bench.DEPTHWISE, bench.POINTWISE)
    }
    bench.claim_layers(found, ratios, 2)
    bench.draw(found, str(tmp_path / "bars.png"))

    methods = [row["method"] for row in found.rows if row["what"] == str(DENSE)]
    assert methods == [EXACT, *2 * [PUBLISHED, COMPILED, OURS], bench.FOURIER]
    by_method = {
        row["method"]: row for row in found.rows if row["what"] == str(DENSE) and row["patch"] != "r = 4"
    }
    assert ratios[DENSE][EXACT, 2] == by_method[OURS]["times_faster_than_exact"]
    assert by_method[bench.FOURIER]["times_faster_than_exact"] == ratios[DENSE][bench.FOURIER, 8]
    values = [claim["value"] for claim in found.claims]
    assert values[:2] == pytest.approx([ratios[DENSE][EXACT, 2], ratios[DENSE][EXACT, 4]])
    assert values[-1] == min(ratio[COMPILED, r] for ratio in ratios.values() for r in (2, 4))
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_a_worst_case_and_ties_are_named() -> None:
    found = Benchmark("gradient_filter", quick=False)
    over = {
        (bench.FOURIER, bench.DEFAULT.patch_size): 6.0,
        (EXACT, 2): 4.0,
        (EXACT, 4): 9.0,
        (PUBLISHED, 2): 3.0,
        (PUBLISHED, 4): 3.0,
    }
    layers = (*bench.PAPER, bench.DEPTHWISE, bench.POINTWISE)
    ratios = {layer: {**over, (COMPILED, 2): 1.5, (COMPILED, 4): 2.0} for layer in layers}
    ratios[bench.POINTWISE][COMPILED, 4] = 0.95

    bench.claim_layers(found, ratios, 2)

    last = found.claims[-1]
    assert (
        f"worst case ({bench.POINTWISE}, r = 4; ties within 10 %: {bench.POINTWISE}, r = 4)" in last["text"]
    )
    assert last["holds"]
    assert [claim["holds"] for claim in found.claims[:-1]] == [False, False, True, True, True]


def test_the_faster_one_is_taken() -> None:
    called = []

    def slow() -> tuple[torch.Tensor, ...]:
        called.append("slow")
        return tuple(torch.randn(1_000_000).sort())

    def fast() -> tuple[torch.Tensor, ...]:
        called.append("fast")
        return ()

    assert bench.faster([slow, fast]) is fast
    assert set(called) == {"slow", "fast"}


def test_frozen_statistics_stay_as_they_are() -> None:
    model = bench.freeze_statistics(resnet20(10))
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}

    model(torch.randn(2, 3, 32, 32))

    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        DEVICE.parse_args(["--device", "cuda"])

    assert "this machine has no GPU that torch" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_events_time_every_contender() -> None:
    x = torch.randn(256, 256, device="cuda")

    times = bench.timed({("a", ""): lambda: x @ x, ("b", "r"): lambda: x + x}, "cuda", seconds=0.0)

    assert all(isinstance(timing, Timing) and timing.median > 0 for timing in times.values())


def test_layers_that_were_faster_exact_are_counted() -> None:
    model = prepare_(resnet20(10), GradientFilter(where=last(3), basis="walsh"))
    layers = [layer for layer in model.modules() if isinstance(layer, EdgeConv2d)]

    assert bench.fallen_back(model) == ""
    for layer, exact_seconds in zip(layers, (1.0, 3.0, 1.0), strict=True):
        layer.measurement = Measurement(exact_seconds, method_seconds=2.0)

    assert bench.fallen_back(model) == ", 2 of 3 layers exact"
