"""Metrics of many nodes in one MetricRecord."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from flwr.app import MetricRecord, RecordDict

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
