"""One node of p2pfl, for the Python of its own environment; see `benchmarks.peers.p2pfl_start`.

As in p2pfl's MNIST example, with its settings for one machine, except where it would cost it time here: no
ray, no log below errors, and a test set of one batch, since it evaluates in every round.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from datasets import Dataset, DatasetDict
from p2pfl.communication.protocols.protobuff.client import ProtobuffClient
from p2pfl.learning.dataset.p2pfl_dataset import P2PFLDataset
from p2pfl.learning.frameworks.pytorch.lightning_learner import LightningLearner
from p2pfl.learning.frameworks.pytorch.lightning_model import LightningModel
from p2pfl.management.logger import logger
from p2pfl.node import Node
from p2pfl.utils.utils import set_standalone_settings
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.peers.task import BATCH, LEARNING_RATE, NODES, LeNet, Marks, share

sent = 0


class Network(lightning.LightningModule):
    """The same LeNet and optimizer, as Lightning wants them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lenet = LeNet()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Return the loss of a batch."""
        return cross_entropy(self.lenet(batch["image"]), batch["label"])

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Log the loss of a batch."""
        self.log("test_loss", cross_entropy(self.lenet(batch["image"]), batch["label"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), LEARNING_RATE)


class Learner(LightningLearner):
    """Notes when training begins."""

    marks: Marks

    def fit(self) -> Any:
        """Train."""
        self.marks.take()
        return super().fit()


def count(client: ProtobuffClient, message: Any) -> None:
    """Add a message to what this process has sent: its bytes alone, without those of HTTP/2."""
    global sent
    sent += message.ByteSize()


def dataset(folder: Path, node: int) -> P2PFLDataset:
    """Return a node's images as p2pfl holds them."""
    images, labels = share(folder, node)
    columns = {"image": list(images), "label": labels}
    train = Dataset.from_dict(columns).with_format("torch")
    return P2PFLDataset(DatasetDict(train=train, test=train.select(range(BATCH))), batch_size=BATCH)


def main(config: dict[str, Any]) -> None:
    """Do the rounds as one node of the ring, and print what one took."""
    set_standalone_settings()
    logger.set_level("ERROR")
    ProtobuffClient.log_successful_send = count
    number, addresses = config["node"], [f"127.0.0.1:{port}" for port in config["ports"]]
    learner = Learner()
    learner.marks = marks = Marks(lambda: sent)
    node = Node(
        LightningModel(Network()),
        dataset(Path(config["data"]), number),
        addr=addresses[number],
        learner=learner,
    )
    node.start()
    ready(config["folder"], number, "started")
    if number < NODES - 1:
        node.connect(addresses[number + 1])
    else:
        node.connect(addresses[0])
    wait_until(lambda: len(node.get_neighbors()) == NODES - 1)
    ready(config["folder"], number, "connected")
    if number == 0:
        node.set_start_learning(rounds=config["rounds"], epochs=1, trainset_size=NODES)
    wait_until(lambda: node.learning_workflow.finished)
    ready(config["folder"], number, "finished")
    print("found", json.dumps(marks.a_round()), flush=True)
    # Node.stop() does not always come back.
    os._exit(0)


def ready(folder: str, number: int, what: str) -> None:
    """Say that this node is at a point, and wait until all are."""
    Path(folder, f"{number}.{what}").touch()
    wait_until(lambda: len(list(Path(folder).glob(f"*.{what}"))) == NODES)


def wait_until(condition: Any) -> None:
    """Look every tenth of a second."""
    while not condition():
        time.sleep(0.1)
