"""Elastic training in a ClientApp, message by message."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import local_grid  # noqa: F401  (lets this process make messages)
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

from flower_edge.clients import Elastic, edge_client_app, elastic_round, pace
from flower_edge.training import (
    GradientFilter,
    LeanActivations,
    Memory,
    Profile,
    SlidingWindow,
    Time,
    all_but_stem,
    kept_profile,
    prepare_,
)

EPOCHS, BATCHES = 8, 3
STEPS = EPOCHS * BATCHES


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


TENSORS = [name for name, _ in net().named_parameters()]
HEAD = {"7.weight", "7.bias"}


@pytest.fixture
def arrays() -> ArrayRecord:
    torch.manual_seed(0)
    return ArrayRecord(net().state_dict())


@pytest.fixture(scope="module")
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, 9, 9, generator=generator), torch.randint(3, (6,), generator=generator))
        for _ in range(BATCHES)
    ]


@pytest.fixture(scope="module")
def profiles(batches: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's folder, in which the model's profile is kept already."""
    folder = tmp_path_factory.mktemp("profiles")
    torch.set_num_threads(1)
    known(folder, batches)
    return folder


def known(profiles: Path, batches: list) -> Profile:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return kept_profile(model, batches[0], cross_entropy, profiles, optimizer=optimizer)


def make_app(batches: Any, elastic: object, **arguments: Any) -> ClientApp:
    return edge_client_app(net, lambda _: (batches, batches), cross_entropy, elastic=elastic, **arguments)


def reply_to(
    app: ClientApp,
    arrays: ArrayRecord,
    importance: dict[str, float] | None = None,
    *,
    node_config: dict[str, Any] | None = None,
    state: RecordDict | None = None,
    **config: Any,
) -> Message:
    content = RecordDict(
        {"arrays": arrays, "config": ConfigRecord({"server-round": 1, "lr": 0.05, **config})}
    )
    if importance is not None:
        figures = {"tensors": list(importance), "importance": list(importance.values())}
        content["elastic"] = ConfigRecord(figures)
    node_config = {"partition-id": 1, **(node_config or {})}
    state = RecordDict() if state is None else state
    context = Context(1, 7, node_config, state, {"local-epochs": EPOCHS})
    return app(Message(content, dst_node_id=7, message_type="train"), context)


def weights(reply: Message) -> dict[str, torch.Tensor]:
    return reply.content["arrays"].to_torch_state_dict()


def trained(reply: Message) -> set[str]:
    return set(reply.content["elastic"]["trained"])


def importance_in(reply: Message) -> dict[str, float]:
    record = reply.content["elastic"]
    return dict(zip(record["tensors"], record["importance"], strict=True))


def plainly_trained(
    arrays: ArrayRecord, batches: list, names: set[str], *methods: Any, steps: int = STEPS
) -> dict[str, torch.Tensor]:
    """A loop that knows nothing of Flower, over a model of which only `names` are trained."""
    model = net()
    model.load_state_dict(arrays.to_torch_state_dict())
    if methods:
        prepare_(model, *methods)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets in itertools.islice(itertools.cycle(batches), steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model.state_dict()


def assert_equal(received: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(received, expected, rtol=0, atol=0)


# -------------------------------------------------------------------- a budget of the node's own


def test_it_trains_the_chosen_tensors_as_a_plain_loop_does(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    """Probes leave no trace: neither in statistics of normalisations nor in weights."""
    reply = reply_to(make_app(batches, Elastic(Time(0.5), profiles=profiles)), arrays)

    assert set() < trained(reply) < set(TENSORS)
    assert_equal(weights(reply), plainly_trained(arrays, batches, trained(reply)))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
def test_what_is_not_chosen_moves_by_no_bit(arrays: ArrayRecord, batches: list, optimizer: type) -> None:
    """Not even by weight decay or momentum."""

    def make(parameters: Any, lr: float) -> torch.optim.Optimizer:
        extra = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        return optimizer(parameters, lr=lr, weight_decay=0.1, **extra)

    reply = reply_to(make_app(batches, Elastic(Time(0.4)), optimizer=make), arrays)

    before, after = arrays.to_torch_state_dict(), weights(reply)
    moved = {name for name in TENSORS if not torch.equal(before[name], after[name])}
    assert moved == trained(reply)


def test_the_reply_says_what_was_chosen_and_what_that_cost(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    reply = reply_to(make_app(batches, Elastic(Time(0.5), profiles=profiles)), arrays)

    metrics, graph = reply.content["metrics"], known(profiles, batches).graph
    share = graph.cost(trained(reply)).seconds / graph.full_cost.seconds
    assert metrics["elastic-share"] == pytest.approx(share)
    assert 0 < share <= 0.5
    assert metrics["elastic-tensors"] == len(trained(reply))
    assert metrics["elastic-step-time-predicted"] == pytest.approx(
        graph.fixed_seconds + share * graph.full_cost.seconds
    )
    assert (metrics["elastic-steps"], metrics["elastic-steps-share"]) == (STEPS, 1.0)
    assert metrics["elastic-head-only"] == 0.0
    assert 0 < metrics["elastic-overhead"] < 1
    assert metrics["elastic-round-time"] > metrics["elastic-profile-time"] > 0
    assert set(importance_in(reply)) == set(TENSORS)
    assert all(value >= 0 for value in importance_in(reply).values())


def test_fewer_bytes_are_held_for_fewer_tensors(arrays: ArrayRecord, batches: list, profiles: Path) -> None:
    whole = reply_to(make_app(batches, None), arrays)
    reply = reply_to(make_app(batches, Elastic(Time(0.3), profiles=profiles)), arrays)

    assert reply.content["metrics"]["saved_bytes"] < whole.content["metrics"]["saved_bytes"]


def test_a_budget_for_everything_trains_everything(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    reply = reply_to(make_app(batches, Elastic(Time(1.0), profiles=profiles)), arrays)

    assert trained(reply) == set(TENSORS)
    assert importance_in(reply) == {}  # nobody has asked, so no probe was taken
    assert_equal(weights(reply), plainly_trained(arrays, batches, set(TENSORS)))


def test_without_any_budget_it_is_a_plain_client(arrays: ArrayRecord, batches: list) -> None:
    plain = reply_to(make_app(batches, None), arrays)
    reply = reply_to(make_app(batches, Elastic()), arrays)

    assert_equal(weights(reply), weights(plain))
    assert set(reply.content["metrics"]) == set(plain.content["metrics"])


def test_two_runs_train_identical_models(arrays: ArrayRecord, batches: list, profiles: Path) -> None:
    first, second = (
        reply_to(make_app(batches, Elastic(Time(0.5), every=2, profiles=profiles)), arrays) for _ in range(2)
    )

    assert trained(first) == trained(second)
    assert_equal(weights(first), weights(second))


def test_a_budget_that_nothing_fits_trains_the_head_and_says_so(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    app = make_app(batches, Elastic(Memory(1), profiles=profiles))

    with pytest.warns(UserWarning, match="the head is trained"):
        reply = reply_to(app, arrays)

    assert trained(reply) == HEAD
    assert reply.content["metrics"]["elastic-head-only"] == 1.0
    assert_equal(weights(reply), plainly_trained(arrays, batches, HEAD))


def test_each_node_has_a_budget_of_its_own(arrays: ArrayRecord, batches: list, profiles: Path) -> None:
    def elastic(context: Context) -> Elastic | None:
        share = context.node_config["share"]
        return Elastic(Time(share), profiles=profiles) if share < 1 else None

    app = make_app(batches, elastic)
    shares = [
        reply_to(app, arrays, node_config={"share": share}).content["metrics"].get("elastic-share")
        for share in (0.3, 0.8, 1.0)
    ]

    assert shares[0] <= 0.3 < shares[1] <= 0.8
    assert shares[2] is None


def test_layers_stay_whole(arrays: ArrayRecord, batches: list, profiles: Path) -> None:
    reply = reply_to(make_app(batches, Elastic(Time(0.6), units="layers", profiles=profiles)), arrays)

    for unit in ({"0.weight", "0.bias", "1.weight", "1.bias"}, {"3.weight", "3.bias"}, HEAD):
        assert unit <= trained(reply) or unit.isdisjoint(trained(reply))


def test_prepared_layers_are_chosen_like_others(arrays: ArrayRecord, batches: list) -> None:
    methods = [GradientFilter(where=all_but_stem, fallback="never", basis="walsh"), LeanActivations()]

    reply = reply_to(make_app(batches, Elastic(Time(0.5)), methods=methods), arrays)

    assert set() < trained(reply) < set(TENSORS)
    assert_equal(weights(reply), plainly_trained(arrays, batches, trained(reply), *methods))


# -------------------------------------------------------------------- what is uploaded


def test_only_what_changed_is_uploaded_where_the_strategy_takes_it(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    app = make_app(batches, Elastic(Time(0.4), profiles=profiles))
    whole = reply_to(app, arrays)

    part = reply_to(app, arrays, **{"partial-updates": True})

    before, after = arrays.to_torch_state_dict(), weights(whole)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert set(weights(part)) == changed >= trained(part) | {"1.running_mean", "1.num_batches_tracked"}
    assert len(changed) < len(after)
    assert_equal({**before, **weights(part)}, after)
    share = sum(len(a.data) for a in part.content["arrays"].values()) / sum(
        len(a.data) for a in whole.content["arrays"].values()
    )
    assert part.content["metrics"]["upload_share"] == pytest.approx(share)
    assert "upload_share" not in whole.content["metrics"]


def test_a_node_that_is_not_elastic_uploads_what_changed_too(batches: list) -> None:
    """Of a model with a frozen layer."""

    def half_frozen() -> nn.Module:
        model = net()
        model[0].requires_grad_(False)
        return model

    app = edge_client_app(half_frozen, lambda _: (batches, batches), cross_entropy)
    start = ArrayRecord(half_frozen().state_dict())

    reply = reply_to(app, start, **{"partial-updates": True})

    assert set(weights(reply)) == set(start) - {"0.weight", "0.bias"}


# -------------------------------------------------------------------- again within a round


def worth_training(reply: Message, names: Any) -> set[str]:
    """A bias before a normalisation has no effect but rounding."""
    importance = importance_in(reply)
    return {name for name in names if importance[name] > 1e-6 * max(importance.values())}


def test_the_window_comes_first_and_moves_on_from_round_to_round(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    graph = known(profiles, batches).graph
    stretches = SlidingWindow(3).stretches(graph)

    differs = []
    for number, stretch in zip(range(1, 5), [*stretches, stretches[0]], strict=True):
        budget = Time(graph.cost(stretch).seconds / graph.full_cost.seconds)
        windowed, free = (
            reply_to(
                make_app(batches, Elastic(budget, window=window, profiles=profiles)),
                arrays,
                **{"server-round": number},
            )
            for window in (SlidingWindow(3), None)
        )
        assert trained(windowed) >= worth_training(windowed, stretch)
        assert windowed.content["metrics"]["elastic-share"] <= budget.share * (1 + 1e-9)
        differs.append(trained(windowed) != trained(free))
    assert differs[2]


def test_a_choice_lasts_a_number_of_steps(arrays: ArrayRecord, batches: list, profiles: Path) -> None:
    """Three choices in a round, so that every stretch has its turn."""
    graph, window = known(profiles, batches).graph, SlidingWindow(3)
    budget = Time(graph.cost(window.stretches(graph)[2]).seconds / graph.full_cost.seconds)

    reply = reply_to(
        make_app(batches, Elastic(budget, every=STEPS // 3, window=window, profiles=profiles)), arrays
    )

    assert trained(reply) >= worth_training(reply, TENSORS)
    assert reply.content["metrics"]["elastic-tensors"] < len(trained(reply))


def test_what_the_window_leaves_of_the_budget_is_used(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    """A node that is almost fast enough trains almost everything."""
    elastic = Elastic(Time(0.9), window=SlidingWindow(3), profiles=profiles)

    for number in (1, 2, 3):
        reply = reply_to(make_app(batches, elastic), arrays, **{"server-round": number})
        assert reply.content["metrics"]["elastic-share"] > 0.6


def test_what_matters_to_all_decides_as_far_as_it_may(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    everyone = {name: 1.0 if name == "3.bias" else 1e-6 for name in TENSORS}
    alone = reply_to(make_app(batches, Elastic(Time(0.5), profiles=profiles)), arrays, everyone)
    with_all = reply_to(
        make_app(batches, Elastic(Time(0.5), global_share=0.999, profiles=profiles)), arrays, everyone
    )

    unasked = reply_to(make_app(batches, Elastic(Time(0.5), profiles=profiles)), arrays)
    assert trained(alone) == trained(unasked)
    assert "3.bias" in trained(with_all)
    # What goes back is the node's own view, else it would go round in circles.
    assert importance_in(with_all) == pytest.approx(importance_in(alone))


def test_a_node_in_no_need_to_choose_still_says_what_matters_to_it(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    reply = reply_to(make_app(batches, Elastic(Time(1.0), global_share=0.5, profiles=profiles)), arrays)

    assert set(importance_in(reply)) == set(TENSORS)
    assert_equal(weights(reply), plainly_trained(arrays, batches, set(TENSORS)))


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_probe_may_serve_several_rounds(
    rounds: int, arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    elastic = Elastic(Time(0.5), probe_rounds=rounds, profiles=profiles)
    state = RecordDict()

    seen = []
    for number in range(1, 5):
        # Each app is another process, as a SuperNode has it; the model is the one trained so far.
        reply = reply_to(make_app(batches, elastic), arrays, state=state, **{"server-round": number})
        arrays = reply.content["arrays"]
        seen.append(importance_in(reply))
        assert set() < trained(reply) < set(TENSORS)

    assert [seen[i] != seen[i - 1] for i in (1, 2, 3)] == [i % rounds == 0 for i in (1, 2, 3)]


def test_what_is_remembered_of_another_model_is_of_no_use(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    state = RecordDict()
    elastic = Elastic(Time(0.5), probe_rounds=9, profiles=profiles)

    def small() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(27, 9), nn.Linear(9, 3))

    other = edge_client_app(small, lambda _: (batches, batches), cross_entropy, elastic=Elastic(Time(0.7)))
    reply_to(other, ArrayRecord(small().state_dict()), state=state)
    reply = reply_to(make_app(batches, elastic), arrays, state=state, **{"server-round": 2})

    assert set(importance_in(reply)) == set(TENSORS)


# -------------------------------------------------------------------- a deadline


class StoppedClock:
    """No time passes, so that predictions alone decide."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr("flower_edge.clients.edge_client.time", clock)
    return clock


def deadline_for(profile: Profile, steps: float, step_seconds: float, margin: float = 0.1) -> float:
    """The deadline that leaves time for so many steps, with a probe and the counting of saved bytes."""
    probe = elastic_round.PROBE * (profile.graph.fixed_seconds + profile.graph.full_cost.seconds)
    return (probe + 2 * profile.forward_seconds + steps * step_seconds) / (1 - margin)


def step_seconds(profile: Profile, names: Any) -> float:
    return profile.graph.fixed_seconds + profile.graph.cost(names).seconds


@pytest.mark.usefixtures("clock")
def test_a_deadline_decides_how_much_is_trained(arrays: ArrayRecord, batches: list, profiles: Path) -> None:
    profile = known(profiles, batches)
    app = make_app(batches, Elastic(profiles=profiles))
    full, head = step_seconds(profile, TENSORS), step_seconds(profile, HEAD)
    half = deadline_for(profile, STEPS, (full + head) / 2)

    tight = reply_to(app, arrays, deadline=half)
    loose = reply_to(app, arrays, deadline=deadline_for(profile, STEPS, 1.01 * full))

    assert trained(loose) == set(TENSORS)
    assert set() < trained(tight) < set(TENSORS)
    assert tight.content["metrics"]["elastic-steps"] == STEPS
    assert step_seconds(profile, trained(tight)) <= (full + head) / 2
    assert_equal(weights(tight), plainly_trained(arrays, batches, trained(tight)))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("fitting", [1, 2, 4])
def test_where_not_even_the_head_fits_there_are_fewer_steps(
    fitting: int, arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    profile = known(profiles, batches)
    deadline = deadline_for(profile, fitting + 0.5, step_seconds(profile, HEAD))
    app = make_app(batches, Elastic(profiles=profiles))

    with pytest.warns(UserWarning, match="the head is trained"):
        reply = reply_to(app, arrays, deadline=deadline)

    metrics = reply.content["metrics"]
    assert trained(reply) == HEAD
    assert (metrics["elastic-steps"], metrics["elastic-steps-share"]) == (fitting, fitting / STEPS)
    assert metrics["num-examples"] == max(1, fitting * 6 // EPOCHS)
    assert_equal(weights(reply), plainly_trained(arrays, batches, HEAD, steps=fitting))


@pytest.mark.usefixtures("clock")
def test_where_no_time_is_left_there_is_one_step(arrays: ArrayRecord, batches: list, profiles: Path) -> None:
    app = make_app(batches, Elastic(profiles=profiles))

    with pytest.warns(UserWarning, match="the head is trained"):
        reply = reply_to(app, arrays, deadline=1e-6)

    assert reply.content["metrics"]["elastic-steps"] == 1
    assert_equal(weights(reply), plainly_trained(arrays, batches, HEAD, steps=1))


@pytest.mark.usefixtures("clock")
def test_a_slower_board_trains_less_by_the_same_deadline(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    profile = known(profiles, batches)
    full, head = step_seconds(profile, TENSORS), step_seconds(profile, HEAD)
    deadline = deadline_for(profile, STEPS, 1.01 * full)
    slowdown = deadline / deadline_for(profile, STEPS, (full + head) / 2)

    fast, slow = (
        reply_to(make_app(batches, Elastic(profiles=profiles, slowdown=times)), arrays, deadline=deadline)
        for times in (1.0, slowdown)
    )

    assert set() < trained(slow) < trained(fast) == set(TENSORS)
    for reply in (fast, slow):
        metrics = reply.content["metrics"]
        assert metrics["elastic-steps"] == STEPS
        assert metrics["elastic-steps"] * metrics["elastic-step-time-predicted"] <= 0.9 * deadline


@pytest.mark.usefixtures("clock")
def test_a_window_that_lies_too_deep_is_reached_in_fewer_steps(
    arrays: ArrayRecord, batches: list, profiles: Path
) -> None:
    profile = known(profiles, batches)
    window = SlidingWindow(3)
    deepest = window.stretches(profile.graph)[-1]
    deadline = deadline_for(profile, STEPS, 1.05 * step_seconds(profile, HEAD))
    app = make_app(batches, Elastic(profiles=profiles, window=window))

    reply = reply_to(app, arrays, deadline=deadline, **{"server-round": 3})

    metrics = reply.content["metrics"]
    assert not trained(reply).isdisjoint(deepest)
    assert metrics["elastic-steps"] == STEPS * 1.05 * step_seconds(profile, HEAD) // step_seconds(
        profile, deepest
    )
    assert metrics["elastic-steps"] * metrics["elastic-step-time-predicted"] <= 0.9 * deadline


def test_a_node_stops_when_the_clock_says_so(
    arrays: ArrayRecord, batches: list, profiles: Path, clock: StoppedClock
) -> None:
    """Its steps take longer than they should: something else runs on the board."""
    profile = known(profiles, batches)
    deadline = deadline_for(profile, STEPS, 1.01 * step_seconds(profile, TENSORS))

    class Busy:
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for batch in batches:
                clock.now += 0.3 * deadline
                yield batch

    reply = reply_to(make_app(Busy(), Elastic(profiles=profiles)), arrays, deadline=deadline)

    # Loaded by 0.3, 0.6 and 0.9 of the deadline; a fourth step would end beyond it.
    assert reply.content["metrics"]["elastic-steps"] in (2, 3)
    assert reply.content["metrics"]["elastic-steps-share"] < 1


def test_a_node_that_is_slower_than_planned_plans_anew(
    arrays: ArrayRecord, batches: list, profiles: Path, clock: StoppedClock
) -> None:
    """Everything takes twice its time: it trains less from then on, rather than all for half the steps."""
    profile = known(profiles, batches)
    deadline = deadline_for(profile, STEPS, 1.2 * step_seconds(profile, TENSORS))
    models: list[nn.Module] = []

    def remembered() -> nn.Module:
        models.append(net())
        return models[-1]

    class Busy:
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for batch in batches:
                yield batch
                moving = [name for name, p in models[-1].named_parameters() if p.requires_grad]
                clock.now += 2 * step_seconds(profile, moving)

    app = edge_client_app(
        remembered, lambda _: (Busy(), Busy()), cross_entropy, elastic=Elastic(profiles=profiles)
    )
    began = clock.now
    reply = reply_to(app, arrays, deadline=deadline)

    metrics = reply.content["metrics"]
    assert metrics["elastic-load"] == pytest.approx(2.0)
    assert trained(reply) == set(TENSORS)
    assert metrics["elastic-tensors"] < len(TENSORS)
    assert metrics["elastic-steps"] > 0.6 * STEPS
    assert clock.now - began <= deadline


@pytest.mark.usefixtures("clock")
def test_a_deadline_and_a_budget_hold_at_once(arrays: ArrayRecord, batches: list, profiles: Path) -> None:
    profile = known(profiles, batches)
    deadline = deadline_for(profile, STEPS, 1.01 * step_seconds(profile, TENSORS))

    reply = reply_to(make_app(batches, Elastic(Time(0.4), profiles=profiles)), arrays, deadline=deadline)

    assert 0 < reply.content["metrics"]["elastic-share"] <= 0.4


# -------------------------------------------------------------------- what steps cost


def test_a_profile_on_disk_is_measured_once(arrays: ArrayRecord, batches: list, tmp_path: Path) -> None:
    """Each app stands for a process: SuperNodes start one for every message."""
    folder = tmp_path / "new" / "profiles"
    first = reply_to(make_app(batches, Elastic(Time(0.5), profiles=folder)), arrays)
    (file,) = folder.iterdir()
    content, written = file.read_bytes(), file.stat().st_mtime_ns

    second = reply_to(make_app(batches, Elastic(Time(0.5), profiles=folder)), arrays)

    assert [path.name for path in folder.iterdir()] == [file.name]
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, written)
    assert trained(first) == trained(second)


def test_other_methods_have_another_profile(arrays: ArrayRecord, batches: list, tmp_path: Path) -> None:
    elastic = Elastic(Time(0.5), profiles=tmp_path)
    for methods in ([], [GradientFilter(where=all_but_stem, fallback="never", basis="walsh")]):
        reply_to(make_app(batches, elastic, methods=methods), arrays)

    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_folder_a_process_measures_once(
    arrays: ArrayRecord, batches: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(batches, Elastic(Time(0.5)))
    reply_to(app, arrays)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("flower_edge.clients.profiles.profile", never)
    reply_to(app, arrays, **{"server-round": 2})


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": 0.5}, TypeError, r"the budget is 0\.5, expected Time, Memory"),
        ({"budget": []}, ValueError, "there is no budget"),
        ({"every": -1}, ValueError, "every is -1; expected a number of steps"),
        ({"every": 2.5}, ValueError, r"every is 2\.5"),
        ({"probe_rounds": 0}, ValueError, "probe_rounds is 0; expected a number of rounds"),
        ({"units": "blocks"}, ValueError, "units is 'blocks'; expected 'tensors' or 'layers'"),
        ({"on_return": 2.0}, ValueError, r"on_return is 2\.0"),
        ({"window": 3}, ValueError, "window is 3; expected a SlidingWindow"),
        ({"global_share": 1.5}, ValueError, r"global_share is 1\.5; expected 0 to 1"),
        ({"global_share": float("nan")}, ValueError, "global_share is nan"),
        ({"slowdown": 0.0}, ValueError, r"slowdown is 0\.0; expected a positive number"),
        ({"margin": 1.0}, ValueError, r"margin is 1\.0; expected at least 0 and below 1"),
    ],
)
def test_bad_settings_fail_at_once(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Elastic(**arguments)


@pytest.mark.parametrize("elastic", [Time(0.5), "elastic", 0.5, Elastic], ids=repr)
def test_what_is_not_elastic_fails_at_once(batches: list, elastic: object) -> None:
    with pytest.raises(TypeError, match=r"elastic is .*; expected Elastic\(\.\.\.\), None, or a callable"):
        make_app(batches, elastic)


def test_a_callable_that_returns_something_else_fails(arrays: ArrayRecord, batches: list) -> None:
    with pytest.raises(TypeError, match="elastic is Time"):
        reply_to(make_app(batches, lambda _: Time(0.5)), arrays)


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf"), "soon", True])
def test_a_bad_deadline_is_named(arrays: ArrayRecord, batches: list, deadline: object) -> None:
    with pytest.raises(ValueError, match=r"the deadline is .*; expected a positive number of seconds"):
        reply_to(make_app(batches, Elastic()), arrays, deadline=deadline)


def test_a_deadline_needs_batches_that_can_be_counted(arrays: ArrayRecord, batches: list) -> None:
    class Stream:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return iter(batches)

    with pytest.raises(ValueError, match="the training batches have no length; expected batches with one"):
        reply_to(make_app(Stream(), Elastic()), arrays, deadline=10.0)
    share = reply_to(make_app(Stream(), Elastic(Time(0.5))), arrays).content["metrics"]
    assert share["elastic-steps"] == STEPS
    assert "elastic-steps-share" not in share


def test_a_loss_that_is_nan_fails_before_anything_is_trained(batches: list) -> None:
    model = net()
    model[7].weight.data[0, 0] = float("nan")

    with pytest.raises(ValueError, match="the loss of the batch is nan"):
        reply_to(make_app(batches, Elastic(Time(0.5))), ArrayRecord(model.state_dict()))


def test_nothing_to_train_is_an_error(arrays: ArrayRecord, batches: list) -> None:
    app = edge_client_app(
        lambda: net().requires_grad_(False),
        lambda _: (batches, batches),
        cross_entropy,
        elastic=Elastic(Time(0.5)),
    )

    with pytest.raises(ValueError, match="none of the model's 8 parameters requires a gradient"):
        reply_to(app, arrays)
