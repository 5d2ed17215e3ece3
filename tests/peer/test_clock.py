"""Nodes whose wall clock is an hour off, in processes that see another time than the others."""

import datetime
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from node_processes import NODES, check_mean, check_survivors, counted, processes

from flower_edge.peer import Identity

HOUR = 3600


@pytest.fixture
def an_hour_ahead(tmp_path: Path) -> list[str]:
    """The command under which a process has a clock that is an hour ahead."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the clock with")
    library = tmp_path / "wrong_clock.so"
    source = Path(__file__).parent / "wrong_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return ["env", f"LD_PRELOAD={library}", f"WRONG_CLOCK={HOUR}"]


def valid_for_minutes(identity: Identity) -> Identity:
    """The same key with a certificate that expires in ten minutes."""
    now = datetime.datetime.now(datetime.UTC)
    old, key = x509.load_pem_x509_certificate(identity.certificate), load_pem_private_key(identity.key, None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(now - datetime.timedelta(minutes=10))
        .not_valid_after(now + datetime.timedelta(minutes=10))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return Identity(identity.key, certificate)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_clock_that_is_an_hour_off_changes_nothing(
    count: int, an_hour_ahead: list[str], tmp_path: Path
) -> None:
    rounds = 20
    with processes(tmp_path, rounds=rounds) as fleet:
        wrong = [4, 0][:count]
        nodes = [fleet.start(node, prefix=an_hour_ahead if node in wrong else ()) for node in range(NODES)]
        check_survivors(nodes, [])
        now = time.time()

    check_mean(nodes)
    for number, node in enumerate(nodes):
        off = node.done["clock"] - now
        assert abs(off - HOUR * (number in wrong)) < 120, "the clock was as it should be for this test"
        assert not node.done["refusals"]
        assert all(counted(node, other) == rounds for other in fleet.plan.neighbours(number, 0))


@pytest.mark.slow
def test_certificates_of_ones_own_expire_by_the_boards_clock(
    an_hour_ahead: list[str], tmp_path: Path
) -> None:
    """TLS looks at the clock of the test above: where an expiry matters, it refuses."""
    with processes(tmp_path, rounds=12, seconds=0.2, settings={"connect_timeout": 4.0}) as fleet:
        for node in range(NODES):
            paths = tmp_path / f"{node}.key", tmp_path / f"{node}.crt"
            short = valid_for_minutes(Identity.load(*paths))
            paths[1].write_bytes(short.certificate)
        nodes = [fleet.start(node, prefix=an_hour_ahead if node == 4 else ()) for node in range(NODES)]
        for node in nodes:
            assert node.wait() == 0, node.log[-4000:]

    assert not any(found for _, _, found, *_ in nodes[4].done["rounds"])
    assert counted(nodes[0], 1) > 0, "for the others they are valid"
