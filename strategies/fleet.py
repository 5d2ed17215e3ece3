"""The models of all nodes of a hosted gossip, and their mixing."""

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import Arrays, Carried, Layout, Vector, is_finite
from flower_edge.gossip.mixer import Mixer
from flower_edge.gossip.plan import GossipPlan
from flower_edge.kernels import mix

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

    def update(self, node: int, arrays: Arrays) -> None:
        """Take over a node's locally trained model.

        Raises
        ------
        ValueError
            If names, shapes or dtypes differ from the initial model's, or a parameter is NaN or infinite.
            The node's model is then what it was.
        """
        # The row of the next models is scratch until mix(): what is rejected never touches the node's own.
        trained, carried = self.layout.flatten(arrays, out=self._next[node])
        if not is_finite(trained):
            raise ValueError("NaN or infinite parameters")
        self.models[node] = trained
        self.carried[node] = carried

    def mix(self, server_round: int, live: Collection[int]) -> None:
        """Mix the models of `live` nodes by W(t).

        A node that is not live keeps its model and both ends of its links take their weight back, so that
        the matrix which acts is symmetric and doubly stochastic and the mean of all models is kept.
        """
        live = frozenset(live)
        outgoing = {node: self._mixers[node].outgoing(self.models[node]) for node in live}
        for node, model in enumerate(self.models):
            row = self.plan.row(node, server_round)
            received = {j: outgoing[j] for j in row if j in live and j != node} if node in live else {}
            self._mixers[node].mix(model, row, received, out=self._next[node])
        self.models, self._next = self._next, self.models

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

    def live_links(self, server_round: int, live: Collection[int]) -> npt.NDArray[np.int64]:
        """Return the links of W(t) whose two ends are live, shape (m, 2)."""
        links = self.plan.phase(server_round).links
        alive = np.zeros(self.plan.n, bool)
        alive[list(live)] = True
        return links[alive[links].all(axis=1)]
