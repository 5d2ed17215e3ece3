"""Time of filtered backward passes, layer by layer and for whole training steps.

``python -m benchmarks.gradient_filter [--quick] [--device cuda] [--plot PATH]``

Layers: from tensors x, grad_y and weight to grad_x and grad_weight. All that a training step needs is in
it: pooling of x and grad_y, the sum of the weight over its taps, products, filling of grad_x and
grad_weight. Torch's exact backward pass and the published formulation, plain and compiled, have the better
of two memory formats. Steps: forward, loss, backward and SGD with momentum, batches of 8 images of 224×224,
channels-last. All times are measured, interleaved in one process.
"""

import argparse
import copy
import gc
import sys
from collections.abc import Callable
from math import exp, log
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import published_filter
from benchmarks.harness import Benchmark, Timing, interleaved, run
from benchmarks.small_networks import mobilenet_v2, resnet18
from flower_edge.training import FrozenNorm, GradientFilter, LeanActivations, _ops, all_but_stem, prepare_
from flower_edge.training._filtered_conv import ConvFilter

Gradients = Callable[[], object]


class Layer(NamedTuple):
    """A convolution and its input; a batch has 32 images."""

    inputs: int
    outputs: int
    height: int
    width: int
    kernel_size: int = 3
    stride: int = 1
    depthwise: bool = False

    def __str__(self) -> str:
        kind = f"{self.kernel_size}×{self.kernel_size}{' depthwise' if self.depthwise else ''}"
        channels = self.inputs if self.depthwise else f"{self.inputs}→{self.outputs}"
        return f"{kind} {channels} @{self.height}×{self.width}{' stride 2' if self.stride == 2 else ''}"


PAPER = (
    *(Layer(128, 128, 120, 160), Layer(256, 256, 60, 80), Layer(512, 512, 30, 40)),
    *(Layer(512, 512, 14, 14), Layer(256, 256, 14, 14), Layer(128, 128, 28, 28), Layer(64, 64, 56, 56)),
)
"""The layers whose latency the paper reports."""
DEPTHWISE = Layer(144, 144, 56, 56, depthwise=True)
POINTWISE = Layer(64, 384, 14, 14, kernel_size=1)
MOBILENET = (
    DEPTHWISE,
    POINTWISE,
    Layer(144, 144, 56, 56, stride=2, depthwise=True),
    Layer(24, 144, 56, 56, kernel_size=1),
)
BATCH = 32

EXACT, PUBLISHED, COMPILED, OURS = "torch, exact", "published", "published, compiled", "flower_edge"
FILTERED, ALL_FILTERED = "all but the stem filtered", "all filtered"
LEAN = "all filtered, lean activations"
FROZEN, FROZEN_LEAN = "exact, frozen norms", "all filtered, lean activations, frozen norms"
STEP_BATCH, STEP_SIDE = 8, 224


def main(bench: Benchmark, device: str = "cpu", plot: str | None = None) -> None:
    """Time layers and steps with one and two threads, then hold the ratios against what is claimed."""
    threads = (2,) if bench.quick or device != "cpu" else (1, 2)
    layers = (PAPER[5], POINTWISE) if bench.quick else (*PAPER, *MOBILENET)
    torch._dynamo.config.recompile_limit = 1000
    for count in threads:
        torch.set_num_threads(count)
        ratios = {}
        for layer in layers:
            for patch_size in (2, 4):
                ratios[layer, patch_size] = layer_row(bench, layer, patch_size, device, count)
        if device == "cpu" and not bench.quick:
            claim_layers(bench, ratios, count)
        networks = {} if bench.quick else {"ResNet-18": resnet18, "MobileNetV2": large_mobilenet}
        for name, build in networks.items():
            step_rows(bench, name, build, device, count)
    if plot:
        draw(bench, plot)


def layer_row(bench: Benchmark, layer: Layer, patch_size: int, device: str, threads: int) -> dict[str, float]:
    """Time all ways to get the gradients of a layer; return how many times faster ours is than each."""
    show(f"{layer}, r = {patch_size}, {threads} threads")
    contenders = {}
    for name, build in ((EXACT, exact), (PUBLISHED, published), (COMPILED, compiled)):
        formats = [build(layer, patch_size, device, layout) for layout in LAYOUTS]
        contenders[name] = formats[faster(formats)]
        del formats
    contenders[OURS] = ours(layer, patch_size, device, torch.channels_last)
    times = interleaved(contenders, seconds=0.05)
    over = {name: timing.over(times[OURS]) for name, timing in times.items()}
    for name, timing in times.items():
        add(bench, str(layer), f"r = {patch_size}", threads, name, timing, times[EXACT].over(timing))
    del contenders
    gc.collect()
    return over


LAYOUTS = (torch.channels_last, torch.contiguous_format)


def tensors(layer: Layer, device: str, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return x, grad_y and weight with random values, and the number of groups."""
    torch.manual_seed(0)
    groups = layer.inputs if layer.depthwise else 1
    shape = (layer.outputs, layer.inputs // groups, layer.kernel_size, layer.kernel_size)
    x = torch.randn(BATCH, layer.inputs, layer.height, layer.width, device=device)
    size = (-(-layer.height // layer.stride), -(-layer.width // layer.stride))
    grad = torch.randn(BATCH, layer.outputs, *size, device=device)
    weight = torch.randn(shape, device=device) / (shape[1] * shape[2] ** 2) ** 0.5
    return x.to(memory_format=layout), grad.to(memory_format=layout), weight.to(memory_format=layout), groups


def exact(layer: Layer, patch_size: int, device: str, layout: torch.memory_format) -> Gradients:
    """Bind torch's own backward pass."""
    x, grad, weight, groups = tensors(layer, device, layout)
    stride, padding = [layer.stride] * 2, [layer.kernel_size // 2] * 2
    return waiting(
        device,
        lambda: torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], groups, [True, True, False]
        ),
    )


def published(layer: Layer, patch_size: int, device: str, layout: torch.memory_format) -> Gradients:
    """Bind the published formulation, operation by operation."""
    return waiting(device, published_call(layer, patch_size, device, layout, both_published))


def compiled(layer: Layer, patch_size: int, device: str, layout: torch.memory_format) -> Gradients:
    """Bind the published formulation, compiled for just these shapes."""
    function = torch.compile(both_published, dynamic=False)
    return waiting(device, published_call(layer, patch_size, device, layout, function))


def both_published(
    x: Tensor, grad: Tensor, weight: Tensor, patch_size: int, window: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Pool the input as the forward pass would, and form both gradients."""
    sums = published_filter.pooled_input(x, window)
    size = (x.shape[2], x.shape[3])
    return published_filter.backward(grad, sums, weight, size, patch_size, window, groups)


def published_call(
    layer: Layer,
    patch_size: int,
    device: str,
    layout: torch.memory_format,
    function: Callable[..., tuple[Tensor, Tensor]],
) -> Gradients:
    """Bind tensors to one of the two above."""
    x, grad, weight, groups = tensors(layer, device, layout)
    return lambda: function(x, grad, weight, patch_size, patch_size * layer.stride, groups)


def ours(layer: Layer, patch_size: int, device: str, layout: torch.memory_format) -> Gradients:
    """Bind what a prepared convolution runs beside its exact forward pass."""
    x, grad, weight, groups = tensors(layer, device, layout)
    padding = layer.kernel_size // 2
    conv = ConvFilter((layer.stride,) * 2, (padding,) * 2, (1, 1), groups, patch_size, 1)

    def gradients() -> object:
        sums = _ops.patch_sums(x, grad.shape, weight.shape, conv)
        return _ops.backward(grad, weight, sums, x.shape, conv, True, True)

    return waiting(device, gradients)


def waiting(device: str, function: Gradients) -> Gradients:
    """Let a call return when the device is done."""
    if device == "cpu":
        return function

    def finished() -> object:
        result = function()
        torch.accelerator.synchronize(device)
        return result

    return finished


def faster(contenders: list[Gradients]) -> int:
    """Return the index of the fastest."""
    times = interleaved({str(i): c for i, c in enumerate(contenders)}, seconds=0.0)
    return min(range(len(contenders)), key=lambda i: times[str(i)].median)


def large_mobilenet(classes: int) -> nn.Module:
    """Return MobileNetV2 for images of 224×224."""
    return mobilenet_v2(classes, width=1.0, small_images=False)


def step_rows(
    bench: Benchmark, name: str, build: Callable[[int], nn.Module], device: str, threads: int
) -> None:
    """Time whole training steps of a network."""
    torch.manual_seed(0)
    model = build(1000).to(device).to(memory_format=torch.channels_last)
    published_model = published_filter.use_published_(copy.deepcopy(model), 2)
    everywhere = GradientFilter(patch_size=2, where=lambda name, layer: True)
    frozen = freeze_statistics(copy.deepcopy(model))
    models = {
        EXACT: model,
        PUBLISHED: published_model,
        FILTERED: prepare_(copy.deepcopy(model), GradientFilter(patch_size=2, where=all_but_stem)),
        ALL_FILTERED: prepare_(copy.deepcopy(model), everywhere),
        LEAN: prepare_(copy.deepcopy(model), everywhere, LeanActivations()),
        FROZEN: frozen,
        FROZEN_LEAN: prepare_(copy.deepcopy(model), everywhere, LeanActivations(), FrozenNorm()),
    }
    show(f"{name}, {threads} threads")
    times = interleaved({which: waiting(device, step(m, device)) for which, m in models.items()}, seconds=0.0)
    for which, timing in times.items():
        against = FROZEN if "frozen" in which else EXACT
        add(bench, f"{name} step", "r = 2", threads, which, timing, times[against].over(timing))
    if device != "cpu":
        return
    bound = 2.2 if name == "ResNet-18" else 1.35
    about = f"{name}, batch 8, {threads} threads: times faster than plain torch, measured"
    bench.at_least(f"{about}, {LEAN}", times[EXACT].over(times[LEAN]), bound)


def freeze_statistics(model: nn.Module) -> nn.Module:
    """Let norms use their running statistics in training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
    return model


def step(model: nn.Module, device: str) -> Gradients:
    """Bind a batch to a model; a call is one training step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEP_BATCH, 3, STEP_SIDE, STEP_SIDE, generator=generator).to(device)
    x = x.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (STEP_BATCH,), generator=generator).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model.train()

    def one() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return one


def add(
    bench: Benchmark, what: str, patch: str, threads: int, method: str, timing: Timing, speedup: float
) -> None:
    """Add one line."""
    bench.row(
        what=what,
        patch=patch,
        threads=threads,
        method=method,
        milliseconds=1e3 * timing.median,
        spread=timing.spread,
        times_faster_than_exact=speedup,
    )


def claim_layers(bench: Benchmark, ratios: dict[tuple[Layer, int], dict[str, float]], threads: int) -> None:
    """Claim what the issue of speed comes to."""
    about = f"{threads} threads, measured: times faster than torch's exact backward pass"
    if threads == 2:
        for patch_size, bound in ((2, 22.0), (4, 50.0)):
            logs = [log(ratios[layer, patch_size][EXACT]) for layer in PAPER]
            bench.at_least(
                f"the paper's seven layers, r = {patch_size}, {about}, geometric mean", exp(mean(logs)), bound
            )
    bench.at_least(f"{DEPTHWISE}, r = 2, {about}", ratios[DEPTHWISE, 2][EXACT], 2.5)
    bench.at_least(f"{POINTWISE}, r = 2, {about}", ratios[POINTWISE, 2][EXACT], 2.0)
    worst = min(ratios, key=lambda key: ratios[key][COMPILED])
    bench.at_least(
        f"{threads} threads, measured: times faster than the published formulation compiled, worst layer "
        f"({worst[0]}, r = {worst[1]})",
        ratios[worst][COMPILED],
        0.9,
    )


def draw(bench: Benchmark, path: str) -> None:
    """Draw the speed-ups of all layers with the most threads as bars."""
    import matplotlib.pyplot as plt

    most = max(row["threads"] for row in bench.rows)
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    layers = list(dict.fromkeys(row["what"] for row in bench.rows if not row["what"].endswith("step")))
    shown = ((PUBLISHED, "r = 2"), (COMPILED, "r = 2"), (OURS, "r = 2"), (OURS, "r = 4"))
    for i, (method, patch) in enumerate(shown):
        values = [
            row["times_faster_than_exact"]
            for layer in layers
            for row in bench.rows
            if (row["what"], row["method"], row["patch"], row["threads"]) == (layer, method, patch, most)
        ]
        places = [place + 0.2 * i for place in range(len(layers))]
        axes.barh(places, values, height=0.18, label=f"{method}, {patch}")
    axes.set_yticks([place + 0.3 for place in range(len(layers))], layers)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"times faster than torch's exact backward pass, {most} threads")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def show(text: str) -> None:
    """Say on a terminal what is being timed."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def command_line() -> tuple[str, str | None]:
    """Take this benchmark's own options off the command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot")
    options, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            f"--device {options.device}: this machine has no GPU that torch {torch.__version__} can use"
        )
    return options.device, options.plot


if __name__ == "__main__":
    chosen_device, plot_path = command_line()
    name = "gradient_filter" if chosen_device == "cpu" else f"gradient_filter_{chosen_device}"
    run(name, __doc__, lambda bench: main(bench, chosen_device, plot_path))
