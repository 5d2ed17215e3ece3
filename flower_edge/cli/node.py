"""``flower-edge node``: a node of a gossip that no server knows of."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typer import Argument

from flower_edge._files import check_target, write_whole
from flower_edge.cli.callables import named_callable
from flower_edge.cli.node_config import NodeConfig
from flower_edge.peer import NamedModel, PeerSession, RoundReport, SessionReport, rows_of


def node(config: Annotated[Path, Argument(metavar="CONFIG.toml", show_default=False)]) -> None:
    """Be a node of a gossip without any server: train, and mix models with the neighbours that a file names.

    The file has the keys run (the same text at every node), node (this one's number in the plan), plan (a
    file of flower-edge topology), rounds, trainer (MODULE:CALLABLE), listen (host:port), key and certificate
    (files of flower-edge certs make), and a table peers for each neighbour: node, address, certificate and
    fingerprint. With a key state, the model is kept in that file after each round, so that the command can be
    run again after a crash; with a key result, it is written there as .npz at the end. A table settings
    changes waits. With a key compressor ("int8", for example) models travel in few bytes. docs/serverless.md
    has an example.

    CALLABLE takes the node's number and returns the model's arrays (a state_dict) and a function of arrays
    and round that trains: it returns new arrays and a dict of metrics, which are numbers. MODULE is looked
    for beside the file.

    Writes a line of JSON for each round; a metric that is NaN or infinite is null there.
    """
    given = NodeConfig.read(config)
    for path, suffix in ((given.result, ".npz"), (given.state, "")):
        if path is not None:
            check_target(path, force=True, suffix=suffix)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    model = _model(given)
    session = PeerSession(
        given.node,
        rows_of(given.plan, given.node),
        given.members,
        model.vector,
        model.train,
        run=given.run,
        listen=given.listen,
        identity=given.identity,
        mixer=given.mixer(model.layout),
        settings=given.settings,
        state=given.state,
        extra=model.extra,
        overlap=given.overlap,
    )
    if session.resumed is not None:
        model.restore(session.resumed.extra)
    report = session.run(given.rounds, on_round=_print_round)
    _print_end(report)
    if given.result is not None:
        write_whole(given.result, _npz(model.arrays(report.model)), force=True)


def _model(given: NodeConfig) -> NamedModel:
    make = named_callable(
        given.trainer, given.folder.resolve(), "mytask:trainer", "a model's arrays and its training"
    )
    made = make(given.node)
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], Mapping):
        raise ValueError(
            f"{given.trainer} returned a {type(made).__name__}, expected a pair: arrays by name, and a "
            "function of (arrays, round)"
        )
    return NamedModel(*made)


def _print_round(report: RoundReport) -> None:
    _print(
        {
            "round": report.round,
            "neighbours": report.neighbours,
            "counted": report.counted,
            "in_doubt": report.in_doubt,
            "train_seconds": round(report.train_seconds, 6),
            "exchange_seconds": round(report.exchange_seconds, 6),
            "bytes_sent": report.bytes_sent,
            "bytes_received": report.bytes_received,
            "metrics": {name: _number(name, value) for name, value in report.metrics.items()},
        }
    )


def _number(name: str, value: Any) -> float | None:
    """Return a metric as JSON knows numbers, which has neither numpy's nor NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training returned metric {name!r} = {value!r:.60}, expected a number") from error
    return number if math.isfinite(number) else None


def _print_end(report: SessionReport) -> None:
    _print({"late": report.late, "unsettled": report.unsettled, "refusals": report.refusals})


def _print(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _npz(arrays: Mapping[str, Any]) -> bytes:
    file = BytesIO()
    named: dict[str, Any] = {
        # numpy has no bfloat16.
        name: np.asarray(array.float() if str(array.dtype) == "torch.bfloat16" else array)
        for name, array in arrays.items()
    }
    np.savez(file, **named)
    return file.getvalue()
