"""A whole ClientApp from three functions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from flower_edge.clients import local_training
from flower_edge.clients.local_training import Batches, BatchFunction
from flower_edge.training import Method, ModelMethod, prepare_

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
Methods: TypeAlias = Sequence[Method | ModelMethod] | Callable[[Context], Sequence[Method | ModelMethod]]
Handler: TypeAlias = Callable[[Message, Context], Message]
Mod: TypeAlias = Callable[[Message, Context, Handler], Message]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of rows whose largest output is at the target class, a scalar tensor."""
    return (outputs.argmax(dim=1) == targets).float().mean()


def sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return plain SGD, the local step of D-PSGD."""
    return torch.optim.SGD(parameters, lr=lr)


def edge_client_app(
    model: Callable[[], nn.Module],
    data: Callable[[Context], tuple[Batches, Batches]],
    loss: BatchFunction,
    *,
    optimizer: MakeOptimizer = sgd,
    metrics: Mapping[str, BatchFunction] | None = None,
    methods: Methods = (),
    mods: list[Mod] | None = None,
) -> ClientApp:
    """Build a ClientApp that trains and evaluates a torch model.

    It answers Flower's usual ``train`` and ``evaluate`` messages, so that FedAvg and
    `flower_edge.strategies.HostedGossip` both work with it, and ``query.gossip``, by which a gossip
    strategy learns which node of its plan this board is. Two runs with the same ``seed`` train identical
    models: every random number of a node and round follows from (seed, partition-id, round).

    Parameters
    ----------
    model : callable
        ``() -> nn.Module``, the untrained model; its parameters are replaced by those received.
    data : callable
        ``(context) -> (train batches, test batches)``; each an iterable of ``(inputs, targets)``, such as a
        `DataLoader`. ``context.node_config`` has ``partition-id`` and ``num-partitions``. Called for every
        message: cache what is slow to load.
    loss : callable
        ``(outputs, targets) -> Tensor``, the mean loss of a batch, for example
        `torch.nn.functional.cross_entropy`.
    optimizer : callable (default: plain SGD)
        ``(parameters, lr) -> Optimizer``. Its state lasts one round.
    metrics : mapping of str to callable (default: {"accuracy": accuracy})
        Evaluation metrics by name, each ``(outputs, targets) -> Tensor``, the mean over a batch. ``{}`` for
        none.
    methods : sequence of Method, or callable (default: none)
        How the model trains cheaply, for example ``[flower_edge.training.GradientFilter()]``. They are put
        on the model by `flower_edge.training.prepare_` for training alone; what is sent back has the same
        names and shapes as without them, so that nodes with different methods can mix. A callable
        ``(context) -> sequence`` chooses by node or run config.
    mods : list of callable, optional
        Flower's client mods.

    Returns
    -------
    ClientApp
        Reads ``lr`` from the message's config (else ``learning-rate`` from the run config), and from the
        run config ``local-epochs`` (default 1) and ``seed`` (default 0). With ``lr-decay-rounds`` in the
        message's config the rate falls to zero over so many rounds, along half a cosine: nodes that
        exchange rarely need that to agree in the end.

        Training replies have the metrics ``train_loss``, ``num-examples``, and, with any methods or none,
        what a step costs this node: ``step_time`` (*measured*: seconds, the median over the round's steps,
        without loading of data), ``backward_share`` (*measured*: the share of it that the backward pass
        takes, from 0 to 1) and ``saved_bytes`` (*counted*: what is held for the backward pass of the
        round's first batch; counting takes two forward passes a round). Strategies report their mean over
        the nodes; for the slowest node, too, give the strategy
        ``train_metrics_aggr_fn=flower_edge.strategies.metrics.mean_min_max``.

        Evaluation replies have ``eval_loss``, `metrics` and ``num-examples``.

    Raises
    ------
    TypeError
        If `methods` is neither a sequence nor a callable.

    Notes
    -----
    A method that measures, as ``GradientFilter(fallback="measured")`` does, may decide otherwise on another
    machine or in another run; with ``fallback="never"`` two runs train identical models.

    Examples
    --------
    >>> app = edge_client_app(Net, load_data, torch.nn.functional.cross_entropy)

    Boards that have less than a gigabyte filter gradients, the others do not:

    >>> def methods(context):
    ...     return [GradientFilter()] if context.node_config["memory-mb"] < 1024 else []
    >>> app = edge_client_app(Net, load_data, torch.nn.functional.cross_entropy, methods=methods)
    """
    metrics = {"accuracy": accuracy} if metrics is None else metrics
    if not callable(methods) or isinstance(methods, type):
        _check_methods(methods)
    app = ClientApp(mods=mods)

    def load(message: Message, context: Context) -> tuple[nn.Module, torch.device, Batches, Batches]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Twice seeded: what `data` draws (a split, say) is the node's and stays the same in every round;
        # what follows is the round's.
        _seed(context, stream=0)
        train_batches, test_batches = data(context)
        _seed(context, stream=_server_round(message))
        net = model()
        net.load_state_dict(_arrays(message).to_torch_state_dict())
        return net.to(device), device, train_batches, test_batches

    @app.train()
    def train(message: Message, context: Context) -> Message:
        chosen = methods(context) if callable(methods) else methods
        _check_methods(chosen)
        net, device, batches, _ = load(message, context)
        if chosen:
            prepare_(net, *chosen)
        epochs = int(context.run_config.get("local-epochs", 1))
        steps = optimizer(net.parameters(), _learning_rate(message, context) * _decay(message))
        report = local_training.train(net, batches, loss, steps, epochs, device)
        content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": report})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        net, device, _, batches = load(message, context)
        report = local_training.evaluate(net, batches, {"eval_loss": loss, **metrics}, device)
        return Message(RecordDict({"metrics": report}), reply_to=message)

    @app.query("gossip")
    def query(message: Message, context: Context) -> Message:
        return Message(
            RecordDict({"gossip": ConfigRecord({"partition-id": _partition(context)})}), reply_to=message
        )

    return app


def _check_methods(methods: object) -> None:
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise TypeError(
            f"methods is {methods!r:.200}; expected a sequence such as [GradientFilter()], or a "
            "callable that takes the context and returns one"
        )


def _seed(context: Context, stream: int) -> None:
    entropy = (int(context.run_config.get("seed", 0)), _partition(context), stream)
    words = np.random.SeedSequence(entropy).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


def _partition(context: Context) -> int:
    partition = context.node_config.get("partition-id")
    if not isinstance(partition, int):
        raise ValueError(
            f"this node's partition-id is {partition!r}; expected a number. Start the SuperNode with "
            '--node-config "partition-id=0 num-partitions=4"'
        )
    return partition


def _arrays(message: Message) -> ArrayRecord:
    records = message.content.array_records
    if len(records) != 1:
        raise ValueError(f"expected exactly one ArrayRecord in the message, received {len(records)}")
    return next(iter(records.values()))


def _config_value(message: Message, key: str) -> Any:
    for record in message.content.config_records.values():
        if key in record:
            return record[key]
    return None


def _server_round(message: Message) -> int:
    return int(_config_value(message, "server-round") or 0)


def _decay(message: Message) -> float:
    rounds = _config_value(message, "lr-decay-rounds")
    if rounds is None:
        return 1.0
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"lr-decay-rounds is {rounds!r}; expected a number of rounds, 1 or more")
    past = min(max(_server_round(message) - 1, 0), rounds - 1) / rounds
    return 0.5 * (1.0 + math.cos(math.pi * past))


def _learning_rate(message: Message, context: Context) -> float:
    lr = _config_value(message, "lr")
    lr = context.run_config.get("learning-rate") if lr is None else lr
    if not isinstance(lr, int | float) or not 0 < lr < float("inf"):
        raise ValueError(
            f"the learning rate is {lr!r}; expected a positive number. Give it to the strategy's start() as "
            "train_config=ConfigRecord({'lr': 0.1}), or as 'learning-rate' in the run config"
        )
    return float(lr)
