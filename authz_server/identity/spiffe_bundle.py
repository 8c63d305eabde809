"""Trust bundles in their two wire forms: a SPIFFE bundle document, and Workload API messages.

py-spiffe's own parsers are not used: they fail a whole update for one entry without `kid`, take
keys of any `use`, and fail it for an empty bundle, which is how a trust domain is taken back.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from authz_server.core import jose, strict_json, svid
from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import TrustDomain
from authz_server.core.strict_json import JsonValue
from authz_server.core.trust import TrustBundle, VerificationKey
from authz_server.identity.der import UNSOUND, split_certificates

BUNDLE_BYTES_MAX: Final = 1024 * 1024  # some 500 authorities; real bundles have two or three
_ENTRIES_MAX: Final = 512
_JSON_DEPTH_MAX: Final = 8
_JSON_MEMBERS_MAX: Final = 16 * 1024
_X509: Final = "x509-svid"
_JWT: Final = "jwt-svid"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDocument:
    """A trust bundle with what its document says about itself."""

    bundle: TrustBundle
    sequence: int | None  # `spiffe_sequence`: grows with every change
    refresh_hint_s: int | None  # `spiffe_refresh_hint`


def parse_document(data: bytes, trust_domain: TrustDomain) -> BundleDocument:
    """Return the SPIFFE bundle document `data` as that of `trust_domain` (SPIFFE Bundle §4).

    Entries of another `use` or without one are ignored, as §4.2.2 asks; `keys` may be empty, which
    takes back every SVID of the domain. Raises `InvalidValueError` where ignoring would hide a
    mistake: not strict JSON, no `keys`, an `x5c` that is not exactly one authority, a JWT key that
    `jose.parse_jwks` refuses.
    """
    document = _object(data)
    entries = _entries(document)
    authorities = [_authority(entry) for entry in entries if entry.get("use") == _X509]
    keys = _jwt_keys([entry for entry in entries if entry.get("use") == _JWT])
    return BundleDocument(
        bundle=TrustBundle(
            trust_domain=trust_domain,
            authorities=tuple(dict.fromkeys(authorities)),
            jwt_keys=keys,
        ),
        sequence=_whole_number(document, "spiffe_sequence"),
        refresh_hint_s=_whole_number(document, "spiffe_refresh_hint"),
    )


def parse_authorities(der: bytes) -> tuple[x509.Certificate, ...]:
    """Return the signing certificates in `der`, end to end; none for no bytes.

    Raises `InvalidValueError` for what is not DER, or a certificate that may not sign others.
    """
    found = tuple(dict.fromkeys(split_certificates(der)))
    return tuple(_checked(certificate) for certificate in found)


def parse_jwt_keys(data: bytes) -> Mapping[str, VerificationKey]:
    """Return the JWT-SVID keys of one trust domain by `kid`, from the Workload API's JWK Set.

    SPIRE leaves `use` out there (Workload API §7.2 asks for a standard JWK Set); an entry of
    another use is ignored. Raises `InvalidValueError` as `parse_document`.
    """
    entries = _entries(_object(data))
    return _jwt_keys([entry for entry in entries if entry.get("use", _JWT) == _JWT])


def _object(data: bytes) -> dict[str, JsonValue]:
    if len(data) > BUNDLE_BYTES_MAX:
        raise InvalidValueError(f"bundle is longer than {BUNDLE_BYTES_MAX} bytes")
    value = strict_json.loads(data, depth_max=_JSON_DEPTH_MAX, members_max=_JSON_MEMBERS_MAX)
    if not isinstance(value, dict):
        raise InvalidValueError("bundle is not a JSON object")
    return value


def _entries(document: Mapping[str, JsonValue]) -> list[dict[str, JsonValue]]:
    keys = document.get("keys")
    if not isinstance(keys, list) or len(keys) > _ENTRIES_MAX:
        raise InvalidValueError(f"bundle has no `keys` array, or one of more than {_ENTRIES_MAX}")
    entries = [entry for entry in keys if isinstance(entry, dict)]
    if len(entries) != len(keys):
        raise InvalidValueError("bundle has a key that is not an object")
    return entries


def _authority(entry: Mapping[str, JsonValue]) -> x509.Certificate:
    x5c = entry.get("x5c")
    if not isinstance(x5c, list) or len(x5c) != 1 or not isinstance(x5c[0], str):
        raise InvalidValueError("bundle has an X.509 entry whose `x5c` is not one certificate")
    try:
        der = base64.b64decode(x5c[0], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidValueError("bundle has an `x5c` that is not base64") from error
    certificates = split_certificates(der)
    if len(certificates) != 1:
        raise InvalidValueError("bundle has an `x5c` that is not one certificate")
    return _checked(certificates[0])


def _checked(certificate: x509.Certificate) -> x509.Certificate:
    try:
        sound = svid.is_authority(certificate)
    except UNSOUND as error:
        raise InvalidValueError("bundle has an unsound certificate") from error
    if not sound:
        raise InvalidValueError("bundle has a certificate that may not sign others")
    return certificate


def _jwt_keys(entries: list[dict[str, JsonValue]]) -> Mapping[str, VerificationKey]:
    # The strict reader of key sets knows `use` as RFC 7517 has it.
    as_signatures = [entry | {"use": "sig"} for entry in entries]
    return jose.parse_jwks(json.dumps({"keys": as_signatures}).encode())


def _whole_number(document: Mapping[str, JsonValue], name: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidValueError(f"`{name}` is not a whole number")
    return value
