"""Time of filtered backward passes, layer by layer and for whole training steps.

``python -m benchmarks.gradient_filter [--quick] [--device cuda] [--plot PATH]``

Layers: from tensors x, grad_y and weight to grad_x and grad_weight. All that a training step needs is in
it: pooling of x and grad_y, the sum of the weight over its taps, products, filling of grad_x and
grad_weight. Torch's exact backward pass and the published formulation, plain and compiled, have the better
of two memory formats. Steps: forward, loss, backward and SGD with momentum, batches of 8 images of 224×224,
channels-last. All times are measured, interleaved in one process. On a GPU, where there are no kernels of
ours, layers and steps are also compiled, and products may be in TF32 for all.
"""

import copy
import sys
import timeit
from collections.abc import Callable, Mapping
from math import exp, log
from statistics import mean

import torch
from torch import nn

from benchmarks import published_filter
from benchmarks.filter_layers import (
    DEPTHWISE,
    MOBILENET,
    PAPER,
    POINTWISE,
    Gradients,
    Layer,
    Problem,
    both_published,
)
from benchmarks.harness import DEVICE, PLOT, Benchmark, Timing, interleaved, run
from benchmarks.networks import mobilenet_v2, resnet18
from flower_edge.training import (
    EdgeConv2d,
    FrozenNorm,
    FusedNorm,
    GradientFilter,
    LeanActivations,
    all_but_stem,
    explain,
    prepare_,
)

Ratios = dict[tuple[str, int], float]
"""How many times faster ours is than each method, for each patch size; of FOURIER, than the exact one."""

PATCH_SIZES = (2, 4)

EXACT, PUBLISHED, COMPILED, OURS = "torch, exact", "published", "published, compiled", "flower_edge"
FOURIER = "flower_edge, Fourier"
DEFAULT = GradientFilter()
SPECTRUM = f"r = {DEFAULT.patch_size}, k = {DEFAULT.components}"
FILTERED = "all but the stem filtered"
FOURIER_LEAN = "all but the stem filtered, Fourier, lean activations"
LEAN = f"{FILTERED}, lean activations"
FUSED, FUSED_LEAN = "torch, exact, lean activations, fused norms", f"{LEAN}, fused norms"
FASTEST = f"{FILTERED}, fused norms"
ALL_LEAN = "all filtered, lean activations"
FROZEN, FROZEN_LEAN = "torch, exact, frozen norms", f"{LEAN}, frozen norms"
STEP_BATCH, STEP_SIDE = 8, 224


def main(bench: Benchmark) -> None:
    """Time layers and steps with one and two threads, then hold the ratios against what is claimed."""
    device = bench.options.device
    threads = (2,) if bench.quick or device != "cpu" else (1, 2)
    if device != "cpu":
        bench.name += f"_{device}"
        torch.set_float32_matmul_precision("high")
    layers = (PAPER[5], POINTWISE) if bench.quick else (*PAPER, *MOBILENET)
    torch._dynamo.config.recompile_limit = 1000
    for count in threads:
        torch.set_num_threads(count)
        ratios = {layer: layer_rows(bench, layer, device, count) for layer in layers}
        if device == "cpu" and not bench.quick:
            claim_layers(bench, ratios, count)
        networks = {} if bench.quick else {"ResNet-18": resnet18, "MobileNetV2": large_mobilenet}
        for name, build in networks.items():
            step_rows(bench, name, build, device, count)
    show("")
    if bench.options.plot:
        draw(bench, bench.options.plot)


def layer_rows(bench: Benchmark, layer: Layer, device: str, threads: int) -> Ratios:
    """Time all ways to get the gradients of a layer; return how many times faster ours is than each."""
    show(f"{layer}, {threads} threads")
    problems = [
        Problem.of(layer, device, layout) for layout in (torch.channels_last, torch.contiguous_format)
    ]
    contenders = {(EXACT, ""): faster([problem.exact() for problem in problems])}
    for patch_size in PATCH_SIZES:
        formulation = torch.compile(both_published, dynamic=False)
        contenders[PUBLISHED, patch(patch_size)] = faster(
            [problem.published(both_published, patch_size) for problem in problems]
        )
        contenders[COMPILED, patch(patch_size)] = faster(
            [problem.published(formulation, patch_size) for problem in problems]
        )
        contenders[OURS, patch(patch_size)] = problems[0].ours(patch_size)
    if layer.has_taps:
        contenders[FOURIER, SPECTRUM] = problems[0].ours(
            DEFAULT.patch_size, DEFAULT.components, DEFAULT.basis
        )
    if device != "cpu":
        contenders |= {
            (f"{method}, compiled", size): torch.compile(contender, dynamic=False)
            for (method, size), contender in contenders.items()
            if method in (OURS, FOURIER)
        }
    times = timed(contenders, device, seconds=0.05)
    for (method, size), timing in times.items():
        add(bench, str(layer), size, threads, method, timing, times[EXACT, ""].over(timing))
    ratios = {
        (method, patch_size): times[method, "" if method == EXACT else patch(patch_size)].over(
            times[OURS, patch(patch_size)]
        )
        for patch_size in PATCH_SIZES
        for method in (EXACT, PUBLISHED, COMPILED)
    }
    if layer.has_taps:
        ratios[FOURIER, DEFAULT.patch_size] = times[EXACT, ""].over(times[FOURIER, SPECTRUM])
    return ratios


def patch(patch_size: int) -> str:
    """Name a patch size."""
    return f"r = {patch_size}"


def faster(contenders: list[Gradients]) -> Gradients:
    """Return the fastest by a glance, which leaves out its first call."""
    for contender in contenders:
        contender()
    glances = [min(timeit.repeat(contender, number=1, repeat=2)) for contender in contenders]
    return contenders[glances.index(min(glances))]


def timed(
    contenders: Mapping[tuple[str, str], Callable[[], object]], device: str, seconds: float
) -> dict[tuple[str, str], Timing]:
    """Time side by side: by this machine's clock, or by the GPU's own where the work is there."""
    named = {", ".join(key): contender for key, contender in contenders.items()}
    times = interleaved(named, seconds=seconds) if device == "cpu" else gpu_interleaved(named)
    return dict(zip(contenders, times.values(), strict=True))


def gpu_interleaved(contenders: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    """Do what `interleaved` does with the GPU's events, which leave out how long this machine waits."""
    calls, rounds = 10, 7
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(calls):
                contender()
            end.record()
            end.synchronize()
            samples[name].append(begin.elapsed_time(end) / 1e3 / calls)
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def large_mobilenet(classes: int) -> nn.Module:
    """Return MobileNetV2 for images of 224×224."""
    return mobilenet_v2(classes, width=1.0, small_images=False)


def step_rows(
    bench: Benchmark, name: str, build: Callable[[int], nn.Module], device: str, threads: int
) -> None:
    """Time whole training steps of a network."""
    show(f"{name}, {threads} threads")
    torch.manual_seed(0)
    model = build(1000).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    filtering = GradientFilter(patch_size=2, where=all_but_stem, basis="walsh")
    everywhere = GradientFilter(patch_size=2, where=lambda name, layer: True, basis="walsh")
    models = {
        EXACT: model,
        FUSED: prepare_(copy.deepcopy(model), LeanActivations(), FusedNorm()),
        PUBLISHED: published_filter.use_published_(copy.deepcopy(model), 2),
        FILTERED: prepare_(copy.deepcopy(model), filtering),
        LEAN: prepare_(copy.deepcopy(model), filtering, LeanActivations()),
        FUSED_LEAN: prepare_(copy.deepcopy(model), filtering, LeanActivations(), FusedNorm()),
        FASTEST: prepare_(copy.deepcopy(model), filtering, FusedNorm()),
        FOURIER_LEAN: prepare_(copy.deepcopy(model), GradientFilter(where=all_but_stem), LeanActivations()),
        ALL_LEAN: prepare_(copy.deepcopy(model), everywhere, LeanActivations()),
        FROZEN: freeze_statistics(copy.deepcopy(model)),
        FROZEN_LEAN: prepare_(copy.deepcopy(model), filtering, LeanActivations(), FrozenNorm()),
    }
    if device != "cpu":
        models |= {f"{method}, compiled": torch.compile(models[method]) for method in (EXACT, FILTERED)}
    steps = {(method, patch(2)): step(prepared, device) for method, prepared in models.items()}
    times = {method: timing for (method, _), timing in timed(steps, device, seconds=0.0).items()}
    for method, timing in times.items():
        against = times[FROZEN if "frozen" in method else EXACT]
        size = (SPECTRUM if method == FOURIER_LEAN else patch(2)) + fallen_back(models[method])
        add(bench, f"{name} step", size, threads, method, timing, against.over(timing))
    if device == "cpu":
        about = (
            f"{name}, batch {STEP_BATCH}, {threads} threads, measured: times faster than plain torch, "
            f"{FASTEST}"
        )
        bench.at_least(about, times[EXACT].over(times[FASTEST]), 2.2 if name == "ResNet-18" else 1.35)


def fallen_back(model: nn.Module) -> str:
    """Say how many layers were measured to be faster with exact gradients, and therefore have them."""
    found = [layer for layer in model.modules() if isinstance(layer, EdgeConv2d)]
    exact = sum(path.path == "exact" for path in explain(model).layers)
    return f", {exact} of {len(found)} layers exact" if exact else ""


def freeze_statistics(model: nn.Module) -> nn.Module:
    """Let norms use their running statistics in training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def step(model: nn.Module, device: str) -> Callable[[], None]:
    """Bind a batch to a model; a call is one training step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEP_BATCH, 3, STEP_SIDE, STEP_SIDE, generator=generator).to(device)
    x = x.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (STEP_BATCH,), generator=generator).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

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


def claim_layers(bench: Benchmark, ratios: Mapping[Layer, Ratios], threads: int) -> None:
    """Claim what the speed of layers comes to."""
    about = f"{threads} threads, measured: times faster than torch's exact backward pass"
    if threads == 2:
        for patch_size, bound in ((2, 22.0), (4, 50.0)):
            logs = [log(ratios[layer][EXACT, patch_size]) for layer in PAPER]
            bench.at_least(
                f"the paper's seven layers, {patch(patch_size)}, {about}, geometric mean",
                exp(mean(logs)),
                bound,
            )
    logs = [log(ratios[layer][FOURIER, DEFAULT.patch_size]) for layer in PAPER]
    bench.at_least(
        f"the paper's seven layers, Fourier, {SPECTRUM}, {about}, geometric mean", exp(mean(logs)), 5.0
    )
    bench.at_least(f"{DEPTHWISE}, {patch(2)}, {about}", ratios[DEPTHWISE][EXACT, 2], 2.5)
    bench.at_least(f"{POINTWISE}, {patch(2)}, {about}", ratios[POINTWISE][EXACT, 2], 2.0)
    lead = {
        f"{layer}, {patch(patch_size)}": ratio
        for layer, over in ratios.items()
        for (method, patch_size), ratio in over.items()
        if method == COMPILED
    }
    ties = [name for name, ratio in lead.items() if 0.9 <= ratio <= 1.1]
    bench.at_least(
        f"{threads} threads, measured: times faster than the published formulation compiled, worst case "
        f"({min(lead, key=lead.__getitem__)}; ties within 10 %: {'; '.join(ties) or 'none'})",
        min(lead.values()),
        0.9,
    )


def draw(bench: Benchmark, path: str) -> None:
    """Draw the speed-ups of all layers with the most threads as bars."""
    import matplotlib.pyplot as plt

    most = max(row["threads"] for row in bench.rows)
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    layers = list(dict.fromkeys(row["what"] for row in bench.rows if not row["what"].endswith("step")))
    shown = ((COMPILED, "r = 2"), (FOURIER, SPECTRUM), (OURS, "r = 2"), (OURS, "r = 4"))
    for i, (method, patch) in enumerate(shown):
        found = {
            row["what"]: row["times_faster_than_exact"]
            for row in bench.rows
            if (row["method"], row["patch"], row["threads"]) == (method, patch, most)
        }
        values = [found.get(layer, 0.0) for layer in layers]
        places = [place + 0.2 * i for place in range(len(layers))]
        axes.barh(places, values, height=0.18, label=f"{method}, {patch}")
    axes.set_yticks([place + 0.3 for place in range(len(layers))], layers)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"times faster than torch's exact backward pass, {most} threads")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def show(text: str) -> None:
    """Say on a terminal what is being timed."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run("gradient_filter", __doc__, main, PLOT, DEVICE)
