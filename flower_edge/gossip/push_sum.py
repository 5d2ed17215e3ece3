"""Push-sum with running sums: averages over links that go one way, and lose what they like."""

import math
import os
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import Vector, is_finite
from flower_edge.gossip.compressor import CodecError, Payload
from flower_edge.gossip.directed import DirectedPlan
from flower_edge.gossip.mixer import Mixer, State

_HEADER = struct.Struct("<4sB3xIId")
"""Magic, version, life, how many rounds ago the sum began, running sum of the weight; the running sum of the
model follows, in fp32."""

_MAGIC = b"FEps"
_VERSION = 2

HELD_BACK = 0.1
"""A node of less weight gives nothing away. It has heard of too few for too long, and of what it has left,
the rounding of sums in fp32 would be too much."""

_LEAST_WEIGHT = 0.01

_APART = 2
"""Rounds that a sender may be ahead of a receiver that has begun with it."""


@dataclass
class _Sums:
    """What has been given to a neighbour since the beginning, or got from it.

    Attributes
    ----------
    life : int
        Whose beginning: a node that lost its memory begins a new one.
    began : int
        The round of the life of whoever keeps this in which the first share was given; below 1 if that was
        before its life.
    weight : float
    vector : ndarray of float32, shape (d,)
    """

    life: int
    began: int
    weight: float
    vector: Vector


class PushSum(Mixer[bytes]):
    r"""Push-sum whose messages are running sums (Hadjicostis, Vaidya, Domínguez-García, 2016).

    Each node has a mass :math:`y_i`, which begins as its model, and a weight :math:`w_i`, which begins as 1;
    its model is :math:`y_i / w_i`. In each round it gives equal shares of both to itself and to all nodes
    that it sends to. It does not send a share, but the sum :math:`σ_{ij}` of all that it ever gave to j; j
    remembers the last sum :math:`ρ_{ij}` that it has read, and gains the difference. So whatever a lost
    message held arrives with the next one that does, without any answer: masses and weights, with those that
    are under way, always add up to what they began as, and the models converge to the mean of all. What
    training changes is added to the mass, as in stochastic gradient push (Assran, Loizou, Ballas, Rabbat,
    ICML 2019).

    Sums travel as fp32, and a share is what they differ by after rounding: no mass is lost to that. But sums
    grow from round to round, and their rounding with them: after t rounds a share is off by about
    t · 6 · 10⁻⁸ / (1 + number of receivers) of the model, and so far apart models may stay.

    A node that comes back with an older state is made up for, too; one that lost its state begins a new life
    with a mass and a weight of its own, beside those that it gave away before. What others gave to its former
    life is gone with that: of a sum that began before its own life, it gains what is given from then on.
    Whether a sum did follows from the rounds that both have counted.

    Parameters
    ----------
    node : int
    plan : DirectedPlan
        Equal at all nodes.

    Raises
    ------
    ValueError
        If the node is none of the plan's.
    """

    one_way = True

    def __init__(self, node: int, plan: DirectedPlan) -> None:
        super().__init__(node)
        if not 0 <= node < plan.n:
            raise ValueError(f"received node {node}, expected 0 to {plan.n - 1}")
        self.receivers = plan.receivers(node)
        self.senders = plan.senders(node)
        self.weight = 1.0
        self._share = plan.row(node, 0)[node]
        self._life = int.from_bytes(os.urandom(4), "little")
        self._rounds = 0
        self._mass: npt.NDArray[np.float64] | None = None
        self._model: Vector | None = None
        self._given: dict[int, _Sums] = {}
        self._got: dict[int, _Sums] = {}

    @property
    def terms(self) -> str:
        """The algorithm."""
        return "push-sum, fp32"

    @staticmethod
    def largest_message(elements: int) -> int:
        """Return the bytes of a message about so many elements."""
        return _HEADER.size + 4 * elements

    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, bytes]:
        """Return the running sums, for those among the neighbours that this node sends to."""
        mass = self._with_training(model)
        self._rounds += 1
        part = self._share if self.weight > HELD_BACK else 0.0
        share, weight = part * mass, part * self.weight
        messages: dict[int, bytes] = {}
        for j in self.receivers:
            if j not in neighbours:
                continue
            before = self._given.get(j, _no_share(self._life, self._rounds, len(model)))
            after = replace(
                before, weight=before.weight + weight, vector=(before.vector + share).astype(np.float32)
            )
            # What is given is what the receiver will read, not what was meant.
            mass -= after.vector.astype(np.float64) - before.vector
            self.weight -= after.weight - before.weight
            self._given[j] = after
            header = _HEADER.pack(_MAGIC, _VERSION, after.life, self._rounds - after.began, after.weight)
            messages[j] = header + np.ascontiguousarray(after.vector, "<f4").tobytes()
        return messages

    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, bytes],
        out: Vector | None = None,
    ) -> Vector:
        """Return the model with what was gained; see `Mixer.mix`. The row says who there is, no weights."""
        sums = {j: self._sums(received[j]) for j in self.present(row, received)}
        if strangers := sums.keys() - set(self.senders):
            raise KeyError(
                f"received sums from {sorted(strangers)}; node {self.node} hears of {self.senders}"
            )
        mass = self._with_training(model)
        for j, now in sums.items():
            before = self._got.get(j)
            if before is None or before.life != now.life:
                before = now if now.began < 1 - _APART else _no_share(now.life, now.began, len(model))
            gained = now.weight - before.weight
            # An older state of the sender takes back what it gave; never so much that nothing is left.
            if self.weight + gained > _LEAST_WEIGHT:
                mass += now.vector.astype(np.float64) - before.vector
                self.weight += gained
                self._got[j] = now
        self._model = (mass / self.weight).astype(np.float32)
        out = np.empty_like(model) if out is None else out
        out[:] = self._model
        return out

    def missed(self, rounds: int) -> None:
        """Take note of rounds that the others have done in this node's life, and this node has not."""
        self._rounds += rounds

    def read(self, message: bytes) -> list[Vector]:
        """Return the running sum of a message; see `Mixer.read`."""
        return [self._sums(message).vector]

    def state(self) -> State:
        """Return the mass and all sums; see `Mixer.state`."""
        if self._mass is None or self._model is None:
            return {}
        state: State = {"mass": self._mass.copy(), "weight": np.array([self.weight]), "model": self._model}
        for kind, sums in (("given", self._given), ("got", self._got)):
            lives = [[j, s.life, s.began] for j, s in sums.items()]
            state[f"{kind}-lives"] = np.array(lives, np.int64).reshape(-1, 3)
            state[f"{kind}-weights"] = np.array([s.weight for s in sums.values()], np.float64)
            state |= {f"{kind}/{j}": s.vector for j, s in sums.items()}
        state["life"] = np.array([[self._life, self._rounds]])
        return state

    def restore(self, state: State) -> None:
        """Take over a state; see `Mixer.restore`."""
        if not state:
            return
        if "life" in state and state["life"].shape == (1, 1):
            raise ValueError(
                "received memories of PushSum without rounds, of an earlier release, expected those of this "
                "one: remove the file, and this node begins anew"
            )
        try:
            mass, model = state["mass"], state["model"]
            weight, ((life, rounds),) = float(state["weight"][0]), state["life"].tolist()
            given, got = (_restored(state, kind, model.shape) for kind in ("given", "got"))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"received the memories {sorted(state)}, expected those of PushSum: {error}"
            ) from error
        vectors = [mass, model, *(s.vector for s in [*given.values(), *got.values()])]
        if (
            any(v.shape != model.shape or not np.isfinite(v).all() for v in vectors)
            or not 0 < weight < math.inf
        ):
            raise ValueError("received memories of several sizes, or not finite, expected those of PushSum")
        if given.keys() - set(self.receivers) or got.keys() - set(self.senders):
            raise ValueError(
                f"received sums of {sorted({*given, *got})}, expected {self.receivers} and {self.senders}"
            )
        self._mass, self._model = mass.astype(np.float64), model.copy()
        self.weight, self._life, self._rounds = weight, life, rounds
        self._given, self._got = given, got

    def _with_training(self, model: Vector) -> npt.NDArray[np.float64]:
        """Return the mass, with what training has changed since it was last asked for."""
        if self._mass is None or self._model is None:
            self._mass = model.astype(np.float64)
        elif model is not self._model:
            self._mass += model.astype(np.float64) - self._model
        self._model = model
        return self._mass

    def _sums(self, message: Payload) -> _Sums:
        view = memoryview(message)
        if len(view) < _HEADER.size:
            raise CodecError(f"the message has {len(view)} bytes, expected {_HEADER.size} at least")
        magic, version, life, age, weight = _HEADER.unpack_from(view)
        if (magic, version) != (_MAGIC, _VERSION):
            raise CodecError(
                f"the message begins with {magic!r}, version {version}; expected {_MAGIC!r}, {_VERSION}"
            )
        size = None if self._mass is None else len(self._mass)
        body = view[_HEADER.size :]
        if len(body) % 4 or (size is not None and len(body) != 4 * size):
            raise CodecError(f"the message has {len(body)} bytes of a sum, expected {size} numbers in fp32")
        vector = np.frombuffer(body, "<f4").astype(np.float32)
        if not is_finite(vector) or not 0 <= weight < math.inf:
            raise CodecError("the message has NaN or infinite elements, expected finite ones")
        return _Sums(life, self._rounds - age, weight, vector)


def _no_share(life: int, began: int, size: int) -> _Sums:
    return _Sums(life, began, 0.0, np.zeros(size, np.float32))


def _restored(state: State, kind: str, shape: tuple[int, ...]) -> dict[int, _Sums]:
    lives, weights = state[f"{kind}-lives"].tolist(), state[f"{kind}-weights"].tolist()
    sums = {
        j: _Sums(life, began, weight, state[f"{kind}/{j}"].copy())
        for (j, life, began), weight in zip(lives, weights, strict=True)
    }
    if any(s.vector.shape != shape or s.vector.dtype != np.float32 for s in sums.values()):
        raise ValueError(f"a sum is not float32 of shape {shape}")
    return sums
