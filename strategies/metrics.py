"""Metrics of many nodes in one MetricRecord."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from logging import WARNING, getLogger

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from flower_edge.strategies.records import checked_weight
from flower_edge.strategies.replies import accept

log = getLogger("flwr").log

Value = int | float | list[int] | list[float]
MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]


def weighted_mean(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Average each metric over the nodes that report it, weighted as Flower's FedAvg does.

    Parameters
    ----------
    contents : list of RecordDict
        Contents of the replies; each has exactly one MetricRecord, with the weight under `weighted_by_key`.
    weighted_by_key : str
        Name of the metric that is the weight; it is left out of the result.
    """
    return MetricRecord(
        {
            key: np.average(values, axis=0, weights=weights).tolist()
            for key, (values, weights) in _collect(contents, weighted_by_key).items()
        }
    )


def mean_min_max(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """`weighted_mean`, and beside each scalar ``NAME`` its extremes, ``NAME-min`` and ``NAME-max``.

    Each node's model is its own, so that the spread says what no average can.
    """
    record = weighted_mean(contents, weighted_by_key)
    for key, (values, _) in _collect(contents, weighted_by_key).items():
        if not isinstance(values[0], list):
            record[f"{key}-min"] = float(np.min(values))
            record[f"{key}-max"] = float(np.max(values))
    return record


def evaluations(replies: Iterable[Message], weighted_by_key: str) -> list[RecordDict]:
    """Return the contents of the good replies to an evaluation, in the order of the nodes' ids."""
    contents: dict[int, RecordDict] = {}

    def take(node_id: int, content: RecordDict) -> None:
        checked_weight(content, weighted_by_key)
        contents[node_id] = content

    accept(sorted(replies, key=lambda message: message.metadata.src_node_id), take)
    return comparable(contents)


def comparable(contents: Mapping[int, RecordDict]) -> list[RecordDict]:
    """Return contents without the metrics that no mean can take: those of another shape than most nodes'.

    Parameters
    ----------
    contents : mapping of int to RecordDict
        Each with exactly one MetricRecord, by the node's id, for the log.
    """
    shapes: dict[str, Counter[str]] = defaultdict(Counter)
    for content in contents.values():
        for name, value in _metrics(content)[1].items():
            shapes[name][_shape(value)] += 1
    usual = {name: counts.most_common(1)[0][0] for name, counts in shapes.items()}
    return [_without_odd(node_id, content, usual) for node_id, content in contents.items()]


def _without_odd(node_id: int, content: RecordDict, usual: Mapping[str, str]) -> RecordDict:
    key, record = _metrics(content)
    odd = [name for name, value in record.items() if _shape(value) != usual[name]]
    if not odd:
        return content
    for name in odd:
        log(
            WARNING,
            "\t> Left out metric %r of node %d: received %s, expected %s, as from most nodes",
            *(name, node_id, _shape(record[name]), usual[name]),
        )
    kept = MetricRecord({name: value for name, value in record.items() if name not in odd})
    return RecordDict({**content, key: kept})


def _shape(value: Value) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else "one number"


def _metrics(content: RecordDict) -> tuple[str, MetricRecord]:
    (item,) = content.metric_records.items()
    return item


def _collect(contents: list[RecordDict], weighted_by_key: str) -> dict[str, tuple[list[Value], list[float]]]:
    collected: dict[str, tuple[list[Value], list[float]]] = defaultdict(lambda: ([], []))
    for content in contents:
        (record,) = content.metric_records.values()
        for key, value in record.items():
            if key != weighted_by_key:
                values, weights = collected[key]
                values.append(value)
                weights.append(float(record[weighted_by_key]))  # type: ignore[arg-type]
    return collected
