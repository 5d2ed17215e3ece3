"""How a node chooses, anew in every round, what it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from flwr.app import Context

from flower_edge.training import SlidingWindow
from flower_edge.training.budget import Budget, check_budgets
from flower_edge.training.on_return import OnReturn, check_on_return

MakeElastic: TypeAlias = "Elastic | Callable[[Context], Elastic | None] | None"


@dataclass(frozen=True)
class Elastic:
    """A node trains as many tensors as its budget allows, those that matter most now.

    The budgets are the node's own and the deadline that a message brings (``deadline`` in its config: seconds
    for the whole of a round's local training); all of them hold. Without any, the node trains everything.

    Parameters
    ----------
    budget : Time, Memory, Energy, Deadline, a sequence of them, or None (default: None)
        What one step may cost on this node; see `flower_edge.training.ElasticTrainer`.
    every : int (default: 0)
        Steps from one choice to the next; 0 for one choice a round.
    probe_rounds : int (default: 1)
        Rounds for which the importances of one probe are used; they are kept in the node's
        ``Context.state``. Where rounds are short, probes take a large part of them.
    units : {"tensors", "layers"} (default: "tensors")
        What joins or leaves as one.
    on_return : {"keep", "drop"} or float (default: "keep")
        What becomes of a tensor's optimizer state while it is not trained. It lasts one round in any case.
    window : SlidingWindow, optional
        Which stretch of the network comes first, choice after choice; what the budget has left goes to the
        other tensors. Without it, slow nodes train the last layers alone (Zhang et al., "FedEL", NeurIPS
        2025).
    global_share : float (default: 0.0)
        Weight, from 0 to 1, of what matters to all nodes beside what matters to this one; needs
        ``HostedGossip(..., global_importance=True)``.
    profiles : str or Path, optional
        A folder on the node where what a step costs is kept. Otherwise every process measures it once, and a
        deployed SuperNode starts a process for each message.
    slowdown : float (default: 1.0)
        The node counts as so many times slower than the machine that it runs on: to simulate slow boards.
    margin : float (default: 0.1)
        Share of a deadline that is kept for what no prediction knows.

    Raises
    ------
    TypeError
        If `budget` is no budget.
    ValueError
        If a value is out of its range.

    Notes
    -----
    **A deadline** is divided by the number of steps, after what choosing takes, and each step gets its part.
    Where not even the head fits, or the window's tensors lie too deep for it, the node takes fewer steps, one
    at least. If the first steps take longer than planned, because the board does other things, too, the rest
    is planned anew; and the node stops when the clock says that the next step would be late. What it trains
    under a deadline therefore depends on the clock, and two runs differ. With `budget` alone and a profile
    kept on disk they do not.

    Examples
    --------
    >>> app = edge_client_app(Net, load_data, cross_entropy, elastic=Elastic(Time(0.5)))

    Each board has a budget of its own in its node config:

    >>> def elastic(context):
    ...     return Elastic(Memory(1e6 * context.node_config["training-mb"]), profiles="/var/lib/profiles")
    >>> app = edge_client_app(Net, load_data, cross_entropy, elastic=elastic)
    """

    budget: Budget | Sequence[Budget] | None = None
    every: int = 0
    probe_rounds: int = 1
    units: Literal["tensors", "layers"] = "tensors"
    on_return: OnReturn = "keep"
    window: SlidingWindow | None = None
    global_share: float = 0.0
    profiles: str | Path | None = None
    slowdown: float = 1.0
    margin: float = 0.1

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budgets(self.budget)
        check_on_return(self.on_return)
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 0:
            raise ValueError(f"every is {self.every!r}; expected a number of steps, or 0 for once a round")
        if (
            isinstance(self.probe_rounds, bool)
            or not isinstance(self.probe_rounds, int)
            or self.probe_rounds < 1
        ):
            raise ValueError(f"probe_rounds is {self.probe_rounds!r}; expected a number of rounds, 1 or more")
        if self.units not in ("tensors", "layers"):
            raise ValueError(f"units is {self.units!r}; expected 'tensors' or 'layers'")
        if self.window is not None and not isinstance(self.window, SlidingWindow):
            raise ValueError(f"window is {self.window!r:.100}; expected a SlidingWindow or None")
        if not 0.0 <= self.global_share <= 1.0:
            raise ValueError(f"global_share is {self.global_share}; expected 0 to 1")
        if not 0.0 < self.slowdown < math.inf:
            raise ValueError(f"slowdown is {self.slowdown}; expected a positive number")
        if not 0.0 <= self.margin < 1.0:
            raise ValueError(f"margin is {self.margin}; expected at least 0 and below 1")

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The node's own budgets, none or more."""
        return () if self.budget is None else check_budgets(self.budget)

    def is_limited(self, deadline: float | None) -> bool:
        """Whether anything keeps the node from training everything; `deadline` is the message's."""
        return bool(self.budgets) or deadline is not None


def check_elastic(value: object) -> Elastic | None:
    """Return how a node chooses, None if it trains everything.

    Raises
    ------
    TypeError
        If that is neither.
    """
    if value is not None and not isinstance(value, Elastic):
        raise TypeError(
            f"elastic is {value!r:.200}; expected Elastic(...), None, or a callable that takes the context "
            "and returns one of them"
        )
    return value
