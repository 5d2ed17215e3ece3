"""What one round costs each node, in watt-hours: modelled, never measured."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.graph import Links, check_graph

if TYPE_CHECKING:
    import networkx as nx

Energies: TypeAlias = npt.NDArray[np.float64]

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class UnicastEnergy:
    """Energy of one round where a node sends its model to each neighbour by itself.

    c_i = compute + Σ_{j: W_ij ≠ 0} (send + receive): the unicast cost of Zhang, Chiu, He (ICASSP 2024,
    Section 2), with the cost of a link split into its two directions.

    Parameters
    ----------
    compute : float
        Wh for one round of local training at one node.
    send, receive : float
        Wh at a node for sending, and for receiving, one model over one link.

    Raises
    ------
    ValueError
        If a value is negative or not finite, or if all are zero.

    Examples
    --------
    Powers and times below are assumptions, for a 1 MB model over 20 Mbit/s; replace them by what your boards
    draw.

    >>> energy = UnicastEnergy.from_radio(
    ...     model_bytes=1e6,
    ...     bitrate=20e6,
    ...     send_watts=1.2,
    ...     receive_watts=1.0,
    ...     compute_watts=3.0,
    ...     compute_seconds=2.0,
    ... )
    """

    compute: float
    send: float
    receive: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # A bool is an int to Python; here it can only be a mistake.
            if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
                raise ValueError(f"{field.name} is {value!r:.60}, expected a number of Wh")
            if not 0 <= value < math.inf:
                raise ValueError(f"{field.name} is {value} Wh, expected a finite number, zero or more")
            object.__setattr__(self, field.name, float(value))
        if self.compute + self.send + self.receive == 0:
            raise ValueError("compute, send and receive are all zero: no plan can save anything")

    @classmethod
    def from_radio(
        cls,
        *,
        model_bytes: float,
        bitrate: float,
        send_watts: float,
        receive_watts: float,
        compute_watts: float,
        compute_seconds: float,
    ) -> "UnicastEnergy":
        """Work out the three energies from powers and times.

        Parameters
        ----------
        model_bytes : float
            Bytes of one model on the air.
        bitrate : float
            Bit/s that a link carries, net of protocol and retries.
        send_watts, receive_watts : float
            W that the board draws above idle while it sends, and while it receives.
        compute_watts : float
            W that the board draws above idle while it trains.
        compute_seconds : float
            Seconds of local training in one round.

        Raises
        ------
        ValueError
            If a value is negative or not finite, or `bitrate` is zero.
        """
        received = {name: value for name, value in locals().items() if name != "cls"}
        for name, value in received.items():
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} is {value}, expected a finite number, zero or more")
        if bitrate == 0:
            raise ValueError("bitrate is 0 bit/s, expected a positive number")
        hours_per_model = 8 * model_bytes / bitrate / SECONDS_PER_HOUR
        return cls(
            compute=compute_watts * compute_seconds / SECONDS_PER_HOUR,
            send=send_watts * hours_per_model,
            receive=receive_watts * hours_per_model,
        )

    @property
    def per_link(self) -> float:
        """Wh that one active link costs each of its two ends in a round."""
        return self.send + self.receive

    def per_node(self, links: Links, n: int) -> Energies:
        """Energy of one round at every node.

        Parameters
        ----------
        links : ndarray of int, shape (m, 2)
            The links over which models are exchanged in the round.
        n : int
            Number of nodes.

        Returns
        -------
        ndarray of float64, shape (n,)
            Wh.
        """
        degrees = np.bincount(np.asarray(links).ravel(), minlength=n)
        return np.asarray(self.compute + self.per_link * degrees, np.float64)


def aggregator_energy(graph: "nx.Graph", energy: UnicastEnergy) -> Energies:
    """Energy of one FedAvg round on the same base graph, with the aggregator at the best node for it.

    All n nodes train, the aggregator's host included. Each other node's model travels to the aggregator, and
    the average back to each of them, over a shortest path (in hops); a relay pays receive + send for every
    model it forwards, both ways. Where several neighbours are equally near the aggregator, a node takes the
    one that carries the fewest models yet. Every node is tried as the aggregator's host; the one for which
    the busiest node spends least is taken.

    Parameters
    ----------
    graph : networkx.Graph
        Base graph.
    energy : UnicastEnergy
        Costs of training and of a transfer.

    Returns
    -------
    ndarray of float64, shape (n,)
        Wh at every node in one round.
    """
    check_graph(graph)
    transfers = min((_transfers(graph, host) for host in range(len(graph))), key=lambda t: t.max())
    return np.asarray(energy.compute + energy.per_link * transfers, np.float64)


def _transfers(graph: "nx.Graph", host: int) -> npt.NDArray[np.int64]:
    """Models that every node sends (and receives) in one FedAvg round with the aggregator at `host`."""
    hops = {host: 0}
    order = [host]
    for node in order:
        for other in sorted(graph[node]):
            if other not in hops:
                hops[other] = hops[node] + 1
                order.append(other)
    # models[v]: those of v and of all nodes behind it; they cross the link towards the host once up and once
    # down.
    models = np.ones(len(graph), np.int64)
    for node in reversed(order[1:]):
        nearer = [other for other in graph[node] if hops[other] == hops[node] - 1]
        models[min(nearer, key=lambda other: (models[other], other))] += models[node]
    transfers = 2 * models - 1
    transfers[host] = len(graph) - 1
    return transfers
