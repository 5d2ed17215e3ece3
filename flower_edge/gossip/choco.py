"""CHOCO-SGD: compressed differences to public copies, remembered in two vectors at any number of links."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from flower_edge.gossip._messages import Letter, seal, unseal
from flower_edge.gossip.codec import Vector
from flower_edge.gossip.compressed import CompressedMixer, Links
from flower_edge.gossip.compressor import Codec, Float32
from flower_edge.gossip.mixer import State
from flower_edge.kernels import mix

PATIENCE = 8
"""Rounds that a link may fail one after the other before all memories begin anew."""


@dataclass
class _Link:
    """What a node knows of a link since the memories began.

    Attributes
    ----------
    exchanges : int
        How often both ends heard each other.
    failures : int
        How many rounds the link has failed since the last of them.
    owed : ndarray of float32 or None
        What this node has published and the neighbour has missed since its first exchange. Before that, the
        neighbour has missed all of the public copy.
    """

    exchanges: int = 0
    failures: int = 0
    owed: Vector | None = None


@dataclass
class _Published:
    """What a node tells in a round, before it knows who hears."""

    move: Vector
    caught_up: dict[int, Vector]


class ChocoSGD(CompressedMixer):
    r"""CHOCO-SGD for a plan of one phase (Koloskova, Stich, Jaggi, ICML 2019, algorithm 2).

    Each node has a public copy :math:`\hat x_i` of its model, moves it by :math:`q_i = C(x_i - \hat x_i)`,
    and sends :math:`q_i`; then :math:`x_i ← x_i + γ \sum_j W_{ij} (\hat x_j - \hat x_i)`. What C loses stays
    in the next difference, so that the models come together linearly and exactly, whatever C. The sum is
    remembered in place of the copies: two vectors at any number of links.

    *A link that fails*, for both ends, keeps pulling with what it knew last, and so keeps the mean. What the
    neighbour has missed is remembered (one vector for each such link) and sent along, as fp32, when it is
    back. If a link stays away for more than `PATIENCE` rounds, its pull has to end, and a sum cannot be taken
    apart: the two ends then begin all memories anew, and so do the others as they hear of it, a hop a round.
    The same heals memories that disagree (a message that one end alone has counted, a node that came back
    without its state): messages carry the number of exchanges of their link, and the epoch, the number
    of beginnings. Beginning anew moves the mean once, by at most γ/n Σ_i ‖Σ_j W_ij (x̂_j − x̂_i)‖; the round
    of it passes without mixing. Where links fail often, `LinkChoco` is the better choice, and between boards
    `ChocoCopies`, since a node that is not there cannot pull.

    Parameters
    ----------
    node, plan, codec, gamma, start
        As for `CompressedMixer`; γ is `consensus_step` by default.

    Raises
    ------
    ValueError
        As for `CompressedMixer`, or if the plan has several phases.
    """

    algorithm = "choco"
    linkwise = False

    def __init__(
        self,
        node: int,
        plan: Links,
        codec: Codec,
        gamma: float | None = None,
        start: Vector | None = None,
    ) -> None:
        if len(plan.phases) > 1:
            raise ValueError(
                f"the plan has {len(plan.phases)} phases, and ChocoSGD remembers a sum over links whose "
                "weights stay: use LinkChoco, or a plan with mode='static'"
            )
        super().__init__(node, plan, codec, gamma, start)
        self._whole = Float32().codec(codec.layout)
        self._epoch = 0
        self._links = {j: _Link() for j in plan.neighbours(node, 0)}
        self._public = self._first_copy()
        self._pull = np.zeros(codec.size, np.float32)
        self._published: _Published | None = None

    @property
    def largest_message(self) -> int:
        """The most bytes that a neighbour sends: something new, and all that was missed."""
        return super().largest_message + self._whole.largest_message

    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, bytes]:
        """Return the move of the public copy, and for some what they have missed; see `Mixer.outgoing`."""
        self._published = None
        if not neighbours:
            return {}
        payload, move = self.compressed(model - self._public)
        caught_up = {j: missed for j in neighbours if (missed := self._missed(j)) is not None}
        self._published = _Published(move, caught_up)
        letters: dict[int, bytes] = {}
        for j in neighbours:
            catch_up = self._whole.encode(caught_up[j]) if j in caught_up else b""
            letters[j] = seal(Letter(self.algorithm, self._epoch, self._link(j).exchanges, catch_up, payload))
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
        vectors = {j: self._vectors(letter) for j, letter in letters.items()}
        published, self._published = self._published, None
        out = np.empty_like(model) if out is None else out
        if (epoch := self._next_epoch(letters, row)) != self._epoch:
            self._begin(epoch)
            out[:] = model
            return out
        # A neighbour of an earlier epoch begins anew in this round, and counts no exchange.
        heard = [j for j, letter in letters.items() if letter.epoch == self._epoch]
        self._note(published, heard)
        if published is not None and heard:
            self._move(published, {j: vectors[j] for j in heard}, row)
        return mix(out, [model, self._pull], [1.0, self.gamma])

    def read(self, message: bytes) -> list[Vector]:
        """Return what is new, and what was missed; see `Mixer.read`."""
        return self._vectors(unseal(message, self.algorithm))

    def state(self) -> State:
        """Return both memories, what is owed, and the counts; see `Mixer.state`."""
        owed = {f"owed/{j}": link.owed for j, link in self._links.items() if link.owed is not None}
        links = [[j, link.exchanges, link.failures] for j, link in self._links.items()]
        return {
            "public": self._public,
            "pull": self._pull,
            "counts": np.array([[self._draws, self._epoch]]),
            "links": np.array(links, np.int64).reshape(-1, 3),
            **owed,
        }

    def restore(self, state: State) -> None:
        """Take over a state; see `Mixer.restore`."""
        owed = state.keys() & {f"owed/{j}" for j in self._links}
        self.check_names(state, ["public", "pull", "counts", "links", *owed])
        self.check_vectors(state, ["public", "pull", *owed])
        ((draws, epoch),) = self.check_counts(state, "counts", 2)
        rows = self.check_counts(state, "links", 3)
        if [j for j, _, _ in rows] != list(self._links):
            raise ValueError(f"received links to {[j for j, _, _ in rows]}, expected {list(self._links)}")
        self._public, self._pull = state["public"].copy(), state["pull"].copy()
        self._draws, self._epoch = draws, epoch
        for j, exchanges, failures in rows:
            missed = state.get(f"owed/{j}")
            self._links[j] = _Link(exchanges, failures, None if missed is None else missed.copy())

    # ---------------------------------------------------------------- links

    def _link(self, neighbour: int) -> _Link:
        if neighbour not in self._links:
            raise KeyError(
                f"node {self.node} has no link to {neighbour} in this plan, but to {sorted(self._links)}"
            )
        return self._links[neighbour]

    def _missed(self, neighbour: int) -> Vector | None:
        link = self._link(neighbour)
        if link.exchanges == 0:
            missed = self._public - self.start
            return missed if missed.any() else None
        return link.owed

    def _vectors(self, letter: Letter) -> list[Vector]:
        caught_up = [self._whole.decode(letter.catch_up)] if len(letter.catch_up) else []
        return [self.codec.decode(letter.payload), *caught_up]

    def _next_epoch(self, letters: Mapping[int, Letter], row: Mapping[int, float]) -> int:
        newest = max([self._epoch, *(letter.epoch for letter in letters.values())])
        if newest > self._epoch:
            return newest
        out_of_step = any(
            letter.epoch == self._epoch and letter.exchanges != self._link(j).exchanges
            for j, letter in letters.items()
        )
        gone = any(
            link.exchanges and link.failures >= PATIENCE and j in row and j not in letters
            for j, link in self._links.items()
        )
        return self._epoch + (out_of_step or gone)

    def _first_copy(self) -> Vector:
        return np.zeros(self.codec.size, np.float32) + self.start

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._public = self._first_copy()
        self._pull[:] = 0
        self._links = {j: _Link() for j in self._links}

    # ---------------------------------------------------------------- a round

    def _note(self, published: _Published | None, heard: Collection[int]) -> None:
        """Count the exchanges, and remember what those who did not hear have missed."""
        for j, link in self._links.items():
            if j in heard:
                self._links[j] = _Link(link.exchanges + 1)
                continue
            link.failures += 1
            if published is not None and heard and link.exchanges:
                link.owed = published.move + (0 if link.owed is None else link.owed)

    def _move(
        self, published: _Published, heard: Mapping[int, list[Vector]], row: Mapping[int, float]
    ) -> None:
        """Move the public copy, and the sum of Σ_j W_ij (x̂_j − x̂_i) as far as both ends have heard."""
        vectors, weights = [self._pull, published.move], [1.0, -math.fsum(row[j] for j in heard)]
        for j, theirs in heard.items():
            ours = [published.caught_up[j]] if j in published.caught_up else []
            vectors += [*theirs, *ours]
            weights += [row[j]] * len(theirs) + [-row[j]] * len(ours)
        mix(self._pull, vectors, weights)
        self._public += published.move
