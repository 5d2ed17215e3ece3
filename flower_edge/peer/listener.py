"""The port at which neighbours arrive, and who is let in."""

import asyncio
import time
from collections.abc import Callable, Mapping

import grpc

from flower_edge.peer.channel import METHOD, SERVICE, options
from flower_edge.peer.connection import BrokenError, Connection, next_message
from flower_edge.peer.frames import FrameError, TermsError, decode
from flower_edge.peer.identity import Identity, fingerprint
from flower_edge.peer.members import port_of
from flower_edge.peer.neighbour import Neighbour
from flower_edge.peer.refusals import Refusals
from flower_edge.peer.settings import PeerSettings
from flower_edge.peer.sockets import tcp_sockets

WATCH_INTERVAL = 0.5

NO_PIN = "no certificate, or one that is not pinned"
WRONG_FINGERPRINT = "wrong fingerprint"
UNKNOWN_NODE = "unknown node"
OLD_TLS = "TLS older than 1.3"
SILENT = "a link that says nothing"
OTHER_TERMS = "another codec or algorithm"
BAD_FRAME = "a frame that breaks the rules"


class RefusedError(Exception):
    """Somebody who may not open a link."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Listener:
    """A gRPC server that lets in the neighbours that are to dial this node, and nobody else.

    TLS lets nobody through whose certificate is not one of the neighbours'; its refusals happen inside gRPC,
    and are found by the connections that never came through. What comes through shows its fingerprint, the
    TLS version and, in its first frame, the node that it is.

    Parameters
    ----------
    address : str
        ``host:port``; port 0 for a free one.
    identity : Identity or None
        None for clear text.
    diallers : mapping of int to Neighbour
        Who may connect.
    settings : PeerSettings
    refusals : Refusals
    """

    def __init__(
        self,
        address: str,
        identity: Identity | None,
        diallers: Mapping[int, Neighbour],
        settings: PeerSettings,
        refusals: Refusals,
    ) -> None:
        self._address = address
        self._identity = identity
        self._diallers = diallers
        self._settings = settings
        self._refusals = refusals
        self._handshakes = Handshakes(settings.handshake_timeout, self._refused_by_tls)
        self._watch: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Begin to listen.

        Raises
        ------
        OSError
            If the address is not this machine's, or taken.
        """
        server = grpc.aio.server(options=options(self._settings))
        handler = grpc.stream_stream_rpc_method_handler(self._link)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        try:
            if self._identity is None:
                self.port = server.add_insecure_port(self._address)
            else:
                self.port = server.add_secure_port(self._address, self._credentials(self._identity))
        except RuntimeError as error:
            raise OSError(f"cannot listen at {self._address}: {error}") from None
        if port_of(self._address) not in (0, self.port):
            raise OSError(f"cannot listen at {self._address}")
        self._server = server
        self._handshakes.port = self.port
        self._watch = asyncio.create_task(self._handshakes.watch())
        await server.start()

    async def stop(self) -> None:
        """Close the port and every connection to it."""
        if self._watch is not None:
            self._watch.cancel()
            self._handshakes.expire(everything=True)
        if self._server is not None:
            await self._server.stop(grace=None)

    def _credentials(self, identity: Identity) -> grpc.ServerCredentials:
        pins = b"".join(n.member.certificate or b"" for n in self._diallers.values())
        return grpc.dynamic_ssl_server_credentials(
            grpc.ssl_server_certificate_configuration(
                # With no certificate at all to trust gRPC would trust the machine's: then its own, which
                # nobody else can show.
                [(identity.key, identity.certificate)],
                pins or identity.certificate,
            ),
            self._handshakes.begun,
            require_client_authentication=True,
        )

    def _refused_by_tls(self, remote: str) -> None:
        self._refusals.add(NO_PIN, remote)

    async def _link(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """Serve one stream, for as long as it lasts."""
        remote = _remote(context)
        self._handshakes.came_through(remote)
        try:
            neighbour = await self._welcome(context)
        except RefusedError as error:
            self._refusals.add(error.reason, remote, error.detail)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except BrokenError:
            return
        await serve(neighbour, Connection(context, neighbour.take), self._refusals)

    async def _welcome(self, context: grpc.aio.ServicerContext) -> Neighbour:
        """Return who is there."""
        shown = None if self._identity is None else _shown(context)
        try:
            async with asyncio.timeout(self._settings.handshake_timeout):
                first = await next_message(context)
        except TimeoutError:
            raise RefusedError(SILENT, f"no frame in {self._settings.handshake_timeout:g} s") from None
        try:
            frame = decode(first)
            neighbour = self._diallers.get(frame.node)
            if neighbour is None:
                raise RefusedError(
                    UNKNOWN_NODE, f"it says it is node {frame.node}, expected one of {sorted(self._diallers)}"
                )
            if shown is not None and shown != neighbour.member.fingerprint:
                raise RefusedError(
                    WRONG_FINGERPRINT,
                    f"node {frame.node} has {neighbour.member.fingerprint}, received {shown}",
                )
            neighbour.check(frame)
        except FrameError as error:
            raise RefusedError(_reason(error), str(error)) from None
        return neighbour


async def serve(neighbour: Neighbour, connection: Connection, refusals: Refusals) -> None:
    """Let a connection carry a link until it ends."""
    why = "the link was closed"
    neighbour.connect(connection)
    try:
        await connection.run()
    except BrokenError as error:
        why = str(error)
    except FrameError as error:
        why = str(error)
        refusals.add(_reason(error), f"node {neighbour.member.node}", why)
    finally:
        neighbour.disconnect(connection, why)


def _reason(error: FrameError) -> str:
    return OTHER_TERMS if isinstance(error, TermsError) else BAD_FRAME


def _shown(context: grpc.aio.ServicerContext) -> str:
    """Return the fingerprint of whoever is at the other end of TLS 1.3."""
    shown = context.auth_context()
    version = b"".join(shown.get("ssl_tls_version", [])).decode()
    if version != "TLSv1.3":
        raise RefusedError(OLD_TLS, f"received {version or 'an unknown version'}, expected TLSv1.3")
    return fingerprint(b"".join(shown.get("x509_pem_cert", [])))


def _remote(context: grpc.aio.ServicerContext) -> str:
    """Return ``host:port`` of a gRPC peer, as `tcp_sockets` has it."""
    return str(context.peer()).partition(":")[2].replace("%5B", "[").replace("%5D", "]")


class Handshakes:
    """Finds connections that TLS refused: gRPC says when a handshake begins, and nothing when it fails.

    Parameters
    ----------
    timeout : float
        Seconds after which a connection that has not come through counts as refused, though it is open.
    on_refused : callable
        Called with the ``host:port`` of each.
    """

    def __init__(self, timeout: float, on_refused: Callable[[str], None]) -> None:
        self.port = 0
        self._timeout = timeout
        self._on_refused = on_refused
        self._open: dict[str, float] = {}
        self._known: set[str] = set()

    def begun(self) -> None:
        """Take note of new connections; gRPC calls this from a thread of its own."""
        for remote in self._remotes() - self._known:
            self._known.add(remote)
            self._open[remote] = time.monotonic()

    def came_through(self, remote: str) -> None:
        """Take note that somebody showed a pinned certificate."""
        self._known.add(remote)
        self._open.pop(remote, None)

    async def watch(self) -> None:
        """Look for refused connections, for ever."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            self.expire()

    def expire(self, *, everything: bool = False) -> None:
        """Report connections that are gone, or have taken too long, and never came through."""
        now, present = time.monotonic(), self._remotes()
        for remote, since in list(self._open.items()):
            # A connection that has just been closed may be one whose first call is being handed over.
            age = now - since
            if everything or age > self._timeout or (remote not in present and age > WATCH_INTERVAL):
                del self._open[remote]
                self._on_refused(remote)
        self._known &= present | self._open.keys()

    def _remotes(self) -> set[str]:
        return {s.remote for s in tcp_sockets() if s.local_port == self.port}
