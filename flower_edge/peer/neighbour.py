"""What a session knows of one neighbour, and its exchange with it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from flower_edge.peer.connection import Connection
from flower_edge.peer.frames import Frame, FrameError, Kind, TermsError, decode, hello
from flower_edge.peer.inbox import Inbox
from flower_edge.peer.link import Link, Outcome, Say
from flower_edge.peer.members import Member
from flower_edge.peer.payload import PayloadError
from flower_edge.peer.refusals import Refusals, log
from flower_edge.peer.settings import PeerSettings

FP32 = "fp32"
"""The terms of a node that says none."""


class Neighbour:
    """The near end of a link, over whatever connection it has at the moment.

    Parameters
    ----------
    member : Member
        Who is at the far end.
    link : Link
    inbox : Inbox
    run : bytes
        Of every frame.
    node : int
        The near end.
    terms : str
        What both ends have to agree on: codec, and algorithm where there is a choice.
    last_round : int
        Of the run: frames of later ones are refused.
    settings : PeerSettings
    refusals : Refusals

    Attributes
    ----------
    present : bool
        Whether it is waited for. It is not from when it was late, or lost, until it is heard of again.
    finished : bool
        Whether it has done its last round.
    their_round : int
        The latest that it is known to be in.
    """

    def __init__(
        self,
        member: Member,
        link: Link,
        inbox: Inbox,
        *,
        run: bytes,
        node: int,
        terms: str,
        last_round: int,
        settings: PeerSettings,
        refusals: Refusals,
    ) -> None:
        self.member = member
        self.link = link
        self.present = False
        self.finished = False
        self.their_round = 0
        self._inbox = inbox
        self._run = run
        self._node = node
        self._terms = terms
        self._last_round = last_round
        self._settings = settings
        self._refusals = refusals
        self._connection: Connection | None = None
        self._theirs: Any = None
        self._here = self._lost_in = 0
        self._changed = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether there is a connection at the moment."""
        return self._connection is not None

    # ---------------------------------------------------------------- connections

    def connect(self, connection: Connection) -> None:
        """Use a new connection, in the place of one that may still be there."""
        if self._connection is not None:
            self._lose()
        self._connection = connection
        self.present = True
        self._hello()
        self._say(self.link.mended())
        log.info("node %d is connected", self.member.node)

    def disconnect(self, connection: Connection, why: str) -> None:
        """Take note that a connection has ended; nothing if another has taken its place."""
        if connection is not self._connection:
            return
        self._lose()
        if not self.finished:
            log.warning("node %d is lost: %s", self.member.node, why)

    def _lose(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._lost_in = self.link.round
        self._connection = None
        self.present = False
        self._inbox.clear()
        self.link.broken()
        self._changed.set()

    def farewell(self) -> None:
        """Say that no more models will be exchanged, and close the connection once that is said."""
        self._send(Kind.BYE, self._here)

    def close(self) -> None:
        """Close the connection once all is said."""
        if self._connection is not None:
            self._connection.close()

    # ---------------------------------------------------------------- what it says

    def take(self, message: bytes) -> None:
        """Take a message that came over the connection.

        Raises
        ------
        FrameError
            If it is not one that the neighbour may send now. The connection should then be closed.
        """
        frame = decode(message)
        self.check(frame)
        self.present = True
        self.their_round = max(self.their_round, frame.round)
        if frame.kind is Kind.MODEL:
            self._take_model(frame)
        elif frame.kind is Kind.BYE:
            self.finished = True
        elif frame.kind is not Kind.HELLO:
            self._say(self.link.heard(frame.kind, frame.round))
        if self.their_round > self.link.round and self.link.outcome is Outcome.OPEN:
            # It is past this round: what it had to say about it has come before.
            self._say(self.link.give_up())
        self._changed.set()

    def check(self, frame: Frame) -> None:
        """Raise a FrameError if a frame is of another run, another node, or a round that will never be."""
        if frame.run != self._run:
            raise FrameError(f"received a frame of run {frame.run.hex()}, expected {self._run.hex()}")
        if frame.node != self.member.node:
            raise FrameError(f"received a frame of node {frame.node}, expected node {self.member.node}")
        if frame.round > self._last_round:
            raise FrameError(f"received a frame of round {frame.round}, expected at most {self._last_round}")
        if frame.kind is Kind.HELLO:
            terms = bytes(frame.chunk).decode("ascii", "replace") or FP32
            if terms != self._terms:
                raise TermsError(f"node {frame.node} uses {terms!r}, expected {self._terms!r}")

    def _take_model(self, frame: Frame) -> None:
        try:
            whole = self._inbox.add(frame)
        except PayloadError as error:
            self._refusals.add("a model that is none", f"node {self.member.node}", str(error))
            self._say(self.link.refuse(frame.round))
            return
        if not whole:
            return
        if frame.round == self.link.round and self.link.outcome is Outcome.OPEN:
            self._arrived()
        elif frame.round < self._here:
            self._hello()  # it is behind, and should know where the others are

    def _arrived(self) -> None:
        self._theirs = self._inbox.model_of(self.link.round)
        self._say(self.link.arrived())

    # ---------------------------------------------------------------- a round

    def enter(self, round: int) -> None:
        """Take note of the round that the near end trains for."""
        self._here = round

    def is_done_with(self, round: int) -> bool:
        """Whether it needs nothing more of this node, whose last round this was.

        Who was lost in that round may be back to ask whether the link counted.
        """
        return self.finished or not (self.connected or self._lost_in == round)

    def is_there(self, round: int) -> bool:
        """Whether a model can be exchanged with it in a round, as far as is known."""
        return self.present and not self.finished and self.their_round <= round and self.link.idle

    async def exchange(self, round: int, frames: Sequence[bytes] | None) -> tuple[Outcome, Any]:
        """Exchange models, and return whether they count, with the neighbour's if it does or is in doubt.

        Parameters
        ----------
        round : int
        frames : sequence of bytes or None
            The near end's model, encoded; None if the neighbour was not there.
        """
        self._theirs = None
        self._say(self.link.begin(round))
        if frames is None or not self.is_there(round):
            self._say(self.link.give_up())
        elif self.link.outcome is Outcome.OPEN:
            if self._inbox.model_of(round) is not None:
                self._arrived()
            self._post_model(frames)
            await self._until_decided()
        if self.link.outcome in (Outcome.COUNTED, Outcome.IN_DOUBT):
            return self.link.outcome, self._theirs
        return Outcome.FAILED, None

    def release(self) -> None:
        """Let go of the models that `exchange` returned: they are mixed."""
        self._theirs = None
        self._inbox.release()

    def sit_out(self, round: int) -> None:
        """Let a round go by; the neighbour need not wait."""
        self._say(self.link.begin(round))
        self._say(self.link.give_up())

    def _post_model(self, frames: Sequence[bytes]) -> None:
        if self._connection is not None:
            self._connection.post_model(iter(frames), lambda: self._say(self.link.sent()))

    async def _until_decided(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.peer_timeout
        ready = False
        while self.link.outcome is Outcome.OPEN:
            if not ready and self.link.in_doubt is not None:
                ready = True
                deadline = asyncio.get_running_loop().time() + self._settings.decision_timeout
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                self.present = False
                self._say(self.link.give_up())
                if self._connection is not None:
                    self._connection.drop_model()

    # ---------------------------------------------------------------- sending

    def _say(self, words: Say) -> None:
        for kind, round_ in words:
            self._send(kind, round_)
        self._changed.set()

    def _hello(self) -> None:
        self._post(hello(self._run, self._node, self._here, self._terms))

    def _send(self, kind: Kind, round: int) -> None:
        self._post(Frame(kind, self._run, self._node, round))

    def _post(self, frame: Frame) -> None:
        if self._connection is not None:
            self._connection.post(frame.encode())
