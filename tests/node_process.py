"""One node in a process of its own, with a fault of its choice; for tests of faults.

Reads a JSON config from its first argument and writes a JSON line for each thing that happens."""

import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from flower_edge.gossip import GossipPlan
from flower_edge.peer import (
    Fp32,
    Identity,
    Member,
    PeerSession,
    PeerSettings,
    dialler,
    listener,
    rows_of,
    session,
)
from flower_edge.peer.frames import LARGEST_FRAME
from flower_edge.peer.sockets import tcp_sockets

BAD_FRAMES = {
    "corrupted": lambda frames, before: [*frames[:-1], frames[-1][:-1] + bytes([frames[-1][-1] ^ 1])],
    "truncated": lambda frames, before: [*frames[:-1], frames[-1][:-1]],
    "sent twice": lambda frames, before: [*frames, *frames],
    "of an earlier round": lambda frames, before: [*before, *frames],
    "oversized": lambda frames, before: [frames[0] + bytes(LARGEST_FRAME)],
}
"""What a node makes of the frames of its model, and of those of the round before: one kind every
`BETWEEN_BAD_FRAMES` rounds, in this order."""

BETWEEN_BAD_FRAMES = 10

BYTES_RESENT = 208
"""Where linux/tcp.h has it in struct tcp_info: after those sent."""


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DiesInReceive(Fp32):
    """Is killed when it has a neighbour's model whole, in a round."""

    def __init__(self, round_: int) -> None:
        self.round = round_

    def decode(self, payload: memoryview, elements: int) -> np.ndarray:
        if current_round >= self.round:
            die()
        return super().decode(payload, elements)


class DiesInSend:
    """Frames of a model; the process is killed when half of them are on their way."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames

    def __iter__(self) -> Iterator[bytes]:
        for number, frame in enumerate(self.frames):
            if number > len(self.frames) // 2:
                die()
            yield frame


class SendsBadFrames:
    """The frames that a session asks for; in some rounds they break the rules."""

    def __init__(self) -> None:
        self.whole = session.model_frames
        self.before: list[bytes] = []
        self.left = list(BAD_FRAMES)
        for module in (dialler, listener):  # gRPC would not send what is oversized
            module.options = without_limit(module.options)

    def __call__(self, run: bytes, node: int, round: int, *rest: object) -> list[bytes]:
        frames = list(self.whole(run, node, round, *rest))
        before, self.before = self.before, frames
        if not self.left or round < BETWEEN_BAD_FRAMES * (1 + len(BAD_FRAMES) - len(self.left)):
            return frames
        kind = self.left.pop(0)
        say(what="bad frames", kind=kind, round=round)
        return BAD_FRAMES[kind](frames, before)


def without_limit(options: object) -> object:
    """gRPC's options, without a limit of what may be sent."""
    return lambda settings: [
        (name, -1 if name == "grpc.max_send_message_length" else value) for name, value in options(settings)
    ]


def left_open() -> dict[str, int]:
    """What a session has to have given back: sockets, files, and processes of its own.

    gRPC closes sockets in a thread of its own, so it may have a moment."""
    for _ in range(100):
        if not (sockets := len(list(tcp_sockets()))):
            break
        time.sleep(0.05)
    targets = [target_of(link) for link in Path("/proc/self/fd").iterdir()]
    files = [target for target in targets if target.startswith("/") and not target.startswith("/dev/")]
    parents = [status.read_text() for status in Path("/proc").glob("[0-9]*/status")]
    children = sum(f"\nPPid:\t{os.getpid()}\n" in text for text in parents)
    return {"sockets": sockets, "files": len(files), "processes": children, "descriptors": len(targets)}


def resent() -> int:
    """Bytes that TCP has sent again over what is open now: on a busy machine it does so without need."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        if not target_of(link).startswith("socket:"):
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(int(link.name))) as duplicate:
            info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            total += struct.unpack_from("=Q", info, BYTES_RESENT)[0]
    return total


def target_of(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # the folder's own
        return ""


current_round = 0


def main() -> None:
    global current_round
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d %(message)s")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    config = json.loads(sys.argv[1])
    node, fault, when = config["node"], config["fault"], config["when"]
    folder = Path(config["folder"])
    plan = GossipPlan.from_json(folder / "plan.json")
    members = [
        Member(other, address, (folder / f"{other}.crt").read_bytes())
        for other, address in enumerate(config["addresses"])
    ]
    start = np.full(config["elements"], node, np.float32)
    gain = np.float32(0.01 * (node + 1))

    def train(model: np.ndarray, round_: int) -> tuple[np.ndarray, dict[str, float]]:
        global current_round
        current_round = round_
        say(what="train", round=round_, now=time.monotonic())
        if fault == "disk full" and round_ == when:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        time.sleep(config["seconds"])
        if fault == "killed in training" and round_ == when:
            die()
        return model + gain, {}

    if fault == "killed in send":
        whole = session.model_frames

        def cut_short(run: bytes, node: int, round: int, *rest: object) -> object:
            frames = list(whole(run, node, round, *rest))
            return DiesInSend(frames) if round == when else frames

        session.model_frames = cut_short
        session.list = lambda frames: frames
    if fault == "bad frames":
        session.model_frames = SendsBadFrames()

    peer = PeerSession(
        node,
        rows_of(plan, node),
        members,
        start,
        train,
        run="faults",
        listen=config["addresses"][node],
        identity=Identity.load(folder / f"{node}.key", folder / f"{node}.crt"),
        codec=DiesInReceive(when) if fault == "killed in receive" else None,
        settings=PeerSettings(**config["settings"]),
        state=folder / f"{node}.state",
    )
    say(what="start", round=0 if peer.resumed is None else peer.resumed.round)
    twice = 0

    def on_round(_: object) -> None:
        nonlocal twice
        twice = resent()

    report = peer.run(config["rounds"], on_round=on_round)
    say(
        what="done",
        rounds=[
            [r.round, r.neighbours, list(r.counted), r.exchange_seconds, r.bytes_sent, r.bytes_received]
            for r in report.rounds
        ],
        unsaved=report.unsaved,
        unsettled=report.unsettled,
        refusals=report.refusals,
        value=[float(report.model.min()), float(report.model.max())],
        resent=twice,
        left=left_open(),
        clock=time.time(),
    )


if __name__ == "__main__":
    main()
