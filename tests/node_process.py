"""One node in a process of its own, with a fault of its choice; for tests of faults.

Reads a JSON config from its first argument and writes a JSON line for each thing that happens."""

import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flower_edge.gossip import GossipPlan
from flower_edge.peer import Fp32, Identity, Member, PeerSession, PeerSettings, rows_of, session
from flower_edge.peer.sockets import tcp_sockets


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


def sockets_left() -> int:
    """gRPC closes them in a thread of its own, so it may have a moment."""
    for _ in range(100):
        if not (left := len(list(tcp_sockets()))):
            break
        time.sleep(0.05)
    return left


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
    report = peer.run(config["rounds"])
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
        sockets=sockets_left(),
    )


if __name__ == "__main__":
    main()
