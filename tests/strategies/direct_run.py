"""Sessions between simulated nodes, and the same gossip at the host; for test_direct_simulation.py."""

import sys

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from simulated_run import data, net
from torch.nn.functional import cross_entropy

from flower_edge.clients import edge_client_app
from flower_edge.gossip import ChocoCopies, Int8, full_graph_plan, load_graph
from flower_edge.peer import PeerSettings
from flower_edge.strategies import HostedGossip, ServerlessGossip

NODES, ROUNDS = 4, 6
CPUS = float(sys.argv[2])


def main(grid: Grid, context: Context) -> None:
    import torch

    torch.manual_seed(0)
    initial = ArrayRecord(net().state_dict())
    plan = full_graph_plan(load_graph(f"ring:{NODES}"))
    settings = PeerSettings(peer_timeout=20, redial_interval=0.1, farewell_timeout=5)
    direct = ServerlessGossip(
        plan, rounds_per_session=3, export=NODES, compressor=Int8(), settings=settings, simulation="direct"
    )
    hosted = HostedGossip(plan, compressor=Int8(), mixer=ChocoCopies, bind_by="partition-id")
    outcome: dict[str, np.ndarray] = {}
    for name, strategy in (("direct", direct), ("hosted", hosted)):
        result = strategy.start(grid, initial, ROUNDS, train_config=ConfigRecord({"lr": 0.5}))
        outcome |= {f"{name}/{key}": array.numpy() for key, array in result.arrays.items()}
        if name == "direct":
            failed = [metrics["links-failed"] for metrics in result.train_metrics_clientapp.values()]
            outcome["failed"] = np.array(failed)
    np.savez(sys.argv[1], **outcome)


if __name__ == "__main__":
    server_app = ServerApp()
    server_app.main()(main)
    run_simulation(
        server_app,
        edge_client_app(net, data, cross_entropy),
        num_supernodes=NODES,
        backend_config={
            "init_args": {"num_cpus": 2},
            "client_resources": {"num_cpus": CPUS, "num_gpus": 0.0},
        },
    )
