"""Gossip algorithms, seen from one node."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from flower_edge.gossip.codec import Vector
from flower_edge.kernels import mix


class Mixer(ABC):
    """One node's side of a gossip algorithm.

    A board runs one; a hosted simulation runs one per node, with the same result. A mixer knows no
    transport: whoever drives it carries `outgoing` to the neighbours of the round and hands in what
    arrived. A link has to fail for both ends or for neither: then the matrix that acts stays symmetric and
    doubly stochastic, and the mean of all models is kept.

    Parameters
    ----------
    node : int
        This node's index in the mixing matrix.

    Attributes
    ----------
    separable : bool, default False
        Whether a model may be mixed in parts, each with neighbours of its own: `mix` treats every element
        alike, and remembers nothing from one call to the next. A property of the class.
    memoryless : bool, default False
        Whether nothing is remembered from one call to the next, so that a node can start again from its model
        alone. A property of the class.
    """

    separable: ClassVar[bool] = False
    memoryless: ClassVar[bool] = False

    def __init__(self, node: int) -> None:
        self.node = node

    def check(self, row: Mapping[int, float], received: Mapping[int, Vector]) -> None:
        """Raise the KeyError of `mix` if the row or what was received is not for this node."""
        if self.node not in row:
            raise KeyError(f"the row has weights for nodes {sorted(row)}, none for node {self.node} itself")
        if strangers := received.keys() - row.keys():
            raise KeyError(
                f"received models from {sorted(strangers)}; node {self.node} mixes with {sorted(row)}"
            )

    @abstractmethod
    def outgoing(self, model: Vector) -> Vector:
        """Return what this node sends to every neighbour of the round, for its locally trained `model`."""

    @abstractmethod
    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, Vector],
        out: Vector | None = None,
    ) -> Vector:
        """Average this node's model with what arrived from its neighbours.

        Parameters
        ----------
        model : ndarray of float32, shape (d,)
            This node's model after its local training.
        row : mapping of int to float
            This node's row of W(t): the weight of every neighbour and of the node itself; it sums to one.
        received : mapping of int to ndarray of float32, shape (d,)
            The neighbours' `outgoing` of this round. The weight of a neighbour that is not there returns to
            this node.
        out : ndarray of float32, shape (d,), optional
            Where to write; may be `model`. A new vector by default.

        Returns
        -------
        ndarray of float32, shape (d,)
            The node's next model.

        Raises
        ------
        KeyError
            If `row` has no entry for the node itself, or `received` one for a node that is no neighbour.
        """


class DPSGD(Mixer):
    """Decentralised parallel SGD: x_i ← Σ_j W_ij (x_j − η g_j) (Lian et al., NeurIPS 2017, Algorithm 1).

    The local step comes first; what is mixed, and sent, is the trained model.
    """

    separable = True
    memoryless = True

    def outgoing(self, model: Vector) -> Vector:
        """Return the trained model itself."""
        return model

    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, Vector],
        out: Vector | None = None,
    ) -> Vector:
        """Return the weighted average of `model` and `received`; see `Mixer.mix`."""
        self.check(row, received)
        neighbours = [j for j in row if j in received and j != self.node]
        # What is not given away stays here: absent neighbours' weight included, and the sum is one whatever
        # was rounded.
        own_weight = 1.0 - sum(row[j] for j in neighbours)
        out = np.empty_like(model) if out is None else out
        mix(out, [model, *(received[j] for j in neighbours)], [own_weight, *(row[j] for j in neighbours)])
        return out
