"""The models of all nodes of a hosted gossip, and their mixing."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import Arrays, Carried, Layout, Vector, is_finite
from flower_edge.gossip.mixer import Mixer
from flower_edge.gossip.plan import GossipPlan
from flower_edge.kernels import mix
from flower_edge.strategies.stretches import Stretch, stretches

Matrix = npt.NDArray[np.float32]


class Fleet:
    """One model per node, one `Mixer` per node, and the plan that says who mixes with whom.

    Parameters
    ----------
    plan : GossipPlan
        Mixing matrices for `plan.n` nodes.
    initial : mapping of str to ndarray
        The model that every node starts from.
    mixer : callable
        Makes a node's `Mixer` from its index.
    """

    def __init__(self, plan: GossipPlan, initial: Arrays, mixer: Callable[[int], Mixer]) -> None:
        self.plan = plan
        self.layout = Layout.of(initial)
        vector, carried = self.layout.flatten(initial)
        if not is_finite(vector):
            raise ValueError(
                "the initial model has NaN or infinite parameters; gossip would spread them to every node"
            )
        self.models: Matrix = np.tile(vector, (plan.n, 1))
        self.carried: list[Carried] = [dict(carried) for _ in range(plan.n)]
        self._mixers = [mixer(node) for node in range(plan.n)]
        self._next = np.empty_like(self.models)

    def arrays(self, node: int) -> dict[str, npt.NDArray[np.generic]]:
        """Return the named arrays of one node's model, as views."""
        return self.layout.unflatten(self.models[node], self.carried[node])

    def update(self, node: int, arrays: Arrays, *, partial: bool = False) -> None:
        """Take over a node's locally trained model.

        Parameters
        ----------
        node : int
            Its index in the plan.
        arrays : mapping of str to ndarray
            What it has trained.
        partial : bool, default False
            Whether arrays may be absent; they are then what `arrays` of this object gave for the node.

        Raises
        ------
        ValueError
            If names, shapes or dtypes differ from the initial model's, or a parameter is NaN or infinite.
            The node's model is then what it was.
        """
        if partial:
            self.layout.check_known(arrays)
            arrays = {**self.arrays(node), **arrays}
        # The row of the next models is scratch until mix(): what is rejected never touches the node's own.
        trained, carried = self.layout.flatten(arrays, out=self._next[node])
        if not is_finite(trained):
            raise ValueError("NaN or infinite parameters")
        self.models[node] = trained
        self.carried[node] = carried

    def mix(
        self,
        server_round: int,
        live: Collection[int],
        trained: Mapping[int, Collection[str]] | None = None,
    ) -> tuple[Stretch, ...]:
        """Mix the models of `live` nodes by W(t).

        A node that is not live keeps its model and both ends of its links take their weight back, so that
        the matrix which acts is symmetric and doubly stochastic and the mean of all models is kept.

        Parameters
        ----------
        server_round : int
            t.
        live : collection of int
            The nodes that take part.
        trained : mapping of int to collection of str, optional
            For each live node, the names of the arrays that it mixes, all by default. For any other array
            the node is as one that is not live, so that each array has a matrix of its own. Needs mixers
            that are `separable`.

        Returns
        -------
        tuple of Stretch
            What has been mixed among whom.
        """
        parts = tuple(stretches(self.layout, live, trained))
        outgoing = {node: self._mixers[node].outgoing(self.models[node]) for node in live}
        for node, model in enumerate(self.models):
            row = self.plan.row(node, server_round)
            for part in parts:
                here = slice(part.start, part.stop)
                neighbours = [j for j in row if j in part.live and j != node] if node in part.live else []
                received = {j: outgoing[j][here] for j in neighbours}
                self._mixers[node].mix(model[here], row, received, out=self._next[node][here])
        self.models, self._next = self._next, self.models
        return parts

    def mean(self) -> Vector:
        """Return the average of all models, shape (d,)."""
        average = np.empty(self.layout.size, np.float32)
        return mix(average, list(self.models), [1.0 / self.plan.n] * self.plan.n)

    def consensus_distance(self, mean: Vector) -> float:
        """Return √(1/n Σ_i ‖x_i − x̄‖²), how far the models are from their mean (Kong et al., ICML 2021)."""
        squares = 0.0
        for model in self.models:
            offset = model - mean
            squares += float(np.dot(offset, offset))
        return float(np.sqrt(squares / self.plan.n))
