"""Which boards are there, and how they can be reached and recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from logging import WARNING, getLogger

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_edge.gossip.compression import to_named
from flower_edge.gossip.compressor import Compressor
from flower_edge.peer import Member
from flower_edge.strategies.binding import PARTITION_QUERY, QUERY_TIMEOUT
from flower_edge.strategies.replies import accept

log = getLogger("flwr").log


@dataclass(frozen=True)
class Board:
    """What a node says of itself.

    Attributes
    ----------
    node_id : int
        Flower's, in this run.
    simulated : bool
        Whether it is one of Flower's Simulation Engine, where nodes have no address.
    round : int
        The last that is on its disk, −1 if it has no model.
    member : Member or None
        None where it says no address.
    codecs : tuple of str
        The names of the compressors by which it can send models.
    """

    node_id: int
    simulated: bool
    round: int
    member: Member | None
    codecs: tuple[str, ...]


def roll_call(
    grid: Grid, n: int, run: str, *, insecure: bool, direct: bool, timeout: float = QUERY_TIMEOUT
) -> dict[int, Board]:
    """Ask all connected nodes who they are; return those that can take part, by their index in the plan.

    Parameters
    ----------
    grid : Grid
    n : int
        Nodes of the plan; node i is the one with partition i.
    run : str
        Under this name a node keeps its key and its model.
    insecure : bool
        Whether certificates are of no use.
    direct : bool
        Whether simulated nodes choose an address on this machine.
    timeout : float, default 60
        Seconds to wait for their answers.
    """
    boards: dict[int, Board] = {}
    twice: set[int] = set()

    def take(node_id: int, content: RecordDict) -> None:
        partition, board = _board(node_id, content, n, insecure=insecure)
        if partition in boards:
            twice.add(partition)
        boards[partition] = board

    question = RecordDict({"gossip": ConfigRecord({"run": run, "direct": direct})})
    queries = [
        Message(question, dst_node_id=node_id, message_type=PARTITION_QUERY)
        for node_id in sorted(grid.get_node_ids())
    ]
    replies = list(grid.send_and_receive(queries, timeout=timeout)) if queries else []
    if silent := len(queries) - len(replies):
        log(WARNING, "%d of %d connected nodes gave no answer within %g s", silent, len(queries), timeout)
    accept(replies, take)
    for partition in twice:
        log(WARNING, "Several nodes have partition-id %d; all of them sit out", partition)
        del boards[partition]
    return boards


def _board(node_id: int, content: RecordDict, n: int, *, insecure: bool) -> tuple[int, Board]:
    record = content.config_records.get("gossip")
    partition = None if record is None else record.get("partition-id")
    if record is None or not isinstance(partition, int) or not 0 <= partition < n:
        raise ValueError(f"it has partition-id {partition!r}; the plan has nodes 0 to {n - 1}")
    if "address" not in record:
        raise ValueError("its ClientApp knows no sessions: make it with edge_client_app, or use gossip_mod")
    address, round_ = str(record["address"]), record.get("round", -1)
    if not isinstance(round_, int):
        raise ValueError(f"its round is {round_!r:.60}; expected a whole number")
    member = None
    if address:
        certificate = None if insecure else str(record["certificate"]).encode()
        member = Member(partition, address, certificate)
        if certificate is not None and member.fingerprint != record["fingerprint"]:
            raise ValueError(
                f"its certificate has fingerprint {member.fingerprint}, it says {record['fingerprint']!r:.80}"
            )
    codecs = record.get("codecs", [])
    names = tuple(map(str, codecs)) if isinstance(codecs, list) else ()
    return partition, Board(node_id, record.get("simulated") is True, round_, member, names)


def check_boards(boards: Mapping[int, Board], compressor: Compressor | None) -> None:
    """Raise a ValueError unless boards can be reached, and send models in these bytes."""
    name = None if compressor is None else to_named(compressor)["name"]
    if name and (without := sorted(node for node, board in boards.items() if name not in board.codecs)):
        raise ValueError(
            f"nodes {without} cannot send models in {name!r}, but in {boards[without[0]].codecs}: update "
            "flower_edge there, or take another compressor"
        )
    if homeless := sorted(node for node, board in boards.items() if board.member is None):
        raise ValueError(
            f"nodes {homeless} have no address, so that nobody can send them a model: start their "
            "SuperNodes with --node-config \"gossip-address='192.168.1.20:9700' …\""
        )
