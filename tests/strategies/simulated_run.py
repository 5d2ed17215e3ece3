"""FedAvg, then hosted gossip: with W = J, on a ring, and compressed on that; for test_simulation.py."""

import sys

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from flower_edge.clients import edge_client_app
from flower_edge.gossip import GossipPlan, Int8, full_graph_plan, load_graph
from flower_edge.strategies import HostedGossip

NODES, ROUNDS = 4, 5


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


def data(context: Context) -> tuple[DataLoader, DataLoader]:
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    inputs = torch.randn(40, 6, generator=generator)
    dataset = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return DataLoader(dataset, batch_size=8, shuffle=True), DataLoader(dataset, batch_size=40)


def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(0)
    initial = ArrayRecord(net().state_dict())
    ring = full_graph_plan(load_graph(f"ring:{NODES}"))
    strategies = {
        "fedavg": FedAvg(min_train_nodes=NODES, min_evaluate_nodes=NODES, min_available_nodes=NODES),
        "gossip": HostedGossip(
            GossipPlan.from_matrix(np.full((NODES, NODES), 1 / NODES)), bind_by="partition-id"
        ),
        "ring": HostedGossip(ring, bind_by="partition-id"),
        "choco": HostedGossip(ring, compressor=Int8(), bind_by="partition-id"),
    }
    outcome: dict[str, np.ndarray] = {}
    for name, strategy in strategies.items():
        result: Result = strategy.start(grid, initial, ROUNDS, train_config=ConfigRecord({"lr": 0.5}))
        outcome |= {f"{name}/{key}": array.numpy() for key, array in result.arrays.items()}
        trained = result.train_metrics_clientapp[ROUNDS]
        outcome[f"{name}-bytes"] = np.array(trained.get("sent-bytes-max", 0))
        outcome[f"{name}-accuracy"] = np.array(result.evaluate_metrics_clientapp[ROUNDS]["accuracy"])
    np.savez(sys.argv[1], **outcome)


if __name__ == "__main__":
    server_app = ServerApp()
    server_app.main()(main)
    run_simulation(
        server_app,
        edge_client_app(net, data, cross_entropy),
        num_supernodes=NODES,
        backend_config={"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
