"""A plan's rows for the nodes that are there."""

from __future__ import annotations

from collections.abc import Collection
from logging import INFO, WARNING, getLogger
from typing import TypeAlias

from flower_edge.gossip.plan import GossipPlan

Rows: TypeAlias = list[dict[int, float]]
"""Of one node: its row of W(t) in each phase, by the numbers of the whole plan."""

log = getLogger("flwr").log


def rows_of_survivors(plan: GossipPlan, present: Collection[int]) -> tuple[dict[int, Rows], GossipPlan]:
    """Return each present node's rows of a plan without the others, and the plan that is nearest to them.

    A plan that knows its base graph is repaired. Where that cannot be done (it does not, or the others are
    cut in two), links to missing nodes give their weight back to both ends: W(t) stays doubly stochastic, and
    the nodes may agree slowly or in groups.
    """
    nodes = sorted(present)
    missing = sorted(set(range(plan.n)) - set(nodes))
    if not missing:
        return {node: [plan.row(node, phase) for phase in range(len(plan.phases))] for node in nodes}, plan
    try:
        repaired = plan.repair(removed=missing)
    except (ValueError, ImportError) as error:
        log(WARNING, "Nodes %s are missing, and the plan cannot be repaired: %s", missing, error)
        return {node: _without(plan, node, set(missing)) for node in nodes}, plan
    log(INFO, "Nodes %s are missing: the plan is repaired (%s)", missing, repaired.describe())
    rows: dict[int, Rows] = {
        node: [
            {nodes[other]: weight for other, weight in repaired.row(index, phase).items()}
            for phase in range(len(repaired.phases))
        ]
        for index, node in enumerate(nodes)
    }
    return rows, repaired


def _without(plan: GossipPlan, node: int, missing: set[int]) -> Rows:
    rows = []
    for phase in range(len(plan.phases)):
        row = {other: weight for other, weight in plan.row(node, phase).items() if other not in missing}
        row[node] = 1.0 - sum(weight for other, weight in row.items() if other != node)
        rows.append(row)
    return rows
