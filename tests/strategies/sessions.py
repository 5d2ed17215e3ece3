"""What the tests of sessions share: a fleet, waits that are short, and what its gossip comes to."""

import numpy as np
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result
from local_grid import LocalGrid
from records import to_numpy

from flower_edge.gossip import GossipPlan
from flower_edge.peer import PeerSettings
from flower_edge.strategies import HostedGossip

NODE_IDS = [907, 12, 500, 43, 88, 311]
FAST = PeerSettings(connect_timeout=20, peer_timeout=5, redial_interval=0.1, farewell_timeout=5)


def hosted(plan: GossipPlan, app: ClientApp, initial: ArrayRecord, rounds: int) -> dict[str, np.ndarray]:
    strategy = HostedGossip(plan, bind_by="partition-id")
    return to_numpy(strategy.start(LocalGrid(app, NODE_IDS), initial, rounds).arrays)


def training_metrics(result: Result) -> dict[int, dict]:
    """Of every round, without what clocks and sockets measured."""
    measured = {"exchange-seconds", "busiest-node-bytes"}
    rounds = result.train_metrics_clientapp
    return {r: {k: v for k, v in metrics.items() if k not in measured} for r, metrics in rounds.items()}
