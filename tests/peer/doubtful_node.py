"""The second of two nodes, which is killed once a doubt is on its disk; for tests of doubts.

Reads a JSON config from its first argument and writes what it has done as a JSON line."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from flower_edge.gossip import DPSGD, ChocoCopies, GossipPlan, Int8, LinkChoco
from flower_edge.peer import Identity, Member, PeerSession, PeerSettings, State, StateError, rows_of
from flower_edge.peer.part import run_id

MIXERS = {"ChocoCopies": ChocoCopies, "LinkChoco": LinkChoco}


def main() -> None:
    config = json.loads(sys.argv[1])
    folder, elements = Path(config["folder"]), config["elements"]
    plan = GossipPlan.from_matrix(np.full((2, 2), 0.5))
    make = MIXERS.get(config["mixer"])
    state = folder / "node-1"

    def in_doubt() -> bool:
        try:
            return bool(State.load(state, run_id("a test"), 1, elements).doubts)
        except StateError:
            return False

    def train(model: np.ndarray, round_: int) -> tuple[np.ndarray, dict[str, float]]:
        time.sleep(0.02)
        if config["dies"] and round_ > config["round"]:
            for _ in range(200):
                if in_doubt():
                    print(json.dumps({"kept": round_ - 1}), flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.02)
        return model + np.float32(config["gain"]), {}

    session = PeerSession(
        1,
        rows_of(plan, 1),
        [Member(0, "127.0.0.1:1", (folder / "0.crt").read_bytes())],
        np.full(elements, 1, np.float32),
        train,
        run="a test",
        listen=f"127.0.0.1:{config['port']}",
        identity=Identity.load(folder / "1.key", folder / "1.crt"),
        mixer=DPSGD(1) if make is None else make(1, plan, Int8().codec(elements)),
        settings=PeerSettings(**config["settings"]),
        state=state,
    )
    report = session.run(config["rounds"])
    print(
        json.dumps(
            {
                "late": report.late,
                "unsettled": report.unsettled,
                "rounds": [r.round for r in report.rounds],
                "model": report.model.tolist(),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
