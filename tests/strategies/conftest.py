"""What the strategy tests share: a small real ClientApp, initial arrays, plans."""

import networkx as nx
import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from records import record

from flower_edge.gossip import GossipPlan, UnicastEnergy, full_graph_plan, load_graph


@pytest.fixture
def toy_app() -> ClientApp:
    """Training adds a node's own number to every weight; evaluation reports the model it was given."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        arrays["weight"] = arrays["weight"] + np.float32(partition + 1)
        arrays["steps"] = arrays["steps"] + 1
        metrics = MetricRecord({"train_loss": float(partition), "num-examples": partition + 1})
        return Message(RecordDict({"arrays": record(arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        level = float(message.content["arrays"]["weight"].numpy().mean())
        metrics = MetricRecord({"level": level, "num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


@pytest.fixture
def initial() -> ArrayRecord:
    return record({"weight": np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5), "steps": np.int64(0)})


@pytest.fixture
def plan() -> GossipPlan:
    """Six nodes on a ring with two chords."""
    graph = nx.cycle_graph(6)
    graph.add_edges_from([(0, 3), (1, 4)])
    return full_graph_plan(load_graph(graph), UnicastEnergy(compute=1.0, send=0.5, receive=0.25))
