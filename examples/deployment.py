"""A SuperLink and SuperNodes on this machine, with TLS and authentication, gone afterwards."""

import contextlib
import datetime
import ipaddress
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from examples.simulation import LocalFlower, SimulationError, free_ports

REGISTER = """
import sys
from flwr.cli.app import app
for key in sys.argv[1:]:
    app(["supernode", "register", key, "deployment"], standalone_mode=False)
"""


class Deployment(LocalFlower):
    """Real SuperNodes, each an own process with an own key that the SuperLink knows.

    Parameters
    ----------
    nodes : int
        How many SuperNodes.

    Examples
    --------
    >>> with Deployment(nodes=4) as flower:
    ...     log = flower.deploy(Path("examples/serverless"), {"num-server-rounds": 30})
    """

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def deploy(
        self,
        app: Path,
        config: Mapping[str, bool | float | int | str],
        on_round: Callable[[int], None] = lambda _: None,
        timeout: float = 300.0,
    ) -> list[str]:
        """Run a Flower app on the SuperNodes, to its end, and return its log.

        Raises
        ------
        SimulationError
            If the run did not complete.
        """
        return self._run(app, "deployment", config, on_round, timeout)

    def _start(self) -> None:
        self.ports = free_ports(1 + 2 * self.nodes)
        self.superlink = f"127.0.0.1:{self.ports[0]}"
        authority = _write_certificates(self.folder)
        (self.folder / "config.toml").write_text(
            f'[superlink]\ndefault = "deployment"\n\n[superlink.deployment]\naddress = "{self.superlink}"\n'
            f'root-certificates = "{authority}"\n'
        )
        self.start_superlink()
        keys = [f"{_write_node_key(self.folder, node)}.pub" for node in range(self.nodes)]
        # One process for all: to start one takes Flower's command line seconds.
        self._run_python(REGISTER, *keys)
        for node in range(self.nodes):
            self.start_node(node)

    def start_superlink(self) -> None:
        """Start the SuperLink, with what it knew when it was last there, and wait until it listens."""
        self.superlink_process = self._daemon(
            "superlink",
            *("flower-superlink", "--port", str(self.ports[0]), "--enable-supernode-auth"),
            *("--ssl-ca-certfile", str(self.folder / "authority.crt")),
            *("--ssl-certfile", str(self.folder / "superlink.crt")),
            *("--ssl-keyfile", str(self.folder / "superlink.key")),
            *("--database", str(self.folder / "superlink.db")),
        )
        self._wait_for_superlink()

    def start_node(self, node: int) -> "subprocess.Popen[bytes]":
        """Start a SuperNode; the board's address for its neighbours is in its node config."""
        config = (
            f"partition-id={node} num-partitions={self.nodes} "
            f'gossip-address="127.0.0.1:{self.ports[1 + node]}" gossip-folder="{self.folder}/boards"'
        )
        return self._daemon(
            f"supernode-{node}",
            *("flower-supernode", "--superlink", self.superlink),
            *("--root-certificates", str(self.folder / "authority.crt")),
            *("--auth-supernode-private-key", str(self.folder / f"supernode-{node}.key")),
            *("--port", str(self.ports[1 + self.nodes + node]), "--node-config", config),
        )

    def log_of(self, daemon: str) -> str:
        """Return what ``superlink`` or ``supernode-0``, … wrote."""
        return (self.folder / f"{daemon}.log").read_text(errors="replace")

    def _daemon(self, name: str, *command: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _run_python(self, script: str, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SimulationError(f"{script}: {done.stdout}{done.stderr}")

    def _wait_for_superlink(self, timeout: float = 90.0) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[0])):
                return
            time.sleep(0.1)
        raise SimulationError(f"no SuperLink after {timeout:g} s: {self.log_of('superlink')[-2000:]}")


def _write_certificates(folder: Path) -> Path:
    """Write an authority's certificate, and a key and certificate of it for 127.0.0.1; return the first."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "authority")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)

    (folder / "authority.crt").write_bytes(certificate("authority", authority, ca=True))
    (folder / "superlink.crt").write_bytes(certificate("superlink", server, ca=False))
    key = folder / "superlink.key"
    key.touch(mode=0o600)
    key.write_bytes(server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "authority.crt"


def _write_node_key(folder: Path, node: int) -> Path:
    """Write the key by which a SuperNode authenticates itself, as ``ssh-keygen -t ecdsa`` would."""
    key = ec.generate_private_key(ec.SECP384R1())
    path = folder / f"supernode-{node}.key"
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_name(f"{path.name}.pub").write_bytes(
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    )
    return path
