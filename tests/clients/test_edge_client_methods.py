"""Cheap training in a ClientApp: methods on the model, and what a step costs in the reply."""

from collections.abc import Iterator, Sequence
from typing import Any

import local_grid  # noqa: F401  (lets this process make messages)
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

from flower_edge.clients import edge_client_app, local_training
from flower_edge.training import (
    FrozenNorm,
    GradientFilter,
    LeanActivations,
    Method,
    Rising,
    SignFeedback,
    all_but_stem,
    prepare_,
    saved_bytes,
)
from flower_edge.training.pruning import Pruner

FILTER = GradientFilter(where=all_but_stem, fallback="never", basis="walsh")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.fixture
def arrays() -> ArrayRecord:
    torch.manual_seed(0)
    return ArrayRecord(net().state_dict())


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, 9, 9, generator=generator), torch.randint(3, (6,), generator=generator))
        for _ in range(3)
    ]


def make_app(batches: list, model: object = net, **arguments: object) -> ClientApp:
    return edge_client_app(model, lambda _: (batches, batches), cross_entropy, **arguments)


def reply_to(
    app: ClientApp, kind: str, arrays: ArrayRecord, server_round: int = 1, **node_config: object
) -> Message:
    config = ConfigRecord({"server-round": server_round, "lr": 0.05})
    content = RecordDict({"arrays": arrays, "config": config})
    context = Context(1, 7, {"partition-id": 1, **node_config}, RecordDict(), {"local-epochs": 2})
    return app(Message(content, dst_node_id=7, message_type=kind), context)


def weights(reply: Message) -> dict[str, torch.Tensor]:
    return reply.content["arrays"].to_torch_state_dict()


def plainly_trained(arrays: ArrayRecord, batches: list, *methods: Method) -> dict[str, torch.Tensor]:
    """Two epochs of a loop that knows nothing of Flower."""
    model = net()
    model.load_state_dict(arrays.to_torch_state_dict())
    if methods:
        prepare_(model, *methods)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets in batches * 2:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("methods", [[], [FILTER]], ids=["exact", "filtered"])
def test_training_equals_a_loop_over_a_prepared_model(
    arrays: ArrayRecord, batches: list, methods: list[Method]
) -> None:
    """BatchNorm's statistics included: counting bytes runs forward passes that must leave no trace."""
    trained = weights(reply_to(make_app(batches, methods=methods), "train", arrays))

    torch.testing.assert_close(trained, plainly_trained(arrays, batches, *methods), rtol=0, atol=0)


def test_the_method_makes_a_difference_that_has_no_other_name_or_shape(
    arrays: ArrayRecord, batches: list
) -> None:
    exact = weights(reply_to(make_app(batches), "train", arrays))
    filtered = weights(reply_to(make_app(batches, methods=[FILTER]), "train", arrays))

    assert [(n, t.shape, t.dtype) for n, t in filtered.items()] == [
        (n, t.shape, t.dtype) for n, t in exact.items()
    ]
    change = filtered["3.weight"] - arrays.to_torch_state_dict()["3.weight"]
    per_kernel = change.flatten(2)
    # Rounding aside, a filtered gradient moves all taps alike.
    assert (per_kernel.amax(2) - per_kernel.amin(2)).max() < 1e-6
    assert per_kernel.abs().max() > 1e-4
    assert not torch.equal(filtered["3.weight"], exact["3.weight"])


def test_methods_compose_and_the_bytes_show_it(arrays: ArrayRecord, batches: list) -> None:
    saved = []
    for methods in ([], [FILTER], [FILTER, LeanActivations(), FrozenNorm()]):
        reply = reply_to(make_app(batches, methods=methods), "train", arrays)

        assert {n: t.shape for n, t in weights(reply).items()} == {
            n: t.shape for n, t in net().state_dict().items()
        }
        saved.append(reply.content["metrics"]["saved_bytes"])
    exact, filtered, lean = saved
    assert lean < min(exact, filtered)


def test_evaluation_has_no_methods(arrays: ArrayRecord, batches: list) -> None:
    def never(_: Context) -> Sequence[Method]:
        raise AssertionError("evaluation needs no methods")

    filtered = reply_to(make_app(batches, methods=never), "evaluate", arrays)
    exact = reply_to(make_app(batches), "evaluate", arrays)

    assert dict(filtered.content["metrics"]) == dict(exact.content["metrics"])


def test_a_callable_chooses_by_node(arrays: ArrayRecord, batches: list) -> None:
    def methods(context: Context) -> Sequence[Method]:
        return [FILTER] if context.node_config["memory-mb"] < 1024 else []

    app = make_app(batches, methods=methods)

    for memory, chosen in [(512, [FILTER]), (4096, [])]:
        trained = weights(reply_to(app, "train", arrays, **{"memory-mb": memory}))
        torch.testing.assert_close(trained, plainly_trained(arrays, batches, *chosen), rtol=0, atol=0)


@pytest.mark.parametrize("methods", [[], [FILTER]], ids=["exact", "filtered"])
def test_the_reply_has_the_cost_of_a_step(arrays: ArrayRecord, batches: list, methods: list[Method]) -> None:
    metrics = reply_to(make_app(batches, methods=methods), "train", arrays).content["metrics"]

    model = net()
    if methods:
        prepare_(model, *methods)
    assert set(metrics) == {"train_loss", "num-examples", "step_time", "backward_share", "saved_bytes"}
    assert metrics["saved_bytes"] == saved_bytes(model, batches[0], cross_entropy).total
    assert metrics["step_time"] > 0
    assert 0 < metrics["backward_share"] < 1


def test_pruning_is_reported(arrays: ArrayRecord, batches: list) -> None:
    app = make_app(batches, methods=[SignFeedback(0.7, schedule=None, fallback="never")])

    metrics = reply_to(app, "train", arrays).content["metrics"]

    assert metrics["gradient_sparsity"] == pytest.approx(0.7, abs=0.02)
    # Six steps with 6 images; the one layer's 8 channels of 9×9 cells meet 8×9 weights, for either gradient.
    macs = 6 * 6 * 8 * 81 * 72 * 2
    assert metrics["skipped_macs"] == round(metrics["skipped_share"] * macs)
    assert metrics["skipped_share"] == pytest.approx(metrics["gradient_sparsity"])
    assert 0 < metrics["gradient_angle"] < 90
    again = reply_to(app, "train", arrays)
    assert again.content["metrics"]["gradient_angle"] == metrics["gradient_angle"]


def test_measuring_the_angle_changes_nothing(arrays: ArrayRecord, batches: list) -> None:
    method = SignFeedback(0.7, schedule=None, fallback="never")
    trained = []
    for _ in range(2):
        model = net()
        torch.manual_seed(3)
        model.load_state_dict(arrays.to_torch_state_dict())
        prepare_(model, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if trained:
            for inputs, targets in batches * 2:
                optimizer.zero_grad()
                cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        else:
            local_training.train(model, batches, cross_entropy, optimizer, 2, torch.device("cpu"))
        trained.append(model.state_dict())
    torch.testing.assert_close(*trained, rtol=0, atol=0)


def test_a_schedule_goes_on_from_round_to_round(
    arrays: ArrayRecord, batches: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    seen = Pruner.threshold

    def threshold(pruner: Pruner, grad: torch.Tensor) -> float:
        asked.append(round(pruner.sparsity_now(), 6))
        return seen(pruner, grad)

    monkeypatch.setattr(Pruner, "threshold", threshold)
    app = make_app(batches, methods=[SignFeedback(0.8, schedule=Rising(0.2, 12), fallback="never")])

    for server_round in (1, 2, 3, 9):
        reply_to(app, "train", arrays, server_round)

    # A round's first step is measured for its angle, too.
    first = [0.2, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45]
    second = [0.5, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    assert asked == pytest.approx([*first, *second, *[0.8] * 14])


class Clock:
    """Stands still, but for what is said to take time."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Slow(torch.autograd.Function):
    """Passes everything on, and takes its time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: Clock, forward: float, backward: float) -> torch.Tensor:
        clock.now += forward
        ctx.clock, ctx.seconds = clock, backward
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        ctx.clock.now += ctx.seconds
        return grad, None, None, None


def test_clocks_stand_around_the_backward_pass_and_the_step(
    arrays: ArrayRecord, batches: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of six are slow, which a median does not see; nor is loading part of a step."""
    clock = Clock()
    forward_seconds = iter([2.0, 2.0, *([2.0, 2.0, 90.0] * 2)])  # the first two only count bytes

    class SlowNet(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Slow.apply(super().forward(x), clock, next(forward_seconds), 6.0)

    class SlowlyLoaded:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for batch in batches:
                clock.now += 1000.0
                yield batch

    monkeypatch.setattr(local_training, "time", clock)
    app = make_app(SlowlyLoaded(), model=lambda: SlowNet(*net().children()))

    metrics = reply_to(app, "train", arrays).content["metrics"]

    assert metrics["step_time"] == 8.0
    assert metrics["backward_share"] == 0.75


@pytest.mark.parametrize("methods", [FILTER, "gradient-filter", GradientFilter, None], ids=repr)
def test_what_is_no_sequence_of_methods_fails_at_once(batches: list, methods: object) -> None:
    with pytest.raises(TypeError, match=r"methods is .*expected a sequence such as"):
        make_app(batches, methods=methods)


def test_a_callable_that_returns_no_sequence_fails_before_any_data_is_loaded(arrays: ArrayRecord) -> None:
    def unwanted(_: Context) -> tuple[list, list]:
        raise AssertionError("data was loaded")

    app = edge_client_app(net, unwanted, cross_entropy, methods=lambda _: FILTER)

    with pytest.raises(TypeError, match="methods is GradientFilter"):
        reply_to(app, "train", arrays)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 3)), "found no layer of class Conv2d"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")),
            "layer '0', but it has padding_mode='circular'",
        ),
    ],
    ids=["no convolution", "other padding"],
)
def test_a_method_that_does_not_fit_the_model_fails_before_training(model: object, message: str) -> None:
    class Untouched:
        def __iter__(self) -> Iterator:
            raise AssertionError("training began")

    app = make_app(Untouched(), model=model, methods=[GradientFilter()])

    with pytest.raises(ValueError, match=message):
        reply_to(app, "train", ArrayRecord(model().state_dict()))
