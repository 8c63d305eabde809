"""This server's own X509-SVID: what its listener proves itself with."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from authz_server.core.errors import ConfigurationError, InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.core.svid import leaf_spiffe_id
from authz_server.identity.der import UNSOUND, split_certificates
from authz_server.identity.file_content import read_all

SVID_BYTES_MAX: Final = 64 * 1024  # leaf and some intermediates; a real chain has 1 to 4 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSvid:
    """An X509-SVID with its key, as a TLS library takes it. Leaf first, no root."""

    spiffe_id: SpiffeId
    not_after: datetime
    chain_pem: bytes
    key_pem: bytes = field(repr=False)  # SECURITY: never in a log or a traceback

    @classmethod
    def from_der(cls, chain: bytes, key: bytes) -> Self:
        """Return the SVID in DER: certificates end to end, and a PKCS #8 key (Workload API §6.1).

        Raises `InvalidValueError` for anything but one X509-SVID whose key is the leaf's.
        """
        try:
            return cls._of(split_certificates(chain), load_der_private_key(key, password=None))
        except UNSOUND as error:
            raise _unusable(error) from error

    @classmethod
    def from_pem(cls, chain: bytes, key: bytes) -> Self:
        """Return the SVID in PEM text: leaf and intermediates, and an unencrypted key.

        Raises `InvalidValueError` for anything but one X509-SVID whose key is the leaf's.
        """
        try:
            certificates = tuple(x509.load_pem_x509_certificates(chain))
            return cls._of(certificates, load_pem_private_key(key, password=None))
        except UNSOUND as error:
            raise _unusable(error) from error

    @classmethod
    def _of(cls, certificates: tuple[x509.Certificate, ...], key: object) -> Self:
        if not certificates:
            raise InvalidValueError("SVID has no certificate")
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise InvalidValueError("SVID key is neither EC nor RSA")
        leaf = certificates[0]
        if key.public_key() != leaf.public_key():
            raise InvalidValueError("SVID key does not belong to the leaf certificate")
        return cls(
            spiffe_id=leaf_spiffe_id(leaf),
            not_after=leaf.not_valid_after_utc,
            chain_pem=b"".join(c.public_bytes(Encoding.PEM) for c in certificates),
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )


def _unusable(error: Exception) -> InvalidValueError:
    if isinstance(error, InvalidValueError):
        return error
    return InvalidValueError("SVID is not sound certificates and an unencrypted key")


class SvidSource(Protocol):
    """Where the listener's SVID comes from: files, or the Workload API."""

    @property
    def svid(self) -> OwnSvid | None:
        """The SVID to prove oneself with now, or None while there is none."""


class SvidFiles:
    """An X509-SVID in two PEM files, read again when either was replaced or written.

    While the two are being replaced they may not belong together for a moment: the last good one
    serves until they do, and `report` is told once for each state of the files. Thread-safe.
    """

    def __init__(
        self, certificate: Path, private_key: Path, *, report: Callable[[str], None]
    ) -> None:
        """Read both. Raises `ConfigurationError`."""
        self._paths = (certificate, private_key)
        self._report = report
        self._lock = threading.Lock()
        self._seen = self._versions()
        self._svid = self._read()

    @property
    def svid(self) -> OwnSvid | None:
        """The SVID in the files, or the last good one."""
        with self._lock:
            seen = self._versions()
            if seen != self._seen:
                self._seen = seen
                try:
                    self._svid = self._read()
                except ConfigurationError as error:
                    self._report(f"the listener's SVID stays as it was: {error}")
            return self._svid

    def _read(self) -> OwnSvid:
        chain, key = read_all(self._paths, bytes_max=SVID_BYTES_MAX)
        try:
            return OwnSvid.from_pem(chain.data, key.data)
        except InvalidValueError as error:
            raise ConfigurationError([chain.fault(str(error))]) from error

    def _versions(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(_version(path) for path in self._paths)


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
