"""Compressed gossip with a reference for each link: for weights that change, and links that fail."""

from collections.abc import Collection, Mapping

import numpy as np

from flower_edge.gossip._messages import Letter, seal, unseal
from flower_edge.gossip.codec import Vector
from flower_edge.gossip.compressed import CompressedMixer
from flower_edge.gossip.compressor import Codec
from flower_edge.gossip.mixer import State
from flower_edge.gossip.plan import GossipPlan

MEMORY = 2**30
"""Bytes that a node's references may take unless it is told otherwise."""


class LinkChoco(CompressedMixer):
    r"""CHOCO-SGD's idea link by link: both ends move one reference :math:`z_{ij}` that they have in common.

    Over a link of the round, i sends :math:`q_i = C(x_i - z_{ij})` and j sends
    :math:`q_j = C(x_j - z_{ij})`. Both then know :math:`z_{ij} + q_i` and :math:`z_{ij} + q_j`: i moves by
    :math:`γ W_{ij} (q_j - q_i)`, j by the opposite, and the reference goes halfway between the two. As the
    models come together, so do the references with them, and what is sent becomes as small as what is left
    to say: like CHOCO-SGD, this converges linearly and exactly.

    It needs no weights that stay, so every plan will do, and no γ below 1 (docs/compression.md). A link that
    fails, for both ends, contributes nothing in that round, and its reference waits: nothing has to be
    caught up with, and the mean is kept. Messages carry the number of exchanges of their link; if they
    disagree (a message that one end alone has counted, a node that came back without its state), both ends
    see it, skip the round and begin the reference anew. In return, a node keeps a vector for each of its
    neighbours in any round (CHOCO-SGD with weights that change would keep one more), and sends each
    neighbour a message of its own.

    Parameters
    ----------
    node, plan, codec, gamma, start
        As for `CompressedMixer`; γ is 1 by default.
    memory : int, default 2**30
        Bytes that this node's references may take.

    Raises
    ------
    ValueError
        As for `CompressedMixer`, or if the references would take more than `memory`.
    """

    algorithm = "link"

    def __init__(
        self,
        node: int,
        plan: GossipPlan,
        codec: Codec,
        gamma: float | None = None,
        start: Vector | None = None,
        memory: int = MEMORY,
    ) -> None:
        super().__init__(node, plan, codec, gamma, start)
        neighbours = {j for t in range(len(plan.phases)) for j in plan.neighbours(node, t)}
        if (needed := 4 * codec.size * len(neighbours)) > memory:
            raise ValueError(
                f"node {node} has {len(neighbours)} neighbours, whose references take {needed} bytes, more "
                f"than {memory}: use a plan with fewer links, DeepSqueeze, which keeps one vector, or "
                "ChocoSGD with a static plan, or allow more memory"
            )
        self._exchanges = dict.fromkeys(sorted(neighbours), 0)
        self._references: dict[int, Vector] = {}
        self._sent: dict[int, Vector] = {}

    @classmethod
    def default_gamma(cls, plan: GossipPlan, codec: Codec) -> float:
        """Return 1: the error of a link falls with the difference between its own ends."""
        return 1.0

    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, bytes]:
        """Return, for each, the compressed difference to the link's reference; see `Mixer.outgoing`."""
        self._sent = {}
        letters: dict[int, bytes] = {}
        for j in neighbours:
            if j not in self._exchanges:
                raise KeyError(
                    f"node {self.node} has no link to {j} in this plan, but to {list(self._exchanges)}"
                )
            payload, self._sent[j] = self.compressed(model - self._references.get(j, self.start))
            letters[j] = seal(Letter(self.algorithm, 0, self._exchanges[j], b"", payload))
        return letters

    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, bytes],
        out: Vector | None = None,
    ) -> Vector:
        """Return the next model; see `Mixer.mix`."""
        letters = {j: unseal(received[j], self.algorithm) for j in self.present(row, received)}
        arrived = {j: self.codec.decode(letter.payload) for j, letter in letters.items()}
        out = np.empty_like(model) if out is None else out
        out[:] = model
        for j, theirs in arrived.items():
            if letters[j].exchanges != self._exchanges[j]:
                self._references.pop(j, None)
                self._exchanges[j] = 0
            elif (ours := self._sent.get(j)) is not None:
                # Alike at both ends, up to the sign, and to the bit: so is the sum below.
                out += np.float32(self.gamma * row[j]) * (theirs - ours)
                self._advance(j, ours + theirs)
        self._sent = {}
        return out

    def state(self) -> State:
        """Return the references, and the counts; see `Mixer.state`."""
        return {
            "draws": np.array([[self._draws]]),
            "links": np.array([*self._exchanges.items()], np.int64).reshape(-1, 2),
            **{f"reference/{j}": reference for j, reference in self._references.items()},
        }

    def restore(self, state: State) -> None:
        """Take over a state; see `Mixer.restore`."""
        known = {f"reference/{j}" for j in self._exchanges}
        self.check_names(state, ["draws", "links", *(state.keys() & known)])
        ((draws,),) = self.check_counts(state, "draws", 1)
        exchanges = {row[0]: row[1] for row in self.check_counts(state, "links", 2)}
        if list(exchanges) != list(self._exchanges):
            raise ValueError(f"received links to {list(exchanges)}, expected {list(self._exchanges)}")
        names = {f"reference/{j}": j for j, count in exchanges.items() if count}
        self.check_names(state, ["draws", "links", *names])
        self.check_vectors(state, names)
        self._draws, self._exchanges = draws, exchanges
        self._references = {j: state[name].copy() for name, j in names.items()}

    def _advance(self, neighbour: int, moves: Vector) -> None:
        moves *= np.float32(0.5)
        if neighbour in self._references:
            self._references[neighbour] += moves
        else:
            self._references[neighbour] = moves + self.start
        self._exchanges[neighbour] += 1
