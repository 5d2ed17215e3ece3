"""The bare training loop of some nodes, in one process: ``python -m benchmarks.peers.bare JSON``."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.task import Marks, Training, settle


def main(config: dict[str, Any]) -> None:
    """Train each node's model for an epoch in each round, one node after the other; print what one took."""
    settle(one_core=config["one_core"])
    nodes = [Training(Path(config["data"]), node) for node in config["nodes"]]
    marks = Marks()
    for _ in range(config["rounds"]):
        marks.take()
        for node in nodes:
            node.epoch()
    print("found", json.dumps(marks.a_round()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
