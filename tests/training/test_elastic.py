"""Tensors that join and leave training: the choice, what it leaves alone, and what it predicts."""

import copy
import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from small_models import BATCH, CLASSES, IMAGES, Chain, Checkpointed, Tied, TwoBranches
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from flower_edge.training import (
    BackwardBudget,
    Deadline,
    ElasticTrainer,
    Energy,
    FrozenNorm,
    GradientFilter,
    LeanActivations,
    Memory,
    Profile,
    Time,
    prepare_,
    profile,
    saved_bytes,
)
from flower_edge.training.budget import Budget

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]

SGD: MakeOptimizer = lambda parameters: torch.optim.SGD(  # noqa: E731
    parameters, lr=0.05, momentum=0.9, weight_decay=1e-2
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="module")
def profiles() -> dict[type[nn.Module], Profile]:
    """One for each model with SGD and momentum: measured once."""
    found = {}
    for make in (Chain, TwoBranches):
        model = make()
        found[make] = profile(model, BATCH, functional.cross_entropy, optimizer=SGD(model.parameters()))
    return found


@pytest.fixture
def trainer(profiles: dict[type[nn.Module], Profile]) -> Callable[..., ElasticTrainer]:
    def make(
        kind: type[nn.Module] = TwoBranches,
        budget: Budget | list[Budget] = Time(0.5),  # noqa: B008
        optimizer: MakeOptimizer = SGD,
        **options: Any,
    ) -> ElasticTrainer:
        torch.manual_seed(1)
        model = kind()
        return ElasticTrainer(
            model,
            optimizer(model.parameters()),
            functional.cross_entropy,
            budget,
            **{"profile": profiles[kind], **options},
        )

    return make


def step(trainer: ElasticTrainer, times: int = 1) -> float:
    """Train as a user does; return the last loss."""
    loss = torch.zeros(())
    for _ in range(times):
        trainer.optimizer.zero_grad()
        loss = functional.cross_entropy(trainer.model(IMAGES), CLASSES)
        loss.backward()
        trainer.optimizer.step()
    return loss.item()


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def best(
    trainer: ElasticTrainer, importance: dict[str, float], budget: BackwardBudget, units: Iterable[Any] = ()
) -> float:
    """The importance of the best set: by looking at every one."""
    graph = trainer.graph
    parts = [tuple(unit) for unit in units] or [(name,) for name in graph.tensor_names]
    most = 0.0
    for flags in itertools.product((False, True), repeat=len(parts)):
        names = [name for part, taken in zip(parts, flags, strict=True) if taken for name in part]
        worth = math.fsum(importance[name] for name in names)
        if worth > most and budget.allows(graph.cost(names)):
            most = worth
    return most


@pytest.mark.parametrize("kind", [Chain, TwoBranches])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_the_choice_is_the_best_of_all_sets(trainer: Any, kind: type[nn.Module], share: float) -> None:
    elastic = trainer(kind, Time(share))

    choice = elastic.select(BATCH)

    seconds = share * elastic.graph.full_cost.seconds
    assert choice.selection.importance == pytest.approx(
        best(elastic, choice.importance, BackwardBudget(seconds=seconds)), rel=1e-9
    )
    assert choice.selection.proven_optimal
    assert choice.backward_share <= share * (1 + 1e-9)
    assert trained(elastic.model) == set(choice.names)


def test_layers_join_or_leave_as_one(trainer: Any) -> None:
    elastic = trainer(TwoBranches, Time(0.6), units="layers")

    assert [set(unit) for unit in elastic.units] == [
        {"stem.weight", "norm.weight", "norm.bias"},
        {"main.weight", "main_norm.weight", "main_norm.bias"},
        {"shortcut.weight", "shortcut.bias"},
        {"head.weight", "head.bias"},
    ]
    choice = elastic.select(BATCH)
    assert all(set(unit) <= set(choice.names) or not set(unit) & set(choice.names) for unit in elastic.units)
    budget = BackwardBudget(seconds=0.6 * elastic.graph.full_cost.seconds)
    assert choice.selection.importance == pytest.approx(
        best(elastic, choice.importance, budget, elastic.units)
    )


def test_several_budgets_hold_at_once(trainer: Any) -> None:
    elastic = trainer()
    full = elastic.graph.full_cost
    fixed = elastic.profile.forward_seconds + elastic.profile.optimizer_seconds
    budgets = [Time(0.7), Memory(0.5 * full.bytes), Deadline(fixed + 0.6 * full.seconds)]

    choice = elastic.select(BATCH, budget=budgets)

    assert choice.selection.cost.bytes <= 0.5 * full.bytes
    assert choice.step_seconds <= fixed + 0.6 * full.seconds * (1 + 1e-9)
    limit = BackwardBudget(seconds=0.6 * full.seconds, bytes=0.5 * full.bytes)
    assert choice.selection.importance == pytest.approx(best(elastic, choice.importance, limit))
    # The share of the time is not what keeps anything out: the deadline is tighter.
    assert choice.limits
    assert set(choice.limits) <= {budgets[1], budgets[2]}


def test_energy_is_a_deadline_at_the_power_given(trainer: Any) -> None:
    elastic = trainer()
    seconds = elastic.graph.fixed_seconds + 0.5 * elastic.graph.full_cost.seconds

    by_energy = elastic.select(BATCH, budget=Energy(joules=4 * seconds, watts=4))
    by_deadline = elastic.select(BATCH, budget=Deadline(seconds))

    assert by_energy.names == by_deadline.names
    assert by_energy.joules == pytest.approx(4 * by_energy.step_seconds)
    assert by_energy.joules <= 4 * seconds * (1 + 1e-9)
    assert by_deadline.joules is None


def test_a_slower_device_meets_the_same_deadline_with_less(trainer: Any) -> None:
    quick, slow = trainer(), trainer(slowdown=3.0)
    seconds = quick.graph.fixed_seconds + 0.9 * quick.graph.full_cost.seconds
    importance = quick.importance(BATCH)

    same = slow.select(BATCH, importance=importance, budget=Deadline(3 * seconds))
    less = slow.select(BATCH, importance=importance, budget=Deadline(2 * seconds))

    assert same.names == quick.select(BATCH, importance=importance, budget=Deadline(seconds)).names
    assert same.step_seconds == pytest.approx(3 * quick.choice.step_seconds)
    assert less.step_seconds <= 2 * seconds * (1 + 1e-9)
    assert less.selection.importance < same.selection.importance
    assert slow.select(BATCH, importance=importance).backward_share <= 0.5 * (1 + 1e-9)


def test_a_wider_budget_is_never_worse(trainer: Any) -> None:
    elastic = trainer()
    importance = elastic.importance(BATCH)

    found = [
        elastic.select(BATCH, importance=importance, budget=Time(share)).selection.importance
        for share in np.linspace(0.25, 1, 20)
    ]

    assert found == sorted(found)
    positive = math.fsum(value for value in importance.values() if value > 0)
    assert found[-1] == pytest.approx(positive)


def test_only_some_may_be_chosen(trainer: Any) -> None:
    elastic = trainer(budget=Time(1.0))
    importance = dict.fromkeys(elastic.graph.tensor_names, 1.0)
    allowed = {"stem.weight", "main.weight", "head.bias"}

    choice = elastic.select(BATCH, among=allowed, importance=importance)

    assert set(choice.names) == allowed
    by_layer = trainer(budget=Time(1.0), units="layers")
    choice = by_layer.select(BATCH, among={"stem.weight", "head.bias", "head.weight"}, importance=importance)
    assert set(choice.names) == {"head.bias", "head.weight"}


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum": SGD,
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, betas=(0.5, 0.7)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "a rate in a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_importance_is_what_the_next_step_takes_off_the_loss(trainer: Any, name: str, steps: int) -> None:
    elastic = trainer(optimizer=OPTIMIZERS[name])
    elastic.model.dropout.p = 0.0
    step(elastic, steps)

    found = elastic.importance(BATCH)

    expected = slow_importance(elastic)
    largest = max(map(abs, expected.values()))
    for tensor, value in expected.items():
        assert found[tensor] == pytest.approx(value, rel=2e-3, abs=1e-5 * largest), tensor


def slow_importance(elastic: ElasticTrainer) -> dict[str, float]:
    """−Σ g·Δw in double precision, by taking the step on a copy of everything."""
    model, optimizer = copy.deepcopy((elastic.model, elastic.optimizer))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = copy.deepcopy(optimizer.state_dict())
    model.double()
    optimizer.load_state_dict(state)
    optimizer.zero_grad()
    functional.cross_entropy(model(IMAGES.double()), CLASSES).backward()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == names.keys()
    optimizer.step()
    return {
        name: -(gradients[name] * (parameter.detach() - before[name])).sum().item()
        for name, parameter in model.named_parameters()
    }


def test_each_group_has_its_own_settings(trainer: Any) -> None:
    def grouped(parameters: Iterable[nn.Parameter]) -> Optimizer:
        weights, others = [], []
        for parameter in parameters:
            (weights if parameter.ndim > 1 else others).append(parameter)
        return torch.optim.SGD(
            [{"params": weights, "lr": 0.1, "weight_decay": 0.5}, {"params": others}], lr=1e-3
        )

    elastic = trainer(optimizer=grouped)
    elastic.model.dropout.p = 0.0

    found, expected = elastic.importance(BATCH), slow_importance(elastic)

    assert found == pytest.approx(expected, rel=2e-3, abs=1e-7)


def test_an_optimizer_that_climbs_is_worth_what_it_adds(trainer: Any) -> None:
    down = trainer(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    up = trainer(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, maximize=True))
    for elastic in (down, up):
        elastic.model.dropout.p = 0.0

    assert up.importance(BATCH) == pytest.approx(down.importance(BATCH), rel=1e-4)
    assert min(up.importance(BATCH).values()) >= 0


def everything(elastic: ElasticTrainer) -> list[Any]:
    """All that a probe must not change, bit for bit."""
    model, optimizer = elastic.model, elastic.optimizer
    parts: list[Any] = [
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    ]
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        parts.append((name, id(tensor), tensor.data_ptr(), tensor.detach().numpy().tobytes()))
    for parameter in model.parameters():
        gradient = parameter.grad
        parts.append(
            (parameter.requires_grad, id(gradient), None if gradient is None else gradient.numpy().tobytes())
        )
        state = optimizer.state.get(parameter)
        parts.append(None if state is None else [(k, id(v), raw(v)) for k, v in state.items()])
    parts.append([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])
    parts.append([(module.training, len(module._forward_hooks)) for module in model.modules()])
    return parts


def raw(value: Any) -> Any:
    return value.numpy().tobytes() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", ["momentum", "adam", "adamw fused"])
def test_a_probe_leaves_everything_as_it_was(trainer: Any, name: str, steps: int) -> None:
    elastic = trainer(optimizer=OPTIMIZERS[name])
    step(elastic, steps)
    if steps:
        elastic.select(BATCH)
        step(elastic)
    before = everything(elastic)

    elastic.importance(BATCH)

    assert everything(elastic) == before
    assert elastic.model.norm.num_batches_tracked == steps + bool(steps)


def test_the_first_probe_measures_and_leaves_everything_as_it_was(trainer: Any) -> None:
    elastic = trainer(Chain, profile=None)
    step(elastic, 1)
    with pytest.raises(RuntimeError, match="not been profiled yet"):
        _ = elastic.graph
    before = everything(elastic)

    elastic.importance(BATCH)

    assert everything(elastic) == before
    assert elastic.profile.optimizer_seconds > 0


def test_hooks_and_schedulers_see_no_step(trainer: Any) -> None:
    elastic = trainer(Chain)
    scheduler = torch.optim.lr_scheduler.StepLR(elastic.optimizer, 1, gamma=0.1)
    seen: list[Any] = []
    elastic.optimizer.register_step_post_hook(lambda *_: seen.append("own"))
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("every"))
    try:
        step(elastic)
        scheduler.step()
        begun, before = list(seen), everything(elastic)
        elastic.importance(BATCH)
    finally:
        handle.remove()

    assert begun == seen == ["own", "every"]
    assert everything(elastic) == before


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_nothing_moves_what_is_not_chosen(trainer: Any, name: str) -> None:
    elastic = trainer(optimizer=OPTIMIZERS[name])
    step(elastic, 3)
    choice = elastic.select(BATCH)
    parameters = dict(elastic.model.named_parameters())
    rest = set(parameters) - set(choice.names)
    before = {n: (raw(p.detach()), raw_state(elastic, p)) for n, p in parameters.items()}
    assert rest
    assert all(parameters[n].grad is None for n in rest)

    step(elastic, 4)

    for n, parameter in parameters.items():
        now = raw(parameter.detach()), raw_state(elastic, parameter)
        assert (now == before[n]) == (n in rest), n
        assert (parameter.grad is None) == (n in rest)


def raw_state(elastic: ElasticTrainer, parameter: nn.Parameter) -> dict[str, Any]:
    return {key: raw(value) for key, value in elastic.optimizer.state.get(parameter, {}).items()}


@pytest.mark.parametrize("on_return", ["keep", 0.25, 0.0, "drop"])
@pytest.mark.parametrize(("name", "momentum"), [("momentum", "momentum_buffer"), ("adam", "exp_avg")])
def test_optimizer_state_of_a_tensor_that_comes_back(
    trainer: Any, on_return: Any, name: str, momentum: str
) -> None:
    elastic = trainer(optimizer=OPTIMIZERS[name], on_return=on_return)
    step(elastic, 2)
    stem = elastic.model.stem.weight
    before = copy.deepcopy(elastic.optimizer.state[stem])
    elastic.select(BATCH, among={"head.weight", "head.bias"})
    step(elastic, 2)
    away = copy.deepcopy(elastic.optimizer.state.get(stem))
    expected = copy.deepcopy(before)
    if on_return not in ("keep", "drop"):
        expected[momentum].mul_(on_return)

    probed = elastic.importance(BATCH)["stem.weight"]
    elastic.select(
        BATCH, importance={n: float(n == "stem.weight") for n in elastic.graph.tensor_names}, budget=Time(1)
    )

    now = elastic.optimizer.state.get(stem)
    if on_return == "drop":
        assert away is None
        assert now is None
    else:
        assert [(k, raw(v)) for k, v in away.items()] == [(k, raw(v)) for k, v in before.items()]
        assert [(k, raw(v)) for k, v in now.items()] == [(k, raw(v)) for k, v in expected.items()]
    # The probe had foreseen it.
    elastic.release()
    assert elastic.importance(BATCH)["stem.weight"] == pytest.approx(probed, rel=1e-6)
    assert len(elastic.optimizer.state) <= len(list(elastic.model.parameters()))


def test_release_trains_everything_that_was_trained(trainer: Any) -> None:
    elastic = trainer()
    elastic.select(BATCH, budget=Time(0.2))
    assert elastic.choice is not None
    assert trained(elastic.model) < set(elastic.trainable)

    elastic.release()

    assert trained(elastic.model) == set(elastic.trainable)
    assert elastic.choice is None
    before = [raw(parameter.detach()) for parameter in elastic.model.parameters()]
    step(elastic)
    assert all(raw(p.detach()) != old for p, old in zip(elastic.model.parameters(), before, strict=True))


def test_what_the_user_froze_stays_frozen() -> None:
    model = TwoBranches()
    model.stem.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    elastic = ElasticTrainer(model, SGD(model.parameters()), functional.cross_entropy, Time(1.0))
    before = raw(model.stem.weight.detach()), raw(model.head.bias.detach())

    choice = elastic.select(BATCH, importance=dict.fromkeys(elastic.measure(BATCH).graph.tensor_names, 1.0))
    step(elastic, 2)
    elastic.release()
    step(elastic, 2)

    assert {"stem.weight", "head.bias"}.isdisjoint(choice.names)
    assert set(choice.names) == set(elastic.trainable)
    assert {"stem.weight", "head.bias"}.isdisjoint(elastic.importance(BATCH))
    assert (raw(model.stem.weight.detach()), raw(model.head.bias.detach())) == before


def test_tensors_that_the_loss_ignores_are_never_chosen() -> None:
    model = TwoBranches()
    model.unused = nn.Parameter(torch.ones(3))
    elastic = ElasticTrainer(model, SGD(model.parameters()), functional.cross_entropy, Time(1.0))

    choice = elastic.select(BATCH)
    step(elastic, 2)

    assert "unused" in elastic.trainable
    assert "unused" not in choice.importance
    assert (model.unused == 1).all()
    elastic.release()
    assert model.unused.requires_grad


def test_a_budget_for_the_head_alone_falls_back_to_it_and_says_so(trainer: Any) -> None:
    elastic = trainer()

    with pytest.warns(UserWarning, match="the head is trained in spite of it"):
        choice = elastic.select(BATCH, budget=Memory(1))

    assert choice.head_only
    assert set(choice.names) == trained(elastic.model) == {"head.weight", "head.bias"}
    assert "head.weight" in choice.note
    assert choice.limits == (Memory(1),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = elastic.select(BATCH, budget=Deadline(elastic.profile.forward_seconds / 2))
    assert again.head_only
    assert "leave nothing for the backward pass" in again.note
    assert set(again.names) == {"head.weight", "head.bias"}
    step(elastic)
    assert not elastic.select(BATCH, budget=Time(1.0)).head_only


def test_a_head_that_shares_its_weight_with_the_first_layer_is_not_the_cheapest() -> None:
    model = Tied()
    batch = (torch.arange(6).reshape(2, 3), torch.tensor([0, 1]))
    elastic = ElasticTrainer(model, SGD(model.parameters()), functional.cross_entropy, Memory(1))

    with pytest.warns(UserWarning, match="the head is trained"):
        choice = elastic.select(batch)

    assert set(choice.names) == {"layer.weight", "layer.bias"}


def test_where_no_update_lowers_the_loss_the_head_is_trained(trainer: Any) -> None:
    elastic = trainer(Chain)

    with pytest.warns(UserWarning, match="no tensor has a positive importance"):
        choice = elastic.select(BATCH, importance=dict.fromkeys(elastic.graph.tensor_names, -1.0))

    assert choice.head_only
    assert not choice.selection.proven_optimal
    assert trained(elastic.model) == {"10.weight", "10.bias"}


@pytest.mark.parametrize("importance", [1.0, -1.0])
def test_a_head_of_layers_is_whole(importance: float) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.LayerNorm(4))
    batch = (torch.randn(3, 6), torch.tensor([0, 1, 2]))
    elastic = ElasticTrainer(
        model, SGD(model.parameters()), functional.cross_entropy, Memory(1), units="layers"
    )
    elastic.measure(batch)

    with pytest.warns(UserWarning, match="the head is trained"):
        choice = elastic.select(batch, importance=dict.fromkeys(elastic.graph.tensor_names, importance))

    assert choice.head_only
    assert trained(model) == {"2.weight", "2.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("kind", [Chain, TwoBranches])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_saved_bytes_fall_as_predicted(trainer: Any, kind: type[nn.Module], share: float) -> None:
    elastic = trainer(kind)

    choice = elastic.select(BATCH, budget=Time(share))

    counted = saved_bytes(elastic.model, BATCH, functional.cross_entropy).total
    assert choice.saved_bytes == pytest.approx(counted, rel=0.1)
    elastic.release()
    everything = saved_bytes(elastic.model, BATCH, functional.cross_entropy).total
    assert elastic.graph.full_cost.saved_bytes == pytest.approx(everything, rel=0.1)


@pytest.mark.parametrize("frozen", [(), (FrozenNorm(),)])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_prepared_models_are_elastic_too(share: float, frozen: tuple[FrozenNorm, ...]) -> None:
    filtering = GradientFilter(where=lambda name, layer: name != "0", fallback="never", basis="walsh")
    model = prepare_(Chain(), filtering, LeanActivations(), *frozen)
    elastic = ElasticTrainer(model, SGD(model.parameters()), functional.cross_entropy, Time(share))

    choice = elastic.select(BATCH)

    assert choice.backward_share <= share * (1 + 1e-9)
    counted = saved_bytes(model, BATCH, functional.cross_entropy).total
    assert choice.saved_bytes == pytest.approx(counted, rel=0.1)
    before = {name: raw(parameter.detach()) for name, parameter in model.named_parameters()}
    step(elastic, 2)
    moved = {name for name, parameter in model.named_parameters() if raw(parameter.detach()) != before[name]}
    assert moved == set(choice.names)


def test_training_goes_on_as_tensors_come_and_go(trainer: Any) -> None:
    elastic = trainer(Chain, Time(0.5))
    first = step(elastic)

    for _ in range(10):
        elastic.select(BATCH)
        last = step(elastic, 5)

    assert last < 0.5 * first


def test_a_choice_is_a_table(trainer: Any) -> None:
    elastic = trainer()

    choice = elastic.select(BATCH)
    lines = str(choice).splitlines()

    assert lines[0].startswith(f"{len(choice.names)} of 10 tensors are trained")
    rows = [line.split() for line in lines[lines.index("") + 2 :]]
    assert [row[0] for row in rows] == list(elastic.graph.tensor_names)
    assert {row[0] for row in rows if row[1] == "yes"} == set(choice.names)
    assert choice.probe_seconds > 0
    assert choice.solve_seconds > 0
    assert elastic.select(BATCH, importance=choice.importance).probe_seconds == 0


def test_a_loss_that_is_not_finite_changes_nothing(profiles: Any) -> None:
    model = TwoBranches()
    scale = [1.0]
    elastic = ElasticTrainer(
        model,
        SGD(model.parameters()),
        lambda result, targets: functional.cross_entropy(result, targets) * scale[0],
        Time(0.5),
        profile=profiles[TwoBranches],
    )
    chosen = elastic.select(BATCH)
    step(elastic)
    before = everything(elastic)

    for scale[0] in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"the loss of the batch is {scale[0]}"):
            elastic.select(BATCH)

    assert everything(elastic) == before
    assert elastic.choice is chosen


class Exploding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.inf


def test_a_gradient_that_is_not_finite_is_named(trainer: Any) -> None:
    elastic = trainer(Chain)
    before = everything(elastic)
    elastic.model[8].register_forward_hook(lambda module, args, result: Exploding.apply(result))
    hooked = everything(elastic)

    with pytest.raises(ValueError, match=r"the gradient of '0\.weight' is not finite"):
        elastic.select(BATCH)

    assert everything(elastic) == hooked
    assert hooked[:-1] == before[:-1]


def test_optimizer_state_that_is_not_finite_is_named(trainer: Any) -> None:
    elastic = trainer(Chain)
    step(elastic)
    elastic.optimizer.state[elastic.model[2].weight]["momentum_buffer"].fill_(math.nan)

    with pytest.raises(ValueError, match=r"optimizer's update of '2\.weight' is not finite"):
        elastic.importance(BATCH)


@pytest.mark.parametrize(("kind", "named"), [(False, "'body.0'"), (True, "checkpoint")])
def test_checkpointed_modules_are_refused(kind: bool, named: str) -> None:
    model, twin = Checkpointed(kind), Checkpointed(None)
    optimizer = SGD(model.parameters())
    given = profile(twin, BATCH, functional.cross_entropy, optimizer=SGD(twin.parameters()))

    for known in (None, given):
        elastic = ElasticTrainer(model, optimizer, functional.cross_entropy, Time(0.5), profile=known)
        before = everything(elastic)
        with pytest.raises(ValueError, match=named):
            elastic.select(BATCH)
        assert everything(elastic) == before


@pytest.mark.parametrize("measured", [True, False])
def test_a_model_that_changes_its_batch_is_refused(measured: bool, profiles: Any) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), *Chain())
    twin = nn.Sequential(nn.ReLU(), *Chain())
    known = (
        profile(twin, BATCH, functional.cross_entropy, optimizer=SGD(twin.parameters())) if measured else None
    )
    elastic = ElasticTrainer(
        model, SGD(model.parameters()), functional.cross_entropy, Time(0.5), profile=known
    )

    with pytest.raises(ValueError, match="changes its input in place"):
        elastic.select((IMAGES.clone(), CLASSES))


def test_a_profile_of_something_else_is_refused(profiles: Any, trainer: Any) -> None:
    with pytest.raises(ValueError, match="the profile of another model"):
        trainer(Chain, profile=profiles[TwoBranches])
    frozen = Chain()
    frozen[0].requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"the profile trains '0\.(weight|bias)', which required no gradient"
    ):
        ElasticTrainer(
            frozen, SGD(frozen.parameters()), functional.cross_entropy, Time(0.5), profile=profiles[Chain]
        )
    known = profile(frozen, BATCH, functional.cross_entropy, optimizer=SGD(frozen.parameters()), repeats=1)
    with pytest.raises(
        ValueError, match=r"tensor '0\.(weight|bias)' has a gradient and is not in the profile"
    ):
        trainer(Chain, profile=known).select(BATCH)
    # Equal parameters, other operations.
    other = Chain()
    other[4] = nn.Tanh()
    elastic = ElasticTrainer(
        other, SGD(other.parameters()), functional.cross_entropy, Time(0.5), profile=profiles[Chain]
    )
    with pytest.raises(ValueError, match=r"operation '4\.relu', which the model does not call"):
        elastic.select(BATCH)


def test_a_profile_without_an_optimizer_serves_shares_of_time_alone(trainer: Any) -> None:
    elastic = trainer(Chain, profile=profile(Chain(), BATCH, functional.cross_entropy, repeats=1))

    elastic.select(BATCH, budget=Time(0.5))
    for budget in (Deadline(1.0), Memory(1e6), Energy(1.0, 2.0)):
        with pytest.raises(ValueError, match="measured without an optimizer"):
            elastic.select(BATCH, budget=budget)


def test_bad_input_is_refused(trainer: Any) -> None:
    model = Chain()
    optimizer = SGD(model.parameters())

    def make(**options: Any) -> ElasticTrainer:
        given = {"model": model, "optimizer": optimizer, "budget": Time(0.5), **options}
        return ElasticTrainer(loss=functional.cross_entropy, **given)

    with pytest.raises(ValueError, match="none of the model's 10 parameters requires a gradient"):
        make(model=Chain().requires_grad_(False))
    with pytest.raises(ValueError, match=r"does not hold parameter '0\.weight'"):
        make(optimizer=SGD(model[10].parameters()))
    with pytest.raises(ValueError, match="units is 'modules'"):
        make(units="modules")
    for slowdown in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="slowdown is"):
            make(slowdown=slowdown)
    for on_return in ("forget", 1.0, -0.1, math.nan, True, None):
        with pytest.raises(ValueError, match="on_return is"):
            make(on_return=on_return)
    with pytest.raises(ValueError, match="batch is a Tensor"):
        make().select(IMAGES)
    with pytest.raises(ValueError, match="cannot step on one tensor alone"):
        make(optimizer=torch.optim.LBFGS(model.parameters())).select(BATCH)
    elastic = trainer(Chain)
    with pytest.raises(ValueError, match="among names 'x'"):
        elastic.select(BATCH, among=["x"])
    with pytest.raises(TypeError, match="expected a collection of names"):
        elastic.select(BATCH, among="0.weight")
    importance = dict.fromkeys(elastic.graph.tensor_names, 1.0)
    with pytest.raises(ValueError, match="the importance of 'x' was given"):
        elastic.select(BATCH, importance={**importance, "x": 1.0})
    with pytest.raises(ValueError, match=r"the importance of '0\.bias' is missing"):
        elastic.select(BATCH, importance={n: v for n, v in importance.items() if n != "0.bias"})
    with pytest.raises(ValueError, match=r"importance of '0\.bias' is nan"):
        elastic.select(BATCH, importance={**importance, "0.bias": math.nan})
    elastic.model.eval()
    with pytest.raises(ValueError, match="evaluation mode"):
        elastic.select(BATCH)
    elastic.model.train()
    assert trained(elastic.model) == set(elastic.trainable)
    assert elastic.choice is None
    elastic.model[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(ValueError, match=r"'0\.weight' has a hook"):
        elastic.select(BATCH)
    with pytest.raises(ValueError, match=r"'0\.weight' has a hook"):
        make(model=elastic.model, optimizer=elastic.optimizer)
