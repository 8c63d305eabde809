"""Strict JSON Web Signatures: the compact form, a closed set of algorithms, and issuers' key sets.

Only what we mint is read: three parts, canonical base64url, exactly the header members the caller
names, one `typ`. So `jku`, `jwk`, `x5u`, `crit`, `b64`, `zip` and `cty` fail by not being named
(RFC 8725 §3.10, §3.11). PyJWT supplies the signature algorithms and JWK parsing; its `decode`,
which accepts any `typ` and last-wins duplicates, is not used.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self, cast

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import Algorithm, get_default_algorithms
from jwt.exceptions import PyJWTError

from authz_server.core import limits, strict_json
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.strict_json import JsonValue
from authz_server.core.trust import VerificationKey

# SECURITY: asymmetric only. `none` and HMAC are not in the table, so no allow-list can name them
# (RFC 8725 §3.1). EdDSA takes part only where an operator's allow-list says so.
ALGORITHMS: Final[Mapping[str, Algorithm]] = MappingProxyType(
    {
        name: algorithm
        for name, algorithm in get_default_algorithms().items()
        if name in {"ES256", "ES384", "PS256", "RS256", "EdDSA"}
    }
)
_CURVES: Final = {"ES256": "secp256r1", "ES384": "secp384r1"}  # RFC 7518 §3.4
RSA_BITS_MIN: Final = 2048  # RFC 7518 §3.3, §3.5
JWKS_BYTES_MAX: Final = 256 * 1024  # the largest public OIDC key sets are under 20 KiB
_JWKS_KEYS_MAX = 128
_KEY_ID_CHARS_MAX = 256
_TOKEN_MEMBERS_MAX = 1024  # a 4 KiB token cannot hold more that make sense
_KEY_TYPES = (("EC", "P-256"), ("EC", "P-384"), ("RSA", None), ("OKP", "Ed25519"))
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
# RFC 7518 §6.2.2, §6.3.2, §6.4.1: members that only a private or symmetric key has.
_SECRET_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactJws:
    """A well-formed compact JWS (RFC 7515 §7.1) of which nothing is verified yet."""

    header: Mapping[str, JsonValue]
    payload: Mapping[str, JsonValue]
    signing_input: bytes
    signature: bytes
    digest: bytes  # SHA-256 over the whole compact form

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the JWS that `text` spells; header and payload are JSON objects.

        Raises `RequestFault`: `OVERSIZE` over `TOKEN_BYTES_MAX`, before any decoding;
        `MALFORMED_TOKEN` for anything but three canonical base64url parts and strict JSON.
        """
        if len(text) > limits.TOKEN_BYTES_MAX:
            raise RequestFault(Reason.OVERSIZE, "token is longer than 4096 bytes")
        parts = text.split(".")
        if len(parts) != 3:
            raise _malformed("token does not have three parts")
        try:
            header, payload = (_json_object(decode_base64url(part)) for part in parts[:2])
            signature = decode_base64url(parts[2])
        except InvalidValueError as error:
            raise _malformed(f"token is malformed: {error}") from error
        return cls(
            header=MappingProxyType(header),
            payload=MappingProxyType(payload),
            signing_input=text[: -len(parts[2]) - 1].encode("ascii"),
            signature=signature,
            digest=hashlib.sha256(text.encode("ascii")).digest(),
        )

    def check_header(self, *, typ: str, key_member: str, algorithms: frozenset[str]) -> str:
        """Return `alg`, once the header has exactly `alg`, `typ` and `key_member`.

        Raises `RequestFault` (`BAD_HEADER`) for another member set, another `typ` (compared
        exactly: RFC 8725 §3.11), or an algorithm outside `algorithms`.
        """
        if self.header.keys() != {"alg", "typ", key_member}:
            raise RequestFault(
                Reason.BAD_HEADER, f"token header is not exactly `alg`, `typ` and `{key_member}`"
            )
        if self.header["typ"] != typ:
            raise RequestFault(Reason.BAD_HEADER, f"token is not of type `{typ}`")
        algorithm = self.header["alg"]
        if not isinstance(algorithm, str) or algorithm not in algorithms:
            raise RequestFault(Reason.BAD_HEADER, "token is signed with an algorithm not admitted")
        return algorithm


def verify_signature(jws: CompactJws, *, algorithm: str, key: VerificationKey) -> None:
    """Check the signature of `jws` with exactly this algorithm and key.

    Raises `RequestFault`: `BAD_HEADER` when the key is not of the kind `algorithm` needs,
    `BAD_SIGNATURE` when it does not verify.
    """
    if not fits(algorithm, key):
        raise RequestFault(Reason.BAD_HEADER, "token's algorithm does not fit its key")
    if not ALGORITHMS[algorithm].verify(jws.signing_input, key, jws.signature):
        raise RequestFault(Reason.BAD_SIGNATURE, "token's signature does not verify")


def fits(algorithm: str, key: VerificationKey) -> bool:
    """Tell whether `key` has the type, curve and size that `algorithm` needs (RFC 7518 §3.1)."""
    if algorithm in _CURVES:
        return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == _CURVES[algorithm]
    if algorithm in {"PS256", "RS256"}:
        return isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS_MIN
    return algorithm == "EdDSA" and isinstance(key, ed25519.Ed25519PublicKey)


def decode_base64url(text: str) -> bytes:
    """Decode canonical, unpadded base64url (RFC 7515 §2).

    Raises `InvalidValueError` for padding, foreign characters, or spare bits that are not zero:
    the same bytes must never have two spellings.
    """
    if not _BASE64URL.fullmatch(text):
        raise InvalidValueError("a part is empty or has a character outside base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise InvalidValueError("a part has an impossible base64url length") from error
    if encode_base64url(data) != text:
        raise InvalidValueError("a part is not canonical base64url")
    return data


def encode_base64url(data: bytes) -> str:
    """Return `data` as unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def parse_jwks(data: bytes) -> Mapping[str, VerificationKey]:
    """Return the signature keys of a JWK Set (RFC 7517 §5) by `kid`.

    Ignored, as RFC 7517 §5 asks: keys for another `use` or without `verify` among `key_ops`, and
    key types, curves or algorithms we do not know. An empty set is legal and verifies nothing.

    Raises `InvalidValueError` where ignoring would hide a mistake: not strict JSON, a private or
    symmetric key, a missing or repeated `kid`, an RSA key under 2048 bits, an invalid point.
    """
    if len(data) > JWKS_BYTES_MAX:
        raise InvalidValueError("key set is longer than 256 KiB")
    document = strict_json.loads(data, depth_max=8, members_max=limits.JSON_MEMBERS_MAX)
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or len(members) > _JWKS_KEYS_MAX:
        raise InvalidValueError("key set has no `keys` array, or one of more than 128 keys")
    keys: dict[str, VerificationKey] = {}
    for position, jwk in enumerate(members, start=1):
        if not isinstance(jwk, dict):
            raise InvalidValueError(f"key {position} is not an object")
        if jwk.get("kty") == "oct" or not _SECRET_MEMBERS.isdisjoint(jwk):
            raise InvalidValueError(f"key {position} is secret: publish the public key only")
        if _is_for_verification(jwk):
            kid = _key_id(jwk, position)
            if kid in keys:
                raise InvalidValueError(f"key {position} repeats kid `{kid}`")
            keys[kid] = _public_key(jwk, position)
    return MappingProxyType(keys)


def _is_for_verification(jwk: Mapping[str, JsonValue]) -> bool:
    if jwk.get("use", "sig") != "sig":  # RFC 7517 §4.2
        return False
    operations = jwk.get("key_ops", ["verify"])  # RFC 7517 §4.3
    if not isinstance(operations, list) or "verify" not in operations:
        return False
    if jwk.get("alg", "ES256") not in ALGORITHMS:  # RFC 7517 §4.4
        return False
    return (jwk.get("kty"), jwk.get("crv")) in _KEY_TYPES


def _key_id(jwk: Mapping[str, JsonValue], position: int) -> str:
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= _KEY_ID_CHARS_MAX or not kid.isprintable():
        raise InvalidValueError(f"key {position} has no usable `kid`")
    return kid


def _public_key(jwk: dict[str, JsonValue], position: int) -> VerificationKey:
    family = {"EC": "ES256", "RSA": "RS256", "OKP": "EdDSA"}[str(jwk["kty"])]
    try:
        key = cast("VerificationKey", ALGORITHMS[family].from_jwk(jwk))
    except (PyJWTError, ValueError, TypeError, AttributeError) as error:
        raise InvalidValueError(f"key {position} is not a valid public key") from error
    if not any(fits(algorithm, key) for algorithm in ALGORITHMS):
        raise InvalidValueError(f"key {position} is an RSA key under {RSA_BITS_MIN} bits")
    return key


def _json_object(data: bytes) -> dict[str, JsonValue]:
    value = strict_json.loads(
        data, depth_max=limits.TOKEN_JSON_DEPTH_MAX, members_max=_TOKEN_MEMBERS_MAX
    )
    if not isinstance(value, dict):
        raise InvalidValueError("a part is not a JSON object")
    return value


def _malformed(detail: str) -> RequestFault:
    return RequestFault(Reason.MALFORMED_TOKEN, detail)
