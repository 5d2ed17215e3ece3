"""Which Flower node is which node of the plan."""

from __future__ import annotations

import time
from logging import INFO, WARNING, getLogger
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

BindBy = Literal["node-id", "partition-id"]

PARTITION_QUERY = "query.gossip"
QUERY_TIMEOUT = 60.0
"""Seconds to wait for nodes to say their partition."""

log = getLogger("flwr").log


class TooFewNodesError(RuntimeError):
    """Fewer nodes take part than the strategy was told to go on with."""


def wait_for_nodes(grid: Grid, n: int, timeout: float) -> int:
    """Wait until as many nodes are connected as the plan has, and return how many are.

    Raises
    ------
    TooFewNodesError
        If some are still missing after `timeout` seconds.
    """
    deadline, reported = time.monotonic() + timeout, -1
    while (connected := len(list(grid.get_node_ids()))) < n:
        if time.monotonic() > deadline:
            raise TooFewNodesError(
                f"the plan is for {n} nodes, {connected} are connected after {timeout:.0f} s. "
                "Start the others, or make a plan for this many nodes"
            )
        if connected != reported:
            log(INFO, "Waiting for nodes to connect: %d connected (the plan has %d).", connected, n)
            reported = connected
        time.sleep(0.2)
    return connected


class NodeBinding:
    """A lasting one-to-one map between Flower node ids and the plan's node indices.

    Flower draws node ids anew for every run (unless SuperNode keys are used), and only the node itself
    knows its ``partition-id``.

    Parameters
    ----------
    n : int
        Number of nodes of the plan.
    bind_by : {"node-id", "partition-id"}
        ``"node-id"`` numbers the nodes in the order of their ids; it works with every ClientApp.
        ``"partition-id"`` asks each node for its partition with a ``query.gossip`` message, which apps made
        by `flower_edge.clients.edge_client_app` answer: node i of the plan is then the board with partition
        i, whatever its id, in this run and the next.
    """

    def __init__(self, n: int, bind_by: BindBy) -> None:
        if bind_by not in ("node-id", "partition-id"):
            raise ValueError(f"bind_by is {bind_by!r}; expected 'node-id' or 'partition-id'")
        self.n = n
        self.bind_by = bind_by
        self._index_of: dict[int, int] = {}

    def index_of(self, node_id: int) -> int:
        """Return the plan's index of a bound node id."""
        return self._index_of[node_id]

    @property
    def bound(self) -> dict[int, int]:
        """Node id → index of every node that has a place in the plan, connected or not."""
        return dict(self._index_of)

    def restore(self, bound: dict[int, int]) -> None:
        """Take over the binding of an earlier run; nodes that are gone lose their place to newcomers."""
        self._index_of = dict(bound)

    def bind_all(self, grid: Grid, timeout: float) -> None:
        """Wait until as many nodes are connected as the plan has, and bind them.

        Raises
        ------
        TooFewNodesError
            If some are still missing after `timeout` seconds.
        ValueError
            If more nodes are connected than the plan has, or if partition ids do not fit the plan.
        RuntimeError
            If a node cannot say its partition.
        """
        connected = wait_for_nodes(grid, self.n, timeout)
        if connected > self.n:
            raise ValueError(
                f"the plan is for {self.n} nodes, {connected} are connected. "
                "Make a plan for this many, or connect fewer"
            )
        present = self._bind_newcomers(grid, strict=True)
        if len(present) < self.n:
            raise TooFewNodesError(
                f"{self.n - len(present)} of {self.n} nodes did not say their partition "
                f"within {QUERY_TIMEOUT:.0f} s"
            )

    def refresh(self, grid: Grid) -> dict[int, int]:
        """Return index → node id of all connected nodes, newcomers included where there is a place for them.

        A node that has no place (the plan is full, or its partition still belongs to a connected node) sits
        out and is asked again in the next round.
        """
        return self._bind_newcomers(grid, strict=False)

    def _bind_newcomers(self, grid: Grid, *, strict: bool) -> dict[int, int]:
        connected = sorted(grid.get_node_ids())
        if newcomers := [node_id for node_id in connected if node_id not in self._index_of]:
            if self.bind_by == "partition-id":
                self._bind_by_partition(grid, newcomers, set(connected), strict=strict)
            else:
                self._bind_in_order(newcomers, set(connected))
        return {self._index_of[node_id]: node_id for node_id in connected if node_id in self._index_of}

    def _bind_in_order(self, newcomers: list[int], connected: set[int]) -> None:
        held = {node_id: index for node_id, index in self._index_of.items() if node_id in connected}
        free = sorted(set(range(self.n)) - set(held.values()))
        self._index_of = held | dict(zip(newcomers, free, strict=False))
        if surplus := newcomers[len(free) :]:
            log(WARNING, "The plan is full; nodes %s sit out", surplus)

    def _bind_by_partition(
        self, grid: Grid, newcomers: list[int], connected: set[int], *, strict: bool
    ) -> None:
        queries = [
            Message(RecordDict(), dst_node_id=node_id, message_type=PARTITION_QUERY) for node_id in newcomers
        ]
        for answer in grid.send_and_receive(queries, timeout=QUERY_TIMEOUT):
            try:
                partition = self._partition_in(answer)
                self._give_place(answer.metadata.src_node_id, partition, connected)
            except (RuntimeError, ValueError) as error:
                if strict:
                    raise
                log(WARNING, "%s; it sits out this round", error)

    def _partition_in(self, answer: Message) -> int:
        node_id = answer.metadata.src_node_id
        if answer.has_error():
            raise RuntimeError(
                f"node {node_id} could not answer {PARTITION_QUERY!r} ({answer.error.reason}). "
                "Build its ClientApp with flower_edge.clients.edge_client_app, or use bind_by='node-id'"
            )
        record = answer.content.config_records.get("gossip")
        partition = None if record is None else record.get("partition-id")
        if not isinstance(partition, int) or not 0 <= partition < self.n:
            raise ValueError(
                f"node {node_id} has partition-id {partition!r}; the plan has nodes 0 to {self.n - 1}"
            )
        return partition

    def _give_place(self, node_id: int, partition: int, connected: set[int]) -> None:
        holder = next((other for other, index in self._index_of.items() if index == partition), None)
        if holder is not None:
            if holder in connected:
                raise ValueError(
                    f"nodes {holder} and {node_id} both have partition-id {partition}; each needs its own"
                )
            del self._index_of[holder]
        self._index_of[node_id] = partition
