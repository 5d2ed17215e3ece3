"""The tensors that an elastic trainer chose, and what training them is predicted to cost."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from flower_edge.training.backward_graph import BackwardGraph
from flower_edge.training.budget import Budget
from flower_edge.training.selection import BackwardBudget, Selection, head, select_tensors


@dataclass(frozen=True)
class Choice:
    """The tensors that are trained until the next choice. ``str()`` is a table.

    Times, bytes and joules are predicted from the profile; `probe_seconds` and `solve_seconds` are measured,
    by the profile's clock.

    Attributes
    ----------
    importance : dict of str to float
        Of every tensor that could be chosen: how much its next update lowers the loss, to first order, or
        what was given instead.
    selection : Selection
        The set, its cost in the profile's times, and whether it is proven to be the best.
    forward_seconds, backward_seconds, optimizer_seconds : float
        Of one step on this device. The optimizer counts as if it stepped on all tensors.
    full_backward_seconds : float
        Of a step that trains everything.
    watts : float or None
        The board's power; None without a budget of energy.
    limits : tuple of Budget
        Those that keep a further tensor of positive importance from joining.
    note : str
        What to tell a person; empty if there is nothing to tell.
    probe_seconds, solve_seconds : float
        What finding the importances took, 0 where they were given, and what the choice took.
    """

    importance: dict[str, float]
    selection: Selection
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    full_backward_seconds: float
    watts: float | None
    limits: tuple[Budget, ...]
    note: str
    probe_seconds: float
    solve_seconds: float

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are trained, in the order of the forward pass."""
        return self.selection.names

    @property
    def head_only(self) -> bool:
        """Whether nothing worth training fits the budgets, so that the head alone is trained."""
        return self.selection.head_only

    @property
    def step_seconds(self) -> float:
        """Of one whole step."""
        return self.forward_seconds + self.backward_seconds + self.optimizer_seconds

    @property
    def saved_bytes(self) -> int:
        """Activations kept for the backward pass."""
        return self.selection.cost.saved_bytes

    @property
    def state_bytes(self) -> int:
        """Gradients and optimizer state of the chosen tensors."""
        return self.selection.cost.state_bytes

    @property
    def joules(self) -> float | None:
        """Of one step, modelled; None without a budget of energy, since the power is not known."""
        return None if self.watts is None else self.watts * self.step_seconds

    @property
    def backward_share(self) -> float:
        """Backward time by that of training everything."""
        return self.backward_seconds / self.full_backward_seconds if self.full_backward_seconds else 1.0

    def __str__(self) -> str:
        trained = frozenset(self.names)
        rest = [name for name in self.importance if name not in trained]
        known = [name for name in self.names if name in self.importance]
        width = max(len(name) for name in (*self.importance, "tensor"))
        limits = " and ".join(map(str, self.limits))
        lines = [
            f"{len(self.names)} of {len(self.importance)} tensors are trained, {self.backward_share:.1%} of "
            "the backward time" + (f"; the limit is {limits}" if limits else ""),
            f"predicted step: {_ms(self.step_seconds)} (forward {_ms(self.forward_seconds)}, backward "
            f"{_ms(self.backward_seconds)}, optimizer {_ms(self.optimizer_seconds)}), "
            f"{self.saved_bytes / 1e6:.2f} MB saved, {self.state_bytes / 1e6:.2f} MB gradients and state"
            + ("" if self.joules is None else f", {self.joules:.4g} J (modelled)"),
            f"measured: probe {_ms(self.probe_seconds)}, choice {_ms(self.solve_seconds)}",
        ]
        if self.note:
            lines.append(f"note: {self.note}")
        lines += ["", f"{'tensor':<{width}}  trained  importance"]
        order = sorted([*known, *rest], key=list(self.importance).index)
        lines += [
            f"{name:<{width}}  {'yes' if name in trained else '':<7}  {self.importance[name]:.3e}"
            for name in order
        ]
        return "\n".join(lines)


def select_or_head(
    graph: BackwardGraph,
    importance: Mapping[str, float],
    budget: BackwardBudget,
    units: Iterable[Collection[str]],
) -> Selection:
    """Find the best set as `select_tensors` does, or the head if nothing is worth training.

    Parameters
    ----------
    graph : BackwardGraph
    importance : mapping of str to float
    budget : BackwardBudget
    units : iterable of collections of str

    Returns
    -------
    Selection
        Of at least one tensor.
    """
    units = list(units)
    found = select_tensors(graph, importance, budget, units=units)
    if found.names:
        return found
    names = head(graph, units)
    return replace(
        found,
        names=names,
        importance=math.fsum(importance[name] for name in names),
        cost=graph.cost(names),
        proven_optimal=False,
        head_only=True,
        note=f"{found.note}; the head is trained in spite of it: {', '.join(names)}",
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms"
