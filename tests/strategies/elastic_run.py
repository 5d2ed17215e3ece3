"""Elastic nodes in hosted gossip, in one Flower simulation; for test_elastic_gossip.py."""

import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from flower_edge.clients import Elastic, edge_client_app
from flower_edge.gossip import full_graph_plan, load_graph
from flower_edge.strategies import HostedGossip
from flower_edge.training import Time

NODES, ROUNDS = 4, 3
# Read here: the simulation's workers have another command line.
OUTPUT, PROFILES = sys.argv[1:]


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


def elastic(context: Context) -> Elastic | None:
    """Odd nodes are slow, and say what matters to them."""
    slow = int(context.node_config["partition-id"]) % 2
    return Elastic(Time(0.6), global_share=0.3, profiles=PROFILES) if slow else None


class Watched(HostedGossip):
    """Remembers what the nodes were told last."""

    told = 0.0

    def configure_train(self, *arguments, **keywords):
        messages = list(super().configure_train(*arguments, **keywords))
        record = messages[0].content.config_records.get("elastic", {})
        self.told = sum(record.get("importance", []))
        return messages


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(0)
    strategy = Watched(
        full_graph_plan(load_graph(f"ring:{NODES}")),
        bind_by="partition-id",
        partial_updates=True,
        global_importance=True,
        mix_untrained=False,
    )
    result = strategy.start(
        grid, ArrayRecord(net().state_dict()), ROUNDS, train_config=ConfigRecord({"lr": 0.5})
    )
    outcome = {
        "train": [dict(result.train_metrics_clientapp[number]) for number in range(1, ROUNDS + 1)],
        "accuracy": result.evaluate_metrics_clientapp[ROUNDS]["accuracy"],
        "told": strategy.told,
    }
    Path(OUTPUT).write_text(json.dumps(outcome))


if __name__ == "__main__":
    run_simulation(
        server_app,
        edge_client_app(net, data, cross_entropy, elastic=elastic),
        num_supernodes=NODES,
        backend_config={"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
