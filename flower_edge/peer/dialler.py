"""Connections to neighbours that this node opens, again and again."""

import asyncio
from contextlib import suppress

import grpc

from flower_edge.peer.channel import PATH, options
from flower_edge.peer.connection import BrokenError, Connection
from flower_edge.peer.frames import Frame
from flower_edge.peer.identity import Identity, server_name
from flower_edge.peer.listener import WRONG_FINGERPRINT, serve
from flower_edge.peer.neighbour import Neighbour
from flower_edge.peer.refusals import Refusals, log
from flower_edge.peer.settings import PeerSettings


class Dialler:
    """Keeps a link to one neighbour open, for as long as what `start` returns goes on.

    Parameters
    ----------
    neighbour : Neighbour
        Whom to reach.
    hello : Frame
        The first frame of every connection.
    identity : Identity or None
        None for clear text.
    settings : PeerSettings
    refusals : Refusals
    """

    def __init__(
        self,
        neighbour: Neighbour,
        hello: Frame,
        identity: Identity | None,
        settings: PeerSettings,
        refusals: Refusals,
    ) -> None:
        self._neighbour = neighbour
        self._hello = hello
        self._identity = identity
        self._settings = settings
        self._refusals = refusals

    def start(self) -> asyncio.Task[None]:
        """Begin to `run`; what ends it other than a cancellation is in the log."""
        task = asyncio.create_task(self.run(), name=f"dialling node {self._neighbour.member.node}")
        task.add_done_callback(_log_failure)
        return task

    async def run(self) -> None:
        """Dial, carry the link until it breaks, wait a little, and dial again; for ever."""
        async with self._channel() as channel:
            while not self._neighbour.finished:
                await self._once(channel)
                await asyncio.sleep(self._settings.redial_interval)

    async def _once(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(PATH)()
        try:
            # The server's initial metadata follow its first frame: it has let us in then.
            async with asyncio.timeout(self._settings.handshake_timeout):
                await call.write(self._hello.encode())
                await call.initial_metadata()
            if call.done():
                raise BrokenError(await _ending(call))
            await serve(self._neighbour, Connection(call, self._neighbour.take), self._refusals)
        except (BrokenError, grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
            self._note(await _ending(call))
        finally:
            call.cancel()

    def _note(self, why: str) -> None:
        who = f"node {self._neighbour.member.node} at {self._neighbour.member.address}"
        if "CERTIFICATE_VERIFY_FAILED" in why:
            self._refusals.add(WRONG_FINGERPRINT, who, f"expected {self._neighbour.member.fingerprint}")
        elif why.startswith("UNAUTHENTICATED"):
            self._refusals.add("refused by it", who, why)
        else:
            log.debug("%s cannot be reached: %s", who, why)

    def _channel(self) -> grpc.aio.Channel:
        member, arguments = self._neighbour.member, options(self._settings)
        if self._identity is None:
            return grpc.aio.insecure_channel(member.address, options=arguments)
        certificate = member.certificate or b""
        credentials = grpc.ssl_channel_credentials(
            certificate, self._identity.key, self._identity.certificate
        )
        name = ("grpc.ssl_target_name_override", server_name(certificate))
        return grpc.aio.secure_channel(member.address, credentials, options=[*arguments, name])


def _log_failure(dialling: asyncio.Task[None]) -> None:
    if not dialling.cancelled() and (error := dialling.exception()) is not None:
        log.error("%s has failed, and is not tried again", dialling.get_name(), exc_info=error)


async def _ending(call: grpc.aio.StreamStreamCall) -> str:
    with suppress(grpc.RpcError, asyncio.CancelledError):
        if call.done():
            return f"{(await call.code()).name}: {' '.join(str(await call.details()).split())}"
    return "no answer"
