"""Certificates in DER, end to end without padding, as the SPIFFE Workload API sends them."""

from collections.abc import Iterator
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.utils import CryptographyDeprecationWarning

from authz_server.core.errors import InvalidValueError

CERTIFICATES_MAX: Final = 256  # of one trust domain; real bundles have two or three

# Everything `cryptography` raises for a certificate or a key that is not sound. `TypeError`: the
# key is encrypted.
UNSOUND: Final = (
    ValueError,
    TypeError,
    CryptographyDeprecationWarning,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_SEQUENCE: Final = 0x30
_LENGTH_BYTES_MAX: Final = 3  # 16 MiB; a certificate has some 1000 bytes


def split_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in `data`, in order; none for no bytes at all.

    Raises `InvalidValueError` for what is not DER certificates from the first byte to the last.
    """
    try:
        found = tuple(x509.load_der_x509_certificate(der) for der in _elements(data))
    except UNSOUND as error:
        raise InvalidValueError("is not a sequence of DER certificates") from error
    if len(found) > CERTIFICATES_MAX:
        raise InvalidValueError(f"has more than {CERTIFICATES_MAX} certificates")
    return found


def _elements(data: bytes) -> Iterator[bytes]:
    """Yield every top-level SEQUENCE of `data` (X.690 §8.1)."""
    while data:
        end = _end(data)
        yield data[:end]
        data = data[end:]


def _end(data: bytes) -> int:
    if len(data) < 2 or data[0] != _SEQUENCE:
        raise InvalidValueError("does not begin with a SEQUENCE")
    length, start = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        if not 0 < count <= _LENGTH_BYTES_MAX:
            raise InvalidValueError("has an impossible length")
        length, start = int.from_bytes(data[2 : 2 + count]), 2 + count
    if start + length > len(data):
        raise InvalidValueError("is cut off")
    return start + length
