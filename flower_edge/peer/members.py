"""The nodes that a node exchanges models with."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from flower_edge.peer.frames import LARGEST_NODE
from flower_edge.peer.identity import fingerprint, subject

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+(%\w+)?\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})")


@dataclass(frozen=True)
class Member:
    """A node of the plan, and how to reach and to recognise it.

    Parameters
    ----------
    node : int
        Its index in the plan.
    address : str
        ``host:port``; an IPv6 address in brackets.
    certificate : bytes or None, default None
        PEM. Links to the node are pinned to it; None only where links are in clear text.

    Raises
    ------
    ValueError
        If the address or the certificate is none.
    """

    node: int
    address: str
    certificate: bytes | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.node <= LARGEST_NODE:
            raise ValueError(f"received node {self.node}, expected 0 to {LARGEST_NODE}")
        check_address(self.address)
        if self.certificate is not None:
            fingerprint(self.certificate)

    @property
    def fingerprint(self) -> str:
        """The certificate's; empty where there is none."""
        return "" if self.certificate is None else fingerprint(self.certificate)


def check_address(address: str) -> None:
    """Raise a ValueError unless `address` is ``host:port``."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[3]) < 2**16:
        raise ValueError(f"received address {address!r:.100}, expected host:port, such as 192.168.1.20:9700")


def port_of(address: str) -> int:
    """Return the port of a ``host:port``."""
    return int(address.rpartition(":")[2])


def by_node(members: Iterable[Member]) -> dict[int, Member]:
    """Return members by node.

    Raises
    ------
    ValueError
        If two have the same node or the same certificate: they could not be told apart. Nor can TLS tell
        certificates apart that have the same subject.
    """
    found: dict[int, Member] = {}
    owner: dict[str, int] = {}
    for member in members:
        if member.node in found:
            raise ValueError(f"received node {member.node} twice, expected each once")
        found[member.node] = member
        if member.certificate is not None:
            name = subject(member.certificate)
            other = owner.setdefault(name, member.node)
            if other != member.node:
                raise ValueError(
                    f"the certificates of nodes {other} and {member.node} have the same subject ({name}), "
                    "expected certificates of their own, with different subjects"
                )
    return found
