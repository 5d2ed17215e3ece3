"""Mixers for fleets in which some nodes may send anything."""

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from flower_edge.gossip.codec import Vector
from flower_edge.gossip.mixer import DPSGD, Mixer

_SLICE = 1 << 16
"""Elements that are sorted at a time: what this takes beside the models stays small."""


class ClippedGossip(DPSGD):
    """Self-centred clipping: x_i ← x_i + Σ_j W_ij clip(x_j − x_i, τ) (He, Karimireddy, Jaggi, 2022).

    A neighbour moves this node's model by at most W_ij τ, whatever it sends. Two honest nodes clip the same
    difference, but perhaps at two radii: unlike in D-PSGD the mean of all models may move.

    Parameters
    ----------
    node : int
        This node's index in the mixing matrix.
    radius : float, optional
        τ, in the Euclidean norm. By default the median of the distances to the neighbours of the round: where
        more than half of them are honest, it is one that is between honest ones' distances, or below.

    Raises
    ------
    ValueError
        If `radius` is not positive.
    """

    separable = False

    def __init__(self, node: int, radius: float | None = None) -> None:
        super().__init__(node)
        if radius is not None and not 0 < radius < math.inf:
            raise ValueError(f"radius is {radius}; expected a positive number")
        self.radius = radius

    def mix(
        self,
        model: Vector,
        row: Mapping[int, float],
        received: Mapping[int, Vector],
        out: Vector | None = None,
    ) -> Vector:
        """Return the model moved towards its neighbours', but by no more than the radius; see `Mixer.mix`."""
        self.present(row, received)
        distances = {j: _distance(vector, model) for j, vector in received.items()}
        radius = float(np.median(list(distances.values()) or [0.0])) if self.radius is None else self.radius
        # A clipped model lies on the way from this node's to the neighbour's: its weight shrinks instead.
        shares = {j: min(1.0, radius / far) if far > 0 else 1.0 for j, far in distances.items()}
        scaled = {j: weight * shares.get(j, 1.0) for j, weight in row.items()}
        return super().mix(model, scaled, received, out)


class TrimmedMean(Mixer[Vector]):
    """Of each element, the mean of what is left without the extremes (BRIDGE-T, Fang, Yang, Bajwa, 2022).

    The `trim` largest and the `trim` smallest of the neighbours' values are left out, one by one for each
    element; the others and this node's own count alike. The plan's weights do not matter, its links do. Where
    a node has no more than ``2 * trim`` neighbours in a round it keeps its model.

    Parameters
    ----------
    node : int
        This node's index in the mixing matrix.
    trim : int, default 1
        How many neighbours of a node may send anything.

    Raises
    ------
    ValueError
        If `trim` is below 1.
    """

    separable = True
    memoryless = True

    def __init__(self, node: int, trim: int = 1) -> None:
        super().__init__(node)
        if trim < 1:
            raise ValueError(f"trim is {trim}; expected at least 1")
        self.trim = trim

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
        """Return the trimmed mean; see `Mixer.mix`."""
        self.present(row, received)
        out = np.empty_like(model) if out is None else out
        kept = len(received) - 2 * self.trim
        if kept <= 0:
            out[:] = model
            return out
        vectors = list(received.values())
        for start in range(0, len(model), _SLICE):
            here = slice(start, start + _SLICE)
            values = np.sort(np.stack([vector[here] for vector in vectors]), axis=0)
            middle = values[self.trim : self.trim + kept].sum(axis=0, dtype=np.float64)
            out[here] = (middle + model[here]) / (kept + 1)
        return out


ROBUST: Mapping[str, Callable[[int], Mixer[Vector]]] = {"clip": ClippedGossip, "trim": TrimmedMean}
"""By the name that strategies and config files know them by."""


def named_mixer(robust: str | None) -> Callable[[int], Mixer[Vector]]:
    """Return what makes a node's mixer: `DPSGD` for None, else the robust one of that name.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if robust is None:
        return DPSGD
    if robust not in ROBUST:
        raise ValueError(f"robust is {robust!r:.60}; expected None or one of {sorted(ROBUST)}")
    return ROBUST[robust]


def _distance(vector: Vector, model: Vector) -> float:
    squares = 0.0
    for start in range(0, len(model), _SLICE):
        here = slice(start, start + _SLICE)
        difference = np.subtract(vector[here], model[here], dtype=np.float64)
        squares += float(np.dot(difference, difference))
    return math.sqrt(squares)
