"""The server's side: says who mixes with whom, and looks on."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from serverless.task import Net

from flower_edge.gossip import full_graph_plan, load_graph
from flower_edge.strategies import ServerlessGossip

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Let the boards train together, and write down what they report."""
    config = context.run_config
    torch.manual_seed(config["seed"])
    strategy = ServerlessGossip(
        full_graph_plan(load_graph(config["graph"])),
        rounds_per_session=config["rounds-per-session"],
        export=config["export"],
        fraction_evaluate=config["fraction-evaluate"],
        resume=config["resume"] or None,
    )
    result = strategy.start(
        grid,
        ArrayRecord(Net().state_dict()),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
    )
    if config["results"]:
        metrics = {
            kind: {round_: dict(record) for round_, record in getattr(result, kind).items()}
            for kind in ("train_metrics_clientapp", "evaluate_metrics_clientapp")
        }
        Path(config["results"]).write_text(json.dumps(metrics))
    if config["model"]:
        torch.save(result.arrays.to_torch_state_dict(), config["model"])
