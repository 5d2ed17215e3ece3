"""A node's part in a run: its rows of W(t), its neighbours, and where it starts."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from flower_edge.gossip.codec import Vector, is_finite
from flower_edge.gossip.compressed import CompressedMixer
from flower_edge.gossip.mixer import Mixer
from flower_edge.gossip.plan import GossipPlan
from flower_edge.gossip.push_sum import PushSum
from flower_edge.peer.frames import RUN_BYTES
from flower_edge.peer.identity import Identity, server_name
from flower_edge.peer.members import Member, by_node
from flower_edge.peer.payload import Codec, Fp32, Sealed
from flower_edge.peer.settings import PeerSettings

Row: TypeAlias = Mapping[int, float]


def run_id(name: str) -> bytes:
    """Return the 16 bytes by which frames name a run."""
    return hashlib.sha256(name.encode()).digest()[:RUN_BYTES]


def rows_of(plan: GossipPlan, node: int) -> list[dict[int, float]]:
    """Return what a node needs of a plan: its row of W(t) in each phase."""
    return [plan.row(node, phase) for phase in range(len(plan.phases))]


def checked_members(
    node: int,
    rows: Sequence[Row],
    members: Iterable[Member],
    identity: Identity | None,
    settings: PeerSettings,
) -> dict[int, Member]:
    """Return the neighbours' entries among the members.

    Raises
    ------
    ValueError
        If one of them is missing, or cannot be recognised and clear text was not asked for, or a certificate
        has no name for TLS.
    """
    if not rows or any(node not in row for row in rows):
        raise ValueError(
            f"received {len(rows)} rows of W, expected at least one, each with node {node} itself"
        )
    known = by_node(members)
    wanted = sorted({j for row in rows for j in row} - {node})
    if missing := [j for j in wanted if j not in known]:
        raise ValueError(f"nobody says how to reach nodes {missing}, neighbours of node {node}")
    found = {j: known[j] for j in wanted}
    if settings.insecure:
        return found
    if identity is None:
        raise ValueError(
            "this node has no certificate: give an identity, or say PeerSettings(insecure=True) to send "
            "models in clear text"
        )
    if bare := [j for j in wanted if found[j].certificate is None]:
        raise ValueError(
            f"nodes {bare} have no certificate, so that links to them cannot be pinned: give one for each, "
            "or say PeerSettings(insecure=True) to send models in clear text"
        )
    if twins := [j for j in wanted if found[j].fingerprint == identity.fingerprint]:
        raise ValueError(f"node {twins[0]} has this node's own certificate, expected another")
    # Of two nodes the lower one dials.
    dialled = {f"node {j}": found[j].certificate for j in wanted if j > node}
    if any(j < node for j in wanted):
        dialled[f"node {node} (this one)"] = identity.certificate
    for who, certificate in dialled.items():
        try:
            server_name(certificate or b"")
        except ValueError as error:
            raise ValueError(f"{who}: {error}") from None
    return found


def check_model(model: Vector) -> None:
    """Raise a ValueError unless a model is one finite fp32 vector."""
    if model.ndim != 1 or model.size == 0 or model.dtype != np.float32:
        raise ValueError(f"received a model of {model.dtype} {model.shape}, expected float32 (d,), d ≥ 1")
    if not is_finite(model):
        raise ValueError("the model has NaN or infinity; gossip would spread them to every node")


def codec_and_terms(mixer: Mixer[Any], codec: Codec | None) -> tuple[Codec, str]:
    """Return how what a mixer sends becomes bytes, and what both ends of a link have to agree on.

    Raises
    ------
    ValueError
        If there is a codec for a mixer that has one of its own.
    """
    if isinstance(mixer, PushSum):
        sealed: Codec = Sealed(mixer, mixer.largest_message)
    elif isinstance(mixer, CompressedMixer):
        largest = mixer.largest_message
        sealed = Sealed(mixer, lambda elements: largest)
    else:
        codec = Fp32() if codec is None else codec
        return codec, codec.name
    if codec is not None:
        raise ValueError(
            f"{type(mixer).__name__} sends bytes of its own, in {mixer.codec_name}, received codec "
            f"{codec.name!r}: leave it out"
        )
    return sealed, mixer.terms
