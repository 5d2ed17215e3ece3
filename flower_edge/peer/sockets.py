"""What this process's TCP sockets carry, by the kernel's own count."""

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

# linux/tcp.h, struct tcp_info: 8 bytes, 24 times u32, then u64 fields.
_BYTES_RECEIVED = 128
_BYTES_SENT = 200
_U64 = struct.Struct("=Q")
_TCP_INFO_BYTES = 256


@dataclass(frozen=True)
class TcpSocket:
    """One connected socket of this process.

    Attributes
    ----------
    inode : int
        Tells it from all others, earlier ones included as long as both are open.
    local_port : int
    remote : str
        ``host:port``, of IPv4 addresses in the IPv6 form the IPv4 form.
    sent, received : int
        Bytes, *measured*: TLS, HTTP/2 and retransmissions included, TCP's headers not.
    """

    inode: int
    local_port: int
    remote: str
    sent: int
    received: int


def tcp_sockets() -> Iterator[TcpSocket]:
    """Yield the connected TCP sockets of this process; none where there is no ``/proc``."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return
    for name in descriptors:
        try:
            inode = os.stat(f"/proc/self/fd/{name}")
            if not stat.S_ISSOCK(inode.st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as duplicate:
                if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                yield TcpSocket(
                    inode.st_ino,
                    duplicate.getsockname()[1],
                    address_of(*duplicate.getpeername()[:2]),
                    _field(info, _BYTES_SENT),
                    _field(info, _BYTES_RECEIVED),
                )
        except OSError:
            continue  # closed by now, not connected, or not TCP


def address_of(host: str, port: int) -> str:
    """Return ``host:port`` as `TcpSocket.remote` has it."""
    host = host.removeprefix("::ffff:")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class WireBytes:
    """Adds up what the links of one node send and receive.

    A socket that closes counts up to the last `sample` before.

    Parameters
    ----------
    port : int
        That the node listens on.
    dialled : collection of str
        The ``host:port`` that it connects to.
    """

    def __init__(self, port: int, dialled: Collection[str]) -> None:
        self._port = port
        self._dialled = frozenset(dialled)
        self._latest: dict[int, tuple[int, int]] = {}
        self._closed = self._reported = (0, 0)

    def since_last(self) -> tuple[int, int]:
        """Return the bytes sent and received since the last call."""
        before, self._reported = self._reported, self.sample()
        return self._reported[0] - before[0], self._reported[1] - before[1]

    def sample(self) -> tuple[int, int]:
        """Return the bytes sent and received up to now."""
        open_now = {
            s.inode: (s.sent, s.received)
            for s in tcp_sockets()
            if s.local_port == self._port or s.remote in self._dialled
        }
        for inode, (sent, received) in self._latest.items():
            # An inode number may come again; the counters of a new socket begin anew.
            again = open_now.get(inode)
            if again is None or again[0] < sent or again[1] < received:
                self._closed = (self._closed[0] + sent, self._closed[1] + received)
        self._latest = open_now
        return (
            self._closed[0] + sum(sent for sent, _ in open_now.values()),
            self._closed[1] + sum(received for _, received in open_now.values()),
        )


def _field(info: bytes, offset: int) -> int:
    return int(_U64.unpack_from(info, offset)[0]) if len(info) >= offset + _U64.size else 0


async def resolved(addresses: Iterable[str]) -> set[str]:
    """Return the numeric forms of ``host:port`` addresses, those of unknown hosts left out."""
    loop, found = asyncio.get_running_loop(), set()
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            infos = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError:
            continue
        found |= {address_of(str(info[4][0]), int(port)) for info in infos}
    return found
