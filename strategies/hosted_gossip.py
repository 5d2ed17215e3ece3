"""Gossip learning hosted at the ServerApp, for unchanged ClientApps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import INFO, WARNING, getLogger
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from flower_edge.gossip.mixer import DPSGD, Mixer
from flower_edge.gossip.plan import GossipPlan
from flower_edge.strategies import checkpoint
from flower_edge.strategies.binding import BindBy, NodeBinding, TooFewNodesError
from flower_edge.strategies.fleet import Fleet
from flower_edge.strategies.metrics import mean_min_max, weighted_mean
from flower_edge.strategies.records import checked_weight, only_arrays, to_numpy, to_record
from flower_edge.strategies.rounds import ResumableStrategy

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]

log = getLogger("flwr").log


class HostedGossip(ResumableStrategy):
    """Decentralised learning with one model per node, mixed by a plan instead of averaged.

    The ServerApp holds every node's model. In each round it sends each node *its own* model to train, and
    mixes what comes back with the models of the node's neighbours by the plan's matrix W(t). What runs here
    is what boards run among themselves: one `Mixer` a node. The average of all models goes to `evaluate_fn`
    and to ``Result.arrays`` and nowhere else.

    A node that is missing, replies with an error, or sends a model that is not finite or of another shape
    keeps its model in that round; the weights of its links return to both ends, so that the matrix which
    acts stays symmetric and doubly stochastic.

    Parameters
    ----------
    plan : GossipPlan
        Who mixes with whom, and with which weights. As many nodes have to be connected at the start as it
        has.
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
    mixer : callable (default: DPSGD)
        Makes a node's `flower_edge.gossip.Mixer` from its index.
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
    after mixing), ``nodes-failed``, ``replies-rejected``, and, added up since the first round,
    ``busiest-node-bytes`` (*counted*: what the node would send and receive over the plan's links) and
    ``busiest-node-energy-wh`` (*modelled*: the plan's energy model, if it has one).

    References
    ----------
    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017.
    """

    def __init__(
        self,
        plan: GossipPlan,
        *,
        min_nodes: int = 2,
        fraction_evaluate: float = 1.0,
        evaluate_every: int = 1,
        bind_by: BindBy = "node-id",
        resume: str | Path | None = None,
        connect_timeout: float = 300.0,
        mixer: Callable[[int], Mixer] = DPSGD,
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
        self.plan = plan
        self.min_nodes = min_nodes
        self.fraction_evaluate = fraction_evaluate
        self.evaluate_every = evaluate_every
        self.resume = None if resume is None else Path(resume)
        self.connect_timeout = connect_timeout
        self.mixer = mixer
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
        fleet = Fleet(self.plan, initial, self.mixer)
        self._binding = NodeBinding(self.plan.n, self.bind_by)
        self._progress = checkpoint.Progress.start(self.plan.n)
        if self.resume is not None and self.resume.exists():
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
        return self._messages(nodes, server_round, config, MessageType.TRAIN)

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
        fleet = self._running_fleet()
        trained, rejected = self._accept(fleet, replies)
        failed = self.plan.n - len(trained)
        log(INFO, "aggregate_train: Received %d results and %d failures", len(trained), failed)
        if len(trained) < self.min_nodes:
            raise TooFewNodesError(
                f"round {server_round}: {len(trained)} of {self.plan.n} nodes trained well "
                f"({rejected} replies rejected); min_nodes is {self.min_nodes}. The lines above say why"
            )
        fleet.mix(server_round, trained.keys())
        self._account(fleet, server_round, trained.keys())
        mean = fleet.mean()
        metrics = self.train_metrics_aggr_fn(
            [trained[node] for node in sorted(trained)], self.weighted_by_key
        )
        metrics["consensus-distance"] = fleet.consensus_distance(mean)
        metrics["nodes-failed"] = failed
        metrics["replies-rejected"] = rejected
        metrics["busiest-node-bytes"] = int(self._progress.traffic.max())
        if self.plan.energy is not None:
            metrics["busiest-node-energy-wh"] = float(self._progress.energy.max())
        return to_record(fleet.layout.unflatten(mean, fleet.carried[0])), metrics

    def _accept(self, fleet: Fleet, replies: Iterable[Message]) -> tuple[dict[int, RecordDict], int]:
        """Put each good reply's model into the fleet; return contents by node, and the number rejected."""
        trained: dict[int, RecordDict] = {}
        rejected = 0
        for reply in replies:
            node_id = reply.metadata.src_node_id
            if reply.has_error():
                log(WARNING, "\t> Received error in reply from node %d: %s", node_id, reply.error.reason)
                continue
            try:
                checked_weight(reply.content, self.weighted_by_key)
                node = self._binding.index_of(node_id)
                fleet.update(node, to_numpy(only_arrays(reply.content), fleet.layout))
                trained[node] = reply.content
            except (KeyError, TypeError, ValueError) as error:
                rejected += 1
                log(WARNING, "\t> Rejected the reply of node %d: %s", node_id, error)
        return trained, rejected

    def _account(self, fleet: Fleet, server_round: int, live: Iterable[int]) -> None:
        links = fleet.live_links(server_round, list(live))
        per_node = np.bincount(links.ravel(), minlength=self.plan.n)
        self._progress.traffic += 2 * fleet.layout.nbytes * per_node
        if self.plan.energy is not None:
            self._progress.energy += self.plan.energy.per_node(links, self.plan.n)

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
        return self._messages(sample, server_round, config, MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean and, for scalar metrics, the extremes over nodes; None if no node replied well."""
        contents = []
        for reply in sorted(replies, key=lambda message: message.metadata.src_node_id):
            node_id = reply.metadata.src_node_id
            if reply.has_error():
                log(WARNING, "\t> Received error in reply from node %d: %s", node_id, reply.error.reason)
                continue
            try:
                checked_weight(reply.content, self.weighted_by_key)
                contents.append(reply.content)
            except (TypeError, ValueError) as error:
                log(WARNING, "\t> Rejected the reply of node %d: %s", node_id, error)
        log(INFO, "aggregate_evaluate: Received %d results", len(contents))
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    # ---------------------------------------------------------------- messages

    def _messages(
        self, nodes: dict[int, int], server_round: int, config: ConfigRecord, message_type: str
    ) -> list[Message]:
        fleet = self._running_fleet()
        config = ConfigRecord({**config, "server-round": server_round})
        return [
            Message(
                RecordDict(
                    {self.arrayrecord_key: to_record(fleet.arrays(node)), self.configrecord_key: config}
                ),
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

    # ---------------------------------------------------------------- logging

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        links = self.plan.links_per_node(1)
        log(INFO, "\t├──> Gossip plan:")
        log(
            INFO,
            "\t│\t├── Nodes: %d | links: %d | phases: %d",
            self.plan.n,
            links.sum() // 2,
            len(self.plan.phases),
        )
        log(INFO, "\t│\t├── rho = ‖W − J‖: %.4f | spectral gap: %.4f", self.plan.rho, self.plan.spectral_gap)
        log(INFO, "\t│\t├── Links of a node: %d to %d", links.min(), links.max())
        if self.plan.energy is None:
            log(INFO, "\t│\t└── Energy: no model")
        else:
            busiest = self.plan.energy_per_node(1).max()
            log(INFO, "\t│\t└── Busiest node: %.3g Wh a round (modelled)", busiest)
        log(INFO, "\t├──> Nodes:")
        log(INFO, "\t│\t├── Minimum that train well in a round: %d", self.min_nodes)
        log(
            INFO,
            "\t│\t├── Fraction: evaluate (%.2f), every %d rounds",
            self.fraction_evaluate,
            self.evaluate_every,
        )
        log(INFO, "\t│\t└── Bound by: %s", self.bind_by)
        log(INFO, "\t├──> Resume file: %s", self.resume or "none")
        log(INFO, "\t└──> Keys in records:")
        log(INFO, "\t\t├── Metrics weighted by: '%s'", self.weighted_by_key)
        log(INFO, "\t\t├── ArrayRecord key: '%s'", self.arrayrecord_key)
        log(INFO, "\t\t└── ConfigRecord key: '%s'", self.configrecord_key)


_HISTORY = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
