"""Time and energy of pruned gradients and feedback through signs: layers, and whole training steps.

``python -m benchmarks.sign_feedback [--quick]``

Layers: from x, grad_y and weight to grad_x and grad_weight, all that a training step needs included: the
threshold, pruning, packing of signs, both gradients. Torch's exact way has the better of two memory formats;
"as trained" is the backward pass, through autograd, of a channels-last layer with the method's defaults once
its choice is made for good; torch's own pass where that is faster. It is held against that of torch's layer.
Steps: forward, loss, backward and SGD with momentum of ResNet-18, 16 images of 32×32, channels last. All
times are measured, interleaved in one process; multiply-accumulates and bytes are counted, and energy is
modelled from them by the published table of `flower_edge.energy`.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from math import exp, log
from timeit import repeat

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.harness import Benchmark, Timing, interleaved, run
from benchmarks.networks import resnet18
from benchmarks.sparse_grad_layers import RESNET18_SMALL, Layer, Problem
from flower_edge.energy import Counts, EnergyModel
from flower_edge.kernels import pack_signs
from flower_edge.training import SignFeedback, _sign_ops, explain, prepare_, pruning_report
from flower_edge.training._int8_ops import Geometry
from flower_edge.training.pruning import PrunedFeedback, Pruner, pruners

EXACT, SAME_LAYER = "torch, exact", "torch, exact, the layer, channels last"
OURS, EXACT_FEEDBACK, TRAINED = "pruned, sign feedback", "pruned, exact feedback", "as trained"
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
BOUNDS = {0.8: 2.2, 0.9: 4.0, 0.95: 6.0}
STEP_BOUND = 1.4
SLOWEST = 0.98
"""Of torch's speed, for any layer as it is trained: clocks are no better than that."""

MOST_LOOKS = 130
"""Backward passes after which a close call is settled."""

FEEDBACK_BOUND = 30.0
PUBLISHED_ENERGY = 5.0
"""Times less, Hong and Yue 2021, of their own chip."""

BATCH, SIDE, CLASSES = 16, 32, 10
ENTRY_BYTES, TRANSFERS = 8, 5
"""Of an element that is not zero: its place and its value are written and read in the order of pixels and in
that of channels, and once more for the second product. A cache that holds them is not counted on."""

Step = Callable[[], object]


def ours(problem: Problem, way: PrunedFeedback) -> Step:
    """Bind what a layer with :class:`flower_edge.training.SignFeedback` runs."""
    layer = problem.layer
    padding = layer.kernel_size // 2
    geometry = Geometry((layer.stride,) * 2, (padding,) * 2, (1, 1), 1)
    tensors = (problem.grad, problem.weight, problem.x)
    return lambda: _sign_ops.backward(*tensors, geometry, way, True, (True, True))


def trained(problem: Problem, sparsity: float) -> tuple[Step, Step, Pruner]:
    """Bind the backward passes of torch's layer and of one that has chosen; give its pruner."""
    torch_layer = problem.conv2d()
    method = SignFeedback(sparsity, schedule=None, where=lambda name, layer: True)
    layer = prepare_(problem.conv2d(), method)
    ((_, pruner),) = pruners(layer)
    for _ in range(MOST_LOOKS):
        through_autograd(problem, layer)()
        if pruner.measurement is not None and not pruner.measurement.is_close:
            break
    return through_autograd(problem, torch_layer), through_autograd(problem, layer), pruner


def through_autograd(problem: Problem, layer: nn.Module) -> Step:
    """Run a layer forward, and bind its backward pass."""
    x, (weight,) = problem.x.detach().requires_grad_(), layer.parameters()
    y = layer(x)
    return lambda: torch.autograd.grad(y, (x, weight), problem.grad, retain_graph=True)


def dense_counts(x: Tensor, grad: Tensor, weight: Tensor) -> Counts:
    """Count an exact backward pass: two products; every tensor travels once."""
    return Counts(2 * grad.numel() * weight[0].numel(), _tensor_bytes(x, grad, weight) + weight.nbytes)


def pruned_counts(x: Tensor, grad: Tensor, weight: Tensor, zeros: float, signs: bool) -> Counts:
    """Count a backward pass with this share of zeros."""
    kept = round((1 - zeros) * grad.numel())
    feedback = pack_signs(weight).nbytes if signs else weight.nbytes
    moved = _tensor_bytes(x, grad, weight) + kept * ENTRY_BYTES * TRANSFERS + feedback
    return Counts(2 * kept * weight[0].numel(), moved)


def _tensor_bytes(x: Tensor, grad: Tensor, weight: Tensor) -> int:
    """Count gradients of output, input and weight, and the input."""
    return grad.nbytes + 2 * x.nbytes + weight.nbytes


def energy_ratio(dense: Counts, pruned: Counts) -> float:
    """Return how many times less energy the model says, at that end of its table which says less."""
    model = EnergyModel()
    return min(model.of(dense).least / model.of(pruned).least, model.of(dense).most / model.of(pruned).most)


Ratios = dict[tuple[Layer, float, str], float]


def main(bench: Benchmark) -> None:
    """Time layers and steps with one and two threads, then hold the ratios against what is claimed."""
    layers = (RESNET18_SMALL[1], RESNET18_SMALL[8]) if bench.quick else RESNET18_SMALL
    for threads in (1,) if bench.quick else (1, 2):
        torch.set_num_threads(threads)
        ratios: Ratios = {}
        for layer in layers:
            print(f"{layer}, {threads} threads", file=sys.stderr)
            for sparsity in SPARSITIES[1:3] if bench.quick else SPARSITIES:
                ratios |= layer_rows(bench, layer, sparsity, threads)
        if bench.quick:
            worst_layer(bench, ratios, threads, 0.9)
        else:
            claim_layers(bench, ratios, threads)
            step_rows(bench, threads)
    if not bench.quick:
        claim_feedback(bench)


def layer_rows(bench: Benchmark, layer: Layer, sparsity: float, threads: int) -> Ratios:
    """Time all ways to get the gradients of a layer; return how many times faster each is than torch's."""
    problems = [Problem.of(layer, layout) for layout in (torch.channels_last, torch.contiguous_format)]
    ways = {
        OURS: PrunedFeedback(True, False, Pruner(sparsity)),
        EXACT_FEEDBACK: PrunedFeedback(False, False, Pruner(sparsity)),
    }
    contenders = {EXACT: faster([problem.dense() for problem in problems])}
    contenders |= {name: ours(problems[0], way) for name, way in ways.items()}
    contenders[SAME_LAYER], contenders[TRAINED], pruner = trained(problems[0], sparsity)
    ways[TRAINED] = PrunedFeedback(SignFeedback().feedback == "sign", True, pruner)
    times = interleaved(contenders)
    tensors = (problems[0].x, problems[0].grad, problems[0].weight)
    dense = dense_counts(*tensors)
    for name, timing in times.items():
        way = ways.get(name)
        zeros = 0.0 if way is None else way.pruner.tally.share
        pruned = dense if way is None or zeros == 0 else pruned_counts(*tensors, zeros, way.signs)
        path = "exact" if way is None else str(way.pruner.path)
        add(bench, str(layer), sparsity, threads, f"{name}: {path}", timing, times[EXACT], dense, pruned)
    return {
        (layer, sparsity, name): times[SAME_LAYER if name == TRAINED else EXACT].over(times[name])
        for name in ways
    }


def add(
    bench: Benchmark,
    what: str,
    sparsity: float,
    threads: int,
    method: str,
    timing: Timing,
    exact: Timing,
    dense: Counts,
    pruned: Counts,
) -> None:
    """Add one line; counts and energy are of the backward passes of convolutions alone."""
    bench.row(
        what=what,
        sparsity=sparsity,
        threads=threads,
        method=method,
        milliseconds=1e3 * timing.median,
        spread=timing.spread,
        times_faster_than_exact=exact.over(timing),
        mega_macs_counted=pruned.multiply_adds / 1e6,
        macs_skipped_counted=1 - pruned.multiply_adds / dense.multiply_adds,
        megabytes_counted=pruned.memory_bytes / 1e6,
        times_less_energy_modelled=energy_ratio(dense, pruned),
        times_less_energy_published=PUBLISHED_ENERGY,
    )


def faster(contenders: Sequence[Step]) -> Step:
    """Return the fastest by a glance, which leaves out its first call."""
    for contender in contenders:
        contender()
    glances = [min(repeat(contender, number=1, repeat=2)) for contender in contenders]
    return contenders[glances.index(min(glances))]


def step_rows(bench: Benchmark, threads: int) -> None:
    """Time whole training steps of ResNet-18."""
    print(f"ResNet-18 step, {threads} threads", file=sys.stderr)
    torch.manual_seed(0)
    model = resnet18(CLASSES, small_images=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    models = {EXACT: model}
    for name, feedback, fallback in (
        (TRAINED, SignFeedback().feedback, "measured"),
        (OURS, "sign", "never"),
        (EXACT_FEEDBACK, "exact", "never"),
    ):
        # As it is after a schedule has risen.
        settings = {"schedule": None, "where": lambda name, layer: True, "fallback": fallback}
        method = SignFeedback(0.8, feedback, **settings)  # type: ignore[arg-type]
        models[name] = prepare_(copy.deepcopy(model), method)
    times = interleaved({name: training_step(prepared) for name, prepared in models.items()}, seconds=0.0)
    for name, timing in times.items():
        dense, pruned = model_counts(models[name])
        label = name + fallen_back(models[name])
        add(bench, "ResNet-18 step", 0.8, threads, label, timing, times[EXACT], dense, pruned)
    bench.at_least(
        f"ResNet-18, batch {BATCH}, all convolutions at 80 %, {threads} threads, measured: times faster than "
        "plain torch, whole steps",
        times[EXACT].over(times[TRAINED]),
        STEP_BOUND,
    )


def training_step(model: nn.Module) -> Callable[[], None]:
    """Bind a batch to a model; a call is one training step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def one() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), labels))
        optimizer.step()

    return one


def fallen_back(model: nn.Module) -> str:
    """Say how many layers were measured to be faster with exact gradients, and therefore have them."""
    layers = explain(model).layers
    exact = sum(path.path == "exact" for path in layers)
    return f", {exact} of {len(layers)} layers exact" if exact else ""


def model_counts(model: nn.Module) -> tuple[Counts, Counts]:
    """Count the backward passes of all convolutions of one step, exact and as the model has them."""
    found: list[tuple[Counts, Counts]] = []
    reports = {layer.name: layer for layer in pruning_report(model).layers}

    def count(name: str, layer: nn.Conv2d) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
            # The output stands in for its gradient, which has its size.
            tensors = (inputs[0], y, layer.weight)
            dense = pruned = dense_counts(*tensors)
            done, way = reports.get(name), getattr(vars(layer).get("rule"), "grad_input", None)
            if done is not None and done.path == "sparse" and isinstance(way, PrunedFeedback):
                pruned = pruned_counts(*tensors, done.sparsity, way.signs)
            found.append((dense, pruned))

        return hook

    handles = [
        layer.register_forward_hook(count(name, layer))  # type: ignore[arg-type]
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.randn(BATCH, 3, SIDE, SIDE))
    for handle in handles:
        handle.remove()
    return total([dense for dense, _ in found]), total([pruned for _, pruned in found])


def total(counts: Sequence[Counts]) -> Counts:
    """Add counts up."""
    return Counts(sum(one.multiply_adds for one in counts), sum(one.memory_bytes for one in counts))


def claim_layers(bench: Benchmark, ratios: Ratios, threads: int) -> None:
    """Hold geometric means over the layers, and the worst layer of all, against the bounds."""
    for sparsity, bound in BOUNDS.items():
        bench.at_least(
            f"layers of ResNet-18, {threads} threads, {sparsity:.0%} zeros, measured: times faster than "
            "torch's exact backward pass, geometric mean",
            geometric_mean([ratios[layer, sparsity, EXACT_FEEDBACK] for layer in RESNET18_SMALL]),
            bound,
        )
    worst_layer(bench, ratios, threads, SLOWEST)


def worst_layer(bench: Benchmark, ratios: Ratios, threads: int, bound: float) -> None:
    """Hold the slowest layer, as it is trained, against a bound."""
    trained = {key: ratio for key, ratio in ratios.items() if key[2] == TRAINED}
    layer, sparsity, _ = min(trained, key=trained.__getitem__)
    bench.at_least(
        f"any layer at any sparsity as it is trained, {threads} threads, measured: times faster than the "
        f"backward pass of torch's layer, worst case ({layer}, {sparsity:.0%})",
        min(trained.values()),
        bound,
    )


def claim_feedback(bench: Benchmark) -> None:
    """Claim how few bytes errors go back through."""
    weights = [layer.weight.detach() for layer in _convolutions(resnet18(CLASSES, small_images=True))[1:]]
    packed = sum(pack_signs(weight).nbytes for weight in weights)
    bench.at_least(
        "ResNet-18, all convolutions but the stem, counted: times fewer bytes of weights that errors go back "
        "through",
        sum(weight.nbytes for weight in weights) / packed,
        FEEDBACK_BOUND,
    )


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def geometric_mean(values: Sequence[float]) -> float:
    """Average ratios."""
    return exp(sum(map(log, values)) / len(values))


if __name__ == "__main__":
    run("sign_feedback", __doc__, main)
