"""How the two ends of a link come to count it in a round, or both not to."""

from enum import Enum
from typing import TypeAlias

from flower_edge.peer.frames import Kind

Say: TypeAlias = list[tuple[Kind, int]]


class Outcome(Enum):
    """What has become of a link in a round."""

    OPEN = "open"
    COUNTED = "counted"
    FAILED = "failed"
    IN_DOUBT = "in doubt"


class Link:
    """One end's memory of a link: a two-phase commit in each round, without any transport.

    The coordinator decides. It counts the link once it has the other end's model and that end's ``READY``;
    it says so, and it remembers the last two rounds that it counted. The participant sends ``READY`` once it
    has the coordinator's model and has sent its own. From then on it may not decide for itself: if the answer
    does not come in time it goes on as if the link had failed, stays *in doubt* about that round, and asks
    again by the same ``READY``. Until the doubt is settled the link carries no further model; but a
    participant may learn the answer, count one round more, and be killed before that is on its disk. Then it
    asks for the older of two rounds.

    Every method returns what to send to the other end: pairs of a frame's kind and round, in order. Frames
    have to arrive in order or not at all; `broken` says that some may be lost.

    Parameters
    ----------
    coordinator : bool
        Whether this end decides. Exactly one of the two does.
    last_counted : tuple of int, default ()
        What the coordinator remembers from before: rounds that counted, the latest last.
    in_doubt : int, optional
        What the participant has not been told before it stopped.

    Attributes
    ----------
    round : int
        The round that was begun last.
    outcome : Outcome
        What has become of the link in that round.
    last_counted : tuple of int
        The last two rounds that counted, the latest last.
    in_doubt : int or None
        The round for which the participant awaits the answer to its ``READY``.
    settled : bool or None
        The answer, if it came after the round was given up: was it counted? The owner sets it to None when
        it has done what follows from it.
    """

    def __init__(
        self, *, coordinator: bool, last_counted: tuple[int, ...] = (), in_doubt: int | None = None
    ) -> None:
        self.coordinator = coordinator
        self.last_counted = last_counted
        self.round = 0
        self.outcome = Outcome.FAILED
        self.in_doubt = in_doubt
        self.settled: bool | None = None
        self._sent = self._arrived = False
        self._spoilt = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is left over from earlier rounds, so that a new one can begin."""
        return self.in_doubt is None and self.settled is None

    def begin(self, round: int) -> Say:
        """Open a round. It fails at once if a doubt is left, or if the other end has given it up already."""
        if round <= self.round:
            raise ValueError(f"received round {round}, expected one after {self.round}")
        self.round = round
        self._sent = self._arrived = False
        self.outcome = Outcome.OPEN
        return self.give_up() if self._spoilt >= round or not self.idle else []

    def sent(self) -> Say:
        """Take note that this end's model is on its way as a whole."""
        self._sent = True
        return self._ready()

    def arrived(self) -> Say:
        """Take note that the other end's model of this round is here and good."""
        self._arrived = True
        return self._ready()

    def refuse(self, round: int) -> Say:
        """Fail a round, begun or still to come, because what the other end sent for it is no good."""
        self._spoilt = max(self._spoilt, round)
        open_ = round == self.round and self.outcome is Outcome.OPEN
        return self.give_up() if open_ else []

    def heard(self, kind: Kind, round: int) -> Say:
        """Take a ``READY``, ``COMMIT`` or ``ABORT`` of the other end."""
        if kind is Kind.READY:
            return self._decide(round) if self.coordinator else []
        if kind is Kind.COMMIT:
            if round == self.in_doubt:
                self._settle(counted=True)
        elif round == self.in_doubt:
            self._settle(counted=False)
        elif round == self.round and self.outcome is Outcome.OPEN:
            self.outcome = Outcome.FAILED
        elif round > self.round:
            self._spoilt = max(self._spoilt, round)
        return []

    def give_up(self) -> Say:
        """Wait no longer in this round; the participant that is ready stays in doubt."""
        if self.outcome is not Outcome.OPEN:
            return []
        if self.in_doubt == self.round:
            self.outcome = Outcome.IN_DOUBT
            return []
        self.outcome = Outcome.FAILED
        return [(Kind.ABORT, self.round)]

    def broken(self) -> None:
        """Take note that frames may be lost; a round in which nobody can be in doubt has failed."""
        if self.outcome is Outcome.OPEN and self.in_doubt != self.round:
            self.outcome = Outcome.FAILED

    def mended(self) -> Say:
        """Ask, over a new connection, what was left open."""
        return [] if self.in_doubt is None else [(Kind.READY, self.in_doubt)]

    def _ready(self) -> Say:
        both = self._sent and self._arrived and self.outcome is Outcome.OPEN
        if self.coordinator or not both or self.in_doubt is not None:
            return []
        self.in_doubt = self.round
        return [(Kind.READY, self.round)]

    def _decide(self, round: int) -> Say:
        if round == self.round and self.outcome is Outcome.OPEN and self._arrived:
            self.outcome = Outcome.COUNTED
            self._remember(round)
        if round in self.last_counted:
            return [(Kind.COMMIT, round)]
        if round == self.round and self.outcome is Outcome.OPEN:
            self.outcome = Outcome.FAILED
        # What it was told once stays true: a round that is answered here can no longer be counted.
        self._spoilt = max(self._spoilt, round)
        return [(Kind.ABORT, round)]

    def _remember(self, round: int) -> None:
        self.last_counted = (*self.last_counted, round)[-2:]

    def _settle(self, *, counted: bool) -> None:
        round_, self.in_doubt = self.in_doubt, None
        if counted and round_ is not None:
            self._remember(round_)
        if round_ == self.round and self.outcome is Outcome.OPEN:
            self.outcome = Outcome.COUNTED if counted else Outcome.FAILED
        else:
            self.settled = counted
