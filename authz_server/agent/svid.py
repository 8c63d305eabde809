"""Where an agent's own X509-SVID comes from: a one-method source, and the ones we ship.

The key belongs to the process, never to the model it runs: nothing here prints or returns key
material as text, except `Svid.key_pem` for tools that write files.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.core.svid import leaf_spiffe_id

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class SvidSource(Protocol):
    """Whatever can hand out the current X509-SVID: a fixed one, files, a Workload API client."""

    def svid(self) -> "Svid":
        """Return the X509-SVID to use now. Raises `InvalidValueError` when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Svid:
    """An X509-SVID with its key; a source that always returns itself. Leaf first, no root."""

    certificates: tuple[x509.Certificate, ...]
    key: SigningKey

    @classmethod
    def parse(cls, chain_pem: bytes, key_pem: bytes) -> Self:
        """Return the SVID in PEM text: leaf and intermediates, and an unencrypted key.

        Raises `InvalidValueError` when either cannot be read or they do not belong together.
        """
        try:
            certificates = tuple(x509.load_pem_x509_certificates(chain_pem))
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise InvalidValueError(
                "SVID is not PEM certificates and an unencrypted key"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise InvalidValueError("SVID key is neither EC nor RSA")
        if key.public_key() != certificates[0].public_key():
            raise InvalidValueError("SVID key does not belong to the leaf certificate")
        return cls(certificates=certificates, key=key)

    def svid(self) -> "Svid":
        """Return itself."""
        return self

    def __repr__(self) -> str:
        # SECURITY: never the key, in whatever log or traceback this lands.
        return f"Svid({self.leaf.subject.rfc4514_string()!r}, serial {self.leaf.serial_number})"

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that names the workload."""
        return self.certificates[0]

    @property
    def spiffe_id(self) -> SpiffeId:
        """The id in the leaf. Raises `InvalidValueError` when it is not an X509-SVID leaf."""
        return leaf_spiffe_id(self.leaf)

    @property
    def cert_chain_pem(self) -> bytes:
        """Leaf and intermediates as PEM."""
        pem = serialization.Encoding.PEM
        return b"".join(certificate.public_bytes(pem) for certificate in self.certificates)

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


class PemSvid:
    """An X509-SVID in two files, read again when either changes (spiffe-helper, cert-manager).

    While the two are being replaced they may not belong together for a moment; the last good SVID
    serves until they do. Thread-safe.
    """

    def __init__(self, certificates: Path, key: Path) -> None:
        self._paths = (certificates, key)
        self._seen: tuple[tuple[int, int, int], ...] | None = None
        self._svid: Svid | None = None
        self._lock = threading.Lock()

    def svid(self) -> Svid:
        """Return the SVID in the files. Raises `InvalidValueError` when none was ever readable."""
        with self._lock:
            try:
                stamp = tuple(_stamp(path) for path in self._paths)
                if self._svid is None or stamp != self._seen:
                    chain_pem, key_pem = (path.read_bytes() for path in self._paths)
                    self._svid, self._seen = Svid.parse(chain_pem, key_pem), stamp
            except (OSError, InvalidValueError) as error:
                if self._svid is None:
                    raise InvalidValueError(f"SVID files cannot be used: {error}") from error
            return self._svid


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return (status.st_mtime_ns, status.st_size, status.st_ino)
