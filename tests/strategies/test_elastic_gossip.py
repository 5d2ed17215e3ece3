"""Elastic nodes in hosted gossip: real training, real messages, here and in Flower's simulation."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result
from local_grid import LocalGrid, round_of
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from flower_edge.clients import Elastic, edge_client_app
from flower_edge.gossip import full_graph_plan, load_graph
from flower_edge.strategies import HostedGossip
from flower_edge.training import SlidingWindow, Time

NODES, ROUNDS = 4, 6
SLOW = Elastic(Time(0.6))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net() -> torch.nn.Module:
    layers = [torch.nn.Linear(6, 64), torch.nn.Tanh()]
    for _ in range(3):
        layers += [torch.nn.Linear(64, 64), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 3))


def data(context: Context) -> tuple[DataLoader, DataLoader]:
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    inputs = torch.randn(64, 6, generator=generator)
    dataset = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return DataLoader(dataset, batch_size=8, shuffle=True), DataLoader(dataset, batch_size=64)


def odd_nodes_are_slow(context: Context) -> Elastic | None:
    return SLOW if context.node_config["partition-id"] % 2 else None


def train(elastic: Any, rounds: int = ROUNDS, **arguments: Any) -> tuple[LocalGrid, Result]:
    torch.manual_seed(0)
    grid = LocalGrid(edge_client_app(net, data, cross_entropy, elastic=elastic), list(range(1, NODES + 1)))
    strategy = HostedGossip(full_graph_plan(load_graph(f"ring:{NODES}")), bind_by="partition-id", **arguments)
    start = ArrayRecord(net().state_dict())
    return grid, strategy.start(grid, start, rounds, train_config=ConfigRecord({"lr": 0.5}))


@pytest.mark.parametrize("mix_untrained", [True, False])
def test_elastic_nodes_learn_and_upload_less(mix_untrained: bool) -> None:
    _, result = train(odd_nodes_are_slow, partial_updates=True, mix_untrained=mix_untrained)

    metrics = result.train_metrics_clientapp[ROUNDS]
    assert metrics["replies-rejected"] == metrics["nodes-failed"] == 0
    assert metrics["upload_share"] < 1
    assert 0 < metrics["elastic-share"] <= 0.6
    assert result.evaluate_metrics_clientapp[ROUNDS]["accuracy"] > 0.7
    whole_models = 2 * 2 * ROUNDS * sum(array.numpy().nbytes for array in result.arrays.values())
    assert (metrics["busiest-node-bytes"] < whole_models) is not mix_untrained


def test_whole_replies_and_partial_ones_train_the_same_models(tmp_path: Path) -> None:
    elastic = Elastic(Time(0.6), profiles=tmp_path)

    whole = train(elastic)[1]
    partial = train(elastic, partial_updates=True)[1]

    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(partial.arrays[name].numpy(), array.numpy())


def test_an_elastic_fleet_for_which_all_fits_is_a_plain_one() -> None:
    plain = train(None)[1]
    elastic = train(Elastic(), partial_updates=True, deadline=1e6)[1]

    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(elastic.arrays[name].numpy(), array.numpy())
    assert elastic.train_metrics_clientapp[1]["elastic-share"] == 1.0


def test_elastic_nodes_work_with_fedavg() -> None:
    """Which takes whole models alone."""
    app = edge_client_app(net, data, cross_entropy, elastic=SLOW)
    strategy = FedAvg(min_train_nodes=NODES, min_evaluate_nodes=NODES, min_available_nodes=NODES)
    torch.manual_seed(0)

    result = strategy.start(
        LocalGrid(app, list(range(1, NODES + 1))),
        ArrayRecord(net().state_dict()),
        ROUNDS,
        train_config=ConfigRecord({"lr": 0.5}),
    )

    assert result.evaluate_metrics_clientapp[ROUNDS]["accuracy"] > 0.7


def test_what_matters_to_all_comes_from_all_and_reaches_all() -> None:
    elastic = Elastic(Time(0.6), global_share=0.5, window=SlidingWindow(2))
    grid, result = train(elastic, partial_updates=True, global_importance=True)

    sent = [message.content for message in grid.sent if message.metadata.message_type == "train"]
    first, later = sent[:NODES], sent[NODES:]
    assert all("elastic" not in content for content in first)
    for content in later:
        assert set(content["elastic"]["tensors"]) == {name for name, _ in net().named_parameters()}
        assert sum(content["elastic"]["importance"]) == pytest.approx(1.0)
    assert result.train_metrics_clientapp[ROUNDS]["replies-rejected"] == 0


def test_the_slower_a_node_the_less_it_trains_by_the_deadline() -> None:
    """A millionfold slower node is sure to manage one step, whatever else this machine does meanwhile."""

    def elastic(context: Context) -> Elastic:
        return Elastic(slowdown=1e6 if context.node_config["partition-id"] == 0 else 1.0)

    steps: dict[int, dict[int, float]] = {}

    def note(partition: int, message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train":
            metrics = reply.content["metrics"]
            steps.setdefault(round_of(message), {})[partition] = metrics["elastic-steps"]
        return reply

    torch.manual_seed(0)
    app: ClientApp = edge_client_app(net, data, cross_entropy, elastic=elastic)
    grid = LocalGrid(app, list(range(1, NODES + 1)), fault=note)
    strategy = HostedGossip(
        full_graph_plan(load_graph(f"ring:{NODES}")),
        bind_by="partition-id",
        partial_updates=True,
        deadline=1000.0,
    )
    with pytest.warns(UserWarning, match="the head is trained"):
        result = strategy.start(
            grid, ArrayRecord(net().state_dict()), 2, train_config=ConfigRecord({"lr": 0.1})
        )

    assert steps == {number: {0: 1.0, 1: 8.0, 2: 8.0, 3: 8.0} for number in (1, 2)}
    assert result.train_metrics_clientapp[2]["nodes-failed"] == 0


def test_in_flowers_simulation(tmp_path: Path) -> None:
    script, output, kept = (
        Path(__file__).parent / "elastic_run.py",
        tmp_path / "metrics.json",
        tmp_path / "profiles",
    )

    done = subprocess.run(
        [sys.executable, str(script), str(output), str(kept)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"},
    )

    assert output.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    metrics = json.loads(output.read_text())
    last = metrics["train"][-1]
    assert last["nodes-failed"] == last["replies-rejected"] == 0
    assert last["upload_share"] < 1
    assert 0 < last["elastic-share"] <= 0.6
    assert last["elastic-steps-share"] == 1.0
    assert metrics["accuracy"] > 0.7
    assert metrics["told"] == pytest.approx(1.0)
    assert len(list(kept.iterdir())) == 1
