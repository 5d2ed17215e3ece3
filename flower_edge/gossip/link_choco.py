"""Compressed gossip with a reference for each link: for weights that change, and links that fail."""

from collections.abc import Collection, Mapping

import numpy as np

from flower_edge.gossip._messages import Letter, in_step, seal, unseal
from flower_edge.gossip.codec import Vector
from flower_edge.gossip.compressed import CompressedMixer, Links
from flower_edge.gossip.compressor import Codec
from flower_edge.gossip.mixer import Doubt, State

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
    caught up with, and the mean is kept. Messages carry the number of exchanges of their link and its epoch,
    how often its reference was begun; if they disagree (a message that one end alone has counted, a node that
    came back without its state), both ends see it, skip the round and begin the reference anew. In return, a
    node keeps a vector for each of its neighbours in any round (CHOCO-SGD with weights that change would keep
    one more), and sends each neighbour a message of its own.

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
        plan: Links,
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
        self._counts = dict.fromkeys(sorted(neighbours), (0, 0))
        self._references: dict[int, Vector] = {}
        self._sent: dict[int, Vector] = {}

    @classmethod
    def default_gamma(cls, plan: Links, codec: Codec) -> float:
        """Return 1: the error of a link falls with the difference between its own ends."""
        return 1.0

    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, bytes]:
        """Return, for each, the compressed difference to the link's reference; see `Mixer.outgoing`."""
        self._sent = {}
        letters: dict[int, bytes] = {}
        for j in neighbours:
            if j not in self._counts:
                raise KeyError(f"node {self.node} has no link to {j} in this plan, but to {[*self._counts]}")
            payload, self._sent[j] = self.compressed(model - self._references.get(j, self.start))
            letters[j] = seal(Letter(self.algorithm, *self._counts[j], b"", payload))
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
            if not in_step(letters[j], self._counts[j]):
                self._begin(j, letters[j].epoch)
            elif (ours := self._sent.get(j)) is not None:
                # Alike at both ends, up to the sign, and to the bit: so is the sum below.
                out += self._share(row, j) * (theirs - ours)
                self._advance(j, ours + theirs)
        self._sent = {}
        return out

    def in_doubt(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, bytes],
        neighbour: int,
        message: bytes,
    ) -> Doubt:
        """Return what a neighbour's message changes if its link counts; see `Mixer.in_doubt`."""
        letter, ours = unseal(message, self.algorithm), self._sent[neighbour]
        if not in_step(letter, self._counts[neighbour]):
            return Doubt(np.zeros_like(model), {"epoch": np.array([letter.epoch])})
        theirs = self.codec.decode(letter.payload)
        return Doubt(self._share(row, neighbour) * (theirs - ours), {"moves": ours + theirs})

    def settle(self, neighbour: int, doubt: Doubt) -> None:
        """Move the reference of a link that counted after all; see `Mixer.settle`."""
        if neighbour not in self._counts:
            return
        if "moves" in doubt.memories:
            self._advance(neighbour, doubt.memories["moves"].copy())
        else:
            self._begin(neighbour, int(doubt.memories["epoch"][0]))

    def state(self) -> State:
        """Return the references, and the counts; see `Mixer.state`."""
        links = [[j, *counts] for j, counts in self._counts.items()]
        return {
            "draws": np.array([[self._draws]]),
            "links": np.array(links, np.int64).reshape(-1, 3),
            **{f"reference/{j}": reference for j, reference in self._references.items()},
        }

    def restore(self, state: State) -> None:
        """Take over a state; see `Mixer.restore`. Links that this plan lacks are forgotten."""
        links = self.check_links(state, ["reference"])
        names = {j: f"reference/{j}" for j, (_, exchanges) in links.items() if exchanges}
        self.check_names(state, ["draws", "links", *names.values()])
        ((draws,),) = self.check_counts(state, "draws", 1)
        self._draws = draws
        for j, (epoch, exchanges) in links.items():
            if j in self._counts:
                self._counts[j] = epoch, exchanges
        self._references = {j: state[name].copy() for j, name in names.items() if j in self._counts}

    def _share(self, row: Mapping[int, float], neighbour: int) -> np.float32:
        return np.float32(self.gamma * row[neighbour])

    def _begin(self, neighbour: int, their_epoch: int) -> None:
        """Begin a reference anew, as the other end does in the same round."""
        self._references.pop(neighbour, None)
        self._counts[neighbour] = max(self._counts[neighbour][0], their_epoch) + 1, 0

    def _advance(self, neighbour: int, moves: Vector) -> None:
        moves *= np.float32(0.5)
        if neighbour in self._references:
            self._references[neighbour] += moves
        else:
            self._references[neighbour] = moves + self.start
        epoch, exchanges = self._counts[neighbour]
        self._counts[neighbour] = epoch, exchanges + 1
