"""Gossip sessions for any ClientApp that trains."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_edge.clients import messages
from flower_edge.clients.gossip_files import NodeFiles
from flower_edge.clients.untold_rounds import Row
from flower_edge.gossip.codec import Layout
from flower_edge.gossip.compression import COMPRESSORS, Compression
from flower_edge.gossip.mixer import Mixer
from flower_edge.gossip.node_rows import NodeRows
from flower_edge.gossip.robust import named_mixer
from flower_edge.peer import Member, NamedModel, PeerSession, PeerSettings, SessionReport
from flower_edge.strategies.records import only_arrays, to_numpy, to_record
from flower_edge.strategies.session_rounds import OWN

GOSSIP = "gossip"
"""Key of the ConfigRecord that says what a session is, and what a node answers."""


def gossip_mod(app: ClientApp) -> ClientApp:
    """Let a ClientApp exchange models with other nodes directly.

    It learns to answer three more messages, those of `flower_edge.strategies.ServerlessGossip`:
    ``query.gossip`` (who the node is, where it can be reached, its certificate), ``train.gossip`` (a session
    of many rounds) and ``evaluate.gossip`` (of the node's own model). In each round of a session the app's
    own ``train`` function is called as if a server had sent the model; it has to return all arrays and one
    MetricRecord, as Flower's strategies expect.

    The node config says where the node is: ``gossip-address`` (``"192.168.1.20:9700"``, as its neighbours
    reach it), and perhaps ``gossip-listen`` (another address to listen at, behind a forwarded port) and
    ``gossip-folder`` (where the node keeps its key and its model; by default below ``$XDG_STATE_HOME``).

    Parameters
    ----------
    app : ClientApp
        Has a ``train`` function, and an ``evaluate`` function if the strategy evaluates.

    Returns
    -------
    ClientApp
        `app` itself.

    Examples
    --------
    >>> app = gossip_mod(ClientApp())
    >>> @app.train()
    ... def train(message, context): ...
    """

    @app.query(GOSSIP)
    def query(message: Message, context: Context) -> Message:
        answer: dict[str, Any] = {"partition-id": messages.partition(context)}
        asked = message.content.config_records.get(GOSSIP)
        if asked is not None:
            answer |= _introduction(str(asked["run"]), context)
        return Message(RecordDict({GOSSIP: ConfigRecord(answer)}), reply_to=message)

    @app.train(GOSSIP)
    def session(message: Message, context: Context) -> Message:
        order = message.content.config_records[GOSSIP]
        files = NodeFiles.of(context, str(order["run"]))
        model = _model(app, message, context, order, files)
        peer = _session(context, order, files, model)
        if peer.resumed is not None:
            model.restore(peer.resumed.extra)
        report = peer.run(_integer(order, "last-round"), _integer(order, "first-round"))
        told = _integer(order, "told-round") if "told-round" in order else _integer(order, "first-round") - 1
        rows = files.untold_rounds.with_those(_rows(report), told)
        content = RecordDict({"metrics": _metrics(rows), GOSSIP: _summary(report)})
        if order["export"]:
            content["arrays"] = to_record(model.arrays(report.model))
        return Message(content, reply_to=message)

    @app.evaluate(GOSSIP)
    def evaluate(message: Message, context: Context) -> Message:
        order = message.content.config_records[GOSSIP]
        files = NodeFiles.of(context, str(order["run"]))
        state = files.kept(_integer(order, "node"))
        if state is None:
            raise ValueError(f"this node has no model of run {order['run']!r}: it was in no session of it")
        model = NamedModel(files.arrays() or {}, _trains_nothing)
        model.restore(state.extra)
        arrays = to_record(model.arrays(state.model))
        reply = app(_local(message, "evaluate", arrays, order, state.round), context)
        return Message(reply.content, reply_to=message)

    return app


def _introduction(run: str, context: Context) -> dict[str, Any]:
    """Return what others need to know of this node to exchange models with it."""
    address = context.node_config.get("gossip-address")
    if address is None:
        return {"address": "", "simulated": _is_simulated()}
    Member(0, str(address))
    files = NodeFiles.of(context, run)
    identity = files.identity()
    state = files.kept(messages.partition(context))
    return {
        "address": str(address),
        "simulated": False,
        "certificate": identity.certificate.decode(),
        "fingerprint": identity.fingerprint,
        "codecs": list(COMPRESSORS),
        "round": -1 if state is None else state.round,
    }


def _is_simulated() -> bool:
    """Whether this process is a worker of Flower's Simulation Engine, which runs in ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _model(
    app: ClientApp, message: Message, context: Context, order: ConfigRecord, files: NodeFiles
) -> NamedModel:
    """Return the model that the message brings, or what the one on disk looks like."""
    start: Mapping[str, Any] | None
    if message.content.array_records:
        start = {name: array.numpy() for name, array in only_arrays(message.content).items()}
        files.keep_layout(Layout.of(start))
        files.keep_start(Layout.of(start).flatten(start)[0])
        files.forget()
    else:
        start = files.arrays()
        if start is None or files.kept(_integer(order, "node")) is None:
            raise ValueError(f"this node has no model of run {files.run!r}, and the message brings none")
    layout = Layout.of(start)

    def train(arrays: dict[str, Any], round: int) -> tuple[dict[str, Any], dict[str, float]]:
        reply = app(_local(message, "train", to_record(arrays), order, round), context)
        if reply.has_error():
            raise RuntimeError(f"round {round}: training failed: {reply.error.reason}")
        return to_numpy(only_arrays(reply.content), layout), _scalars(reply.content)

    return NamedModel(start, train)


def _session(context: Context, order: ConfigRecord, files: NodeFiles, model: NamedModel) -> PeerSession:
    members = json.loads(str(order["members"]))
    node = _integer(order, "node")
    rows = [{int(j): float(weight) for j, weight in row.items()} for row in json.loads(str(order["rows"]))]
    settings = PeerSettings(**json.loads(str(order["settings"])))
    listen = context.node_config.get("gossip-listen", context.node_config.get("gossip-address"))
    return PeerSession(
        node,
        rows,
        [Member(j, address, certificate.encode() or None) for j, address, certificate in members],
        model.vector,
        model.train,
        run=files.run,
        listen=str(listen),
        identity=files.identity(),
        mixer=_mixer(order, NodeRows(node, rows), files),
        settings=settings,
        state=files.state,
        extra=model.extra,
        overlap=bool(order.get("overlap", False)),
    )


def _mixer(order: ConfigRecord, rows: NodeRows, files: NodeFiles) -> Mixer[Any]:
    """Return how this node mixes, as the strategy says."""
    if told := str(order.get("compression", "")):
        layout = Layout.of(files.arrays() or {})
        return Compression.from_json(told).mixer(rows.node, rows, layout, files.start(layout.size))
    return named_mixer(str(order["robust"]) or None)(rows.node)


def _local(message: Message, kind: str, arrays: Any, order: ConfigRecord, round: int) -> Message:
    """Return a message as the app would get it from a server that has this node's model."""
    config = dict(message.content.config_records.get(str(order["configrecord-key"]), {}))
    content = RecordDict(
        {
            str(order["arrayrecord-key"]): arrays,
            str(order["configrecord-key"]): ConfigRecord({**config, "server-round": round}),
        }
    )
    local = Message(content, reply_to=message)
    local.metadata.message_type = kind
    local.metadata.dst_node_id = message.metadata.dst_node_id
    return local


def _scalars(content: RecordDict) -> dict[str, float]:
    """Return the numbers of the one MetricRecord of a reply."""
    if len(content.metric_records) != 1:
        raise ValueError(f"expected exactly one MetricRecord, received {len(content.metric_records)}")
    (record,) = content.metric_records.values()
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def _rows(report: SessionReport) -> list[Row]:
    """Return what is reported of each round: the metrics of its training, and those of its exchange."""
    return [
        {
            **{name: float(value) for name, value in done.metrics.items()},
            "round": done.round,
            "links-failed": done.neighbours - len(done.counted),
            "links-in-doubt": len(done.in_doubt),
            "train-seconds": done.train_seconds,
            "exchange-seconds": done.exchange_seconds,
            "bytes-sent": done.bytes_sent,
            "bytes-received": done.bytes_received,
        }
        for done in report.rounds
    ]


def _metrics(rows: list[Row]) -> MetricRecord:
    """Return a list of values for each metric, one a round; NaN where a round has none."""
    names = sorted({name for row in rows for name in row} | OWN)
    lists: dict[str, int | float | list[int] | list[float]] = {}
    for name in names:
        values = [row.get(name, math.nan) for row in rows]
        whole = all(isinstance(value, int) for value in values)
        lists[name] = [int(v) for v in values] if whole else [float(v) for v in values]
    return MetricRecord(lists)


def _summary(report: SessionReport) -> ConfigRecord:
    return ConfigRecord(
        {
            "refusals": json.dumps(report.refusals),
            "doubts-settled-late": len(report.late),
            "doubts-left": len(report.unsettled),
            "rounds-not-on-disk": report.unsaved,
        }
    )


def _integer(order: ConfigRecord, key: str) -> int:
    value = order[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} is {value!r:.60}; expected a whole number")
    return value


def _trains_nothing(arrays: dict[str, Any], round: int) -> tuple[dict[str, Any], dict[str, float]]:
    return arrays, {}
