"""A run for test_resume.py to kill: prints each round as it begins, writes the average model at the end."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from local_grid import LocalGrid, round_of
from torch.nn.functional import cross_entropy

from flower_edge.clients import edge_client_app
from flower_edge.gossip import full_graph_plan, load_graph
from flower_edge.strategies import HostedGossip

torch.set_num_threads(1)


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))


def data(context: object) -> tuple[object, object]:
    generator = torch.Generator().manual_seed(context.node_config["partition-id"])
    inputs = torch.randn(24, 6, generator=generator)
    dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :3].argmax(1))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)
    return loader, loader


def announce(partition: int, message: Message, reply: Message) -> Message:
    if message.metadata.message_type == "train" and partition == 2:
        print("training in round", round_of(message), flush=True)
        time.sleep(0.1)
    return reply


if __name__ == "__main__":
    resume, output, node_ids = sys.argv[1], sys.argv[2], [int(i) for i in sys.argv[3].split(",")]
    torch.manual_seed(0)
    grid = LocalGrid(edge_client_app(net, data, cross_entropy), node_ids, {"learning-rate": 0.1}, announce)
    strategy = HostedGossip(
        full_graph_plan(load_graph("ring:5")),
        bind_by="partition-id",
        resume=None if resume == "-" else resume,
    )
    result = strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=8)
    arrays = {name: array.numpy() for name, array in result.arrays.items()}
    losses = [result.train_metrics_clientapp[r]["train_loss"] for r in range(1, 9)]
    np.savez(output, losses=losses, **arrays)
