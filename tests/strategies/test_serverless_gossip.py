"""Sessions between real ClientApps over real links, started by the strategy."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.clientapp import ClientApp
from local_grid import LocalGrid
from records import record, to_numpy
from sessions import FAST, NODE_IDS, hosted, training_metrics
from threaded_grid import ThreadedGrid

from flower_edge.clients import gossip_mod
from flower_edge.gossip import (
    ChocoCopies,
    ChocoSGD,
    Compressor,
    DeepSqueeze,
    GossipPlan,
    Int4,
    Int8,
    LinkChoco,
    TopK,
)
from flower_edge.gossip.robust import named_mixer
from flower_edge.strategies import HostedGossip, ServerlessGossip, TooFewNodesError


@pytest.fixture
def grid(toy_app: ClientApp, tmp_path: Path) -> ThreadedGrid:
    return ThreadedGrid(gossip_mod(toy_app), NODE_IDS, tmp_path)


def test_sessions_are_hosted_gossip_without_the_host(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    strategy = ServerlessGossip(plan, rounds_per_session=4, export=6, settings=FAST)
    seen: dict[int, np.ndarray] = {}

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen[server_round] = to_numpy(arrays)["weight"]
        return MetricRecord({"mean": float(seen[server_round].mean())})

    result = strategy.start(grid, initial, num_rounds=10, evaluate_fn=evaluate_fn)

    expected = hosted(plan, grid.app, initial, 10)
    for name, array in expected.items():
        np.testing.assert_allclose(result.arrays[name].numpy(), array, rtol=1e-5, atol=1e-5)
    assert sorted(seen) == [0, 4, 8, 10]
    np.testing.assert_array_equal(seen[10], result.arrays["weight"].numpy())
    np.testing.assert_array_equal(seen[0], initial["weight"].numpy())
    types = [message.metadata.message_type for message in grid.sent]
    assert [types.count(kind) for kind in ("query.gossip", "train.gossip", "evaluate.gossip")] == [18, 18, 18]
    assert sum(bool(message.content.array_records) for message in grid.sent) == 6, "the model is sent once"


def test_metrics_of_every_round(plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord) -> None:
    result = ServerlessGossip(plan, rounds_per_session=5, settings=FAST).start(grid, initial, num_rounds=7)

    assert sorted(result.train_metrics_clientapp) == list(range(1, 8))
    weights = np.arange(1, 7)
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["train_loss"] == pytest.approx(np.average(np.arange(6), weights=weights))
        assert (metrics["nodes-failed"], metrics["links-failed"]) == (0, 0)
    assert sorted(result.evaluate_metrics_clientapp) == [5, 7]
    evaluated = result.evaluate_metrics_clientapp[7]
    level = hosted(plan, grid.app, initial, 7)["weight"].mean()
    assert evaluated["level"] == pytest.approx(level, rel=1e-5)
    assert evaluated["level-min"] < evaluated["level"] < evaluated["level-max"]


def test_no_model_leaves_its_node_unless_it_is_asked_for(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    result = ServerlessGossip(plan, settings=FAST).start(grid, initial, num_rounds=3)

    assert not result.arrays
    assert not any(reply.content.array_records for reply in grid.replies)

    result = ServerlessGossip(plan, export=1, settings=FAST).start(grid, initial, num_rounds=3)

    assert set(result.arrays) == {"weight", "steps"}
    assert sum(bool(reply.content.array_records) for reply in grid.replies) == 1


def test_a_second_start_is_another_run(plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord) -> None:
    strategy = ServerlessGossip(plan, rounds_per_session=2, export=6, settings=FAST)

    first, second = (strategy.start(grid, initial, num_rounds=3) for _ in range(2))

    assert training_metrics(second) == training_metrics(first)
    expected = first.arrays["weight"].numpy()
    np.testing.assert_allclose(second.arrays["weight"].numpy(), expected, rtol=1e-5)


def test_configs_reach_the_app(plan: GossipPlan, tmp_path: Path, initial: ArrayRecord) -> None:
    seen: list[dict] = []
    app = gossip_mod(ClientApp())

    @app.train()
    def train(message: Message, context: object) -> Message:
        seen.append(dict(message.content["settings"]))
        content = message.content.copy()
        del content["settings"]
        content["metrics"] = MetricRecord({"num-examples": 1})
        return Message(content, reply_to=message)

    strategy = ServerlessGossip(plan, settings=FAST, configrecord_key="settings", fraction_evaluate=0.0)
    grid = ThreadedGrid(app, NODE_IDS, tmp_path)
    strategy.start(grid, initial, num_rounds=2, train_config=ConfigRecord({"lr": 0.5}))

    assert sorted(config["server-round"] for config in seen) == [1] * 6 + [2] * 6
    assert all(config["lr"] == 0.5 for config in seen)


@pytest.mark.parametrize("knows_base", [True, False])
def test_the_plan_is_repaired_for_nodes_that_are_gone_and_back(
    plan: GossipPlan,
    grid: ThreadedGrid,
    initial: ArrayRecord,
    knows_base: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not knows_base:
        plan = GossipPlan(plan.n, plan.phases)
    sessions = iter([[], [2], []])

    class Fading(ServerlessGossip):
        def configure_train(self, server_round: int, *rest: object) -> object:
            gone = next(sessions)
            grid.connected = [n for n in NODE_IDS if grid.partitions[n] not in gone]
            return super().configure_train(server_round, *rest)

    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        result = Fading(plan, rounds_per_session=3, export=6, settings=FAST).start(
            grid, initial, num_rounds=9
        )
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)

    failed = [metrics["nodes-failed"] for metrics in result.train_metrics_clientapp.values()]
    assert failed == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert all(metrics["links-failed"] == 0 for metrics in result.train_metrics_clientapp.values())
    assert ("the plan is repaired" in caplog.text) == knows_base
    gains = 9 * np.arange(1, 7.0) - np.array([0, 0, 3 * 3, 0, 0, 0])
    expected = initial["weight"].numpy() + gains.mean()
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected, rtol=1e-5)


def test_a_node_that_lost_its_disk_starts_anew(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    class Losing(ServerlessGossip):
        def configure_train(self, server_round: int, *rest: object) -> object:
            if server_round == 2:
                (state,) = grid.folder.glob("partition-3/*/state")
                state.write_bytes(state.read_bytes()[:-1])
            return super().configure_train(server_round, *rest)

    result = Losing(plan, rounds_per_session=2, settings=FAST).start(grid, initial, num_rounds=4)

    assert [m["nodes-failed"] for m in result.train_metrics_clientapp.values()] == [0, 0, 0, 0]
    brought = [m for m in grid.sent if m.metadata.message_type == "train.gossip" and m.content.array_records]
    assert [grid.partitions[m.metadata.dst_node_id] for m in brought] == [0, 1, 2, 3, 4, 5, 3]


def test_a_node_that_comes_back_with_another_id_goes_on(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    """As a SuperNode without a key of its own does at each start."""

    class Restarting(ServerlessGossip):
        def configure_train(self, server_round: int, *rest: object) -> object:
            if server_round == 2:
                grid.partitions[4711] = grid.partitions.pop(NODE_IDS[3])
                grid.connected = list(grid.partitions)
            return super().configure_train(server_round, *rest)

    strategy = Restarting(plan, rounds_per_session=2, export=6, settings=FAST)
    result = strategy.start(grid, initial, num_rounds=4)

    introductions = [reply.content["gossip"] for reply in grid.replies if "gossip" in reply.content]
    own = [said["fingerprint"] for said in introductions if said.get("partition-id") == 3]
    assert len(own) == 2
    assert len(set(own)) == 1, "its neighbours have pinned its key"
    brought = [m for m in grid.sent if m.metadata.message_type == "train.gossip" and m.content.array_records]
    assert len(brought) == len(NODE_IDS), "its model is on its disk"
    expected = hosted(plan, grid.app, initial, 4)["weight"]
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected, rtol=1e-5)


def test_a_node_whose_training_fails_stops_nobody(
    plan: GossipPlan, tmp_path: Path, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    app = ClientApp()
    app.evaluate()(lambda message, context: toy_app(message, context))

    @app.train()
    def train(message: Message, context: object) -> Message:
        if context.node_config["partition-id"] == 1 and message.content["config"]["server-round"] == 2:
            raise RuntimeError("out of memory")
        return toy_app(message, context)

    grid = ThreadedGrid(gossip_mod(app), NODE_IDS, tmp_path)
    result = ServerlessGossip(plan, rounds_per_session=5, settings=FAST).start(grid, initial, num_rounds=5)

    assert any(reply.has_error() and "out of memory" in reply.error.reason for reply in grid.replies)
    failed = [metrics["nodes-failed"] for metrics in result.train_metrics_clientapp.values()]
    assert failed == [1] * 5
    assert result.train_metrics_clientapp[1]["links-failed"] == 0
    assert result.train_metrics_clientapp[5]["links-failed"] == len(plan.neighbours(1, 5))


def test_simulated_nodes_are_hosted(
    plan: GossipPlan,
    toy_app: ClientApp,
    initial: ArrayRecord,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def simulated(partition: int, message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "query.gossip" and not reply.has_error():
            for answer in reply.content.config_records.values():
                answer["simulated"] = True
        return reply

    grid = LocalGrid(gossip_mod(toy_app), NODE_IDS, fault=simulated)
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "flwr"):
            for rounds in (2, 4):  # the second time it resumes
                strategy = ServerlessGossip(plan, rounds_per_session=2, resume=tmp_path / "run")
                result = strategy.start(grid, initial, num_rounds=rounds)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)

    trained = sum(message.metadata.message_type == "train" for message in grid.sent)
    assert trained == 6 * 4
    assert "their gossip is hosted (HostedGossip)" in caplog.text
    expected = hosted(plan, toy_app, initial, 4)
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected["weight"], rtol=1e-6)
    assert sorted(result.evaluate_metrics_clientapp) == [2, 4]


def test_nodes_without_address_are_not_hosted_by_the_way(
    plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    with pytest.raises(ValueError, match=r"nodes \[0, 1, 2, 3, 4, 5\] have no address"):
        ServerlessGossip(plan).start(LocalGrid(gossip_mod(toy_app), NODE_IDS), initial)


def test_an_app_that_knows_no_sessions(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    with pytest.raises(TooFewNodesError, match="0 of 6 nodes can take part; min_nodes is 2"):
        ServerlessGossip(plan).start(LocalGrid(toy_app, NODE_IDS), initial)


def test_nodes_that_give_no_answer_are_counted(
    plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord, caplog: pytest.LogCaptureFixture
) -> None:
    grid = LocalGrid(gossip_mod(toy_app), NODE_IDS, fault=lambda partition, message, reply: None)
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        with pytest.raises(TooFewNodesError, match="0 of 6 nodes can take part"):
            ServerlessGossip(plan).start(grid, initial)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)

    assert "6 of 6 connected nodes gave no answer within 60 s" in caplog.text


def test_a_certificate_that_is_not_the_one_it_says(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord, caplog: pytest.LogCaptureFixture
) -> None:
    def lie(partition: int, message: Message, reply: Message) -> Message:
        if partition == 0 and message.metadata.message_type == "query.gossip":
            reply.content["gossip"]["fingerprint"] = "0" * 64
        return reply

    grid.fault = lie
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        result = ServerlessGossip(plan, settings=FAST).start(grid, initial, num_rounds=1)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)

    assert "Rejected the reply of node 907: its certificate has fingerprint" in caplog.text
    assert result.train_metrics_clientapp[1]["nodes-failed"] == 1


def test_what_a_lost_reply_said_is_in_the_next_one(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    lost = iter([True])

    def lose(partition: int, message: Message, reply: Message) -> Message | None:
        session = message.metadata.message_type == "train.gossip"
        return None if session and partition == 2 and next(lost, False) else reply

    whole = ServerlessGossip(plan, rounds_per_session=3, settings=FAST).start(grid, initial, num_rounds=6)
    grid.fault = lose
    result = ServerlessGossip(plan, rounds_per_session=3, settings=FAST).start(grid, initial, num_rounds=6)

    assert next(lost, None) is None
    assert training_metrics(result) == training_metrics(whole)
    for found in (result, whole):
        total = [metrics["busiest-node-bytes"] for metrics in found.train_metrics_clientapp.values()]
        assert total == sorted(total)


@pytest.mark.parametrize(("min_nodes", "stops"), [(4, True), (3, False)])
def test_errors_and_bad_replies_are_nodes_that_fail_and_silence_is_not(
    min_nodes: int, stops: bool, plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    def fail(partition: int, message: Message, reply: Message) -> Message | None:
        if message.metadata.message_type != "train.gossip" or partition > 3:
            return reply
        if partition == 0:
            reply.content["metrics"]["bytes-sent"] = [np.nan]
            return reply
        return None if partition == 3 else Message(Error(code=2, reason="out of memory"), reply_to=message)

    grid.fault = fail
    strategy = ServerlessGossip(plan, min_nodes=min_nodes, settings=FAST)
    if stops:
        with pytest.raises(TooFewNodesError, match=r"of 6 nodes 2 failed, and 1 sent replies that were rej"):
            strategy.start(grid, initial, num_rounds=1)
        return
    assert strategy.start(grid, initial, num_rounds=1).train_metrics_clientapp[1]["nodes-failed"] == 4


REPLIES = {
    "no metrics": lambda content: content.pop("metrics"),
    "a round of another session": lambda content: content["metrics"].update({"round": [1, 3]}),
    "lists of two lengths": lambda content: content["metrics"].update({"train_loss": [1.0]}),
    "no exchange-seconds": lambda content: content["metrics"].pop("exchange-seconds"),
    "infinitely many bytes": lambda content: content["metrics"].update({"bytes-sent": [8.0, np.inf]}),
    "more bytes than there are": lambda content: content["metrics"].update({"bytes-received": [1e308] * 2}),
    "no number of links": lambda content: content["metrics"].update({"links-failed": [np.nan] * 2}),
    "negative seconds": lambda content: content["metrics"].update({"exchange-seconds": [0.5, -1.0]}),
    "another model": lambda content: content.update({"arrays": record({"weight": np.zeros(2, np.float32)})}),
}


@pytest.mark.parametrize("what", REPLIES)
def test_replies_are_not_trusted(
    what: str, plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    def spoil(partition: int, message: Message, reply: Message) -> Message:
        if partition == 2 and message.metadata.message_type == "train.gossip":
            REPLIES[what](reply.content)
        return reply

    grid.fault = spoil
    result = ServerlessGossip(plan, settings=FAST, export=6).start(grid, initial, num_rounds=2)

    assert [metrics["nodes-failed"] for metrics in result.train_metrics_clientapp.values()] == [1, 1]
    assert np.isfinite(result.arrays["weight"].numpy()).all()


def test_an_evaluation_that_no_mean_can_take_is_left_out(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    def spoil(partition: int, message: Message, reply: Message) -> Message:
        if partition == 2 and message.metadata.message_type == "evaluate.gossip":
            for metrics in reply.content.metric_records.values():
                metrics["level"] = [0.5, 0.6]
        return reply

    grid.fault = spoil
    result = ServerlessGossip(plan, settings=FAST).start(grid, initial, num_rounds=1)

    assert isinstance(result.evaluate_metrics_clientapp[1]["level"], float)


@pytest.mark.parametrize("robust", ["clip", "trim"])
def test_robust_mixing_is_what_the_host_would_do(
    robust: str, plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    strategy = ServerlessGossip(plan, export=6, robust=robust, settings=FAST)

    result = strategy.start(grid, initial, num_rounds=3)

    hosted = HostedGossip(plan, bind_by="partition-id", mixer=named_mixer(robust))
    expected = hosted.start(LocalGrid(grid.app, NODE_IDS), initial, 3).arrays
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected["weight"].numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("compressor", "mixer"),
    [
        (Int8(), None),
        (Int4(per="array", rounding="stochastic", seed=3), partial(LinkChoco, gamma=0.5)),
        (TopK(0.3), DeepSqueeze),
    ],
    ids=["int8", "int4", "topk"],
)
def test_few_bytes_are_what_the_host_would_send(
    compressor: Compressor, mixer: object, plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    """Over two sessions: memories are on the boards' disks in between."""
    strategy = ServerlessGossip(
        plan, rounds_per_session=3, export=6, compressor=compressor, mixer=mixer, settings=FAST
    )

    result = strategy.start(grid, initial, num_rounds=5)

    hosted = HostedGossip(
        plan, bind_by="partition-id", compressor=compressor, mixer=ChocoCopies if mixer is None else mixer
    )
    expected = hosted.start(LocalGrid(grid.app, NODE_IDS), initial, 5).arrays
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected["weight"].numpy(), rtol=1e-5)
    assert all(metrics["links-failed"] == 0 for metrics in result.train_metrics_clientapp.values())


def test_few_bytes_survive_nodes_that_are_gone_and_back(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    """The plan is repaired for one session: links that it brings begin anew, those that stay go on."""
    sessions = iter([[], [2], []])

    class Fading(ServerlessGossip):
        def configure_train(self, server_round: int, *rest: object) -> object:
            gone = next(sessions)
            grid.connected = [n for n in NODE_IDS if grid.partitions[n] not in gone]
            return super().configure_train(server_round, *rest)

    strategy = Fading(plan, rounds_per_session=3, export=6, compressor=Int8(), settings=FAST)
    result = strategy.start(grid, initial, num_rounds=9)

    assert all(metrics["links-failed"] == 0 for metrics in result.train_metrics_clientapp.values())
    gains = 9 * np.arange(1, 7.0) - np.array([0, 0, 3 * 3, 0, 0, 0])
    expected = initial["weight"].numpy() + gains.mean()
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected, rtol=1e-5)


def test_a_board_that_does_not_know_the_compressor(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord
) -> None:
    def old(partition: int, message: Message, reply: Message) -> Message:
        if partition == 4 and message.metadata.message_type == "query.gossip":
            reply.content["gossip"]["codecs"] = ["fp32"]
        return reply

    grid.fault = old
    with pytest.raises(ValueError, match=r"nodes \[4\] cannot send models in 'int8', but in \('fp32',\)"):
        ServerlessGossip(plan, compressor=Int8(), settings=FAST).start(grid, initial, num_rounds=1)


def test_overlap_reaches_the_boards(plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord) -> None:
    """Training that does not look at the model comes to the same; the order of events is another one."""
    strategy = ServerlessGossip(plan, rounds_per_session=3, export=6, overlap=True, settings=FAST)

    result = strategy.start(grid, initial, num_rounds=6)

    expected = hosted(plan, grid.app, initial, 6)["weight"]
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected, rtol=1e-5)
    orders = [m.content["gossip"] for m in grid.sent if m.metadata.message_type == "train.gossip"]
    assert all(order["overlap"] is True for order in orders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"overlap": True}, "overlap=True is for sessions between boards"), ({"compressor": Int8()}, "")],
)
def test_what_a_host_simulates(
    arguments: dict, message: str, plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    def simulated(partition: int, message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "query.gossip" and not reply.has_error():
            for answer in reply.content.config_records.values():
                answer["simulated"] = True
        return reply

    grid = LocalGrid(gossip_mod(toy_app), NODE_IDS, fault=simulated)
    strategy = ServerlessGossip(plan, **arguments)
    if message:
        with pytest.raises(ValueError, match=message):
            strategy.start(grid, initial, num_rounds=3)
        return
    result = strategy.start(grid, initial, num_rounds=3)

    by_host = HostedGossip(plan, bind_by="partition-id", compressor=Int8(), mixer=ChocoCopies)
    expected = by_host.start(LocalGrid(grid.app, NODE_IDS), initial, 3).arrays
    np.testing.assert_array_equal(result.arrays["weight"].numpy(), expected["weight"].numpy())


def test_errors_are_counted(plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord) -> None:
    def fail(partition: int, message: Message, reply: Message) -> Message:
        broken = partition == 2 and message.metadata.message_type == "train.gossip"
        return Message(Error(code=1, reason="lost"), reply_to=message) if broken else reply

    grid.fault = fail
    result = ServerlessGossip(plan, settings=FAST).start(grid, initial, num_rounds=1)

    assert result.train_metrics_clientapp[1]["nodes-failed"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds_per_session": 0}, "rounds_per_session is 0"),
        ({"export": -1}, "export is -1; expected 0 to 6"),
        ({"export": 7}, "export is 7; expected 0 to 6"),
        ({"min_nodes": 1}, "min_nodes is 1; expected 2 to 6"),
        ({"fraction_evaluate": 2}, "fraction_evaluate is 2"),
        ({"robust": "median"}, "robust is 'median'"),
        ({"robust": "clip", "compressor": Int8()}, "robust is 'clip', with a compressor"),
        ({"mixer": LinkChoco}, "a mixer needs a compressor"),
        ({"mixer": ChocoSGD, "compressor": Int8()}, "boards know the mixers .*, received ChocoSGD"),
        ({"mixer": partial(LinkChoco, gamma=0.0), "compressor": Int8()}, "gamma is 0.0"),
    ],
)
def test_bad_arguments(plan: GossipPlan, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerlessGossip(plan, **arguments)


def test_evaluate_fn_needs_a_model(plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord) -> None:
    with pytest.raises(ValueError, match="evaluate_fn would see no model: say export=1"):
        ServerlessGossip(plan).start(grid, initial, evaluate_fn=lambda round_, arrays: None)


def test_a_fleet_that_is_too_small(plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord) -> None:
    grid.connected = NODE_IDS[:3]

    with pytest.raises(TooFewNodesError, match="the plan is for 6 nodes, 3 are connected"):
        ServerlessGossip(plan, connect_timeout=0.1).start(grid, initial)


def test_the_key_is_the_nodes_alone(plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord) -> None:
    for _ in range(4):
        ServerlessGossip(plan, settings=FAST).start(grid, initial, num_rounds=1)

    assert len(list(grid.folder.iterdir())) == len(NODE_IDS)
    for node in range(len(NODE_IDS)):
        runs = list((grid.folder / f"partition-{node}").iterdir())
        assert len(runs) == 3, "older runs are removed"
        assert all((run / "node.key").stat().st_mode & 0o77 == 0 for run in runs)
    assert not any(b"PRIVATE" in str(reply.content).encode() for reply in grid.replies)
