"""Links of which one end does not know whether they counted, in rounds that are over."""

from collections.abc import Iterable, Mapping
from typing import Any

from flower_edge.gossip.codec import Vector
from flower_edge.gossip.mixer import Mixer
from flower_edge.peer.part import Row
from flower_edge.peer.refusals import log
from flower_edge.peer.report import SessionReport
from flower_edge.peer.state import OpenDoubt


class Doubts:
    """What follows for a node if links counted of which it has not heard.

    Parameters
    ----------
    mixer : Mixer
        The node's.

    Attributes
    ----------
    open : dict of int to OpenDoubt
        By neighbour; at most one each, since a link in doubt carries nothing.
    """

    def __init__(self, mixer: Mixer[Any]) -> None:
        self.open: dict[int, OpenDoubt] = {}
        self._mixer = mixer

    def add(
        self,
        round: int,
        row: Row,
        trained: Vector,
        counted: Mapping[int, Any],
        doubtful: Mapping[int, Any],
    ) -> None:
        """Keep what each doubtful neighbour's message changes; before the round is mixed."""
        for j, message in doubtful.items():
            log.warning("round %d: it is not known yet whether node %d counts the link", round, j)
            self.open[j] = OpenDoubt(round, self._mixer.in_doubt(trained, row, counted, j, message))

    def settled(self, model: Vector, answers: Mapping[int, bool], report: SessionReport) -> Vector:
        """Return the model with the changes of the links that did count.

        Parameters
        ----------
        model : ndarray of float32, shape (d,)
        answers : mapping of int to bool
            Whether the link to a neighbour counted.
        report : SessionReport
            Its `late` is added to.
        """
        for j in self.open.keys() & answers.keys():
            round_, doubt = self.open.pop(j)
            report.late.append((j, round_, answers[j]))
            if answers[j]:
                self._mixer.settle(j, doubt)
                model = model + doubt.change
        return model

    def left(self) -> Iterable[tuple[int, int]]:
        """Yield neighbour and round of each that is open."""
        return ((j, open_.round) for j, open_ in sorted(self.open.items()))
