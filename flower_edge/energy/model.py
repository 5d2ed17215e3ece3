"""Modelled energy: counted operations and bytes times a published table. No sensor is read here."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EnergyTable:
    """What single operations cost on one kind of chip, by a publication.

    Parameters
    ----------
    name : str
        Short, for the heading of a column.
    source : str
        The publication.
    multiply_add : float
        J of a float32 multiplication and addition.
    memory_byte : tuple of (float, float)
        J of a byte that travels to or from main memory: the least and the most that is published.

    Raises
    ------
    ValueError
        If a figure is negative or not finite, or the least is more than the most.
    """

    name: str
    source: str
    multiply_add: float
    memory_byte: tuple[float, float]

    def __post_init__(self) -> None:
        least, most = self.memory_byte
        if not (0 <= self.multiply_add < math.inf and 0 <= least <= most < math.inf):
            raise ValueError(
                f"received {self.multiply_add} J a multiplication and addition and {self.memory_byte} J a "
                "byte, expected finite numbers, zero or more, the least before the most"
            )


@dataclass(frozen=True)
class Counts:
    """What a piece of work does, counted.

    Parameters
    ----------
    multiply_adds : int
        Multiplications with an addition, in float32.
    memory_bytes : int
        Bytes that travel to or from main memory.

    Raises
    ------
    ValueError
        If one is negative.
    """

    multiply_adds: int
    memory_bytes: int

    def __post_init__(self) -> None:
        if self.multiply_adds < 0 or self.memory_bytes < 0:
            raise ValueError(
                f"received {self.multiply_adds} multiply-adds and {self.memory_bytes} bytes, "
                "expected zero or more"
            )


@dataclass(frozen=True)
class Modelled:
    """Joules that a table says; `least` and `most` differ as its figures do.

    Attributes
    ----------
    least, most : float
        J.
    table : EnergyTable
        Which one.
    """

    least: float
    most: float
    table: EnergyTable

    def __str__(self) -> str:
        return f"{self.least:.3g} to {self.most:.3g} J (modelled: {self.table.name})"


HOROWITZ_45NM = EnergyTable(
    "Horowitz, 45 nm",
    "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014: at 45 nm and 0.9 V, "
    "float32 multiplication 3.7 pJ, addition 0.9 pJ, 64 bits from DRAM 1.3 to 2.6 nJ",
    multiply_add=3.7e-12 + 0.9e-12,
    memory_byte=(1.3e-9 / 8, 2.6e-9 / 8),
)
"""Arithmetic and memory alone: what a processor spends on instructions and idling is many times more."""


@dataclass(frozen=True)
class EnergyModel:
    """Turns counts into joules.

    `flower_edge.gossip.EnergyModel` is another matter: what a round of gossip costs each node of a fleet.

    Parameters
    ----------
    table : EnergyTable, default HOROWITZ_45NM
    """

    table: EnergyTable = HOROWITZ_45NM

    def of(self, counts: Counts) -> Modelled:
        """Return what the table says that `counts` cost."""
        arithmetic = counts.multiply_adds * self.table.multiply_add
        least, most = (arithmetic + counts.memory_bytes * joules for joules in self.table.memory_byte)
        return Modelled(least, most, self.table)
