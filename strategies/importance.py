"""What matters to all nodes: the mean of their tensors' importances.

A node that chooses what it trains by its own examples alone drifts towards them; one that also heeds what
matters to the others does less (Zhang et al., "FedEL: Federated Elastic Learning for Heterogeneous Devices",
NeurIPS 2025).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from itertools import chain

from flwr.app import ConfigRecord, RecordDict

from flower_edge.gossip.codec import Layout

ELASTIC = "elastic"
"""Key of the ConfigRecord, in both directions."""

Importance = dict[str, float]


def received_importance(content: RecordDict, layout: Layout) -> Importance:
    """Return what a node says of its tensors; nothing if it has no record of it.

    Raises
    ------
    ValueError
        If names are unknown or given twice, or an importance is not a finite float.
    """
    record = content.config_records.get(ELASTIC)
    if record is None:
        return {}
    names, values = record.get("tensors"), record.get("importance")
    if not isinstance(names, list) or not isinstance(values, list) or len(names) != len(values):
        raise ValueError(
            f"the record {ELASTIC!r} has tensors {names!r:.100} and importance {values!r:.100}; "
            "expected two lists of one length"
        )
    return checked_importance(zip(names, values, strict=True), {spec.name for spec in layout.specs})


def checked_importance(pairs: Iterable[tuple[object, object]], known: Collection[str]) -> Importance:
    """Return name → importance.

    Raises
    ------
    ValueError
        If a name is not one of those known or is there twice, or an importance is not a finite float.
    """
    importance: Importance = {}
    for name, value in pairs:
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"the importance of {name!r:.100} was given; expected one of the model's arrays")
        if name in importance:
            raise ValueError(f"the importance of {name!r} was given twice")
        if not isinstance(value, float) or not math.isfinite(value):
            raise ValueError(f"the importance of {name!r} is {value!r:.100}; expected a finite float")
        importance[name] = value
    return importance


def mean_importance(of_nodes: Collection[Mapping[str, float]]) -> Importance:
    """Average over nodes, each of which counts the same however large its numbers are.

    Parameters
    ----------
    of_nodes : collection of mapping of str to float
        Each is divided by the sum of its positive importances first. One that is not positive counts as 0,
        since such a tensor is never chosen; so does one that a node does not name.

    Returns
    -------
    dict of str to float
        Sums to one; empty if no node finds anything important.
    """
    shares = [share for importance in of_nodes if (share := _normalised(importance))]
    names = dict.fromkeys(chain.from_iterable(of_nodes))
    return {
        name: math.fsum(share.get(name, 0.0) for share in shares) / len(shares)
        for name in (names if shares else ())
    }


def to_config(importance: Mapping[str, float]) -> ConfigRecord:
    """Return the record that is sent to the nodes."""
    return ConfigRecord({"tensors": list(importance), "importance": list(importance.values())})


def _normalised(importance: Mapping[str, float]) -> Importance:
    # Divided by the largest first, because a sum of finite numbers may be infinite.
    largest = max(importance.values(), default=0.0)
    if largest <= 0.0:
        return {}
    positive = {name: max(value, 0.0) / largest for name, value in importance.items()}
    total = math.fsum(positive.values())
    return {name: value / total for name, value in positive.items()}
