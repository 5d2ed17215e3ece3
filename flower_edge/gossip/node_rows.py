"""What one node knows of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NodeRows:
    """One node's rows of W(t), in the place of a plan that a board has not got.

    Parameters
    ----------
    node : int
    rows : sequence of mapping of int to float
        The node's row in each phase; round t uses ``rows[t % len(rows)]``.
    """

    node: int
    rows: Sequence[Mapping[int, float]]

    @property
    def n(self) -> int:
        """Number of nodes, as far as this one knows: of those up to the last that it has a link to."""
        return 1 + max(self.node, *(j for row in self.rows for j in row))

    @property
    def phases(self) -> Sequence[Mapping[int, float]]:
        """One entry for each phase."""
        return self.rows

    def neighbours(self, node: int, t: int) -> list[int]:
        """Return the neighbours of this node in round `t`.

        Raises
        ------
        ValueError
            For another node.
        """
        if node != self.node:
            raise ValueError(f"received node {node}, expected {self.node}: these are its rows alone")
        return [j for j in self.rows[t % len(self.rows)] if j != node]
