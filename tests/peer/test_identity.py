"""Keys, certificates and fingerprints."""

import hashlib
import multiprocessing
import os
import signal
import ssl
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from flower_edge.peer import Identity, Member, fingerprint
from flower_edge.peer.identity import checked_fingerprint, server_name
from flower_edge.peer.members import by_node

pytestmark = pytest.mark.board


def test_a_fingerprint_is_sha256_of_the_der_form() -> None:
    identity = Identity.temporary()

    expected = hashlib.sha256(ssl.PEM_cert_to_DER_cert(identity.certificate.decode())).hexdigest()

    assert identity.fingerprint == fingerprint(identity.certificate) == expected


def test_two_nodes_differ() -> None:
    first, second = Identity.temporary(), Identity.temporary()

    assert first.key != second.key
    assert first.fingerprint != second.fingerprint


def test_the_key_is_never_shown() -> None:
    assert "PRIVATE" not in repr(Identity.temporary())


def test_files_keep_a_pair_and_the_key_is_its_owners(tmp_path: Path) -> None:
    identity = Identity.temporary()
    key, certificate = tmp_path / "node.key", tmp_path / "node.crt"
    identity.save(key, certificate)

    assert Identity.load(key, certificate) == identity
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        Identity.temporary().save(key, certificate)
    with pytest.raises(FileExistsError):
        Identity.temporary().save(key, tmp_path / "other.crt")
    assert Identity.load(key, certificate) == identity


@pytest.mark.parametrize("killed_in", ["node.key", "node.crt"])
def test_a_file_is_whole_or_not_there(killed_in: str, tmp_path: Path) -> None:
    """A process is killed when it has made a file and written nothing to it; another one comes later."""
    key, certificate = tmp_path / "node.key", tmp_path / "node.crt"
    process = multiprocessing.get_context("spawn").Process(
        target=save_and_be_killed, args=(key, certificate, killed_in)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not certificate.exists()
    if key.exists():
        assert load_pem_private_key(key.read_bytes(), password=None)
        key.unlink()

    identity = Identity.temporary()
    identity.save(key, certificate)

    assert Identity.load(key, certificate) == identity
    assert sorted(tmp_path.iterdir()) == [certificate, key]


def save_and_be_killed(key: Path, certificate: Path, name: str) -> None:
    fdopen = os.fdopen

    def killed(descriptor: int, *mode: str) -> object:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        return fdopen(descriptor, *mode)

    os.fdopen = killed
    Identity.temporary().save(key, certificate)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "node.key", tmp_path / "node.crt"
    Identity.temporary().save(key, certificate)
    key.chmod(0o640)

    with pytest.raises(ValueError, match=r"others may read the private key .* chmod 600"):
        Identity.load(key, certificate)


def test_a_foreign_key_is_refused() -> None:
    with pytest.raises(ValueError, match="not that of the certificate"):
        Identity(Identity.temporary().key, Identity.temporary().certificate)


@pytest.mark.parametrize(
    ("key", "certificate", "message"),
    [
        (b"no key", None, "cannot read the private key"),
        (None, b"no certificate", "no PEM file of one certificate"),
        (None, b"", "no PEM file of one certificate"),
        (None, b"x" * 100_000, "received a certificate of 100000 bytes"),
    ],
)
def test_what_is_no_pair_is_refused(key: bytes | None, certificate: bytes | None, message: str) -> None:
    good = Identity.temporary()

    with pytest.raises(ValueError, match=message):
        Identity(good.key if key is None else key, good.certificate if certificate is None else certificate)


def test_two_certificates_in_one_file_are_refused() -> None:
    with pytest.raises(ValueError, match="no PEM file of one certificate"):
        fingerprint(Identity.temporary().certificate + Identity.temporary().certificate)


def test_a_certificate_of_no_known_version_is_refused() -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(Identity.temporary().certificate.decode()))
    version = der.index(b"\xa0\x03\x02\x01") + 4
    der[version] = 18

    with pytest.raises(ValueError, match="18 is not a valid X509 version"):
        fingerprint(ssl.DER_cert_to_PEM_cert(bytes(der)).encode())


def test_a_certificate_has_a_name_for_tls() -> None:
    assert server_name(Identity.temporary().certificate) == "node.flower-edge"


def test_fingerprints_as_openssl_writes_them() -> None:
    plain = Identity.temporary().fingerprint
    pairs = ":".join(plain[i : i + 2] for i in range(0, 64, 2)).upper()

    assert checked_fingerprint(pairs) == plain
    for bad in ("", plain[:-1], plain + "0", plain[:-1] + "g"):
        with pytest.raises(ValueError, match="expected SHA-256: 64 hexadecimal digits"):
            checked_fingerprint(bad)


@pytest.mark.parametrize("address", ["127.0.0.1:9700", "board-3.local:1", "[fe80::1%eth0]:65535", "[::1]:80"])
def test_addresses(address: str) -> None:
    assert Member(0, address).address == address


@pytest.mark.parametrize(
    "address", ["127.0.0.1", ":9700", "a:0", "a:65536", "a b:1", "unix:/tmp/x", "dns:///a:1", "::1:80", ""]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        Member(0, address)


def test_a_certificate_belongs_to_one_node() -> None:
    certificate = Identity.temporary().certificate

    with pytest.raises(ValueError, match="certificates of nodes 0 and 1 have the same subject"):
        by_node([Member(0, "a:1", certificate), Member(1, "a:2", certificate)])
    with pytest.raises(ValueError, match="node 2 twice"):
        by_node([Member(2, "a:1"), Member(2, "a:2")])
