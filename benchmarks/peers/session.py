"""One node of ours, a `PeerSession` over mutual TLS: ``python -m benchmarks.peers.session JSON``."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.task import NODES, Marks, Training, settle
from flower_edge.gossip import full_graph_plan, load_graph
from flower_edge.peer import Identity, Member, NamedModel, PeerSession, rows_of


def main(config: dict[str, Any]) -> None:
    """Do the rounds as one node of the ring, and print what one took."""
    settle(one_core=config["one_core"])
    node, ports, folder = config["node"], config["ports"], Path(config["folder"])
    training = Training(Path(config["data"]), node)
    marks = Marks()

    def train(arrays: dict[str, Any], _: int) -> tuple[dict[str, Any], dict[str, float]]:
        marks.take()
        training.model.load_state_dict(arrays)
        loss = training.epoch()
        return training.model.state_dict(), {"train_loss": loss}

    plan = full_graph_plan(load_graph(f"ring:{NODES}"))
    model = NamedModel(training.model.state_dict(), train)
    report = PeerSession(
        node,
        rows_of(plan, node),
        [
            Member(other, f"127.0.0.1:{port}", Path(folder, f"{other}.crt").read_bytes())
            for other, port in enumerate(ports)
        ],
        model.vector,
        model.train,
        run="comparison",
        listen=f"127.0.0.1:{ports[node]}",
        identity=Identity.load(Path(folder, f"{node}.key"), Path(folder, f"{node}.crt")),
        state=Path(folder, f"{node}.state"),
        extra=model.extra,
    ).run(config["rounds"])
    # Of all rounds, since a neighbour's next model may arrive before a round begins here.
    received = sum(done.bytes_received for done in report.rounds) / len(report.rounds)
    print("found", json.dumps(marks.a_round() | {"bytes": received}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
