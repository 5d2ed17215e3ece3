"""What nodes report of the rounds of their sessions, round by round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict

from flower_edge.strategies.metrics import MetricsAggregation, Value

OWN = frozenset(
    {
        *("round", "links-failed", "links-in-doubt"),
        *("train-seconds", "exchange-seconds", "bytes-sent", "bytes-received"),
    }
)
"""What every session reports, beside what training does."""

LARGEST = 2.0**53
"""No count or time of a round is as much; sums over nodes and rounds stay finite and can be whole numbers."""


class SessionRounds:
    """The metrics of all rounds of a run, as they come in session by session.

    Parameters
    ----------
    n : int
        Nodes of the plan.
    weighted_by_key : str
        The metric that weights the others.
    aggregation : callable
        ``(list[RecordDict], str) -> MetricRecord``.
    """

    def __init__(self, n: int, weighted_by_key: str, aggregation: MetricsAggregation) -> None:
        self._n = n
        self._weighted_by_key = weighted_by_key
        self._aggregation = aggregation
        self._reports: dict[int, dict[int, dict[str, float]]] = defaultdict(dict)

    def add(self, node: int, content: RecordDict, last: int) -> int:
        """Take over what a node says of a session, and of earlier ones whose replies did not arrive.

        Parameters
        ----------
        node : int
        content : RecordDict
            Of its reply.
        last : int
            The session's last round.

        Returns
        -------
        int
            The first round that it reports, `last` + 1 if there is none.

        Raises
        ------
        ValueError
            If it has reported already, its lists do not fit together, or what every session reports is not
            finite or negative. Nothing of it is kept then.
        """
        first = self.told(node) + 1
        if len(content.metric_records) != 1:
            raise ValueError(f"expected exactly one MetricRecord, received {len(content.metric_records)}")
        (record,) = content.metric_records.values()
        lists = {name: value for name, value in record.items() if isinstance(value, list)}
        if missing := sorted(OWN - lists.keys()):
            raise ValueError(f"it reports no {missing[0]!r}")
        rounds: list[Any] = lists["round"]
        if unequal := [name for name, values in lists.items() if len(values) != len(rounds)]:
            raise ValueError(
                f"{unequal[0]!r} has {len(lists[unequal[0]])} values, expected {len(rounds)}: one a round"
            )
        for round_ in rounds:
            if not isinstance(round_, int) or not first <= round_ <= last:
                raise ValueError(f"it reports round {round_!r}, expected {first} to {last}")
        reports = {
            round_: {name: float(column[index]) for name, column in lists.items()}
            for index, round_ in enumerate(rounds)
        }
        for round_, values in reports.items():
            _check_own(round_, values)
        for round_, values in reports.items():
            self._reports[round_][node] = values
        return min(rounds, default=last + 1)

    def told(self, node: int) -> int:
        """Return the last round that a node has reported, 0 if there is none."""
        return max((round_ for round_, found in self._reports.items() if node in found), default=0)

    def to_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return all reports, by round and node."""
        return {
            str(round_): {str(node): values for node, values in found.items()}
            for round_, found in self._reports.items()
            if found
        }

    def restore(self, reports: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Take over what `to_json` returned.

        Raises
        ------
        ValueError
            If it is not that.
        """
        for number, found in reports.items():
            for node, values in found.items():
                if int(number) < 1 or not 0 <= int(node) < self._n or not values.keys() >= OWN:
                    raise ValueError(
                        f"received a report of round {number} by node {node}, expected a whole one"
                    )
                report = {name: float(value) for name, value in values.items()}
                _check_own(int(number), report)
                self._reports[int(number)][int(node)] = report

    def nodes_since(self, first: int) -> int:
        """Return how many nodes have reported a round from `first` on."""
        return len({node for round_, found in self._reports.items() if round_ >= first for node in found})

    def since(self, first: int) -> dict[int, MetricRecord]:
        """Return the metrics of each round from `first` on, averaged over the nodes that did it."""
        return {
            round_: self._of_round(round_, reports)
            for round_, reports in sorted(self._reports.items())
            if round_ >= first and reports
        }

    def _of_round(self, round_: int, reports: dict[int, dict[str, float]]) -> MetricRecord:
        contents = []
        for _, values in sorted(reports.items()):
            own: dict[str, Value] = {
                name: value for name, value in values.items() if name not in OWN and np.isfinite(value)
            }
            weight = values.get(self._weighted_by_key, np.nan)
            own[self._weighted_by_key] = weight if 0 < weight < np.inf else 1.0
            contents.append(RecordDict({"metrics": MetricRecord(own)}))
        metrics = self._aggregation(contents, self._weighted_by_key)
        metrics["nodes-failed"] = self._n - len(reports)
        metrics["links-failed"] = int(sum(values["links-failed"] for values in reports.values()))
        metrics["exchange-seconds"] = float(np.mean([v["exchange-seconds"] for v in reports.values()]))
        metrics["busiest-node-bytes"] = int(max(self._bytes_until(round_).values()))
        return metrics

    def _bytes_until(self, last: int) -> dict[int, float]:
        total: dict[int, float] = defaultdict(float)
        for round_, reports in self._reports.items():
            if round_ <= last:
                for node, values in reports.items():
                    total[node] += values["bytes-sent"] + values["bytes-received"]
        return total


def _check_own(round_: int, report: Mapping[str, float]) -> None:
    for name in sorted(OWN):
        if not 0 <= report[name] < LARGEST:
            raise ValueError(
                f"its {name!r} of round {round_} is {report[name]}, expected 0 or more, below {LARGEST:g}"
            )
