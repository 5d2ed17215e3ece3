"""Links between boards: models go from node to node, over mutual TLS, and through nobody else.

No Flower here: whoever runs a `PeerSession` says who its neighbours are, and how they are recognised.
"""

from flower_edge.peer.frames import FrameError
from flower_edge.peer.identity import Identity, fingerprint
from flower_edge.peer.members import Member
from flower_edge.peer.named import NamedModel
from flower_edge.peer.part import rows_of
from flower_edge.peer.payload import Codec, Fp32, PayloadError
from flower_edge.peer.report import RoundReport, SessionReport
from flower_edge.peer.session import PeerSession
from flower_edge.peer.settings import PeerSettings
from flower_edge.peer.state import State, StateError

__all__ = [
    "Codec",
    "Fp32",
    "FrameError",
    "Identity",
    "Member",
    "NamedModel",
    "PayloadError",
    "PeerSession",
    "PeerSettings",
    "RoundReport",
    "SessionReport",
    "State",
    "StateError",
    "fingerprint",
    "rows_of",
]
