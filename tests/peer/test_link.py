"""The two ends of a link, over a wire that loses what it likes: they count the same rounds."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.peer.frames import Kind
from flower_edge.peer.link import Link, Outcome, Say

MODEL = "model"


class End:
    """A Link, what it has counted, and the wire towards the other end."""

    def __init__(self, *, coordinator: bool) -> None:
        self.link = Link(coordinator=coordinator)
        self.wire: deque[tuple[Kind | str, int]] = deque()
        self.counted: set[int] = set()
        self.inbox = 0
        self.connected = True
        self.round = 0

    def say(self, words: Say) -> None:
        if self.connected:
            self.wire.extend(words)

    def next_round(self) -> None:
        self.close_round()
        self.round += 1
        self.say(self.link.begin(self.round))
        if self.link.outcome is Outcome.OPEN and not self.connected:
            self.link.broken()
        if self.link.outcome is Outcome.OPEN:
            if self.inbox == self.round:
                self.say(self.link.arrived())
            self.wire.append((MODEL, self.round))
            self.say(self.link.sent())

    def close_round(self) -> None:
        if self.link.outcome is Outcome.OPEN:
            self.say(self.link.give_up())
        self.note()

    def note(self) -> None:
        if self.link.outcome is Outcome.COUNTED:
            self.counted.add(self.link.round)
        if self.link.settled is not None and self.link.settled:
            self.counted.add(self.link.last_counted[-1])
        self.link.settled = None

    def hear(self, other: "End") -> None:
        if not self.wire_from(other):
            return
        kind, round_ = other.wire.popleft()
        if kind == MODEL:
            self.inbox = round_
            if round_ == self.link.round:
                self.say(self.link.arrived())
        else:
            self.say(self.link.heard(kind, round_))
        self.note()

    def wire_from(self, other: "End") -> bool:
        return self.connected and bool(other.wire)


def cut(ends: list[End]) -> None:
    for end in ends:
        end.wire.clear()
        end.inbox = 0
        end.connected = False
        end.link.broken()
        end.note()


def mend(ends: list[End]) -> None:
    for end in ends:
        if not end.connected:
            end.connected = True
            end.say(end.link.mended())


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from(["hear 0", "hear 1", "hear 0", "hear 1", "next 0", "next 1", "cut", "mend"]),
        max_size=60,
    )
)
def test_both_ends_count_the_same_rounds(events: list[str]) -> None:
    ends = [End(coordinator=True), End(coordinator=False)]
    for event in events:
        what, _, who = event.partition(" ")
        if what == "cut":
            cut(ends)
        elif what == "mend":
            mend(ends)
        elif what == "hear":
            ends[int(who)].hear(ends[1 - int(who)])
        else:
            ends[int(who)].next_round()

    for end in ends:
        end.close_round()
    mend(ends)
    while any(end.wire for end in ends):
        for end, other in (ends, ends[::-1]):
            end.hear(other)

    assert ends[0].counted == ends[1].counted
    assert ends[0].link.idle
    assert ends[1].link.idle


def test_a_round_without_faults_is_counted() -> None:
    ends = [End(coordinator=True), End(coordinator=False)]
    for _ in range(3):
        for end in ends:
            end.next_round()
        while any(end.wire for end in ends):
            for end, other in (ends, ends[::-1]):
                end.hear(other)

    assert ends[0].counted == ends[1].counted == {1, 2, 3}


def test_a_lost_answer_is_settled_when_the_link_is_back() -> None:
    ends = [End(coordinator=True), End(coordinator=False)]
    for end in ends:
        end.next_round()
    coordinator, participant = ends
    participant.hear(coordinator)  # the model
    coordinator.hear(participant)  # the model
    coordinator.hear(participant)  # READY
    assert coordinator.counted == {1}
    cut(ends)
    participant.close_round()
    assert participant.link.outcome is Outcome.IN_DOUBT
    participant.next_round()
    assert participant.link.outcome is Outcome.FAILED, "no new model before the doubt is settled"

    mend(ends)
    while any(end.wire for end in ends):
        for end, other in (ends, ends[::-1]):
            end.hear(other)

    assert participant.counted == {1}


def test_a_doubt_that_was_settled_in_a_life_that_is_lost_is_settled_alike() -> None:
    """The participant learns that round 1 counted, counts round 2, and dies with the state of round 1."""
    coordinator, participant = Link(coordinator=True), Link(coordinator=False)

    def exchange(round_: int, *, answered: bool) -> None:
        for link in (coordinator, participant):
            link.begin(round_)
        coordinator.arrived()
        coordinator.sent()
        participant.sent()
        (ready,) = participant.arrived()
        (answer,) = coordinator.heard(*ready)
        if answered:
            participant.heard(*answer)
        else:
            participant.give_up()

    def ask(link: Link) -> bool | None:
        (ready,) = link.mended()
        (answer,) = coordinator.heard(*ready)
        link.heard(*answer)
        return link.settled

    exchange(1, answered=False)
    on_disk = participant.in_doubt
    assert ask(participant) is True
    participant.settled = None
    exchange(2, answered=True)
    assert participant.outcome is Outcome.COUNTED

    coordinator = Link(coordinator=True, last_counted=coordinator.last_counted)
    assert ask(Link(coordinator=False, in_doubt=on_disk)) is True


def test_a_round_that_the_other_end_gave_up_is_not_waited_for() -> None:
    link = Link(coordinator=True)
    link.heard(Kind.ABORT, 4)

    link.begin(4)

    assert link.outcome is Outcome.FAILED


def test_a_model_that_is_no_good_fails_the_round_for_both() -> None:
    link = Link(coordinator=True)
    link.begin(2)

    assert link.refuse(2) == [(Kind.ABORT, 2)]
    assert link.heard(Kind.READY, 2) == [(Kind.ABORT, 2)]
    assert link.refuse(3) == []
    assert link.begin(3) == [(Kind.ABORT, 3)]


def test_rounds_go_forwards() -> None:
    link = Link(coordinator=True)
    link.begin(2)

    with pytest.raises(ValueError, match="received round 2, expected one after 2"):
        link.begin(2)
