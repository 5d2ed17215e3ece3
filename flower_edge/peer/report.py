"""What a session has done."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flower_edge.gossip.codec import Vector

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class RoundReport:
    """One round of one node.

    Attributes
    ----------
    round : int
    neighbours : int
        By the plan.
    counted : tuple of int
        Neighbours whose models were mixed in.
    in_doubt : tuple of int
        Neighbours that may or may not count the link; see `SessionReport.late`.
    train_seconds, exchange_seconds : float
        *Measured*.
    bytes_sent, bytes_received : int
        *Measured* at the sockets, since the round before.
    metrics : mapping of str to float
        Of the local training.
    """

    round: int
    neighbours: int
    counted: tuple[int, ...]
    in_doubt: tuple[int, ...]
    train_seconds: float
    exchange_seconds: float
    bytes_sent: int
    bytes_received: int
    metrics: Metrics


@dataclass
class SessionReport:
    """A session of one node.

    Attributes
    ----------
    model : ndarray of float32, shape (d,)
        At the end.
    rounds : list of RoundReport
        Those that this process did; rounds that were left out to catch up with the others are missing.
    late : list of (int, int, bool)
        Neighbour, round, and whether the link counted, for each doubt that was settled after its round.
    unsettled : list of (int, int)
        Neighbour and round of each doubt that was left at the end.
    refusals : dict of str to int
        How many were refused, by reason.
    unsaved : int
        Rounds after which the state could not be written.
    """

    model: Vector
    rounds: list[RoundReport] = field(default_factory=list)
    late: list[tuple[int, int, bool]] = field(default_factory=list)
    unsettled: list[tuple[int, int]] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    unsaved: int = 0
