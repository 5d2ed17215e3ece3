"""The server's side: which strategy brings the nodes' models together."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from flower_edge.gossip import (
    Compressor,
    GossipPlan,
    Int4,
    Int8,
    SignNorm,
    TopK,
    UnicastEnergy,
    full_graph_plan,
    load_graph,
    optimize,
)
from flower_edge.strategies import HostedGossip
from quickstart.data import load_dataset
from quickstart.task import Net, elastic, methods

COMPRESSORS: dict[str, Compressor | None] = {
    "none": None,
    "int8": Int8(),
    "int4": Int4(),
    "sign": SignNorm(),
    "top-k": TopK(0.1),
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds, and write down what came of it."""
    config = context.run_config
    # What is wrong fails here, not on every node.
    load_dataset(config["dataset"], config["data-path"])
    methods(context)
    elastic(context)
    torch.manual_seed(config["seed"])
    initial_arrays = ArrayRecord(Net().state_dict())
    result = make_strategy(config).start(
        grid=grid,
        initial_arrays=initial_arrays,
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
        num_rounds=config["num-server-rounds"],
    )
    if config["results"]:
        save_metrics(result, Path(config["results"]))


def make_strategy(config: dict[str, Any]) -> Strategy:
    """Return the strategy that the run config asks for."""
    compressor = make_compressor(config)
    if config["strategy"] == "fedavg":
        return UnweightedFedAvg(len(load_graph(config["graph"])), config["evaluate-every"])
    return HostedGossip(
        make_plan(config),
        compressor=compressor,
        bind_by="partition-id",
        evaluate_every=config["evaluate-every"],
        partial_updates=config["elastic-budget"] > 0,
        resume=config["resume"] or None,
        connect_timeout=30,
    )


def make_compressor(config: dict[str, Any]) -> Compressor | None:
    """Return how what neighbours send becomes few bytes, None for models in fp32."""
    name = config["compression"]
    if name not in COMPRESSORS:
        raise ValueError(f"compression is {name!r}; expected one of {', '.join(COMPRESSORS)}")
    if name != "none" and config["strategy"] == "fedavg":
        raise ValueError(f"compression is {name!r}, which is for gossip; FedAvg sends whole models")
    return COMPRESSORS[name]


def make_plan(config: dict[str, Any]) -> GossipPlan:
    """Return who mixes with whom, and with which weights."""
    graph = load_graph(config["graph"])
    if config["strategy"] == "gossip-full":
        return full_graph_plan(graph, round_energy())
    if config["strategy"] != "gossip":
        raise ValueError(f"strategy is {config['strategy']!r}; expected gossip, gossip-full or fedavg")
    if config["plan"]:
        plan = GossipPlan.from_json(Path(config["plan"]))
    else:
        plan = optimize(graph, round_energy(), mode="auto", max_slowdown=config["max-slowdown"])
    plan.validate(graph)
    return plan


def round_energy() -> UnicastEnergy:
    """Return what a round costs a board: modelled, so replace these figures by those of your boards.

    The radio takes 1.9 µJ to send a byte and 0.42 µJ to receive one, as an 802.11 card at 2 Mbit/s (Feeney,
    Mobile Networks and Applications 6(3), 2001); an epoch on some forty small images is assumed to take
    0.1 s at 2 W.
    """
    return UnicastEnergy.from_radio(
        model_bytes=model_bytes(),
        bitrate=2e6,
        send_watts=0.475,
        receive_watts=0.105,
        compute_watts=2.0,
        compute_seconds=0.1,
    )


def model_bytes() -> int:
    """Return what one model takes on the air, in fp32 and without any protocol."""
    with torch.device("meta"):  # shapes alone: no memory, and no random numbers
        return sum(4 * parameter.numel() for parameter in Net().parameters())


class UnweightedFedAvg(FedAvg):
    """FedAvg in which every node counts the same, as it does in gossip.

    One node evaluates the one model: all have the same test set.
    """

    def __init__(self, nodes: int, evaluate_every: int) -> None:
        super().__init__(min_available_nodes=nodes, fraction_evaluate=1 / nodes, min_evaluate_nodes=1)
        self.evaluate_every = evaluate_every

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Evaluate every few rounds, as gossip does."""
        due = server_round % self.evaluate_every == 0
        return super().configure_evaluate(server_round, arrays, config, grid) if due else []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the nodes' models."""
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                reply.content["metrics"][self.weighted_by_key] = 1
        return super().aggregate_train(server_round, replies)


def save_metrics(result: Result, path: Path) -> None:
    """Write every round's metrics as JSON: ``{"train": {"1": {…}, …}, "evaluate": {…}}``."""
    kinds = {"train": result.train_metrics_clientapp, "evaluate": result.evaluate_metrics_clientapp}
    metrics = {kind: {r: dict(record) for r, record in rounds.items()} for kind, rounds in kinds.items()}
    path.write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
