"""Gossip learning hosted at the ServerApp, for unchanged ClientApps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from logging import INFO, getLogger
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from flower_edge._files import check_target
from flower_edge.gossip.compressor import Compressor
from flower_edge.gossip.directed import DirectedPlan
from flower_edge.gossip.plan import GossipPlan
from flower_edge.strategies import checkpoint
from flower_edge.strategies.binding import BindBy, NodeBinding, TooFewNodesError
from flower_edge.strategies.fleet import Fleet
from flower_edge.strategies.importance import (
    ELASTIC,
    Importance,
    mean_importance,
    received_importance,
    to_config,
)
from flower_edge.strategies.metrics import (
    MetricsAggregation,
    comparable,
    evaluations,
    mean_min_max,
    weighted_mean,
)
from flower_edge.strategies.mixing import MakeMixer, choose_mixer
from flower_edge.strategies.records import checked_weight, only_arrays, to_numpy, to_record
from flower_edge.strategies.replies import accept
from flower_edge.strategies.rounds import ResumableStrategy
from flower_edge.strategies.stretches import energy
from flower_edge.strategies.summary import log_summary

log = getLogger("flwr").log


class HostedGossip(ResumableStrategy):
    """Decentralised learning with one model per node, mixed by a plan instead of averaged.

    The ServerApp holds every node's model. In each round it sends each node *its own* model to train, and
    mixes what comes back with the models of the node's neighbours by the plan's matrix W(t). What runs here
    is what boards run among themselves: one `Mixer` a node. The average of all models goes to `evaluate_fn`
    and to ``Result.arrays`` and nowhere else.

    A node that is missing, replies with an error, or sends a model that is not finite or of another shape
    keeps its model in that round; the weights of its links return to both ends, so that the matrix which
    acts stays symmetric and doubly stochastic. A metric of another shape than most nodes' is left out, too.

    Parameters
    ----------
    plan : GossipPlan or DirectedPlan
        Who mixes with whom, and with which weights; by a directed plan with `flower_edge.gossip.PushSum`. As
        many nodes have to be connected at the start as it has.
    min_nodes : int (default: 2)
        The least number of nodes that have to train well in a round; with fewer the run stops with a
        `TooFewNodesError`.
    fraction_evaluate : float (default: 1.0)
        Fraction of connected nodes which evaluate their own model after an evaluation round; 0 skips
        evaluation on the nodes.
    evaluate_every : int (default: 1)
        Rounds from one evaluation on the nodes to the next; the last round of `start` is always evaluated.
    bind_by : {"node-id", "partition-id"} (default: "node-id")
        How Flower's nodes become the plan's nodes: in the order of their ids (works with every ClientApp),
        or by the ``partition-id`` that they are asked for (works with
        `flower_edge.clients.edge_client_app`; node i of the plan is the same board in every run).
    resume : str or Path, optional
        A file that holds the state after each whole round. If it exists, the run goes on from there, also
        after SIGKILL or a power cut.
    connect_timeout : float (default: 300.0)
        Seconds to wait at the start for all nodes to connect.
    mixer : callable, optional
        Makes a node's `flower_edge.gossip.Mixer` from its index (DPSGD by default); where there is a
        `compressor`, from its index, ``plan``, ``codec`` and ``start``: `flower_edge.gossip.ChocoSGD` (the
        default for a plan of one phase), `LinkChoco` (for others), `ChocoCopies` (what boards run),
        `DeepSqueeze` or `PlainQuantised`, as they are or as ``functools.partial(ChocoSGD, gamma=0.5)``.
    compressor : Compressor, optional
        In which bytes models would travel between the nodes, such as `flower_edge.gossip.Int8()`; whole, in
        fp32, by default. What is mixed here is what the nodes would read from those bytes. Messages between
        the ServerApp and the nodes stay as they are.
    partial_updates : bool (default: False)
        Whether a reply may lack arrays: one that is absent is what was sent. Elastic nodes
        (``edge_client_app(..., elastic=...)``) are told, and then return only what has changed.
    mix_untrained : bool (default: True)
        Whether a node also mixes the arrays that were absent from its reply. If so, W(t) acts on all of
        them, as always. If not, each array is mixed among the nodes that have trained it, and links to the
        others give their weight back to both ends: less travels, and nodes that train different parts grow
        apart. The mean of all nodes is kept either way, array by array.
    global_importance : bool (default: False)
        Whether the nodes learn, from the second round on, the mean over all of them of how important each
        tensor was in the round before; see `flower_edge.clients.Elastic`.
    deadline : float, optional
        Seconds that a node's local training may take in a round, told to the nodes as ``deadline`` in the
        config; elastic nodes keep it, others do not know it. One in the `train_config` of `start` has
        precedence.
    weighted_by_key : str (default: "num-examples")
        The metric by which the nodes' metrics are weighted when averaged. Models are weighted by the plan
        alone.
    arrayrecord_key : str (default: "arrays")
        Key of the ArrayRecord in messages.
    configrecord_key : str (default: "config")
        Key of the ConfigRecord in messages.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : callable, optional
        ``(list[RecordDict], str) -> MetricRecord`` as in Flower's FedAvg. By default the weighted mean, and
        for evaluation also the extremes over nodes as ``NAME-min`` and ``NAME-max``.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Each round's training metrics have, beside the nodes' own: ``consensus-distance`` (√(1/n Σ‖x_i − x̄‖²)
    after mixing), ``nodes-failed``, ``replies-rejected``, ``sent-bytes-mean`` and ``sent-bytes-max``
    (*counted*, at the codec: what a node would send over the plan's links in this round, of the arrays that
    both ends mix; the mean over all nodes, and the most), and, added up since the first round,
    ``busiest-node-bytes`` (*counted*: what the node would send and receive) and ``busiest-node-energy-wh``
    (*modelled*: the plan's energy model, if it has one; a message costs as much less than a model as it has
    fewer bytes).

    References
    ----------
    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017.
    """

    def __init__(
        self,
        plan: GossipPlan | DirectedPlan,
        *,
        min_nodes: int = 2,
        fraction_evaluate: float = 1.0,
        evaluate_every: int = 1,
        bind_by: BindBy = "node-id",
        resume: str | Path | None = None,
        connect_timeout: float = 300.0,
        mixer: MakeMixer | None = None,
        compressor: Compressor | None = None,
        partial_updates: bool = False,
        mix_untrained: bool = True,
        global_importance: bool = False,
        deadline: float | None = None,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation = weighted_mean,
        evaluate_metrics_aggr_fn: MetricsAggregation = mean_min_max,
    ) -> None:
        if not 1 <= min_nodes <= plan.n:
            raise ValueError(f"min_nodes is {min_nodes}; expected 1 to {plan.n}, the plan's number of nodes")
        if not 0.0 <= fraction_evaluate <= 1.0:
            raise ValueError(f"fraction_evaluate is {fraction_evaluate}; expected 0 to 1")
        if evaluate_every < 1:
            raise ValueError(f"evaluate_every is {evaluate_every}; expected at least 1 round")
        if deadline is not None and not 0.0 < deadline < math.inf:
            raise ValueError(f"deadline is {deadline}; expected a positive number of seconds")
        self.plan = plan
        self.min_nodes = min_nodes
        self.fraction_evaluate = fraction_evaluate
        self.evaluate_every = evaluate_every
        self.resume = None if resume is None else Path(resume)
        self.connect_timeout = connect_timeout
        self.mixer = choose_mixer(plan, mixer, compressor, in_parts=not mix_untrained)
        self.compressor = compressor
        self.partial_updates = partial_updates
        self.mix_untrained = mix_untrained
        self.global_importance = global_importance
        self.deadline = deadline
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn
        self.bind_by = bind_by
        self._binding = NodeBinding(plan.n, bind_by)
        self._progress = checkpoint.Progress.start(plan.n)
        self._fleet: Fleet | None = None
        self._last_round = 0

    # ---------------------------------------------------------------- the run as a whole

    def open_run(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int) -> tuple[int, Result]:
        """Load the resume file if there is one, and bind all nodes.

        Raises
        ------
        TooFewNodesError
            If nodes are still missing after `connect_timeout` seconds.
        ValueError
            If more nodes are connected than the plan has, or the initial model cannot be mixed.
        flower_edge.strategies.CheckpointError
            If the file named by `resume` is damaged or belongs to another plan or model.
        OSError
            If that file could not be written.
        """
        self._last_round = num_rounds
        fleet = self._begin(grid, initial_arrays)
        result = Result(arrays=to_record(fleet.layout.unflatten(fleet.mean(), fleet.carried[0])))
        for kind, rounds in self._progress.history.items():
            getattr(result, kind).update({r: MetricRecord(metrics) for r, metrics in rounds.items()})
        return self._progress.server_round, result

    def close_round(self, server_round: int, result: Result) -> None:
        """Write the resume file, if one is kept."""
        self._progress.server_round = server_round
        if self.resume is None or self._fleet is None:
            return
        self._progress.bound = self._binding.bound
        self._progress.history = {
            kind: {r: dict(metrics) for r, metrics in getattr(result, kind).items()} for kind in _HISTORY
        }
        checkpoint.save(self.resume, self._fleet, self._progress)

    def _begin(self, grid: Grid, initial_arrays: ArrayRecord) -> Fleet:
        initial = {name: array.numpy() for name, array in initial_arrays.items()}
        fleet = Fleet(self.plan, initial, self.mixer, self.compressor)
        self._binding = NodeBinding(self.plan.n, self.bind_by)
        self._progress = checkpoint.Progress.start(self.plan.n)
        if self.resume is not None:
            check_target(self.resume, force=True)
            if self.resume.exists():
                self._progress = checkpoint.load(self.resume, fleet)
                self._binding.restore(self._progress.bound)
                log(INFO, "Resuming after round %d from %s", self._progress.server_round, self.resume)
        self._binding.bind_all(grid, self.connect_timeout)
        self._fleet = fleet
        return fleet

    # ---------------------------------------------------------------- training

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address each connected node with its own model; `arrays` is what all start from, unused later."""
        if self._fleet is None:
            self._begin(grid, arrays)
        nodes = self._binding.refresh(grid)
        log(INFO, "configure_train: %d of %d nodes are connected", len(nodes), self.plan.n)
        records = {self.configrecord_key: ConfigRecord({**self._told(), **config})}
        if self._progress.importance:
            records[ELASTIC] = to_config(self._progress.importance)
        return self._messages(nodes, server_round, records, MessageType.TRAIN)

    def _told(self) -> dict[str, bool | float]:
        """Return what nodes are told of how this strategy is set; nothing unless it is set."""
        told: dict[str, bool | float] = {}
        if self.partial_updates:
            told["partial-updates"] = True
        if self.deadline is not None:
            told["deadline"] = self.deadline
        return told

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Take over the trained models and mix them by W(t).

        Returns
        -------
        arrays : ArrayRecord
            The average of all nodes' models after mixing.
        metrics : MetricRecord
            The nodes' metrics, averaged, and those of the notes of the class.

        Raises
        ------
        TooFewNodesError
            If fewer than `min_nodes` nodes trained well. No model has been mixed then.
        """
        fleet, progress = self._running_fleet(), self._progress
        trained, rejected = self._accept(fleet, replies)
        failed = self.plan.n - len(trained)
        log(INFO, "aggregate_train: Received %d results and %d failures", len(trained), failed)
        if len(trained) < self.min_nodes:
            raise TooFewNodesError(
                f"round {server_round}: {len(trained)} of {self.plan.n} nodes trained well "
                f"({rejected} replies rejected); min_nodes is {self.min_nodes}. The lines above say why"
            )
        names = None if self.mix_untrained else {node: update.names for node, update in trained.items()}
        parts = fleet.mix(server_round, trained.keys(), names)
        progress.traffic += fleet.sent + fleet.received
        progress.energy += energy(self.plan, server_round, parts, fleet.compression)
        progress.importance = mean_importance([update.importance for update in trained.values()])
        mean = fleet.mean()
        contents = {trained[node].node_id: trained[node].content for node in sorted(trained)}
        metrics = self.train_metrics_aggr_fn(comparable(contents), self.weighted_by_key)
        metrics["consensus-distance"] = fleet.consensus_distance(mean)
        metrics["nodes-failed"] = failed
        metrics["replies-rejected"] = rejected
        metrics["sent-bytes-mean"] = float(fleet.sent.mean())
        metrics["sent-bytes-max"] = int(fleet.sent.max())
        metrics["busiest-node-bytes"] = int(progress.traffic.max())
        if self.plan.energy is not None:
            metrics["busiest-node-energy-wh"] = float(progress.energy.max())
        return to_record(fleet.layout.unflatten(mean, fleet.carried[0])), metrics

    def _accept(self, fleet: Fleet, replies: Iterable[Message]) -> tuple[dict[int, _Update], int]:
        """Put each good reply's model into the fleet; return what came by node, and the number rejected."""
        trained: dict[int, _Update] = {}

        def take(node_id: int, content: RecordDict) -> None:
            checked_weight(content, self.weighted_by_key)
            node = self._binding.index_of(node_id)
            if node in trained:
                raise ValueError("it has replied in this round before")
            importance = received_importance(content, fleet.layout) if self.global_importance else {}
            arrays = to_numpy(only_arrays(content), fleet.layout, partial=self.partial_updates)
            fleet.update(node, arrays, partial=self.partial_updates)
            trained[node] = _Update(node_id, content, frozenset(arrays), importance)

        return trained, accept(replies, take).rejected

    # ---------------------------------------------------------------- evaluation

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nodes to evaluate their own models; `arrays`, the average, is not sent."""
        due = server_round % self.evaluate_every == 0 or server_round == self._last_round
        if self.fraction_evaluate == 0.0 or not due:
            return []
        nodes = self._binding.refresh(grid)
        sample_size = max(1, round(self.fraction_evaluate * len(nodes)))
        # Seeded by the round, so that two runs ask the same nodes.
        chosen = np.random.default_rng(server_round).permutation(sorted(nodes))[:sample_size]
        sample = {int(node): nodes[int(node)] for node in sorted(chosen)}
        log(INFO, "configure_evaluate: Sampled %d nodes (out of %d)", len(sample), len(nodes))
        records = {self.configrecord_key: config}
        return self._messages(sample, server_round, records, MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean and, for scalar metrics, the extremes over nodes; None if no node replied well."""
        contents = evaluations(replies, self.weighted_by_key)
        log(INFO, "aggregate_evaluate: Received %d results", len(contents))
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    # ---------------------------------------------------------------- messages

    def _messages(
        self, nodes: dict[int, int], server_round: int, records: dict[str, ConfigRecord], message_type: str
    ) -> list[Message]:
        fleet = self._running_fleet()
        config = ConfigRecord({**records[self.configrecord_key], "server-round": server_round})
        records = {**records, self.configrecord_key: config}
        return [
            Message(
                RecordDict({self.arrayrecord_key: to_record(fleet.arrays(node)), **records}),
                dst_node_id=node_id,
                message_type=message_type,
            )
            for node, node_id in sorted(nodes.items())
        ]

    def _running_fleet(self) -> Fleet:
        if self._fleet is None:
            raise RuntimeError(
                "no models yet: call start(), or configure_train() with the initial arrays first"
            )
        return self._fleet

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        log_summary(self)


@dataclass(frozen=True)
class _Update:
    """What a node has trained: its reply, the arrays in it, and how important its tensors are to it."""

    node_id: int
    content: RecordDict
    names: frozenset[str]
    importance: Importance


_HISTORY = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
