"""Flower's round loop, for strategies that can take it up again where an earlier process left it."""

from __future__ import annotations

import io
import time
from abc import abstractmethod
from collections.abc import Callable
from logging import INFO, getLogger

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

log = getLogger("flwr").log


class ResumableStrategy(Strategy):
    """A Flower strategy whose `start` can begin after any round.

    Flower's own loop always begins at round 1 with an empty ``Result``; this one asks the strategy where it
    stands, and tells it when a round is whole.
    """

    @abstractmethod
    def open_run(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int) -> tuple[int, Result]:
        """Get ready and return the last whole round (0 at first) and the results up to it.

        ``Result.arrays`` has to hold the model that `evaluate_fn` gets for that round.
        """

    @abstractmethod
    def close_round(self, server_round: int, result: Result) -> None:
        """Take note that a round is whole: trained, mixed and evaluated."""

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
        """Run all rounds that are left.

        Parameters
        ----------
        grid : Grid
            Connection to the nodes.
        initial_arrays : ArrayRecord
            The model every node starts from.
        num_rounds : int (default: 3)
            Number of the last round.
        timeout : float (default: 3600)
            Seconds to wait for the nodes' replies in each step.
        train_config, evaluate_config : ConfigRecord, optional
            Sent to the nodes with each message; ``server-round`` is added.
        evaluate_fn : callable, optional
            ``(server_round, arrays) -> MetricRecord`` evaluates the model in ``Result.arrays`` at the
            ServerApp, before the first round and after each round.

        Returns
        -------
        Result
            The final model and all metrics, those from before a resumption included.
        """
        started = time.time()
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        log(INFO, "Starting %s strategy:", type(self).__name__)
        log(INFO, "\t├── Number of rounds: %d", num_rounds)
        log(INFO, "\t├── Model: %.2f MB", sum(len(a.data) for a in initial_arrays.values()) / 2**20)
        log(INFO, "\t├── ConfigRecord (train) keys: %s", sorted(train_config) or "(empty!)")
        log(INFO, "\t├── ConfigRecord (evaluate) keys: %s", sorted(evaluate_config) or "(empty!)")
        self.summary()
        log(INFO, "")

        last, result = self.open_run(grid, initial_arrays, num_rounds)
        if evaluate_fn and last == 0:
            evaluate_at_server(0, result.arrays, evaluate_fn, result)
        for server_round in range(last + 1, num_rounds + 1):
            log(INFO, "")
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            self._train_round(server_round, grid, result, train_config, timeout)
            self._evaluate_round(server_round, grid, result, evaluate_config, timeout)
            if evaluate_fn:
                evaluate_at_server(server_round, result.arrays, evaluate_fn, result)
            self.close_round(server_round, result)

        log(INFO, "")
        log(INFO, "Strategy execution finished in %.2fs", time.time() - started)
        log(INFO, "")
        log(INFO, "Final results:")
        log(INFO, "")
        for line in io.StringIO(str(result)):
            log(INFO, "\t%s", line.rstrip("\n"))
        return result

    def _train_round(
        self, server_round: int, grid: Grid, result: Result, config: ConfigRecord, timeout: float
    ) -> None:
        messages = list(self.configure_train(server_round, result.arrays, config, grid))
        replies = grid.send_and_receive(messages, timeout=timeout)
        arrays, metrics = self.aggregate_train(server_round, replies)
        if arrays is not None:
            result.arrays = arrays
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.train_metrics_clientapp[server_round] = metrics

    def _evaluate_round(
        self, server_round: int, grid: Grid, result: Result, config: ConfigRecord, timeout: float
    ) -> None:
        messages = list(self.configure_evaluate(server_round, result.arrays, config, grid))
        if not messages:
            return
        metrics = self.aggregate_evaluate(server_round, grid.send_and_receive(messages, timeout=timeout))
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.evaluate_metrics_clientapp[server_round] = metrics


def evaluate_at_server(
    server_round: int, arrays: ArrayRecord, evaluate_fn: EvaluateFn, result: Result
) -> None:
    """Evaluate a model at the ServerApp, and put what is found into the results."""
    metrics = evaluate_fn(server_round, arrays)
    log(INFO, "Evaluation at the ServerApp: %s", metrics)
    if metrics is not None:
        result.evaluate_metrics_serverapp[server_round] = metrics
