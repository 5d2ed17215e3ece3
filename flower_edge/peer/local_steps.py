"""Training, beside everything else that a session does."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from flower_edge.gossip.codec import Vector
from flower_edge.peer.report import Metrics

Train: TypeAlias = Callable[[Vector, int], tuple[Vector, Metrics]]


@dataclass(frozen=True)
class Trained:
    """What training has made of a model.

    Attributes
    ----------
    base, model : ndarray of float32, shape (d,)
        Before and after.
    metrics : mapping of str to float
    seconds : float
        *Measured*.
    """

    base: Vector
    model: Vector
    metrics: Metrics
    seconds: float


class LocalSteps:
    """The local steps of one round after the other, in a thread.

    Parameters
    ----------
    train : callable
        ``(model, round) -> (model, metrics)``.
    """

    def __init__(self, train: Train) -> None:
        self._train = train
        self._ahead: asyncio.Task[Trained] | None = None

    async def on(self, model: Vector, round: int) -> Trained:
        """Return what training makes of a model.

        If it was begun ahead, with the model before it was mixed, what it has changed is added to `model`.

        Raises
        ------
        ValueError
            If training returns a vector of another shape or dtype.
        """
        if self._ahead is None:
            return await self._trained(model, round)
        ahead, self._ahead = self._ahead, None
        done = await ahead
        return Trained(model, model + (done.model - done.base), done.metrics, done.seconds)

    def begin(self, model: Vector, round: int) -> None:
        """Begin the steps of a round with a model that is still to be mixed."""
        self._ahead = asyncio.create_task(self._trained(model, round))

    async def end(self) -> None:
        """Wait for steps that were begun and that nobody wants any more."""
        if self._ahead is not None:
            await asyncio.gather(self._ahead, return_exceptions=True)

    async def _trained(self, model: Vector, round: int) -> Trained:
        began = time.perf_counter()
        trained, metrics = await asyncio.to_thread(self._train, model, round)
        seconds = time.perf_counter() - began
        if trained.shape != model.shape or trained.dtype != np.float32:
            raise ValueError(
                f"train returned {trained.dtype} {trained.shape}, expected float32 {model.shape}"
            )
        return Trained(model, trained, metrics, seconds)
