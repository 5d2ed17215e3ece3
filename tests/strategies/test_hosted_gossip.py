"""HostedGossip, message by message."""

import logging
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from local_grid import LocalGrid, round_of
from records import record, to_numpy

from flower_edge.gossip import GossipPlan
from flower_edge.strategies import HostedGossip, TooFewNodesError

NODE_IDS = [70, 10, 60, 20, 50, 30]


def reference_models(plan: GossipPlan, start: np.ndarray, rounds: int) -> np.ndarray:
    """Node i of the plan is the i-th smallest node id; training adds (partition + 1). Float64."""
    gains = np.array([NODE_IDS.index(node_id) + 1.0 for node_id in sorted(NODE_IDS)])
    models = np.tile(start.ravel().astype(np.float64), (plan.n, 1))
    for server_round in range(1, rounds + 1):
        models = plan.matrix(server_round) @ (models + gains[:, None])
    return models


def sent_weights(grid: LocalGrid, server_round: int) -> np.ndarray:
    """The models that went out for training in a round, in the plan's order."""
    sent = {
        message.metadata.dst_node_id: message.content["arrays"]["weight"].numpy().ravel()
        for message in grid.sent
        if message.metadata.message_type == "train" and round_of(message) == server_round
    }
    return np.stack([sent[node_id] for node_id in sorted(NODE_IDS)])


def test_each_node_trains_its_own_model(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    grid = LocalGrid(toy_app, NODE_IDS)

    result = HostedGossip(plan).start(grid, initial, num_rounds=4)

    start = initial["weight"].numpy()
    for server_round in range(1, 5):
        expected = reference_models(plan, start, server_round - 1)
        np.testing.assert_allclose(sent_weights(grid, server_round), expected, rtol=1e-5)
    average = reference_models(plan, start, 4).mean(0).reshape(start.shape)
    np.testing.assert_allclose(result.arrays["weight"].numpy(), average, rtol=1e-5)
    assert result.arrays["steps"].numpy() == 4


def test_metrics_of_a_round(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    result = HostedGossip(plan).start(LocalGrid(toy_app, NODE_IDS), initial, num_rounds=3)

    models = reference_models(plan, initial["weight"].numpy(), 3)
    trained, evaluated = result.train_metrics_clientapp[3], result.evaluate_metrics_clientapp[3]
    weights = np.arange(1, 7)
    assert trained["train_loss"] == pytest.approx(np.average(np.arange(6), weights=weights))
    spread = np.sqrt(((models - models.mean(0)) ** 2).sum(1).mean())
    assert trained["consensus-distance"] == pytest.approx(spread, rel=1e-4)
    assert trained["nodes-failed"] == 0
    assert trained["replies-rejected"] == 0
    assert trained["busiest-node-bytes"] == 3 * 2 * 3 * 15 * 4  # rounds · both ways · links · floats
    assert trained["busiest-node-energy-wh"] == pytest.approx(3 * (1.0 + 3 * 0.75))
    levels = models.mean(1)
    assert evaluated["level"] == pytest.approx(levels.mean(), rel=1e-5)
    assert evaluated["level-min"] == pytest.approx(levels.min(), rel=1e-5)
    assert evaluated["level-max"] == pytest.approx(levels.max(), rel=1e-5)


def test_the_average_goes_to_evaluate_fn_and_to_no_node(
    plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    seen: dict[int, np.ndarray] = {}

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen[server_round] = arrays["weight"].numpy()
        return MetricRecord({"mean": float(seen[server_round].mean())})

    grid = LocalGrid(toy_app, NODE_IDS)
    result = HostedGossip(plan).start(grid, initial, num_rounds=2, evaluate_fn=evaluate_fn)

    assert sorted(seen) == [0, 1, 2]
    np.testing.assert_array_equal(seen[0], initial["weight"].numpy())
    average = reference_models(plan, initial["weight"].numpy(), 2).mean(0)
    np.testing.assert_allclose(seen[2].ravel(), average, rtol=1e-5)
    assert set(result.evaluate_metrics_serverapp) == {0, 1, 2}


def test_j_is_fedavg_with_equal_weights(toy_app: ClientApp, initial: ArrayRecord) -> None:
    plan = GossipPlan.from_matrix(np.full((6, 6), 1 / 6))
    equal = {"weighted_by_key": "one"}

    def weigh_equally(partition: int, message: Message, reply: Message) -> Message:
        for metrics in reply.content.metric_records.values():
            metrics["one"] = 1
        return reply

    grids = [LocalGrid(toy_app, NODE_IDS, fault=weigh_equally) for _ in range(2)]
    gossip = HostedGossip(plan, **equal).start(grids[0], initial, num_rounds=5)
    fedavg = FedAvg(min_train_nodes=6, min_available_nodes=6, **equal).start(grids[1], initial, num_rounds=5)

    np.testing.assert_allclose(
        gossip.arrays["weight"].numpy(), fedavg.arrays["weight"].numpy(), rtol=1e-6, atol=1e-6
    )


FAULTS = {
    "silent": lambda message, reply: None,
    "error": lambda message, reply: Message(Error(code=1, reason="out of memory"), reply_to=message),
    "nan": lambda message, reply: with_weight(message, np.full((3, 5), np.nan, np.float32)),
    "infinite": lambda message, reply: with_weight(message, np.full((3, 5), np.inf, np.float32)),
    "shape": lambda message, reply: with_weight(message, np.zeros((5, 3), np.float32)),
    "dtype": lambda message, reply: with_weight(message, np.zeros((3, 5), np.float64)),
    "missing array": lambda message, reply: with_arrays(message, {"steps": np.int64(1)}),
    "no arrays": lambda message, reply: Message(
        RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message
    ),
    "no metrics": lambda message, reply: Message(
        RecordDict({"arrays": reply.content["arrays"]}), reply_to=message
    ),
    "no weight": lambda message, reply: with_metrics(message, reply, {"train_loss": 1.0}),
    "negative weight": lambda message, reply: with_metrics(message, reply, {"num-examples": -3}),
    "truncated": lambda message, reply: with_raw(message, lambda data: data[:-4]),
    "claims a terabyte": lambda message, reply: with_raw(message, terabyte),
    "not numpy": lambda message, reply: with_raw(message, lambda data: b"\x80\x04K\x01." + data),
    "header that never ends": lambda message, reply: with_header(message, "{'descr': ("),
    "header that is too deep": lambda message, reply: with_header(message, "-" * 9000 + "1"),
    "header badly indented": lambda message, reply: with_header(message, "if 1:\n    a\n  b"),
    "header without a dtype": lambda message, reply: with_header(
        message, "{'descr': (), 'fortran_order': False, 'shape': (3, 5)}"
    ),
}


def with_weight(message: Message, weight: np.ndarray) -> Message:
    return with_arrays(message, {"weight": weight, "steps": np.int64(1)})


def with_arrays(message: Message, arrays: dict[str, np.ndarray]) -> Message:
    content = RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


def with_metrics(message: Message, reply: Message, metrics: dict[str, float]) -> Message:
    content = RecordDict({"arrays": reply.content["arrays"], "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


def with_raw(message: Message, change) -> Message:
    good = Array(np.zeros((3, 5), np.float32))
    bad = Array(dtype="float32", shape=(3, 5), stype="numpy.ndarray", data=change(good.data))
    arrays = ArrayRecord({"weight": bad, "steps": Array(np.asarray(np.int64(1)))})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


def with_header(message: Message, header: str) -> Message:
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    return with_raw(message, lambda data: start + data)


def terabyte(data: bytes) -> bytes:
    return data.replace(b"(3, 5), }", b"(3, 99999999999), }"[:19])[: len(data)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_node_keeps_its_model_and_the_round_goes_on(
    fault: str, plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    def break_partition_1(partition: int, message: Message, reply: Message) -> Message | None:
        faulty = partition == 1 and message.metadata.message_type == "train" and round_of(message) == 1
        return FAULTS[fault](message, reply) if faulty else reply

    grid = LocalGrid(toy_app, NODE_IDS, fault=break_partition_1)
    result = HostedGossip(plan, bind_by="node-id").start(grid, initial, num_rounds=2)

    broken = sorted(NODE_IDS).index(NODE_IDS[1])
    models = sent_weights(grid, 2)
    np.testing.assert_array_equal(models[broken], initial["weight"].numpy().ravel())
    gains = np.array([NODE_IDS.index(i) + 1.0 for i in sorted(NODE_IDS)])
    gains[broken] = 0.0
    acting = plan.matrix(1).toarray()
    acting[broken, :] = acting[:, broken] = 0.0
    acting += np.diag(1.0 - acting.sum(1))
    expected = acting @ (initial["weight"].numpy().ravel() + gains[:, None])
    np.testing.assert_allclose(models, expected, rtol=1e-5)
    assert result.train_metrics_clientapp[1]["nodes-failed"] == 1
    assert result.train_metrics_clientapp[1]["replies-rejected"] == int(fault not in ("silent", "error"))
    assert result.train_metrics_clientapp[2]["nodes-failed"] == 0


@pytest.mark.parametrize("odd", ["1 of 6", "the first of 6"])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_metric_that_no_mean_can_take_is_left_out(
    kind: str,
    odd: str,
    plan: GossipPlan,
    toy_app: ClientApp,
    initial: ArrayRecord,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node_id = NODE_IDS[3] if odd == "1 of 6" else min(NODE_IDS)

    def report_shapes(partition: int, message: Message, reply: Message) -> Message:
        if message.metadata.message_type == kind:
            own = message.metadata.dst_node_id == node_id
            for metrics in reply.content.metric_records.values():
                metrics.update({"acc": [0.5, 0.6] if own else 0.5, "curve": 3.0 if own else [1.0, 2.0]})
        return reply

    grid = LocalGrid(toy_app, NODE_IDS, fault=report_shapes)
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        result = HostedGossip(plan).start(grid, initial, num_rounds=2)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)

    found = getattr(result, f"{kind}_metrics_clientapp")[2]
    assert (found["acc"], found["curve"]) == (pytest.approx(0.5), [1.0, 2.0])
    assert result.train_metrics_clientapp[2]["nodes-failed"] == 0, "its model is good"
    assert f"metric 'acc' of node {node_id}: received a list of 2, expected one number" in caplog.text
    assert f"metric 'curve' of node {node_id}: received one number, expected a list of 2" in caplog.text


def test_too_few_good_replies_stop_the_run(
    plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    grid = LocalGrid(
        toy_app, NODE_IDS, fault=lambda partition, message, reply: reply if partition < 3 else None
    )

    with pytest.raises(TooFewNodesError, match=r"round 1: 3 of 6 nodes trained well .* min_nodes is 4"):
        HostedGossip(plan, min_nodes=4).start(grid, initial, num_rounds=2)


def test_fewer_nodes_than_the_plan(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    with pytest.raises(TooFewNodesError, match="plan is for 6 nodes, 5 are connected"):
        HostedGossip(plan, connect_timeout=0.3).start(LocalGrid(toy_app, NODE_IDS[:5]), initial)


def test_more_nodes_than_the_plan(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    with pytest.raises(ValueError, match="plan is for 6 nodes, 7 are connected"):
        HostedGossip(plan).start(LocalGrid(toy_app, [*NODE_IDS, 99]), initial)


@pytest.mark.parametrize(("name", "error"), [("nowhere/run", OSError), (".", ValueError)])
def test_a_resume_file_that_cannot_be_written_is_noticed_before_anything_is_sent(
    name: str,
    error: type[Exception],
    plan: GossipPlan,
    toy_app: ClientApp,
    initial: ArrayRecord,
    tmp_path: Path,
) -> None:
    grid = LocalGrid(toy_app, NODE_IDS)

    with pytest.raises(error, match=r"there is no folder .*, make it first|is a folder, expected"):
        HostedGossip(plan, resume=tmp_path / name).start(grid, initial)
    assert not grid.sent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_nodes": 0}, "min_nodes is 0; expected 1 to 6"),
        ({"min_nodes": 7}, "min_nodes is 7"),
        ({"fraction_evaluate": 1.5}, r"fraction_evaluate is 1\.5"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"bind_by": "name"}, "bind_by is 'name'"),
    ],
)
def test_bad_arguments(plan: GossipPlan, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HostedGossip(plan, **arguments)


def test_evaluation_can_be_rarer_and_partial(
    plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    grid = LocalGrid(toy_app, NODE_IDS)

    result = HostedGossip(plan, evaluate_every=2, fraction_evaluate=0.5).start(grid, initial, num_rounds=5)

    assert list(result.evaluate_metrics_clientapp) == [2, 4, 5]
    assert sum(m.metadata.message_type == "evaluate" for m in grid.sent) == 3 * 3


def test_no_evaluation_on_nodes(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    grid = LocalGrid(toy_app, NODE_IDS)

    result = HostedGossip(plan, fraction_evaluate=0.0).start(grid, initial, num_rounds=1)

    assert not result.evaluate_metrics_clientapp
    assert {m.metadata.message_type for m in grid.sent} == {"train"}


def test_config_reaches_the_nodes(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    grid = LocalGrid(toy_app, NODE_IDS)

    HostedGossip(plan, fraction_evaluate=0.0).start(
        grid, initial, num_rounds=1, train_config=ConfigRecord({"lr": 0.5})
    )

    assert all(dict(m.content["config"]) == {"lr": 0.5, "server-round": 1} for m in grid.sent)


def test_flowers_own_call_order_works(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    """A driver that calls configure and aggregate itself, as Flower's Strategy.start does."""
    grid, strategy = LocalGrid(toy_app, NODE_IDS), HostedGossip(plan)

    arrays = initial
    for server_round in (1, 2):
        messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        arrays, metrics = strategy.aggregate_train(server_round, grid.send_and_receive(messages))

    average = reference_models(plan, initial["weight"].numpy(), 2).mean(0)
    np.testing.assert_allclose(to_numpy(arrays)["weight"].ravel(), average, rtol=1e-5)
    assert metrics["nodes-failed"] == 0


def test_summary_shows_the_plan(plan: GossipPlan, caplog: pytest.LogCaptureFixture) -> None:
    flower = logging.getLogger("flwr")
    flower.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="flwr"):
            HostedGossip(plan).summary()
    finally:
        flower.removeHandler(caplog.handler)

    text = caplog.text
    assert "Nodes: 6 | links: 8" in text
    assert f"{plan.rho:.4f}" in text
    assert "Wh a round (modelled)" in text
