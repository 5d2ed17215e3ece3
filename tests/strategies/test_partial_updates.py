"""HostedGossip with nodes that return a part of the model, message by message."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from local_grid import Fault, LocalGrid, round_of
from records import record, to_numpy

from flower_edge.gossip import DPSGD, GossipPlan
from flower_edge.strategies import HostedGossip

NODE_IDS = [10, 20, 30, 40, 50, 60]
TRAINED = {0: ["stem", "head"], 1: ["head"], 2: ["stem", "head"], 3: ["head"], 4: ["stem"], 5: []}
GAIN = {"stem": 1.0, "head": 10.0}
STEM, HEAD = slice(0, 4), slice(4, 9)


@pytest.fixture
def initial() -> ArrayRecord:
    head = np.linspace(-1, 1, 5, dtype=np.float32)
    return record({"stem": np.arange(4, dtype=np.float32), "head": head, "steps": np.int64(0)})


def partial_app(importance: bool = False) -> ClientApp:
    """Node p adds p + 1 times a tensor's gain to what it trains, and returns only that."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        received = to_numpy(message.content["arrays"])
        trained = {
            name: received[name] + np.float32(GAIN[name] * (partition + 1)) for name in TRAINED[partition]
        }
        content = RecordDict({"arrays": record(trained), "metrics": MetricRecord({"num-examples": 1})})
        if importance:
            figures = [float(partition + 1), 1.0]
            content["elastic"] = ConfigRecord({"tensors": ["stem", "head"], "importance": figures})
        return Message(content, reply_to=message)

    return app


def sent_models(grid: LocalGrid, server_round: int) -> np.ndarray:
    """The models that went out for training in a round, in the plan's order."""
    models = {}
    for message in grid.sent:
        if message.metadata.message_type == "train" and round_of(message) == server_round:
            arrays = to_numpy(message.content["arrays"])
            models[message.metadata.dst_node_id] = np.concatenate([arrays["stem"], arrays["head"]])
    return np.stack([models[node_id] for node_id in NODE_IDS])


def gossip(plan: GossipPlan, **arguments: object) -> HostedGossip:
    return HostedGossip(plan, fraction_evaluate=0.0, partial_updates=True, **arguments)


def trained_models(initial: ArrayRecord, nodes: set[int]) -> np.ndarray:
    """What the nodes have after the first round's training, before any mixing; float64."""
    start = to_numpy(initial)
    models = np.tile(np.concatenate([start["stem"], start["head"]]).astype(np.float64), (6, 1))
    for node in nodes:
        for name, span in (("stem", STEM), ("head", HEAD)):
            if name in TRAINED[node]:
                models[node, span] += GAIN[name] * (node + 1)
    return models


def acting(plan: GossipPlan, nodes: set[int]) -> np.ndarray:
    """W(1) of a plan when only some nodes take part."""
    matrix = plan.matrix(1).toarray()
    absent = sorted(set(range(plan.n)) - nodes)
    matrix[absent, :] = matrix[:, absent] = 0.0
    return matrix + np.diag(1.0 - matrix.sum(1))


ALL = set(range(6))


def test_an_absent_array_is_what_was_sent_and_is_mixed(plan: GossipPlan, initial: ArrayRecord) -> None:
    grid = LocalGrid(partial_app(), NODE_IDS)

    result = gossip(plan).start(grid, initial, num_rounds=2)

    expected = acting(plan, ALL) @ trained_models(initial, ALL)
    np.testing.assert_allclose(sent_models(grid, 2), expected, rtol=1e-5)
    assert result.train_metrics_clientapp[1]["replies-rejected"] == 0
    assert result.train_metrics_clientapp[1]["busiest-node-bytes"] == 2 * 3 * 9 * 4


def test_each_array_can_be_mixed_among_those_that_trained_it(plan: GossipPlan, initial: ArrayRecord) -> None:
    grid = LocalGrid(partial_app(), NODE_IDS)

    result = gossip(plan, mix_untrained=False).start(grid, initial, num_rounds=2)

    trained = trained_models(initial, ALL)
    expected = trained.copy()
    expected[:, STEM] = acting(plan, {0, 2, 4}) @ trained[:, STEM]
    expected[:, HEAD] = acting(plan, {0, 1, 2, 3}) @ trained[:, HEAD]
    models = sent_models(grid, 2)
    np.testing.assert_allclose(models, expected, rtol=1e-5)
    np.testing.assert_allclose(models.mean(0), trained.mean(0), rtol=1e-5)
    # Of the ring with chords 0–3 and 1–4: the head travels over 0–1, 1–2, 2–3 and 0–3, the stem over none.
    assert result.train_metrics_clientapp[1]["busiest-node-bytes"] == 2 * 2 * 5 * 4
    assert result.train_metrics_clientapp[1]["busiest-node-energy-wh"] == pytest.approx(
        1.0 + 2 * 0.75 * 5 / 9
    )


def test_the_final_average_is_that_of_the_trained_models(plan: GossipPlan, initial: ArrayRecord) -> None:
    for mix_untrained in (True, False):
        result = gossip(plan, mix_untrained=mix_untrained).start(
            LocalGrid(partial_app(), NODE_IDS), initial, num_rounds=1
        )

        arrays = to_numpy(result.arrays)
        mean = trained_models(initial, ALL).mean(0)
        np.testing.assert_allclose(np.concatenate([arrays["stem"], arrays["head"]]), mean, rtol=1e-5)


@pytest.mark.parametrize("mix_untrained", [True, False])
def test_whole_replies_train_the_same_models_as_without(
    plan: GossipPlan, toy_app: ClientApp, mix_untrained: bool
) -> None:
    weight = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
    start = record({"weight": weight, "steps": np.int64(0)})
    plain = HostedGossip(plan).start(LocalGrid(toy_app, NODE_IDS), start, num_rounds=4)

    partial = HostedGossip(plan, partial_updates=True, mix_untrained=mix_untrained).start(
        LocalGrid(toy_app, NODE_IDS), start, num_rounds=4
    )

    for name, array in to_numpy(plain.arrays).items():
        np.testing.assert_array_equal(to_numpy(partial.arrays)[name], array)
    assert {r: dict(m) for r, m in partial.train_metrics_clientapp.items()} == {
        r: dict(m) for r, m in plain.train_metrics_clientapp.items()
    }


def test_without_partial_updates_a_missing_array_is_an_error(plan: GossipPlan, initial: ArrayRecord) -> None:
    strategy = HostedGossip(plan, min_nodes=1, fraction_evaluate=0.0)

    with pytest.raises(RuntimeError, match="0 of 6 nodes trained well"):
        strategy.start(LocalGrid(partial_app(), NODE_IDS), initial, num_rounds=1)


def with_arrays(message: Message, arrays: dict[str, np.ndarray]) -> Message:
    content = RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


def with_importance(message: Message, reply: Message, tensors: object, importance: object) -> Message:
    content = RecordDict(dict(reply.content))
    content["elastic"] = ConfigRecord({"tensors": tensors, "importance": importance})
    return Message(content, reply_to=message)


FAULTS: dict[str, tuple[object, str]] = {
    "error": (lambda m, r: Message(Error(code=1, reason="out of memory"), reply_to=m), "out of memory"),
    "nan": (lambda m, r: with_arrays(m, {"head": np.full(5, np.nan, np.float32)}), "NaN or infinite"),
    "infinite": (lambda m, r: with_arrays(m, {"stem": np.full(4, np.inf, np.float32)}), "NaN or infinite"),
    "shape": (lambda m, r: with_arrays(m, {"head": np.zeros(4, np.float32)}), "received array 'head'"),
    "dtype": (lambda m, r: with_arrays(m, {"head": np.zeros(5, np.float64)}), "received array 'head'"),
    "unknown": (lambda m, r: with_arrays(m, {"tail": np.zeros(5, np.float32)}), "unexpected array 'tail'"),
    "no arrays": (
        lambda m, r: Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=m),
        "expected exactly one ArrayRecord",
    ),
    "unknown importance": (lambda m, r: with_importance(m, r, ["tail"], [1.0]), "the importance of 'tail'"),
    "infinite importance": (
        lambda m, r: with_importance(m, r, ["head"], [float("inf")]),
        "the importance of 'head' is inf",
    ),
    "importance twice": (
        lambda m, r: with_importance(m, r, ["head"] * 2, [1.0, 1.0]),
        "the importance of 'head' was given twice",
    ),
}


@pytest.fixture
def flower_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    flower = logging.getLogger("flwr")
    flower.addHandler(caplog.handler)
    yield caplog
    flower.removeHandler(caplog.handler)


@pytest.mark.parametrize("mix_untrained", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_node_keeps_its_whole_model_and_the_round_goes_on(
    fault: str,
    mix_untrained: bool,
    plan: GossipPlan,
    initial: ArrayRecord,
    flower_log: pytest.LogCaptureFixture,
) -> None:
    make, reason = FAULTS[fault]

    def break_node_0(partition: int, message: Message, reply: Message) -> Message:
        return make(message, reply) if partition == 0 and round_of(message) == 1 else reply

    grid = LocalGrid(partial_app(importance=True), NODE_IDS, fault=break_node_0)
    strategy = gossip(plan, mix_untrained=mix_untrained, global_importance=True)
    result = strategy.start(grid, initial, num_rounds=2)

    good = ALL - {0}
    trained = trained_models(initial, good)
    stem, head = (good, good) if mix_untrained else ({2, 4}, {1, 2, 3})
    expected = np.hstack([acting(plan, stem) @ trained[:, STEM], acting(plan, head) @ trained[:, HEAD]])
    models = sent_models(grid, 2)
    np.testing.assert_allclose(models, expected, rtol=1e-5)
    np.testing.assert_array_equal(models[0], trained[0].astype(np.float32))
    assert result.train_metrics_clientapp[1]["nodes-failed"] == 1
    assert result.train_metrics_clientapp[2]["nodes-failed"] == 0
    assert f"reply {'from' if fault == 'error' else 'of'} node 10: {reason}" in flower_log.text


def test_a_second_reply_of_a_node_is_rejected(plan: GossipPlan, initial: ArrayRecord) -> None:
    """What is absent from it would not be what was sent."""
    strategy, grid = gossip(plan), LocalGrid(partial_app(), NODE_IDS)
    messages = list(strategy.configure_train(1, initial, ConfigRecord(), grid))
    replies = grid.send_and_receive(messages)

    _, metrics = strategy.aggregate_train(1, [*replies, replies[0]])

    assert metrics["replies-rejected"] == 1
    assert metrics["nodes-failed"] == 0


def test_half_precision_survives_being_left_out(plan: GossipPlan) -> None:
    """Absent or returned as sent: the same to the last bit, although 16 bits cannot hold a mean of models."""
    values = np.linspace(-1, 1, 7).astype(np.float16)
    start = record({"stem": values, "head": values})
    outcomes = []
    for returned in (["head"], ["stem", "head"]):
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context, returned: list[str] = returned) -> Message:
            received = to_numpy(message.content["arrays"])
            step = np.float16(0.1 * context.node_config["partition-id"])
            trained = {"stem": received["stem"], "head": received["head"] + step}
            return with_arrays(message, {name: trained[name] for name in returned})

        outcomes.append(gossip(plan).start(LocalGrid(app, NODE_IDS), start, num_rounds=3))

    for name in ("stem", "head"):
        np.testing.assert_array_equal(
            *(to_numpy(outcome.arrays)[name].view(np.uint16) for outcome in outcomes)
        )


def test_nodes_are_told_what_the_strategy_does(plan: GossipPlan, initial: ArrayRecord) -> None:
    grid = LocalGrid(partial_app(), NODE_IDS)

    gossip(plan, deadline=2.5).start(grid, initial, num_rounds=1)
    gossip(plan, deadline=2.5).start(
        grid, initial, num_rounds=1, train_config=ConfigRecord({"deadline": 4.0, "lr": 0.1})
    )

    configs = [dict(message.content["config"]) for message in grid.sent]
    assert configs[:6] == [{"partial-updates": True, "deadline": 2.5, "server-round": 1}] * 6
    assert configs[6:] == [{"partial-updates": True, "deadline": 4.0, "lr": 0.1, "server-round": 1}] * 6


def sent_importance(grid: LocalGrid, server_round: int) -> list[dict[str, float]]:
    return [
        dict(zip(message.content[key]["tensors"], message.content[key]["importance"], strict=True))
        for message in grid.sent
        if round_of(message) == server_round
        for key in ("elastic",)
        if key in message.content
    ]


def test_nodes_learn_what_matters_to_all_from_the_second_round_on(
    plan: GossipPlan, initial: ArrayRecord
) -> None:
    grid = LocalGrid(partial_app(importance=True), NODE_IDS)

    gossip(plan, global_importance=True).start(grid, initial, num_rounds=2)

    stem = np.mean([(p + 1) / (p + 2) for p in range(6)])
    assert sent_importance(grid, 1) == []
    assert sent_importance(grid, 2) == [pytest.approx({"stem": stem, "head": 1 - stem})] * 6


def test_nobody_is_told_unless_asked_for(plan: GossipPlan, initial: ArrayRecord) -> None:
    grid = LocalGrid(partial_app(importance=True), NODE_IDS)

    gossip(plan).start(grid, initial, num_rounds=2)

    assert sent_importance(grid, 2) == []


def run(plan: GossipPlan, initial: ArrayRecord, rounds: int, resume: Path, fault: Fault | None = None):
    grid = LocalGrid(partial_app(importance=True), NODE_IDS, fault=fault)
    strategy = gossip(plan, mix_untrained=False, global_importance=True, resume=resume)
    return grid, strategy.start(grid, initial, num_rounds=rounds)


def test_a_resumed_run_goes_on_with_models_traffic_and_importance(
    plan: GossipPlan, initial: ArrayRecord, tmp_path: Path
) -> None:
    whole_grid, whole = run(plan, initial, 4, tmp_path / "whole")
    run(plan, initial, 2, tmp_path / "run")
    resumed_grid, resumed = run(plan, initial, 4, tmp_path / "run")

    assert {round_of(message) for message in resumed_grid.sent} == {3, 4}
    np.testing.assert_array_equal(sent_models(resumed_grid, 3), sent_models(whole_grid, 3))
    assert sent_importance(resumed_grid, 3) == sent_importance(whole_grid, 3) != []
    for name, array in to_numpy(whole.arrays).items():
        np.testing.assert_array_equal(to_numpy(resumed.arrays)[name], array)
    assert dict(resumed.train_metrics_clientapp[4]) == dict(whole.train_metrics_clientapp[4])


class WholeModels(DPSGD):
    """An algorithm that needs to see all of a model."""

    separable = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deadline": 0.0}, r"deadline is 0\.0; expected a positive number of seconds"),
        ({"deadline": float("inf")}, "deadline is inf"),
        ({"deadline": float("nan")}, "deadline is nan"),
        ({"mix_untrained": False, "mixer": WholeModels}, "WholeModels mixes models as a whole"),
    ],
)
def test_bad_arguments(plan: GossipPlan, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gossip(plan, **arguments)
