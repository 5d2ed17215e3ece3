"""What a message, its node and its run ask for."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message

ELASTIC = "elastic"
"""Key of the ConfigRecord by which nodes and strategy tell each other how important tensors are."""


def seed(context: Context, stream: int) -> None:
    """Seed every random generator by the run's seed, the node, and a number of the caller's."""
    entropy = (int(context.run_config.get("seed", 0)), partition(context), stream)
    words = np.random.SeedSequence(entropy).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


def partition(context: Context) -> int:
    """Return which part of the data the node has."""
    found = context.node_config.get("partition-id")
    if not isinstance(found, int):
        raise ValueError(
            f"this node's partition-id is {found!r}; expected a number. Start the SuperNode with "
            '--node-config "partition-id=0 num-partitions=4"'
        )
    return found


def arrays(message: Message) -> ArrayRecord:
    """Return the model."""
    records = message.content.array_records
    if len(records) != 1:
        raise ValueError(f"expected exactly one ArrayRecord in the message, received {len(records)}")
    return next(iter(records.values()))


def server_round(message: Message) -> int:
    """Return the round's number, 0 if the message has none."""
    return int(_config_value(message, "server-round") or 0)


def learning_rate(message: Message, context: Context) -> float:
    """Return the rate of the round, which falls if the message says over how many rounds."""
    lr = _config_value(message, "lr")
    lr = context.run_config.get("learning-rate") if lr is None else lr
    if not isinstance(lr, int | float) or not 0 < lr < float("inf"):
        raise ValueError(
            f"the learning rate is {lr!r}; expected a positive number. Give it to the strategy's start() as "
            "train_config=ConfigRecord({'lr': 0.1}), or as 'learning-rate' in the run config"
        )
    return float(lr) * _decay(message)


def deadline(message: Message) -> float | None:
    """Return the seconds that a round's training may take, None if it may take any."""
    seconds = _config_value(message, "deadline")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f"the deadline is {seconds!r}; expected a positive number of seconds")
    return float(seconds)


def takes_partial_updates(message: Message) -> bool:
    """Whether the strategy takes an array that is absent from the reply for what it sent."""
    return _config_value(message, "partial-updates") is True


def importance(message: Message) -> dict[str, float]:
    """Return how important each tensor is to all nodes, nothing if the message does not say."""
    record: Any = message.content.config_records.get(ELASTIC, {})
    return dict(zip(record.get("tensors", ()), record.get("importance", ()), strict=True))


def changed(trained: ArrayRecord, received: ArrayRecord) -> tuple[ArrayRecord, float]:
    """Return the arrays that differ from those received, and the share of all bytes that they have."""
    different = ArrayRecord(
        {name: array for name, array in trained.items() if array.data != received[name].data}
    )
    return different, _size(different) / _size(trained)


def _size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


def _config_value(message: Message, key: str) -> Any:
    for record in message.content.config_records.values():
        if key in record:
            return record[key]
    return None


def _decay(message: Message) -> float:
    rounds = _config_value(message, "lr-decay-rounds")
    if rounds is None:
        return 1.0
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"lr-decay-rounds is {rounds!r}; expected a number of rounds, 1 or more")
    past = min(max(server_round(message) - 1, 0), rounds - 1) / rounds
    return 0.5 * (1.0 + math.cos(math.pi * past))
