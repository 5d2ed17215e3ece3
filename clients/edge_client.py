"""A whole ClientApp from three functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TypeAlias

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from flower_edge.clients import energy, local_training, messages
from flower_edge.clients.elastic import MakeElastic, check_elastic
from flower_edge.clients.elastic_round import ElasticRound, Task
from flower_edge.clients.gossip import gossip_mod
from flower_edge.clients.local_training import Batches, BatchFunction
from flower_edge.clients.profiles import Profiles
from flower_edge.energy import Meter
from flower_edge.training import Method, ModelMethod, prepare_, resume_schedule_

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
    elastic: MakeElastic = None,
    meter: Meter | None = None,
    mods: list[Mod] | None = None,
) -> ClientApp:
    """Build a ClientApp that trains and evaluates a torch model.

    It answers Flower's usual ``train`` and ``evaluate`` messages, so that FedAvg and
    `flower_edge.strategies.HostedGossip` both work with it; ``query.gossip``, by which a gossip strategy
    learns which node of its plan this board is; and the messages of
    `flower_edge.strategies.ServerlessGossip`, see `gossip_mod`. Two runs with the same ``seed`` train
    identical models: every random number of a node and round follows from (seed, partition-id, round).

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
    elastic : Elastic, callable, or None (default: None)
        How a node chooses which tensors it trains, if not all: under a budget of its own, or under the
        deadline that a message brings. A callable ``(context) -> Elastic or None`` chooses by node or run
        config. Such a node trains on the CPU, where times are known.
    meter : Meter or None (default: None)
        Reads what a round's training costs this board: ``flower_edge.energy.Meter.find(idle_watts=…)``, which
        is None where there is no sensor. Not for simulation, where all nodes run on one machine.
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

        A node that trains by `flower_edge.training.SignFeedback` adds ``gradient_sparsity``, ``skipped_macs``
        and ``skipped_share`` (*counted*: zeros among the pruned gradients, and what was not multiplied for
        their sake), and ``gradient_angle`` (*measured*: degrees between the gradient of the round's first
        batch and the exact one; measuring takes two steps a round). Its schedule counts the steps of all
        rounds before, if batches have a length; else it begins anew in every round.

        Where the strategy takes partial updates, the reply has only the arrays whose bytes differ from
        those received, and ``upload_share`` (*counted*: their bytes by those of all). An elastic node
        that chose adds what it chose, as means over the steps: ``elastic-share`` (of the backward time of
        training everything), ``elastic-tensors`` (how many), ``elastic-head-only`` (share of steps for which
        nothing worth training fit), ``elastic-step-time-predicted`` (seconds); how far it came:
        ``elastic-steps`` and ``elastic-steps-share`` (of those wanted); and, *measured*, what that cost:
        ``elastic-load`` (how many times longer steps take than their profile says; 1 without a deadline),
        ``elastic-overhead`` (choosing, probes included, as a share of the round's time),
        ``elastic-profile-time`` (seconds for measuring what steps cost; not in the overhead) and
        ``elastic-round-time`` (seconds of the whole, on the board that `Elastic.slowdown` makes of this one).
        Its record ``elastic`` names the tensors ``trained``, and the importance of all.

        A node with a `meter` adds ``energy_joules`` (*measured*: of the round's training, above idle), and a
        record ``energy`` with the ``source``, ``resolution`` (J), ``idle-watts`` and ``total-joules`` of the
        figure. Without one, or if it failed in the round, there is no such metric. FedAvg refuses replies
        with different metrics: there, give all nodes a meter or none.

        Evaluation replies have ``eval_loss``, `metrics` and ``num-examples``.

    Raises
    ------
    TypeError
        If `methods` is neither a sequence nor a callable, `elastic` neither an `Elastic` nor a callable, or
        `meter` no Meter.

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
    if not callable(elastic) or isinstance(elastic, type):
        check_elastic(elastic)
    if meter is not None and not isinstance(meter, Meter):
        raise TypeError(f"meter is a {type(meter).__name__}, expected a flower_edge.energy.Meter or None")
    profiles = Profiles()
    app = ClientApp(mods=mods)

    def load(message: Message, context: Context) -> tuple[nn.Module, Batches, Batches]:
        # Twice seeded: what `data` draws (a split, say) is the node's and stays the same in every round;
        # what follows is the round's.
        messages.seed(context, stream=0)
        train_batches, test_batches = data(context)
        messages.seed(context, stream=messages.server_round(message))
        net = model()
        net.load_state_dict(messages.arrays(message).to_torch_state_dict())
        return net, train_batches, test_batches

    @app.train()
    def train(message: Message, context: Context) -> Message:
        started = time.perf_counter()
        chosen = methods(context) if callable(methods) else methods
        _check_methods(chosen)
        selective = check_elastic(elastic(context) if callable(elastic) else elastic)
        net, batches, _ = load(message, context)
        device = _device() if selective is None else torch.device("cpu")
        net = net.to(device)
        if chosen:
            prepare_(net, *chosen)
        steps = optimizer(net.parameters(), messages.learning_rate(message, context))
        epochs = int(context.run_config.get("local-epochs", 1))
        step_count = local_training.step_count(batches, epochs)
        # A schedule of `SignFeedback` goes on as if this node had trained in every round before.
        resume_schedule_(net, max(messages.server_round(message) - 1, 0) * (step_count or 0))
        task = Task.of(message, step_count)
        content = RecordDict()
        measurement = None if meter is None else meter.measure()
        with measurement or nullcontext():
            if selective is None or not selective.is_limited(task.deadline):
                report = local_training.train(net, batches, loss, steps, epochs, device)
            else:
                choosing = ElasticRound(selective, task, net, steps, loss, profiles, started, context.state)
                report = local_training.train(net, batches, loss, steps, epochs, device, choosing.before_step)
                report.update(choosing.metrics())
                content[messages.ELASTIC] = choosing.record()
        if measurement is not None:
            energy.add_to(report, content, measurement)
        arrays = ArrayRecord(net.state_dict())
        if messages.takes_partial_updates(message):
            arrays, report["upload_share"] = messages.changed(arrays, messages.arrays(message))
        content["arrays"], content["metrics"] = arrays, report
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        net, _, batches = load(message, context)
        device = _device()
        report = local_training.evaluate(net.to(device), batches, {"eval_loss": loss, **metrics}, device)
        return Message(RecordDict({"metrics": report}), reply_to=message)

    return gossip_mod(app)


def _check_methods(methods: object) -> None:
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise TypeError(
            f"methods is {methods!r:.200}; expected a sequence such as [GradientFilter()], or a "
            "callable that takes the context and returns one"
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
