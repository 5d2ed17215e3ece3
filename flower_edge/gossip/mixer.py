"""Gossip algorithms, seen from one node."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import Vector
from flower_edge.kernels import mix

Message = TypeVar("Message")
State: TypeAlias = dict[str, npt.NDArray[Any]]


class Doubt(NamedTuple):
    """What follows if a link counted in a round that is over: one end counted it, the other cannot know.

    Attributes
    ----------
    change : ndarray of float32, shape (d,)
        To be added to the model.
    memories : dict of str to ndarray
        For `Mixer.settle`.
    """

    change: Vector
    memories: State


class Mixer(ABC, Generic[Message]):
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
    linkwise : bool, default False
        Whether a link that fails contributes nothing, and one in doubt can be settled later, though something
        is remembered. A property of the class. Sessions between boards need this or `memoryless`.
    """

    separable: ClassVar[bool] = False
    memoryless: ClassVar[bool] = False
    linkwise: ClassVar[bool] = False

    def __init__(self, node: int) -> None:
        self.node = node

    @property
    def codec_name(self) -> str:
        """What both ends of a link have to agree on: in which codec messages are."""
        return "fp32"

    @property
    def terms(self) -> str:
        """All that both ends of a link have to agree on, in ASCII; the codec's name unless overridden."""
        return self.codec_name

    @abstractmethod
    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, Message]:
        """Return what this node sends to each neighbour of the round.

        Parameters
        ----------
        model : ndarray of float32, shape (d,)
            This node's model after its local training.
        neighbours : collection of int
            Who shall hear of it. Whether they did shows in the `mix` that follows.

        Returns
        -------
        dict of int to Message
            A vector, which travels as fp32, or the bytes that travel. Often the same object for all.
        """

    @abstractmethod
    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, Message],
        out: Vector | None = None,
    ) -> Vector:
        """Average this node's model with what arrived from its neighbours.

        Parameters
        ----------
        model : ndarray of float32, shape (d,)
            This node's model after its local training.
        row : mapping of int to float
            This node's row of W(t): the weight of every neighbour and of the node itself; it sums to one.
        received : mapping of int to Message
            The neighbours' `outgoing` to this node of this round. The weight of a neighbour that is not there
            returns to this node.
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
        ValueError
            If a message is none of this algorithm, codec and model. Nothing has changed then.
        """

    def read(self, message: Message) -> Sequence[Vector]:
        """Return the vectors that a message brings, so that they can be looked at before it counts.

        Raises
        ------
        ValueError
            If it is none of this algorithm, codec and model.
        """
        return [cast(Vector, message)]

    def in_doubt(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, Message],
        neighbour: int,
        message: Message,
    ) -> Doubt:
        """Return what a neighbour's message changes if its link counts, which this end will learn later.

        Called after `outgoing`, and before the `mix` that does without the message. Until the doubt is
        settled nothing is exchanged with the neighbour. If it turns out that the link failed, nothing is to
        be done.

        Parameters
        ----------
        model, row
            As in `mix`.
        received : mapping of int to Message
            What certainly counts.
        neighbour : int
            Whose link is in doubt.
        message : Message
            What it has sent.
        """
        if not self.memoryless:
            raise NotImplementedError(f"{type(self).__name__} cannot settle a link after its round")
        without = self.mix(model, row, received)
        return Doubt(self.mix(model, row, {**received, neighbour: message}) - without, {})

    def settle(self, neighbour: int, doubt: Doubt) -> None:
        """Take note that a link counted after all; the caller adds `Doubt.change` to the model."""

    def state(self) -> State:
        """Return what is remembered from one round to the next, as arrays by name; nothing by default.

        The arrays are the mixer's own: to be written away, not changed.
        """
        return {}

    def restore(self, state: State) -> None:
        """Take over what `state` returned at the end of some round.

        Raises
        ------
        ValueError
            If it is not what this mixer remembers. The mixer is then what it was.
        """
        if state:
            raise ValueError(f"{type(self).__name__} remembers nothing, received {sorted(state)}")

    def present(self, row: Mapping[int, float], received: Collection[int]) -> list[int]:
        """Return the neighbours of a row from which something arrived; parameters and errors as in `mix`."""
        if self.node not in row:
            raise KeyError(f"the row has weights for nodes {sorted(row)}, none for node {self.node} itself")
        if strangers := set(received) - row.keys():
            raise KeyError(
                f"received models from {sorted(strangers)}; node {self.node} mixes with {sorted(row)}"
            )
        return [j for j in row if j in received and j != self.node]


class DPSGD(Mixer[Vector]):
    """Decentralised parallel SGD: x_i ← Σ_j W_ij (x_j − η g_j) (Lian et al., NeurIPS 2017, Algorithm 1).

    The local step comes first; what is mixed, and sent, is the trained model.
    """

    separable = True
    memoryless = True

    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, Vector]:
        """Return the trained model itself, for each."""
        return dict.fromkeys(neighbours, model)

    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, Vector],
        out: Vector | None = None,
    ) -> Vector:
        """Return the weighted average of `model` and `received`; see `Mixer.mix`."""
        neighbours = self.present(row, received)
        # What is not given away stays here: absent neighbours' weight included, and the sum is one whatever
        # was rounded.
        own_weight = 1.0 - sum(row[j] for j in neighbours)
        out = np.empty_like(model) if out is None else out
        mix(out, [model, *(received[j] for j in neighbours)], [own_weight, *(row[j] for j in neighbours)])
        return out
