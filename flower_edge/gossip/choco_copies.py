"""CHOCO-SGD with a memory for each link: for links that fail, between nodes that may be gone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from flower_edge.gossip._messages import Letter, in_step, seal, unseal
from flower_edge.gossip.codec import Vector
from flower_edge.gossip.compressed import CompressedMixer, Links
from flower_edge.gossip.compressor import Codec, Float32
from flower_edge.gossip.link_choco import MEMORY
from flower_edge.gossip.mixer import Doubt, State
from flower_edge.kernels import mix


@dataclass
class _Link:
    """What both ends of a link know.

    Attributes
    ----------
    epoch, exchanges : int
        How often the memories of the link were begun, and how many exchanges it has had since.
    apart : ndarray of float32 or None
        The neighbour's public copy less this node's, as far as both ends have heard of both; None for zeros.
        At the other end it is the same with the other sign, to the bit.
    owed : ndarray of float32 or None
        What this node has published and the neighbour has missed; None for zeros.
    """

    epoch: int = 0
    exchanges: int = 0
    apart: Vector | None = None
    owed: Vector | None = None

    @property
    def counts(self) -> tuple[int, int]:
        return self.epoch, self.exchanges

    def moved(self, moves: Vector) -> Vector:
        """Return how far the copies are apart after an exchange."""
        return moves if self.apart is None else self.apart + moves

    def count(self, moves: Vector) -> Vector:
        """Take note of an exchange; return how far the copies are apart."""
        self.apart = self.moved(moves)
        self.exchanges += 1
        return self.apart


@dataclass
class _Published:
    """What a node tells in a round, before it knows who hears."""

    move: Vector
    caught_up: dict[int, Vector]
    may_be_heard: bool = False

    def to(self, neighbour: int) -> Vector:
        missed = self.caught_up.get(neighbour)
        return self.move if missed is None else self.move + missed


class ChocoCopies(CompressedMixer):
    r"""CHOCO-SGD with the neighbours' copies kept apart (Koloskova, Stich, Jaggi, ICML 2019, algorithm 2).

    As long as no link fails it does what `ChocoSGD` does, in the same bytes. That one keeps a sum over all
    links, of which nothing can be taken back; this one keeps, for each link, how far the two public copies
    are apart as both ends know it: :math:`z_{ij} = \hat x_j - \hat x_i = -z_{ji}`. So a link that fails, for
    both ends, contributes nothing, even if the other end is not there to mix at all, and the mean of those
    that are is kept. What the neighbour has missed is sent along, as fp32, when it is back.

    Where the two ends of a link disagree on the number of its exchanges (a node that came back with an older
    state, or none), both see it, skip the round, and begin the memories of that link anew.

    A node remembers its public copy, a vector for each neighbour, and another one for each that has missed
    something.

    Parameters
    ----------
    node, plan, codec, gamma, start
        As for `CompressedMixer`; γ is `consensus_step` by default.
    memory : int, default 2**30
        Bytes that this node's memories may take.

    Raises
    ------
    ValueError
        As for `CompressedMixer`, if the plan has several phases, or if the memories could take more than
        `memory`.
    """

    algorithm = "copies"

    def __init__(
        self,
        node: int,
        plan: Links,
        codec: Codec,
        gamma: float | None = None,
        start: Vector | None = None,
        memory: int = MEMORY,
    ) -> None:
        if len(plan.phases) > 1:
            raise ValueError(
                f"the plan has {len(plan.phases)} phases, and all neighbours of ChocoCopies have to hear of "
                "all moves: use LinkChoco, or a plan with mode='static'"
            )
        super().__init__(node, plan, codec, gamma, start)
        neighbours = plan.neighbours(node, 0)
        if (needed := 4 * codec.size * (1 + 2 * len(neighbours))) > memory:
            raise ValueError(
                f"node {node} has {len(neighbours)} neighbours, with whom its memories may take {needed} "
                f"bytes, more than {memory}: use a plan with fewer links, DeepSqueeze, which keeps one "
                "vector, or allow more memory"
            )
        self._whole = Float32().codec(codec.layout)
        self._public = np.zeros(codec.size, np.float32) + self.start
        self._links = {j: _Link() for j in neighbours}
        self._published: _Published | None = None

    @property
    def largest_message(self) -> int:
        """The most bytes that a neighbour sends: something new, and all that was missed."""
        return super().largest_message + self._whole.largest_message

    def read(self, message: bytes) -> list[Vector]:
        """Return what is new, and what was missed; see `Mixer.read`."""
        return self._vectors(unseal(message, self.algorithm))

    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, bytes]:
        """Return the move of the public copy, and for some what they have missed; see `Mixer.outgoing`."""
        self._published = None
        if not neighbours:
            return {}
        links = {j: self._link(j) for j in neighbours}
        payload, move = self.compressed(model - self._public)
        caught_up = {j: link.owed for j, link in links.items() if link.owed is not None}
        self._published = _Published(move, caught_up)
        letters: dict[int, bytes] = {}
        for j, link in links.items():
            catch_up = self._whole.encode(caught_up[j]) if j in caught_up else b""
            letters[j] = seal(Letter(self.algorithm, *link.counts, catch_up, payload))
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
        theirs = {j: self._sum(letter) for j, letter in letters.items()}
        published, self._published = self._published, None
        out = np.empty_like(model) if out is None else out
        if published is None or not (letters or published.may_be_heard):
            out[:] = model
            return out
        self._publish(published.move, heard=letters)
        vectors, weights = [model], [1.0]
        for j, letter in letters.items():
            link = self._link(j)
            if not in_step(letter, link.counts):
                self._begin(j, letter.epoch)
                continue
            vectors.append(link.count(theirs[j] - published.to(j)))
            weights.append(self.gamma * row[j])
        return mix(out, vectors, weights)

    def in_doubt(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, bytes],
        neighbour: int,
        message: bytes,
    ) -> Doubt:
        """Return what a neighbour's message changes if its link counts; see `Mixer.in_doubt`."""
        letter, link, published = unseal(message, self.algorithm), self._link(neighbour), self._published
        if published is None:
            raise ValueError(f"nothing was sent to node {neighbour}, expected `outgoing` before")
        published.may_be_heard = True
        if not in_step(letter, link.counts):
            return Doubt(np.zeros_like(model), {"epoch": np.array([letter.epoch])})
        ours = published.to(neighbour)
        moves = self._sum(letter) - ours
        change = np.float32(self.gamma * row[neighbour]) * link.moved(moves)
        return Doubt(change, {"moves": moves, "heard": ours.copy()})

    def settle(self, neighbour: int, doubt: Doubt) -> None:
        """Move the memories of a link that counted after all; see `Mixer.settle`."""
        if (link := self._links.get(neighbour)) is None:
            return
        if "moves" in doubt.memories:
            link.count(doubt.memories["moves"].copy())
            link.owed = (0 if link.owed is None else link.owed) - doubt.memories["heard"]
        else:
            self._begin(neighbour, int(doubt.memories["epoch"][0]))

    def state(self) -> State:
        """Return all memories, and the counts; see `Mixer.state`."""
        links = [[j, *link.counts] for j, link in self._links.items()]
        apart = {f"apart/{j}": link.apart for j, link in self._links.items() if link.apart is not None}
        owed = {f"owed/{j}": link.owed for j, link in self._links.items() if link.owed is not None}
        return {
            "public": self._public,
            "draws": np.array([[self._draws]]),
            "links": np.array(links, np.int64).reshape(-1, 3),
            **apart,
            **owed,
        }

    def restore(self, state: State) -> None:
        """Take over a state; see `Mixer.restore`. Links that this plan lacks are forgotten."""
        links = self.check_links(state, ["apart", "owed"])
        # A link that has had exchanges has a distance.
        apart = {f"apart/{j}" for j, (_, exchanges) in links.items() if exchanges}
        owed = state.keys() & {f"owed/{j}" for j in links}
        self.check_names(state, ["public", "draws", "links", *apart, *owed])
        self.check_vectors(state, ["public"])
        ((draws,),) = self.check_counts(state, "draws", 1)
        self._draws, self._public = draws, state["public"].copy()
        for j in self._links:
            if j in links:
                epoch, exchanges = links[j]
                self._links[j] = _Link(epoch, exchanges, _copy(state, "apart", j), _copy(state, "owed", j))
            else:
                self._links[j] = _Link(owed=self._since_start())

    # ---------------------------------------------------------------- links

    def _link(self, neighbour: int) -> _Link:
        if neighbour not in self._links:
            raise KeyError(
                f"node {self.node} has no link to {neighbour} in this plan, but to {sorted(self._links)}"
            )
        return self._links[neighbour]

    def _begin(self, neighbour: int, their_epoch: int) -> None:
        """Begin the memories of a link anew, as the other end does in the same round."""
        epoch = max(self._links[neighbour].epoch, their_epoch) + 1
        self._links[neighbour] = _Link(epoch, owed=self._since_start())

    def _since_start(self) -> Vector | None:
        """Return what a neighbour has missed that has heard of nothing."""
        missed = self._public - self.start
        return missed if missed.any() else None

    def _publish(self, move: Vector, heard: Collection[int]) -> None:
        """Move the public copy, and remember what those who did not hear have missed."""
        self._public += move
        for j, link in self._links.items():
            if j in heard:
                link.owed = None
            else:
                link.owed = move.copy() if link.owed is None else link.owed + move

    def _vectors(self, letter: Letter) -> list[Vector]:
        caught_up = [self._whole.decode(letter.catch_up)] if len(letter.catch_up) else []
        return [self.codec.decode(letter.payload), *caught_up]

    def _sum(self, letter: Letter) -> Vector:
        vectors = self._vectors(letter)
        return vectors[0] if len(vectors) == 1 else vectors[0] + vectors[1]


def _copy(state: State, kind: str, neighbour: int) -> Vector | None:
    found = state.get(f"{kind}/{neighbour}")
    return None if found is None else found.copy()
