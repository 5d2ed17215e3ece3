"""What a server tells the boards of a session."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from flwr.app import ConfigRecord

from flower_edge.peer import Member, PeerSettings
from flower_edge.strategies.roll_call import Board
from flower_edge.strategies.survivors import Rows


@dataclass(frozen=True)
class Terms:
    """What is the same for all nodes of a run.

    Attributes
    ----------
    settings : PeerSettings
    robust : str or None
        The name of a robust mixer.
    overlap : bool
        Whether the next round trains meanwhile.
    arrayrecord_key, configrecord_key : str
        Of messages to the app's ``train``.
    """

    settings: PeerSettings
    robust: str | None
    overlap: bool
    arrayrecord_key: str
    configrecord_key: str

    def keys(self, run: str, node: int) -> dict[str, str | int]:
        """Return who a message is for, and how its records are called."""
        return {
            "run": run,
            "node": node,
            "arrayrecord-key": self.arrayrecord_key,
            "configrecord-key": self.configrecord_key,
        }

    def order(
        self,
        run: str,
        node: int,
        rows: Rows,
        boards: Mapping[int, Board],
        *,
        rounds: tuple[int, int],
        told: int,
        compression: str,
        exports: bool,
    ) -> ConfigRecord:
        """Return a node's part in a session.

        Parameters
        ----------
        run : str
        node : int
        rows : list of dict
            Its rows of W(t).
        boards : mapping of int to Board
            Everybody's.
        rounds : (int, int)
            The first and the last.
        told : int
            The last round that the node has reported.
        compression : str
            How models become few bytes, empty if they do not; see `flower_edge.gossip.compression`.
        exports : bool
            Whether it sends its model at the end.
        """
        neighbours = sorted({other for row in rows for other in row} - {node})
        own = boards[node].member
        return ConfigRecord(
            {
                **self.keys(run, node),
                "address": "" if own is None else own.address,
                "first-round": rounds[0],
                "last-round": rounds[1],
                "told-round": told,
                "rows": json.dumps(rows),
                "members": _members(boards[other].member for other in neighbours),
                "settings": json.dumps(asdict(self.settings)),
                "robust": self.robust or "",
                "compression": compression,
                "overlap": self.overlap,
                "export": exports,
            }
        )


def _members(members: Iterable[Member | None]) -> str:
    return json.dumps(
        [[m.node, m.address, (m.certificate or b"").decode()] for m in members if m is not None]
    )
