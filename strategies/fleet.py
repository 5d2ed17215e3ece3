"""The models of all nodes of a hosted gossip, and their mixing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import Arrays, Carried, Layout, Vector, is_finite
from flower_edge.gossip.compressor import Compressor
from flower_edge.gossip.directed import DirectedPlan
from flower_edge.gossip.mixer import Mixer, State
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
        Makes a node's `Mixer` from its index; from its index, ``plan``, ``codec`` and ``start``, the
        initial model, if there is a compressor.
    compressor : Compressor, optional
        How what nodes send becomes bytes.

    Attributes
    ----------
    sent : ndarray of int64, shape (n,)
        Bytes that each node sent over its links in the last `mix`; *counted*, at the codec.
    received : ndarray of int64, shape (n,)
        And those that it received.
    compression : float
        Bytes sent in the last `mix` over those of the same models in fp32; 1 if nothing was.
    """

    def __init__(
        self,
        plan: GossipPlan | DirectedPlan,
        initial: Arrays,
        mixer: Callable[..., Mixer[Any]],
        compressor: Compressor | None = None,
    ) -> None:
        self.plan = plan
        self.layout = Layout.of(initial)
        vector, carried = self.layout.flatten(initial)
        if not is_finite(vector):
            raise ValueError(
                "the initial model has NaN or infinite parameters; gossip would spread them to every node"
            )
        self.models: Matrix = np.tile(vector, (plan.n, 1))
        self.carried: list[Carried] = [dict(carried) for _ in range(plan.n)]
        self._new_mixer = mixer
        self._arguments: dict[str, Any] = {}
        if compressor is not None:
            self._arguments = {"plan": plan, "codec": compressor.codec(self.layout), "start": vector}
        self.mixers = self._new_mixers()
        self.sent, self.received = np.zeros((2, plan.n), np.int64)
        self.compression = 1.0
        self._next = np.empty_like(self.models)

    @property
    def mixer_name(self) -> str:
        """The algorithm, and the codec of its messages."""
        return f"{type(self.mixers[0]).__name__}, {self.mixers[0].codec_name}"

    def restore(self, models: Matrix, carried: list[Carried], memories: Sequence[State]) -> None:
        """Take over what was in a checkpoint: the models, and the `Mixer.state` of each node.

        Raises
        ------
        ValueError
            If a state is not one of the node's mixer. The fleet is then what it was.
        """
        mixers = self._new_mixers()
        for mixer, memory in zip(mixers, memories, strict=True):
            mixer.restore(memory)
        self.models[:] = models
        self.carried = carried
        self.mixers = mixers

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
        rows = [self.plan.row(node, server_round) for node in range(self.plan.n)]
        alive = frozenset(live)
        outgoing = {
            node: self.mixers[node].outgoing(self.models[node], _neighbours(rows, node, alive))
            for node in live
        }
        self.sent, self.received = np.zeros((2, self.plan.n), np.int64)
        plain = 0
        for node, model in enumerate(self.models):
            for part in parts:
                here = slice(part.start, part.stop)
                received = {
                    j: _part(outgoing[j][node], here)
                    for j in _neighbours(rows, node, part.live)
                    # In a directed graph not everybody who is heard of hears.
                    if node in outgoing[j]
                }
                for j, message in received.items():
                    size = memoryview(message).nbytes
                    self.sent[j] += size
                    self.received[node] += size
                    plain += 4 * part.size
                self.mixers[node].mix(model[here], rows[node], received, out=self._next[node][here])
        self.models, self._next = self._next, self.models
        self.compression = int(self.sent.sum()) / plain if plain else 1.0
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

    def _new_mixers(self) -> list[Mixer[Any]]:
        return [self._new_mixer(node, **self._arguments) for node in range(self.plan.n)]


def _neighbours(rows: list[dict[int, float]], node: int, live: Collection[int]) -> list[int]:
    """Return the nodes with which a node exchanges: none unless it is live itself."""
    return [j for j in rows[node] if j in live and j != node] if node in live else []


def _part(message: Any, here: slice) -> Any:
    """Return a part of a vector; bytes are of a whole model, which is all that their mixers mix."""
    return message[here] if isinstance(message, np.ndarray) else message
