"""Gossip learning between the boards themselves: the server starts it and looks on."""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Iterable, Mapping
from logging import INFO, getLogger
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flower_edge._files import check_target
from flower_edge.gossip.codec import Layout, is_finite
from flower_edge.gossip.compressor import Compressor
from flower_edge.gossip.plan import GossipPlan
from flower_edge.gossip.robust import named_mixer
from flower_edge.peer import PeerSettings
from flower_edge.strategies import exported
from flower_edge.strategies.binding import QUERY_TIMEOUT, TooFewNodesError, wait_for_nodes
from flower_edge.strategies.hosted_instead import hosted_instead
from flower_edge.strategies.meeting import check_together, forget
from flower_edge.strategies.metrics import MetricsAggregation, evaluations, mean_min_max, weighted_mean
from flower_edge.strategies.mixing import MakeMixer, compression_of, mixer_of_boards
from flower_edge.strategies.orders import Terms
from flower_edge.strategies.records import average, to_numpy
from flower_edge.strategies.replies import accept
from flower_edge.strategies.roll_call import Board, check_boards, roll_call
from flower_edge.strategies.rounds import EvaluateFn, evaluate_at_server
from flower_edge.strategies.session_progress import SessionProgress
from flower_edge.strategies.session_rounds import SessionRounds
from flower_edge.strategies.summary import log_sessions
from flower_edge.strategies.survivors import rows_of_survivors

log = getLogger("flwr").log


class ServerlessGossip(Strategy):
    """Decentralised learning in which models go from board to board, and never through the server.

    The server asks the nodes where they are and for their certificates, tells each its neighbours' and its
    row of W(t), and lets them do many rounds at a time: a *session*, one message for each node. What comes
    back are metrics of every round, and models only where `export` asks. Between sessions the plan is
    repaired for nodes that are gone, or back. Node i of the plan is the one with partition i.

    Needs ClientApps made by `flower_edge.clients.edge_client_app`, or with
    `flower_edge.clients.gossip_mod`. In Flower's Simulation Engine, where nodes have no addresses, the same
    app runs with `HostedGossip` unless `simulation` says otherwise; the log says so.

    Parameters
    ----------
    plan : GossipPlan
        Who mixes with whom, and with which weights. With a `base`, it is repaired for the nodes that are
        there; without, links to missing nodes give their weight back to both ends.
    rounds_per_session : int (default: 50)
        Rounds from one look of the server to the next.
    export : int (default: 0)
        How many nodes send their models at the end of each session: 0 none, 1 one node, more a random
        sample, whose average is ``Result.arrays`` and goes to `evaluate_fn`. Without, both get nothing.
    min_nodes : int (default: 2)
        The least number of nodes that take part in a session and do not fail in it; with fewer the run
        stops with a `TooFewNodesError`.
    fraction_evaluate : float (default: 1.0)
        Fraction of nodes that evaluate their own model after each session; 0 skips evaluation on the nodes.
    robust : {"clip", "trim"}, optional
        How nodes mix if some may send anything: `flower_edge.gossip.ClippedGossip` or
        `flower_edge.gossip.TrimmedMean`. By default `flower_edge.gossip.DPSGD`, which trusts neighbours.
    compressor : Compressor, optional
        In which bytes models travel, such as `flower_edge.gossip.Int8()`; whole, in fp32, by default.
    mixer : callable, optional
        With a compressor: `flower_edge.gossip.ChocoCopies` (the default for a plan of one phase), `LinkChoco`
        (for others), `DeepSqueeze` or `PlainQuantised`, as they are or as
        ``functools.partial(LinkChoco, gamma=0.5)``.
    overlap : bool (default: False)
        Whether nodes exchange models while they train for the next round; see `PeerSession`. A round then
        takes the longer of the two instead of both.
    simulation : {"hosted", "direct"} (default: "hosted")
        What simulated nodes do: let the host mix, or exchange models over this machine's loopback, for which
        the Simulation Engine has to run all of them at the same time.
    settings : PeerSettings, optional
        What nodes wait for how long, and whether links may be in clear text.
    connect_timeout : float (default: 300.0)
        Seconds to wait at the start for all nodes to connect.
    resume : str or Path, optional
        A file that says, after each session, where the run stands. If it exists, the run goes on from there,
        also after the SuperLink was killed: boards go on with a session without it, and report that
        session's rounds to the next one. They answer when they are done with it: `connect_timeout` has to be
        longer than what is left. The model that was exported last is kept beside it (``FILE.model``). In
        simulation, `HostedGossip` keeps its own file there.
    weighted_by_key : str (default: "num-examples")
        The metric by which the nodes' metrics are weighted when averaged.
    arrayrecord_key : str (default: "arrays")
        Key of the ArrayRecord in messages to the app's ``train``.
    configrecord_key : str (default: "config")
        Key of the ConfigRecord in messages.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : callable, optional
        As in `HostedGossip`.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Each round's training metrics have, beside the nodes' own: ``nodes-failed`` (of the plan's, that did not
    do the round), ``links-failed`` (at both ends together), ``exchange-seconds`` (*measured*, the mean over
    nodes), and ``busiest-node-bytes`` (*measured* at the sockets, sent and received since the first round).
    """

    def __init__(
        self,
        plan: GossipPlan,
        *,
        rounds_per_session: int = 50,
        export: int = 0,
        min_nodes: int = 2,
        fraction_evaluate: float = 1.0,
        robust: str | None = None,
        compressor: Compressor | None = None,
        mixer: MakeMixer | None = None,
        overlap: bool = False,
        simulation: Literal["hosted", "direct"] = "hosted",
        settings: PeerSettings | None = None,
        connect_timeout: float = 300.0,
        resume: str | Path | None = None,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation = weighted_mean,
        evaluate_metrics_aggr_fn: MetricsAggregation = mean_min_max,
    ) -> None:
        if not isinstance(plan, GossipPlan):
            raise ValueError(
                f"received a {type(plan).__name__}, expected a GossipPlan: by a directed plan mix with "
                "HostedGossip, or PeerSession and PushSum"
            )
        if rounds_per_session < 1:
            raise ValueError(f"rounds_per_session is {rounds_per_session}; expected at least 1")
        if not 0 <= export <= plan.n:
            raise ValueError(f"export is {export}; expected 0 to {plan.n}, the plan's number of nodes")
        if not 2 <= min_nodes <= plan.n:
            raise ValueError(f"min_nodes is {min_nodes}; expected 2 to {plan.n}, the plan's number of nodes")
        if not 0.0 <= fraction_evaluate <= 1.0:
            raise ValueError(f"fraction_evaluate is {fraction_evaluate}; expected 0 to 1")
        self.plan = plan
        self.rounds_per_session = rounds_per_session
        self.export = export
        self.min_nodes = min_nodes
        self.fraction_evaluate = fraction_evaluate
        self.robust = robust
        self.compressor = compressor
        if compressor is None and mixer is not None:
            raise ValueError("a mixer needs a compressor, such as Int8(); without, say robust=, or neither")
        self.mixer: MakeMixer = (
            named_mixer(robust) if compressor is None else mixer_of_boards(plan, mixer, compressor, robust)
        )
        if simulation not in ("hosted", "direct"):
            raise ValueError(f"simulation is {simulation!r:.60}; expected 'hosted' or 'direct'")
        self.overlap = overlap
        self.simulation = simulation
        self.settings = PeerSettings() if settings is None else settings
        self.connect_timeout = connect_timeout
        self.resume = None if resume is None else Path(resume)
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn
        self._terms = Terms(self.settings, robust, overlap, arrayrecord_key, configrecord_key)
        self._boards: dict[int, Board] = {}
        self._begin()
        self._layout: Layout | None = None
        self._first = self._last = self._earliest = 0

    # ---------------------------------------------------------------- the run as a whole

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run all rounds, in as many sessions as they need.

        Parameters
        ----------
        grid : Grid
            Connection to the nodes.
        initial_arrays : ArrayRecord
            The model every node starts from.
        num_rounds : int (default: 3)
            Rounds of gossip, not of messages.
        timeout : float (default: 3600)
            Seconds to wait for a session, and for an evaluation.
        train_config, evaluate_config : ConfigRecord, optional
            What the app's functions find in their messages; ``server-round`` is added.
        evaluate_fn : callable, optional
            ``(server_round, arrays) -> MetricRecord`` evaluates what was exported after each session, and
            the initial model at the start. Needs `export`.

        Returns
        -------
        Result
            The metrics of every round, and the last model that was exported, if any.

        Raises
        ------
        TooFewNodesError
            If fewer than `min_nodes` can take part or do a session without an error, or not as many connect
            at the start as the plan has. With `resume`, the next run begins with that session.
        flower_edge.strategies.CheckpointError
            If the file named by `resume`, or the model beside it, is damaged or belongs to another plan or
            model.
        OSError
            If that file could not be written.
        ValueError
            If the initial model cannot be mixed, a node has no address, or `evaluate_fn` would see no model.
        """
        if evaluate_fn is not None and not self.export:
            raise ValueError("evaluate_fn would see no model: say export=1 or more, or leave it out")
        self._check_model(initial_arrays)
        result = self._taken_up()
        wait_for_nodes(grid, self.plan.n, self.connect_timeout)
        # Nodes that are still in a session, which an earlier server began, answer when it is over.
        resumes = self.resume is not None and self.resume.exists()
        self._boards = self._present(grid, self.connect_timeout if resumes else QUERY_TIMEOUT)
        simulated = bool(self._boards) and all(board.simulated for board in self._boards.values())
        if simulated and self.simulation == "hosted":
            return hosted_instead(self).start(
                *(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
            )
        asked = (num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
        run = self._simulated if simulated else self._sessions
        return run(grid, initial_arrays, result, *asked)

    def _sessions(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        result: Result,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord | None,
        evaluate_config: ConfigRecord | None,
        evaluate_fn: EvaluateFn | None,
    ) -> Result:
        log(INFO, "Starting %s strategy: %d rounds", type(self).__name__, num_rounds)
        self.summary()
        started = time.time()
        if evaluate_fn is not None and not self._progress.last:
            evaluate_at_server(0, initial_arrays, evaluate_fn, result)
        # Before a board knows the run's name: it would be lost with this process.
        self._keep(result)
        configs = [ConfigRecord() if c is None else c for c in (train_config, evaluate_config)]
        while self._progress.last < num_rounds:
            session = self._progress.last // self.rounds_per_session + 1
            self._last = min(session * self.rounds_per_session, num_rounds)
            self._one_session(session, grid, initial_arrays, result, configs, timeout)
            if evaluate_fn is not None and len(result.arrays):
                evaluate_at_server(self._last, result.arrays, evaluate_fn, result)
            self._progress.last = self._last
            self._keep(result)
        log(INFO, "Strategy execution finished in %.2fs", time.time() - started)
        for line in io.StringIO(str(result)):
            log(INFO, "\t%s", line.rstrip("\n"))
        return result

    def _simulated(self, grid: Grid, *rest: Any) -> Result:
        """Run sessions between simulated nodes, and remove what they have kept."""
        if self.resume is not None:
            raise ValueError("simulated nodes keep nothing for another run: leave out resume, or direct")
        try:
            check_together(grid, self._progress.run, self.plan.n)
            log(INFO, "These nodes are simulated, and exchange models over this machine's loopback")
            return self._sessions(grid, *rest)
        finally:
            forget(self._progress.run)

    def _begin(self) -> None:
        self._progress = SessionProgress(self.plan.digest(), secrets.token_hex(16))
        self._rounds = SessionRounds(self.plan.n, self.weighted_by_key, self.train_metrics_aggr_fn)

    def _taken_up(self) -> Result:
        """Return what is known of the run: nothing, or what the resume file says."""
        self._begin()
        result = Result()
        if self.resume is None:
            return result
        check_target(self.resume, force=True)
        if self.resume.exists():
            self._progress = SessionProgress.load(self.resume, self.plan.digest())
            self._progress.recall(self._rounds, result)
            model = exported.load(
                exported.path_beside(self.resume), self._progress.run, self._running_layout()
            )
            result.arrays = result.arrays if model is None else model
            log(INFO, "Resuming after round %d from %s", self._progress.last, self.resume)
        return result

    def _keep(self, result: Result) -> None:
        """Write the resume file, if one is kept, and before it the model that it leads up to."""
        if self.resume is not None:
            if len(result.arrays):
                path = exported.path_beside(self.resume)
                exported.save(path, self._progress.run, result.arrays, self._running_layout())
            self._progress.note(self._rounds, result)
            self._progress.save(self.resume)

    def _one_session(
        self,
        session: int,
        grid: Grid,
        initial: ArrayRecord,
        result: Result,
        configs: list[ConfigRecord],
        timeout: float,
    ) -> None:
        log(INFO, "[SESSION %d: rounds to %d]", session, self._last)
        messages = list(self.configure_train(session, initial, configs[0], grid))
        arrays, _ = self.aggregate_train(session, grid.send_and_receive(messages, timeout=timeout))
        # Nodes may have reported rounds of earlier sessions, too.
        result.train_metrics_clientapp.update(self._rounds.since(self._earliest))
        if arrays is not None:
            result.arrays = arrays
        questions = list(self.configure_evaluate(session, initial, configs[1], grid))
        if questions:
            found = self.aggregate_evaluate(session, grid.send_and_receive(questions, timeout=timeout))
            if found is not None:
                result.evaluate_metrics_clientapp[self._last] = found

    def _check_model(self, initial: ArrayRecord) -> None:
        arrays = {name: array.numpy() for name, array in initial.items()}
        self._layout = Layout.of(arrays)
        if not is_finite(self._layout.flatten(arrays)[0]):
            raise ValueError("the initial model has NaN or infinite parameters; gossip would spread them")

    # ---------------------------------------------------------------- training

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Tell every node its part in a session: its neighbours, their certificates, its rows of W(t).

        Parameters
        ----------
        server_round : int
            Number of the session.
        arrays : ArrayRecord
            Goes to nodes that have no model yet.
        config : ConfigRecord
            For the app's ``train``.
        grid : Grid

        Raises
        ------
        TooFewNodesError
            If fewer than `min_nodes` answer.
        """
        self._first = self._earliest = (server_round - 1) * self.rounds_per_session + 1
        self._last = max(self._last, self._first)
        if server_round > 1 or not self._boards:
            self._boards = self._present(grid)
        rows, acting = rows_of_survivors(self.plan, self._boards.keys())
        compression = self._compression(acting)
        draw = np.random.default_rng(server_round)
        exporting = set(draw.permutation(sorted(rows))[: self.export].tolist())
        return [
            Message(
                RecordDict(
                    {
                        "gossip": self._terms.order(
                            self._progress.run,
                            node,
                            rows[node],
                            self._boards,
                            rounds=(self._first, self._last),
                            told=self._rounds.told(node),
                            compression=compression,
                            exports=node in exporting,
                        ),
                        self.configrecord_key: config,
                        **({self.arrayrecord_key: arrays} if self._boards[node].round < 0 else {}),
                    }
                ),
                dst_node_id=self._boards[node].node_id,
                message_type="train.gossip",
            )
            for node in sorted(rows)
        ]

    def _present(self, grid: Grid, timeout: float = QUERY_TIMEOUT) -> dict[int, Board]:
        """Return the nodes that can take part."""
        boards = roll_call(
            grid,
            self.plan.n,
            self._progress.run,
            insecure=self.settings.insecure,
            timeout=timeout,
            direct=self.simulation == "direct",
        )
        if len(boards) < self.min_nodes:
            raise TooFewNodesError(
                f"{len(boards)} of {self.plan.n} nodes can take part; min_nodes is {self.min_nodes}. "
                "The lines above say why the others cannot"
            )
        if self.simulation == "hosted" and all(board.simulated for board in boards.values()):
            return boards
        check_boards(boards, self.compressor)
        return boards

    def _compression(self, plan: GossipPlan) -> str:
        """Return how models become few bytes under a plan, empty if they do not."""
        if self.compressor is None:
            return ""
        return compression_of(plan, self.mixer, self._running_layout(), self.compressor).to_json()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take over the metrics of a session; return what was exported, and the metrics of its last round.

        Raises
        ------
        TooFewNodesError
            If so many nodes failed that fewer than `min_nodes` are left. A reply that does not come is no
            failure: what it said is in the node's next one.
        """
        models: list[Mapping[str, Any]] = []

        def take(node_id: int, content: RecordDict) -> None:
            node = next(n for n, board in self._boards.items() if board.node_id == node_id)
            sent = content.array_records.get("arrays")
            arrays = None if sent is None else to_numpy(sent, self._running_layout())
            self._earliest = min(self._earliest, self._rounds.add(node, content, self._last))
            if arrays is not None:
                models.append(arrays)

        errors, rejected = accept(replies, take)
        if len(self._boards) - errors - rejected < self.min_nodes:
            raise TooFewNodesError(
                f"session {server_round}: of {len(self._boards)} nodes {errors} failed, and {rejected} sent "
                f"replies that were rejected; min_nodes is {self.min_nodes}. The lines above say why"
            )
        did = self._rounds.nodes_since(self._first)
        log(INFO, "aggregate_train: %d nodes did the session, %d replies rejected", did, rejected)
        metrics = self._rounds.since(self._first)
        return average(models, self._running_layout()), metrics.get(self._last)

    def _running_layout(self) -> Layout:
        if self._layout is None:
            raise RuntimeError("no model yet: call start()")
        return self._layout

    # ---------------------------------------------------------------- evaluation

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nodes to evaluate their own models; `arrays` is not sent."""
        if self.fraction_evaluate == 0.0:
            return []
        connected = set(grid.get_node_ids())
        there = sorted(node for node, board in self._boards.items() if board.node_id in connected)
        size = max(1, round(self.fraction_evaluate * len(there)))
        chosen = np.random.default_rng(server_round).permutation(there)[:size].tolist()
        return [
            Message(
                RecordDict(
                    {
                        "gossip": ConfigRecord(dict(self._terms.keys(self._progress.run, node))),
                        self.configrecord_key: config,
                    }
                ),
                dst_node_id=self._boards[node].node_id,
                message_type="evaluate.gossip",
            )
            for node in sorted(chosen)
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean and, for scalar metrics, the extremes over nodes; None if no node replied well."""
        contents = evaluations(replies, self.weighted_by_key)
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        log_sessions(self)
