"""CPU seconds of a Flower simulation with HostedGossip beside the same one with FedAvg.

``python -m benchmarks.strategy_overhead [--quick]``

Both strategies train the same CNN on the same nodes for the same rounds, each run in a process tree of its
own, in turn. What is compared is the user and system time of the whole tree (ServerApp, Flower's simulation
engine and its workers) from the end of the first round, when every process is up, to the end of the last.
"""

import os
import subprocess
import sys
import uuid
from pathlib import Path

from benchmarks import harness

MARKER = "FLOWER_EDGE_OVERHEAD_RUN"


def simulate(strategy_name: str, nodes: int, rounds: int) -> None:
    """Run one simulation in this process."""
    import torch
    from flwr.app import ArrayRecord, ConfigRecord, Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg, Strategy
    from flwr.simulation import run_simulation
    from torch import nn

    from flower_edge.clients import edge_client_app
    from flower_edge.gossip import full_graph_plan, load_graph
    from flower_edge.strategies import HostedGossip

    def net() -> nn.Module:
        """LeNet-like CNN of 62,006 parameters, as in Flower's PyTorch quickstart."""
        return nn.Sequential(
            *(
                nn.Conv2d(3, 6, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(6, 16, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ),
            *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        )

    def data(context: Context) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], ...]:
        generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
        batches = [
            (torch.randn(32, 3, 32, 32, generator=generator), torch.randint(10, (32,), generator=generator))
            for _ in range(10)
        ]
        return batches, batches[:2]

    everyone = {"min_train_nodes": nodes, "min_evaluate_nodes": nodes, "min_available_nodes": nodes}
    strategy: Strategy = (
        FedAvg(**everyone)
        if strategy_name == "fedavg"
        else HostedGossip(full_graph_plan(load_graph(f"ring:{nodes}")))
    )

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.manual_seed(0)
        marks: list[float] = []
        result = strategy.start(
            grid,
            ArrayRecord(net().state_dict()),
            rounds,
            train_config=ConfigRecord({"lr": 0.01}),
            evaluate_fn=lambda server_round, arrays: marks.append(tree_cpu_seconds()),
        )
        print(MARKER, marks[-1] - marks[1])
        if len(result.train_metrics_clientapp) != rounds:
            raise RuntimeError(f"{len(result.train_metrics_clientapp)} of {rounds} rounds were trained")

    run_simulation(
        app,
        edge_client_app(net, data, nn.functional.cross_entropy),
        num_supernodes=nodes,
        backend_config={"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


def tree_cpu_seconds() -> float:
    """User and system time of all living processes that inherited this run's marker.

    Flower's workers are daemons, whose time no parent ever gets to see; so it is read from /proc.
    """
    marker = f"{MARKER}={os.environ[MARKER]}".encode()
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (process / "environ").read_bytes().split(b"\0"):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or is not ours
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_seconds(strategy_name: str, nodes: int, rounds: int) -> float:
    """Run one simulation in a process tree of its own and return its CPU seconds."""
    program = (
        f"from benchmarks.strategy_overhead import simulate; simulate({strategy_name!r}, {nodes}, {rounds})"
    )
    environment = os.environ | {
        MARKER: uuid.uuid4().hex,
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    (figure,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(MARKER)]
    return float(figure)


def main(bench: harness.Benchmark) -> None:
    """Compare the two strategies."""
    nodes, rounds, repeats = (4, 3, 2) if bench.quick else (16, 12, 7)
    samples: dict[str, list[float]] = {"fedavg": [], "gossip": []}
    for _ in range(repeats):
        for strategy_name, taken in samples.items():
            taken.append(cpu_seconds(strategy_name, nodes, rounds))
    timings = {name: harness.Timing(tuple(taken)) for name, taken in samples.items()}
    for name, timing in timings.items():
        bench.row(
            strategy=name,
            nodes=nodes,
            rounds=rounds,
            cpu_seconds=timing.median,
            cpu_ms_per_node_and_round=1e3 * timing.median / nodes / (rounds - 1),
            spread=timing.spread,
        )
    ratio = timings["gossip"].over(timings["fedavg"])
    bench.at_most("measured: CPU seconds of HostedGossip over those of FedAvg", ratio, 1.10)


if __name__ == "__main__":
    harness.run("strategy_overhead", __doc__, main)
