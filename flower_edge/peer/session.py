"""Rounds of {local steps, exchange with this round's neighbours, mix}, from one node's side."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from flower_edge.gossip.codec import Vector, is_finite
from flower_edge.gossip.mixer import DPSGD, Mixer
from flower_edge.gossip.push_sum import PushSum
from flower_edge.peer.dialler import Dialler
from flower_edge.peer.doubts import Doubts
from flower_edge.peer.frames import hello, model_frames
from flower_edge.peer.identity import Identity
from flower_edge.peer.inbox import Inbox
from flower_edge.peer.keeper import Keeper
from flower_edge.peer.link import Link, Outcome
from flower_edge.peer.listener import Listener
from flower_edge.peer.local_steps import LocalSteps, Train
from flower_edge.peer.members import Member
from flower_edge.peer.neighbour import Neighbour
from flower_edge.peer.pace import fleet_round
from flower_edge.peer.part import Row, check_model, checked_members, codec_and_terms, run_id
from flower_edge.peer.payload import Codec
from flower_edge.peer.refusals import Refusals, log
from flower_edge.peer.report import RoundReport, SessionReport
from flower_edge.peer.settings import PeerSettings
from flower_edge.peer.sockets import WireBytes, resolved
from flower_edge.peer.state import State

CLOSE_TIMEOUT = 2.0
POLL_INTERVAL = 0.02

OnRound: TypeAlias = Callable[[RoundReport], None]


class PeerSession:
    r"""One node of a gossip among equals.

    In each round the node trains, sends what its `Mixer` gives out to the neighbours of the round, and mixes
    in what they send. Between any two nodes the one with the lower number opens the link, and decides whether
    it counts; a link that fails in a round fails for both ends, and its weight returns to both, so that the
    mean of all models is kept. Neighbours' models are received while the node still trains; it sends its own
    once it has trained, since that is what the mixers send.

    Parameters
    ----------
    node : int
        This node.
    rows : sequence of mapping of int to float
        This node's row of W(t) for each phase of the plan; round t uses ``rows[t % len(rows)]``.
    members : iterable of Member
        The neighbours, every one that `rows` name; others are ignored, itself included.
    model : ndarray of float32, shape (d,)
        Where it starts.
    train : callable
        ``(model, round) -> (model, metrics)``: the local steps. Called in a thread of its own; may not
        write to the model that it is given.
    run : str
        Names the run; the same for all nodes, another for every run.
    listen : str
        ``host:port`` to listen at.
    identity : Identity or None
        This node's. None only with ``PeerSettings(insecure=True)``.
    mixer : Mixer, optional
        `DPSGD` by default. One that sends few bytes, such as `flower_edge.gossip.LinkChoco`, is the same at
        all nodes; a neighbour that uses another one, or another codec, is refused.
    codec : Codec, optional
        `Fp32` by default. Not with a mixer that sends bytes of its own.
    settings : PeerSettings, optional
    state : Path, optional
        A file that holds the model after each round, what the mixer remembers, and what is in doubt. If it is
        there, the session goes on after that round.
    extra : callable, optional
        Returns what is kept in that file beside the model; `resumed` gives it back.
    overlap : bool, default False
        Whether a round's exchange goes on while the next round trains, so that a round takes the longer of
        the two instead of both. Training then begins with the model before it is mixed, and what it has
        changed is added to the mixed one: :math:`x_i ← \sum_j W_{ij} x_j - η g(x_i)`, as D-PSGD is written
        (Lian et al., NeurIPS 2017, Algorithm 1). The mean is kept alike, and nodes need not all do it.

    Attributes
    ----------
    resumed : State or None
        What was read from `state`.

    Raises
    ------
    ValueError
        If rows, members, model, mixer and settings do not go together, or a certificate is missing.
    flower_edge.peer.StateError
        If the file named by `state` is damaged, or belongs to another run.
    """

    def __init__(
        self,
        node: int,
        rows: Sequence[Row],
        members: Iterable[Member],
        model: Vector,
        train: Train,
        *,
        run: str,
        listen: str,
        identity: Identity | None,
        mixer: Mixer[Any] | None = None,
        codec: Codec | None = None,
        settings: PeerSettings | None = None,
        state: Path | None = None,
        extra: Callable[[], bytes] = bytes,
        overlap: bool = False,
    ) -> None:
        settings = PeerSettings() if settings is None else settings
        self._mixer: Mixer[Any] = DPSGD(node) if mixer is None else mixer
        self._codec, self._terms = codec_and_terms(self._mixer, codec)
        self._mixer_name = f"{type(self._mixer).__name__}, {self._codec.name}"
        self.node = node
        self._rows = rows
        self._members = checked_members(node, rows, members, identity, settings)
        check_model(model)
        if self._mixer.node != node:
            raise ValueError(f"received the mixer of node {self._mixer.node}, expected that of {node}")
        if not (self._mixer.memoryless or self._mixer.linkwise or self._mixer.one_way):
            raise ValueError(
                f"{type(self._mixer).__name__} cannot leave out a link that fails, or settle one later: use "
                "a mixer that is `memoryless`, such as DPSGD, or `linkwise`, such as ChocoCopies or LinkChoco"
            )
        self._model = model
        self._steps = LocalSteps(train)
        self._overlap = overlap
        self._run = run_id(run)
        self._listen = listen
        self._identity = None if settings.insecure else identity
        self._settings = settings
        self._extra = extra
        self._doubts = Doubts(self._mixer)
        self.resumed: State | None = None
        if state is not None and state.exists():
            self.resumed = State.load(state, self._run, node, len(model))
            self._model = self.resumed.model
            self.resumed.remind(self._mixer, self._mixer_name, str(state))
            self._doubts.open = dict(self.resumed.doubts)
        self._refusals = Refusals()
        self._fleet: dict[int, Neighbour] = {}
        self._keeper = Keeper(state)

    def run(self, rounds: int, first: int = 1, on_round: OnRound | None = None) -> SessionReport:
        """Do the rounds and return what was done; see `run_async`, which this runs in a loop of its own."""
        return asyncio.run(self.run_async(rounds, first, on_round))

    async def run_async(self, rounds: int, first: int = 1, on_round: OnRound | None = None) -> SessionReport:
        """Do rounds up to and including `rounds`.

        Parameters
        ----------
        rounds : int
            Number of the last round, the same for all nodes.
        first : int, default 1
            Number of the first, unless the state on disk is further.
        on_round : callable, optional
            Called with the report of each round as soon as it is done.

        Returns
        -------
        SessionReport

        Raises
        ------
        OSError
            If the node cannot listen at its address.
        """
        if not 1 <= first <= rounds:
            raise ValueError(f"received rounds {first} to {rounds}, expected at least one, from 1 on")
        if self._settings.insecure:
            log.warning(
                "insecure=True: links are in clear text. Anyone who reaches %s can read and change models",
                self._listen,
            )
        self._fleet = self._neighbours(rounds)
        report = SessionReport(self._model)
        done = first - 1 if self.resumed is None else max(self.resumed.round, first - 1)
        for neighbour in self._fleet.values():
            neighbour.enter(min(done + 1, rounds))
        listener = Listener(
            self._listen,
            self._identity,
            {j: neighbour for j, neighbour in self._fleet.items() if j < self.node},
            self._settings,
            self._refusals,
        )
        await listener.start()
        dialled = [neighbour for j, neighbour in self._fleet.items() if j > self.node]
        dialling = [self._dialler(neighbour).start() for neighbour in dialled]
        try:
            wire = WireBytes(listener.port, await resolved(neighbour.member.address for neighbour in dialled))
            if done < rounds:
                await self._connected()
                if self.resumed is None:
                    # A node without a past begins where the others are, and has missed nothing.
                    done = self._caught_up(done + 1, rounds) - 1
            while done < rounds:
                done = await self._round(done + 1, rounds, wire, report)
                if on_round is not None:
                    on_round(report.rounds[-1])
            await self._farewell(done, report)
        finally:
            await self._close(listener, dialling)
        report.model = self._model
        report.refusals = dict(self._refusals.counts)
        report.unsaved = self._keeper.unsaved
        return report

    # ---------------------------------------------------------------- a round

    async def _round(self, round: int, last: int, wire: WireBytes, report: SessionReport) -> int:
        """Do a round, or a later one if the others are there already; return which."""
        planned, round = round, self._caught_up(round, last)
        steps = await self._steps.on(self._model, round)
        # What was trained meanwhile is as good for a later round as for the one that it was meant for.
        round = self._caught_up(round, last)
        if isinstance(self._mixer, PushSum):
            self._mixer.missed(round - planned)
        row = self._rows[round % len(self._rows)]
        began = time.perf_counter()
        if self._is_good(steps.model, round):
            # The file that is being written holds the mixer's own arrays.
            await self._keeper.done()
            trained = self._doubts.settled(steps.model, self._answers(), report)
            if self._overlap and round < last:
                self._steps.begin(trained, round + 1)
            counted, doubtful = await self._exchanged(round, row, trained)
            self._doubts.add(round, row, trained, counted, doubtful)
            self._model = self._mixer.mix(trained, row, counted)
            for neighbour in self._fleet.values():
                neighbour.release()
        else:
            counted, doubtful = {}, {}
            for j in _others(row, self.node):
                self._fleet[j].sit_out(round)
        exchange_seconds = time.perf_counter() - began
        sent, received = wire.since_last()
        report.rounds.append(
            RoundReport(
                round=round,
                neighbours=len(row) - 1,
                counted=tuple(sorted(counted)),
                in_doubt=tuple(sorted(doubtful)),
                train_seconds=steps.seconds,
                exchange_seconds=exchange_seconds,
                bytes_sent=sent,
                bytes_received=received,
                metrics=steps.metrics,
            )
        )
        await self._save(round)
        return round

    def _caught_up(self, round: int, last: int) -> int:
        """Return the round that the fleet is in, which may have gone on without this node."""
        # Over links that go one way, receivers do not say where they are.
        saying = self._mixer.senders if isinstance(self._mixer, PushSum) else self._fleet
        known = [(j, self._fleet[j]) for j in saying]
        theirs = {j: n.their_round for j, n in known if n.connected or n.finished}
        round = min(fleet_round(round, self._rows, theirs), last)
        for neighbour in self._fleet.values():
            neighbour.enter(round)
        return round

    async def _exchanged(
        self, round: int, row: Row, trained: Vector
    ) -> tuple[dict[int, Any], dict[int, Any]]:
        """Return the neighbours' models that count, and those that may."""
        others = _others(row, self.node)
        if isinstance(self._mixer, PushSum):
            return await self._passed_on(round, others, trained, self._mixer), {}
        there = [j for j in others if self._fleet[j].is_there(round)]
        frames = self._frames(round, self._mixer.outgoing(trained, there))
        found = await asyncio.gather(*(self._fleet[j].exchange(round, frames.get(j)) for j in others))
        counted: dict[int, Any] = {}
        doubtful: dict[int, Any] = {}
        for j, (outcome, model) in zip(others, found, strict=True):
            link = self._fleet[j].link
            if outcome is Outcome.IN_DOUBT and link.settled is not None:
                # The answer came while other neighbours were waited for.
                outcome = Outcome.COUNTED if link.settled else Outcome.FAILED
                link.settled = None
            if model is not None and outcome is not Outcome.FAILED:
                (counted if outcome is Outcome.COUNTED else doubtful)[j] = model
        return counted, doubtful

    async def _passed_on(
        self, round: int, others: Sequence[int], trained: Vector, mixer: PushSum
    ) -> dict[int, Any]:
        """Return what came, each way on its own."""
        there = [j for j in others if self._fleet[j].connected and not self._fleet[j].finished]
        frames = self._frames(round, mixer.outgoing(trained, there))
        found = await asyncio.gather(
            *(self._fleet[j].pass_on(round, frames.get(j), awaits=j in mixer.senders) for j in others)
        )
        return {j: message for j, message in zip(others, found, strict=True) if message is not None}

    def _frames(self, round: int, outgoing: Mapping[int, Any]) -> dict[int, list[bytes]]:
        """Return what goes to each neighbour; what is the same for several is encoded once."""
        encoded: dict[int, list[bytes]] = {}
        for vector in outgoing.values():
            if id(vector) not in encoded:
                payload = self._codec.encode(vector)
                encoded[id(vector)] = list(
                    model_frames(self._run, self.node, round, self._codec.name, payload)
                )
        return {j: encoded[id(vector)] for j, vector in outgoing.items()}

    def _answers(self) -> dict[int, bool]:
        """Return what has become of links that were in doubt, as far as is known by now."""
        answers = {}
        for j, neighbour in self._fleet.items():
            answer, neighbour.link.settled = neighbour.link.settled, None
            if answer is not None:
                answers[j] = answer
        return answers

    def _is_good(self, trained: Vector, round: int) -> bool:
        if not is_finite(trained):
            log.warning("round %d: training made NaN or infinity; the model before it is kept", round)
            return False
        return True

    # ---------------------------------------------------------------- beginning and end

    def _neighbours(self, last_round: int) -> dict[int, Neighbour]:
        counted = {} if self.resumed is None else self.resumed.last_counted
        return {
            j: Neighbour(
                member,
                Link(
                    coordinator=self.node < j,
                    last_counted=counted.get(j, ()),
                    in_doubt=self._doubts.open[j].round if j in self._doubts.open else None,
                ),
                Inbox(self._codec, len(self._model), self._settings.largest_element),
                run=self._run,
                node=self.node,
                terms=self._terms,
                one_way=self._mixer.one_way,
                last_round=last_round,
                settings=self._settings,
                refusals=self._refusals,
            )
            for j, member in self._members.items()
        }

    def _dialler(self, neighbour: Neighbour) -> Dialler:
        first = hello(self._run, self.node, 0, self._terms)
        return Dialler(neighbour, first, self._identity, self._settings, self._refusals)

    async def _connected(self) -> None:
        """Wait until all neighbours are connected and have said where they are, or time is up."""
        await _until(
            lambda: all(n.connected and n.their_round > 0 for n in self._fleet.values()),
            self._settings.connect_timeout,
        )
        if missing := [j for j, neighbour in self._fleet.items() if not neighbour.connected]:
            log.warning(
                "nodes %s did not connect within %g s; they can join later",
                missing,
                self._settings.connect_timeout,
            )

    async def _farewell(self, done: int, report: SessionReport) -> None:
        """Stay until nobody needs this node any more, and settle what can be settled."""
        for neighbour in self._fleet.values():
            neighbour.farewell()
        await _until(
            lambda: all(
                neighbour.is_done_with(done) and neighbour.link.in_doubt is None
                for neighbour in self._fleet.values()
            ),
            self._settings.farewell_timeout,
        )
        settled = len(report.late)
        await self._keeper.done()
        self._model = self._doubts.settled(self._model, self._answers(), report)
        report.unsettled = list(self._doubts.left())
        if len(report.late) > settled:
            await self._save(done)

    async def _close(self, listener: Listener, dialling: Sequence[asyncio.Task[None]]) -> None:
        for neighbour in self._fleet.values():
            neighbour.close()
        await _until(
            lambda: not any(neighbour.connected for neighbour in self._fleet.values()), CLOSE_TIMEOUT
        )
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        await listener.stop()
        await self._keeper.done()
        await self._steps.end()

    async def _save(self, round: int) -> None:
        counted = {j: neighbour.link.last_counted for j, neighbour in self._fleet.items()}
        await self._keeper.keep(
            State(
                self._run,
                self.node,
                round,
                self._model,
                counted,
                self._extra(),
                self._mixer_name,
                self._mixer.state(),
                dict(self._doubts.open),
            )
        )


def _others(row: Row, node: int) -> list[int]:
    return [j for j in row if j != node]


async def _until(condition: Callable[[], bool], timeout: float) -> None:
    """Wait for a condition, but no longer than so many seconds."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(POLL_INTERVAL)
