"""Who a node is: a key that never leaves it, and a certificate that others pin."""

import datetime
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from flower_edge._files import write_new

SERVER_NAME = "node.flower-edge"
"""In every certificate made here. Who is at the other end is told by the fingerprint, never by a name."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_LARGEST_PEM = 64 * 1024

# A pin needs no expiry, and boards have wrong clocks. The end is RFC 5280's for "no date known" (4.1.2.5).
_BEGIN, _END = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)


@dataclass(frozen=True)
class Identity:
    """A private key and its certificate.

    Parameters
    ----------
    key : bytes
        PEM, PKCS #8, not encrypted. Not shown in ``repr``.
    certificate : bytes
        PEM: the one certificate of that key.

    Raises
    ------
    ValueError
        If either cannot be read, or they do not belong together.
    """

    key: bytes = field(repr=False)
    certificate: bytes

    def __post_init__(self) -> None:
        try:
            key = load_pem_private_key(self.key, password=None)
        except (TypeError, ValueError) as error:
            raise ValueError(f"cannot read the private key: {error}") from None
        if key.public_key() != _certificate(self.certificate).public_key():
            raise ValueError("the private key is not that of the certificate, expected a pair")

    @classmethod
    def temporary(cls) -> "Identity":
        """Make a key (ECDSA, P-256) and a certificate that it signs itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        # TLS looks for the certificate to compare with by its subject: no two may have the same.
        subject = f"{SERVER_NAME} {secrets.token_hex(8)}"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            certificate.public_bytes(serialization.Encoding.PEM),
        )

    @classmethod
    def load(cls, key: Path, certificate: Path) -> "Identity":
        """Read both from files.

        Raises
        ------
        ValueError
            If they cannot be read or are no pair, or others than the owner may read the key.
        """
        if key.exists() and key.stat().st_mode & 0o077:
            raise ValueError(
                f"others may read the private key {str(key)!r}, expected the owner alone: chmod 600 {key}"
            )
        return cls(read_pem(key), read_pem(certificate))

    def save(self, key: Path, certificate: Path) -> None:
        """Write both to new files, the key first, each whole or not at all; the key is its owner's alone.

        Raises
        ------
        FileExistsError
            If one of them is there already. Nothing is replaced.
        """
        if certificate.exists():
            raise FileExistsError(f"{str(certificate)!r} exists already, and is not replaced")
        for path, content, mode in ((key, self.key, 0o600), (certificate, self.certificate, 0o644)):
            write_new(path, content, mode)

    @property
    def fingerprint(self) -> str:
        """The certificate's."""
        return fingerprint(self.certificate)


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of a PEM certificate's DER form: 64 hexadecimal digits, in lower case.

    Raises
    ------
    ValueError
        If it is not one certificate.
    """
    return hashlib.sha256(_certificate(certificate).public_bytes(serialization.Encoding.DER)).hexdigest()


def checked_fingerprint(text: str) -> str:
    """Return a fingerprint as `fingerprint` writes it; colons and capitals are allowed here."""
    plain = text.replace(":", "").lower()
    if not _FINGERPRINT.fullmatch(plain):
        raise ValueError(f"received fingerprint {text!r:.100}, expected SHA-256: 64 hexadecimal digits")
    return plain


def subject(certificate: bytes) -> str:
    """Return whom a certificate names."""
    return _certificate(certificate).subject.rfc4514_string()


def server_name(certificate: bytes) -> str:
    """Return a name that the certificate is valid for, which TLS wants to compare."""
    loaded = _certificate(certificate)
    try:
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = None
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(f"cannot read the extensions of the certificate: {error}") from None
    dns = [] if names is None else names.get_values_for_type(x509.DNSName)
    if not dns:
        raise ValueError(
            "the certificate has no DNS name, expected one in its subjectAltName (any will do: it is the "
            "fingerprint that is compared)"
        )
    return str(dns[0]).replace("*", "any")


def read_pem(path: Path) -> bytes:
    """Read a small file; a ValueError names one that is missing or large."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_PEM + 1)
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if len(content) > _LARGEST_PEM:
        raise ValueError(f"{str(path)!r} has more than {_LARGEST_PEM} bytes, expected a PEM file")
    return content


def _certificate(pem: bytes) -> x509.Certificate:
    if len(pem) > _LARGEST_PEM:
        raise ValueError(f"received a certificate of {len(pem)} bytes, expected at most {_LARGEST_PEM}")
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise ValueError(f"received no PEM file of one certificate: {error}") from None
    return certificate
