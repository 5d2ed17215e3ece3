"""What a training step may cost: of time, of memory, of energy, or until a deadline."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

from flower_edge.training.profile import Profile
from flower_edge.training.selection import BackwardBudget


@dataclass(frozen=True)
class Time:
    r"""Backward time, as a share of that of training every tensor.

    This is :math:`\rho` of Huang, Yang, Gao, "ElasticTrainer", MobiSys 2023, for the backward pass
    alone: :math:`T_\text{backward} \le \rho\, T_\text{full}`. The forward pass comes on top.

    Parameters
    ----------
    share : float
        In (0, 1].

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is out of its range.
    """

    share: float

    def __post_init__(self) -> None:
        _check_number("the share of Time", self.share)
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of Time is {self.share}, expected more than 0 and at most 1")

    def __str__(self) -> str:
        return f"{100 * self.share:.4g} % of the backward time"


@dataclass(frozen=True)
class Memory:
    """What training holds: activations saved for the backward pass, gradients and optimizer state.

    Of the tensors that are trained. Weights, and state that is kept of tensors while they are not trained,
    come on top.

    Parameters
    ----------
    bytes : float
        More than 0.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is out of its range.
    """

    bytes: float

    def __post_init__(self) -> None:
        _check_positive("the bytes of Memory", self.bytes)

    def __str__(self) -> str:
        return f"{self.bytes / 1e6:.4g} MB of memory"


@dataclass(frozen=True)
class Energy:
    """What one training step may use, modelled as the board's power times the measured time of the step.

    Parameters
    ----------
    joules : float
        More than 0; of forward pass, backward pass and optimizer together.
    watts : float
        More than 0; power of the board while it trains.

    Raises
    ------
    TypeError
        If one is not a number.
    ValueError
        If one is out of its range.
    """

    joules: float
    watts: float

    def __post_init__(self) -> None:
        _check_positive("the joules of Energy", self.joules)
        _check_positive("the watts of Energy", self.watts)

    @property
    def seconds(self) -> float:
        """What a step may take."""
        return self.joules / self.watts

    def __str__(self) -> str:
        return f"{self.joules:.4g} J a step at {self.watts:.4g} W"


@dataclass(frozen=True)
class Deadline:
    """Time of one whole training step: forward pass, backward pass and optimizer.

    Parameters
    ----------
    seconds : float
        More than 0.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is out of its range.
    """

    seconds: float

    def __post_init__(self) -> None:
        _check_positive("the seconds of Deadline", self.seconds)

    def __str__(self) -> str:
        return f"{1e3 * self.seconds:.4g} ms a step"


Budget: TypeAlias = Time | Memory | Energy | Deadline


@dataclass(frozen=True)
class Limits:
    """Several budgets as what the backward pass may cost on one device.

    Attributes
    ----------
    backward : BackwardBudget
        In the times of the profile.
    named : dict of str to Budget
        The budget behind each finite one of `backward`: the tightest, where there are several.
    note : str
        What to tell a person; empty if there is nothing to tell.
    """

    backward: BackwardBudget
    named: dict[str, Budget]
    note: str = ""


def check_budgets(budgets: Budget | Sequence[Budget]) -> tuple[Budget, ...]:
    """Return one or several budgets as a tuple.

    Raises
    ------
    TypeError
        If one of them is not a budget.
    ValueError
        If there is none.
    """
    found = (budgets,) if isinstance(budgets, Budget) else tuple(budgets) if _is_list(budgets) else None
    if found is None or not all(isinstance(budget, Budget) for budget in found):
        raise TypeError(
            f"the budget is {budgets!r:.200}, expected Time, Memory, Energy or Deadline, or several of them "
            "in a list"
        )
    if not found:
        raise ValueError("there is no budget, expected at least one; Time(1.0) allows everything")
    return found


def limits(budgets: Sequence[Budget], profile: Profile, slowdown: float = 1.0) -> Limits:
    """Turn budgets into what the backward pass may cost; all of them hold at once.

    Of a whole step, forward pass and optimizer take their time whichever tensors are trained. The optimizer
    counts as if it stepped on all tensors: a little more than it takes, so a deadline is met.

    Parameters
    ----------
    budgets : sequence of Budget
    profile : Profile
        Of the model on the device.
    slowdown : float, default 1.0
        The device takes the profile's times that many times over.

    Returns
    -------
    Limits

    Raises
    ------
    ValueError
        If the profile was measured without an optimizer, and a budget is of more than backward time.
    """
    for budget in budgets:
        if not isinstance(budget, Time) and not profile.optimizer_seconds:
            raise ValueError(
                f"the profile was measured without an optimizer, which {budget} have to cover: profile "
                "again, with optimizer="
            )
    fixed = profile.graph.fixed_seconds
    tightest: dict[str, tuple[float, Budget]] = {}
    for budget in budgets:
        if isinstance(budget, Memory):
            what, limit = "bytes", float(budget.bytes)
        elif isinstance(budget, Time):
            what, limit = "seconds", budget.share * profile.graph.full_cost.seconds
        else:
            what, limit = "seconds", budget.seconds / slowdown - fixed
        if what not in tightest or limit < tightest[what][0]:
            tightest[what] = limit, budget
    note = ""
    if "seconds" in tightest and tightest["seconds"][0] <= 0:
        note = (
            f"{tightest['seconds'][1]} leave nothing for the backward pass: forward pass and optimizer alone "
            f"take {1e3 * fixed * slowdown:.4g} ms"
        )
    return Limits(
        BackwardBudget(**{what: max(0.0, limit) for what, (limit, _) in tightest.items()}),
        {what: budget for what, (_, budget) in tightest.items()},
        note,
    )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_number(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} is {value!r:.70}, expected a number")


def _check_positive(what: str, value: float) -> None:
    _check_number(what, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{what} are {value}, expected a finite number of more than 0")
