"""Who gets no link: each is refused, counted, and named in the log, and the others do not notice."""

import asyncio
import datetime
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fleet import FAST, Fleet

from flower_edge.gossip import GossipPlan
from flower_edge.peer import Identity, SessionReport
from flower_edge.peer.channel import PATH
from flower_edge.peer.dialler import Dialler
from flower_edge.peer.frames import CHUNK_BYTES, LARGEST_FRAME, Frame, Kind
from flower_edge.peer.identity import server_name
from flower_edge.peer.part import run_id

RUN = run_id("a test")
HELLO = Frame(Kind.HELLO, RUN, 0, 1)
PAIR = GossipPlan.from_matrix(np.full((2, 2), 0.5))

ROUNDS = 20

Attack = Callable[[Fleet, "Intruder"], Awaitable[object]]


class Intruder:
    """Talks to node 1 without being node 0."""

    def __init__(self, fleet: Fleet, identity: Identity | None) -> None:
        self.address = f"127.0.0.1:{fleet.ports[1]}"
        self.server = fleet.identities[1].certificate
        self.identity = identity

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        pair = (None, None) if self.identity is None else (self.identity.key, self.identity.certificate)
        credentials = grpc.ssl_channel_credentials(self.server, *pair)
        options = [
            ("grpc.ssl_target_name_override", server_name(self.server)),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with grpc.aio.secure_channel(self.address, credentials, options=options) as channel:
            yield channel

    async def say(self, *messages: bytes) -> grpc.StatusCode:
        """Send messages, and return how node 1 ends the call."""
        async with self.channel() as channel:
            call = channel.stream_stream(PATH)(timeout=5.0)
            try:
                for message in messages:
                    await call.write(message)
                while await call.read() is not grpc.aio.EOF:
                    pass
            except (grpc.RpcError, asyncio.InvalidStateError):
                pass
            return await call.code()


def issued(authority: ec.EllipticCurvePrivateKey, name: str, names: list[str] | None = None) -> Identity:
    """Return a key and a certificate that somebody else signed, for these DNS names or one of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "an authority")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(dns) for dns in ([f"{name}.example"] if names is None else names)]
            ),
            critical=False,
        )
        .sign(authority, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(pem, certificate.public_bytes(Encoding.PEM))


def attacked(
    attack: Attack, identity: Identity | None = None, *, own: bool = False
) -> tuple[SessionReport, list[SessionReport]]:
    """Run nodes 0 and 1 while node 1 is attacked; return node 1's report and both.

    `own`: the intruder has stolen node 0's key, and node 0 is not there.
    """

    async def run() -> list[SessionReport]:
        settings = replace(FAST, connect_timeout=0.3 if own else 10.0, handshake_timeout=0.4)
        fleet = Fleet(PAIR, seconds=0.04, settings=settings)
        intruder = Intruder(fleet, fleet.identities[0] if own else identity)
        nodes = [1] if own else [0, 1]
        running = [asyncio.ensure_future(fleet.session(node).run_async(ROUNDS)) for node in nodes]
        await asyncio.sleep(0.1)
        await attack(fleet, intruder)
        return await asyncio.gather(*running)

    reports = asyncio.run(run())
    return reports[-1], reports


def assert_undisturbed(reports: list[SessionReport]) -> None:
    assert all(r.counted for report in reports for r in report.rounds)
    np.testing.assert_allclose(reports[0].model, reports[1].model, rtol=1e-5)


async def say_hello(_: Fleet, intruder: Intruder) -> None:
    assert await intruder.say(HELLO.encode()) in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
    )


def test_no_certificate(caplog: pytest.LogCaptureFixture) -> None:
    report, reports = attacked(say_hello)

    assert report.refusals["no certificate, or one that is not pinned"] >= 1
    assert "refused 127.0.0.1:" in caplog.text
    assert_undisturbed(reports)


def test_a_certificate_that_nobody_pinned(caplog: pytest.LogCaptureFixture) -> None:
    report, reports = attacked(say_hello, Identity.temporary())

    assert report.refusals["no certificate, or one that is not pinned"] >= 1
    assert "no certificate, or one that is not pinned" in caplog.text
    assert_undisturbed(reports)


def test_clear_text_to_a_port_of_tls() -> None:
    async def attack(_: Fleet, intruder: Intruder) -> None:
        async with grpc.aio.insecure_channel(intruder.address) as channel:
            call = channel.stream_stream(PATH)(timeout=2.0)
            with pytest.raises(grpc.RpcError):
                await call.wait_for_connection()

    report, reports = attacked(attack)

    assert report.refusals["no certificate, or one that is not pinned"] >= 1
    assert_undisturbed(reports)


def test_a_connection_that_says_nothing() -> None:
    async def attack(fleet: Fleet, _: Intruder) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", fleet.ports[1])
        await asyncio.sleep(0.7)
        writer.close()

    report, reports = attacked(attack)

    assert report.refusals["no certificate, or one that is not pinned"] == 1
    assert_undisturbed(reports)


def test_a_stream_that_says_nothing() -> None:
    async def attack(_: Fleet, intruder: Intruder) -> None:
        async with intruder.channel() as channel:
            call = channel.stream_stream(PATH)(timeout=4.0)
            await call.wait_for_connection()
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

    report, _ = attacked(attack, own=True)

    assert report.refusals == {"a link that says nothing": 1}


def test_another_nodes_name(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has a pinned certificate is that node and no other."""

    async def attack(_: Fleet, intruder: Intruder) -> None:
        code = await intruder.say(replace(HELLO, node=7).encode())
        assert code is grpc.StatusCode.UNAUTHENTICATED

    report, _ = attacked(attack, own=True)

    assert report.refusals == {"unknown node": 1}
    assert "it says it is node 7, expected one of [0]" in caplog.text


def test_the_wrong_fingerprint_of_a_known_node(caplog: pytest.LogCaptureFixture) -> None:
    """Node 0 of three shows its own certificate, and says that it is node 1."""
    plan = GossipPlan.from_matrix(np.full((3, 3), 1 / 3))

    async def run() -> SessionReport:
        fleet = Fleet(plan, settings=replace(FAST, connect_timeout=0.5))
        session = asyncio.ensure_future(fleet.session(2).run_async(1))
        await asyncio.sleep(0.2)
        intruder = Intruder(fleet, fleet.identities[0])
        intruder.address, intruder.server = f"127.0.0.1:{fleet.ports[2]}", fleet.identities[2].certificate
        assert await intruder.say(replace(HELLO, node=1).encode()) is grpc.StatusCode.UNAUTHENTICATED
        return await session

    report = asyncio.run(run())

    assert report.refusals == {"wrong fingerprint": 1}
    assert "refused 127.0.0.1:" in caplog.text
    assert "wrong fingerprint (node 1 has " in caplog.text


def test_a_server_with_the_wrong_certificate(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody else listens where node 1 should be."""

    async def run() -> tuple[SessionReport, SessionReport]:
        fleet = Fleet(PAIR, settings=replace(FAST, connect_timeout=1.0))
        honest = fleet.session(0)
        impostor = fleet.session(1, identity=Identity.temporary())
        return await asyncio.gather(honest.run_async(2), impostor.run_async(2))

    honest, impostor = asyncio.run(run())

    assert honest.refusals["wrong fingerprint"] >= 1
    assert "refused node 1 at 127.0.0.1:" in caplog.text
    assert not any(r.counted for report in (honest, impostor) for r in report.rounds)


def test_tls_1_2(tmp_path: Path) -> None:
    async def attack(fleet: Fleet, intruder: Intruder) -> None:
        pair = tmp_path / "pair.pem"
        pair.write_bytes(intruder.identity.key + intruder.identity.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=intruder.server.decode())
        context.load_cert_chain(pair)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection(
            "127.0.0.1", fleet.ports[1], ssl=context, server_hostname=server_name(intruder.server)
        )
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        writer.write(h2_call())
        await asyncio.sleep(0.5)
        writer.close()

    report, _ = attacked(attack, own=True)

    assert report.refusals == {"TLS older than 1.3": 1}


def h2_call() -> bytes:
    """The bytes of an HTTP/2 connection that calls `PATH`, without compression of any header."""

    def literal(name: str, value: str) -> bytes:
        return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))

    headers = {":method": "POST", ":scheme": "https", ":path": PATH, ":authority": "node.flower-edge"}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    block = b"".join(literal(name, value) for name, value in headers.items())
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    request = len(block).to_bytes(3, "big") + bytes([1, 4, 0, 0, 0, 1]) + block
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + request


GOOD = {"codec": "fp32", "size": 4 * 97}
BAD_FRAMES = {
    "noise": [b"\0" * 200],
    "truncated": [HELLO.encode(), HELLO.encode()[:-1]],
    "corrupted": [HELLO.encode(), HELLO.encode()[:-1] + b"\xff"],
    "of another run": [HELLO.encode(), replace(HELLO, run=bytes(16)).encode()],
    "of another node": [HELLO.encode(), replace(HELLO, node=1).encode()],
    "of a round that will never be": [HELLO.encode(), replace(HELLO, round=ROUNDS + 1).encode()],
    "another codec": [
        HELLO.encode(),
        Frame(Kind.MODEL, RUN, 0, 1, "secret", 4 * 97, 0, bytes(4 * 97)).encode(),
    ],
    "a model of another size": [
        HELLO.encode(),
        Frame(Kind.MODEL, RUN, 0, 1, "fp32", 2**40, 0, bytes(CHUNK_BYTES)).encode(),
    ],
    "replayed": [HELLO.encode(), *2 * [Frame(Kind.MODEL, RUN, 0, 1, **GOOD, chunk=bytes(4 * 97)).encode()]],
}


@pytest.mark.parametrize("what", BAD_FRAMES)
def test_frames_that_break_the_rules_end_the_link(what: str) -> None:
    """Of somebody who has stolen the key of node 0: the link is closed, the session goes on."""

    async def attack(_: Fleet, intruder: Intruder) -> None:
        await intruder.say(*BAD_FRAMES[what])

    report, _ = attacked(attack, own=True)

    assert report.refusals == {"a frame that breaks the rules": 1}
    assert len(report.rounds) == ROUNDS


def test_an_oversized_message_is_refused_by_grpc() -> None:
    async def attack(_: Fleet, intruder: Intruder) -> None:
        code = await intruder.say(HELLO.encode(), bytes(LARGEST_FRAME + 1))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

    report, _ = attacked(attack, own=True)

    assert len(report.rounds) == ROUNDS


def test_certificates_of_an_authority_are_pinned_one_by_one() -> None:
    """Bring your own: two certificates of one authority know each other, a third of it gets no link."""
    authority = ec.generate_private_key(ec.SECP256R1())

    async def run() -> list[SessionReport]:
        fleet = Fleet(PAIR, seconds=0.05)
        fleet.identities = [issued(authority, "board-0"), issued(authority, "board-1")]
        running = [asyncio.ensure_future(fleet.session(node).run_async(20)) for node in (0, 1)]
        await asyncio.sleep(0.3)
        await say_hello(fleet, Intruder(fleet, issued(authority, "board-2")))
        return await asyncio.gather(*running)

    reports = asyncio.run(run())

    assert_undisturbed(reports)
    assert reports[1].refusals["no certificate, or one that is not pinned"] >= 1


def test_a_certificate_that_is_dialled_has_a_name() -> None:
    """TLS compares names; without one no link would ever come about."""
    authority = ec.generate_private_key(ec.SECP256R1())
    fleet = Fleet(PAIR)
    fleet.identities = [issued(authority, f"board-{node}", names=[]) for node in range(2)]

    with pytest.raises(ValueError, match="node 1: the certificate has no DNS name, expected one in"):
        fleet.session(0)
    with pytest.raises(ValueError, match=r"node 1 \(this one\): the certificate has no DNS name"):
        fleet.session(1)
    fleet.identities[1] = Identity.temporary()
    assert all(r.counted for report in asyncio.run(fleet.run(2)) for r in report.rounds)


def test_a_failure_of_dialling_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Dialler, "_once", fail)

    asyncio.run(Fleet(PAIR, settings=replace(FAST, connect_timeout=0.1)).session(0).run_async(1))

    assert "dialling node 1 has failed, and is not tried again" in caplog.text
    assert "out of luck" in caplog.text


def test_many_refusals_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    from flower_edge.peer.refusals import ALL_NAMED, Refusals

    refusals = Refusals()
    with caplog.at_level(logging.WARNING, "flower_edge.peer"):
        for number in range(10 * ALL_NAMED):
            refusals.add("no certificate", f"host {number}")

    assert refusals.counts == {"no certificate": 10 * ALL_NAMED}
    assert len(caplog.records) == ALL_NAMED + 9
