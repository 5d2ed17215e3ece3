"""Gossip in few bytes that needs no copies of neighbours: plain quantised exchange, and DeepSqueeze."""

import math
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np

from flower_edge.gossip._messages import LONGEST_HEADER, Letter, seal, unseal
from flower_edge.gossip.codec import Vector, is_finite
from flower_edge.gossip.compressor import Codec
from flower_edge.gossip.consensus_step import consensus_step
from flower_edge.gossip.mixer import Doubt, Mixer, State
from flower_edge.gossip.plan import GossipPlan
from flower_edge.kernels import mix

_NODE_BITS = 32


class Links(Protocol):
    """What a mixer needs to know of a plan; a `GossipPlan` is one, and so is `NodeRows`."""

    @property
    def n(self) -> int:
        """Number of nodes."""

    @property
    def phases(self) -> Sequence[object]:
        """One entry for each phase."""

    def neighbours(self, node: int, t: int) -> list[int]:
        """Return the nodes with which `node` exchanges models in round `t`."""


class CompressedMixer(Mixer[bytes]):
    """What gossip algorithms that send bytes have in common.

    Parameters
    ----------
    node : int
        This node's index in the plan.
    plan : GossipPlan or NodeRows
        Equal at all nodes, as are the others. The rows of one node will do where `gamma` is given.
    codec : Codec
        How a vector becomes bytes.
    gamma : float, optional
        The step size γ, above 0: how much of the way to the neighbours a round goes.
    start : ndarray of float32, shape (d,), optional
        What the models of all nodes begin as, and so do public copies and references; zeros by default.
        The first differences are then as small as the later ones.

    Raises
    ------
    ValueError
        If the node is none of the plan's, or gamma not above 0 or not finite.
    """

    algorithm: str
    linkwise = True

    def __init__(
        self,
        node: int,
        plan: Links,
        codec: Codec,
        gamma: float | None = None,
        start: Vector | None = None,
    ) -> None:
        super().__init__(node)
        if not 0 <= node < plan.n:
            raise ValueError(f"received node {node}, expected 0 to {plan.n - 1}")
        self.codec = codec
        # A float: `terms`, which are compared as text, hold it.
        self.gamma = float(self.default_gamma(plan, codec) if gamma is None else gamma)
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma is {gamma}, expected a positive finite number")
        self.start = np.zeros(1, np.float32) if start is None else start
        if start is not None and start.shape != (codec.size,):
            raise ValueError(f"start has shape {start.shape}, expected ({codec.size},)")
        self._draws = 0

    @classmethod
    def default_gamma(cls, plan: Links, codec: Codec) -> float:
        """Return the step size for a plan and a codec: `consensus_step` unless overridden."""
        if not isinstance(plan, GossipPlan):
            raise ValueError(
                f"gamma of {cls.__name__} follows from a whole plan, received a {type(plan).__name__}: "
                "give gamma"
            )
        return consensus_step(plan, codec.contraction)

    @property
    def codec_name(self) -> str:
        """The codec's."""
        return self.codec.name

    @property
    def terms(self) -> str:
        """The algorithm, its codec, γ, and what memories begin as."""
        start = blake2b(self.start.tobytes(), digest_size=8).hexdigest() if self.start.any() else "zeros"
        return f"{self.algorithm}, {self.codec_name}, gamma {self.gamma!r}, start {start}"

    @property
    def largest_message(self) -> int:
        """The most bytes that a neighbour sends."""
        return LONGEST_HEADER + self.codec.largest_message

    def compressed(self, vector: Vector) -> tuple[bytes, Vector]:
        """Return a vector's bytes, and what those who receive them will read."""
        payload = self.codec.encode(vector, self._draws << _NODE_BITS | self.node)
        self._draws += 1
        return payload, self.codec.decode(payload)

    def read(self, message: bytes) -> list[Vector]:
        """Return the vector that a message brings; see `Mixer.read`."""
        return [self.codec.decode(unseal(message, self.algorithm).payload)]

    def step(
        self,
        model: Vector,
        sent: Vector | None,
        received: Mapping[int, Vector],
        row: Mapping[int, float],
        out: Vector | None,
    ) -> Vector:
        """Return the model plus γ Σ_j W_ij (received_j − sent), which the neighbours get less of in all."""
        out = np.empty_like(model) if out is None else out
        if sent is None or not received:
            out[:] = model
            return out
        weights = [self.gamma * row[j] for j in received]
        mix(out, [model, sent, *received.values()], [1.0, -math.fsum(weights), *weights])
        return out

    def check_names(self, state: State, expected: Collection[str]) -> None:
        """Raise a ValueError unless a state has exactly these arrays."""
        if state.keys() != set(expected):
            raise ValueError(f"received the memories {sorted(state)}, expected {sorted(expected)}")

    def check_links(self, state: State, kinds: Collection[str]) -> dict[int, list[int]]:
        """Return the counts of each link of a state: its epoch, and its exchanges.

        Its links need not be this node's: a plan may have been repaired since.

        Raises
        ------
        ValueError
            If they are no counts, or there is a vector that is not one of `kinds` of one of the links.
        """
        links = {j: counts for j, *counts in self.check_counts(state, "links", 3)}
        vectors = {name for name in state if "/" in name}
        if strange := vectors - {f"{kind}/{j}" for j in links for kind in kinds}:
            raise ValueError(
                f"received the memories {sorted(strange)}, expected those of links {list(links)}"
            )
        self.check_vectors(state, vectors)
        return links

    def check_vectors(self, state: State, names: Collection[str]) -> None:
        """Raise a ValueError unless these arrays of a state are finite vectors of the model's size."""
        for name in names:
            vector = state[name]
            if vector.dtype != np.float32 or vector.shape != (self.codec.size,):
                raise ValueError(
                    f"{name!r} is {vector.dtype} {vector.shape}, expected float32 ({self.codec.size},)"
                )
            if not is_finite(vector):
                raise ValueError(f"{name!r} has NaN or infinite elements, expected finite ones")

    def check_counts(self, state: State, name: str, columns: int) -> list[list[int]]:
        """Return an array of a state as rows of counts, none negative; a ValueError if it is none."""
        counts = state[name]
        if counts.dtype != np.int64 or counts.shape[1:] != (columns,) or (counts < 0).any():
            raise ValueError(f"{name!r} is {counts!r:.100}, expected rows of {columns} counts, int64")
        rows: list[list[int]] = counts.tolist()
        return rows

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: node {self.node}, {self.codec_name}, gamma = {self.gamma:.3g}>"


class _Broadcast(CompressedMixer):
    """Sends a compressed vector of its own to all neighbours, and remembers an error at most."""

    def __init__(
        self,
        node: int,
        plan: Links,
        codec: Codec,
        gamma: float | None = None,
        start: Vector | None = None,
    ) -> None:
        super().__init__(node, plan, codec, gamma, start)
        self._sent: Vector | None = None

    def _letters(self, vector: Vector, neighbours: Collection[int]) -> dict[int, bytes]:
        self._sent = None
        if not neighbours:
            return {}
        payload, self._sent = self.compressed(vector)
        return dict.fromkeys(neighbours, seal(Letter(self.algorithm, 0, 0, b"", payload)))

    def in_doubt(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, bytes],
        neighbour: int,
        message: bytes,
    ) -> Doubt:
        """Return what a neighbour's message changes if its link counts; see `Mixer.in_doubt`."""
        (theirs,) = self.read(message)
        ours = theirs if self._sent is None else self._sent
        return Doubt(np.float32(self.gamma * row[neighbour]) * (theirs - ours), {})

    def _arrived(self, row: Mapping[int, float], received: Mapping[int, bytes]) -> dict[int, Vector]:
        return {j: self.read(received[j])[0] for j in self.present(row, received)}


class PlainQuantised(_Broadcast):
    r"""Exchange of compressed models: :math:`x_i ← x_i + γ \sum_j W_{ij} (C(x_j) - C(x_i))`.

    The mean of all models is kept whatever C loses, since both ends of a link subtract the same. What C
    loses of a model is not made up for: the models do not come closer to each other than about that
    (the error floor). γ is 1 by default: with a C that loses nothing this is D-PSGD.

    Parameters and errors as for `CompressedMixer`.
    """

    algorithm = "plain"

    @classmethod
    def default_gamma(cls, plan: Links, codec: Codec) -> float:
        """Return 1: no error is fed back, so that none can grow."""
        return 1.0

    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, bytes]:
        """Return the compressed model, for each; see `Mixer.outgoing`."""
        return self._letters(model, neighbours)

    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, bytes],
        out: Vector | None = None,
    ) -> Vector:
        """Return the next model; see `Mixer.mix`."""
        arrived = self._arrived(row, received)
        sent, self._sent = self._sent, None
        return self.step(model, sent, arrived, row, out)

    def state(self) -> State:
        """Return how many random numbers were drawn; see `Mixer.state`."""
        return {"draws": np.array([[self._draws]])}

    def restore(self, state: State) -> None:
        """Take over a state; see `Mixer.restore`."""
        self.check_names(state, ["draws"])
        ((self._draws,),) = self.check_counts(state, "draws", 1)


class DeepSqueeze(_Broadcast):
    r"""Exchange of compressed models with error feedback.

    :math:`v_i = x_i + e_i`, :math:`e_i ← v_i - C(v_i)`, :math:`x_i ← x_i + γ \sum_j W_{ij} (C(v_j) - C(v_i))`
    (Tang et al., "DeepSqueeze: Decentralization Meets Error-Compensated Compression", 2019). What C loses in
    one round is sent in the next: a neighbour reads the right model in the mean over rounds, and in each
    round one that is off by what C loses of a whole model. So there is a floor as with `PlainQuantised`,
    lower as γ is smaller. One vector is remembered, whatever the number of links, and W(t) may change. A
    link that fails for both ends keeps the mean.

    Parameters and errors as for `CompressedMixer`; γ is `consensus_step` by default.
    """

    algorithm = "squeeze"

    def __init__(
        self,
        node: int,
        plan: Links,
        codec: Codec,
        gamma: float | None = None,
        start: Vector | None = None,
    ) -> None:
        super().__init__(node, plan, codec, gamma, start)
        self._error = np.zeros(codec.size, np.float32)
        self._compensated: Vector | None = None

    def outgoing(self, model: Vector, neighbours: Collection[int]) -> dict[int, bytes]:
        """Return the compressed model and error, for each; see `Mixer.outgoing`."""
        self._compensated = model + self._error
        return self._letters(self._compensated, neighbours)

    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, bytes],
        out: Vector | None = None,
    ) -> Vector:
        """Return the next model; see `Mixer.mix`."""
        arrived = self._arrived(row, received)
        compensated, sent = self._compensated, self._sent
        self._compensated = self._sent = None
        if arrived and compensated is not None and sent is not None:
            np.subtract(compensated, sent, out=self._error)
        return self.step(model, sent, arrived, row, out)

    def in_doubt(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, bytes],
        neighbour: int,
        message: bytes,
    ) -> Doubt:
        """Return what a neighbour's message changes if its link counts; see `Mixer.in_doubt`."""
        doubt = super().in_doubt(model, row, received, neighbour, message)
        if self._compensated is not None and self._sent is not None:
            # The neighbour has most likely read what was sent.
            np.subtract(self._compensated, self._sent, out=self._error)
        return doubt

    def state(self) -> State:
        """Return the error, and how many random numbers were drawn; see `Mixer.state`."""
        return {"error": self._error, "draws": np.array([[self._draws]])}

    def restore(self, state: State) -> None:
        """Take over a state; see `Mixer.restore`."""
        self.check_names(state, ["error", "draws"])
        self.check_vectors(state, ["error"])
        ((draws,),) = self.check_counts(state, "draws", 1)
        self._error, self._draws = state["error"].copy(), draws
