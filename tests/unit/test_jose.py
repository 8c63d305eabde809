"""What the compact form, its header and a key set may look like, and what they may not."""

import json
from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from authz_server.core import limits
from authz_server.core.errors import InvalidValueError, Reason
from authz_server.core.jose import (
    ALGORITHMS,
    JWKS_BYTES_MAX,
    CompactJws,
    decode_base64url,
    encode_base64url,
    fits,
    parse_jwks,
    verify_signature,
)
from authz_server.core.strict_json import JsonValue
from authz_server.core.trust import VerificationKey
from tests.harness import chains
from tests.harness.chains import reason_of

P256 = ec.generate_private_key(ec.SECP256R1()).public_key()
P384 = ec.generate_private_key(ec.SECP384R1()).public_key()
P521 = ec.generate_private_key(ec.SECP521R1()).public_key()
ED25519 = ed25519.Ed25519PrivateKey.generate().public_key()


def part(value: object) -> str:
    return encode_base64url(json.dumps(value).encode())


def raw(data: bytes) -> str:
    return encode_base64url(data)


DUPLICATE = b'{"alg":"ES256","alg":"none"}'
TOO_DEEP = b'{"a":' + b"[" * 16 + b"]" * 16 + b"}"
HEADER, PAYLOAD, SIGNATURE = part({"alg": "ES256"}), part({"a": 1}), "AAAA"

MALFORMED = {
    "empty": "",
    "one part": HEADER,
    "two parts": f"{HEADER}.{PAYLOAD}",
    "four parts": f"{HEADER}.{PAYLOAD}.{SIGNATURE}.{SIGNATURE}",
    "five parts, as JWE": ".".join([HEADER] * 5),
    "empty header": f".{PAYLOAD}.{SIGNATURE}",
    "empty payload": f"{HEADER}..{SIGNATURE}",
    "empty signature": f"{HEADER}.{PAYLOAD}.",
    "padding": f"{HEADER}.{PAYLOAD}.AA==",
    "standard base64 alphabet": f"{HEADER}.{PAYLOAD}.++//",
    "impossible length": f"{HEADER}.{PAYLOAD}.AAAAA",
    "spare bits that are not zero": f"{HEADER}.{PAYLOAD}.AB",
    "spare bits in the payload": f"{HEADER}.{part({'a': 10})[:-1]}R.{SIGNATURE}",
    "blank inside": f"{HEADER}.{PAYLOAD[:2]} {PAYLOAD[2:]}.{SIGNATURE}",
    "newline at the end": f"{HEADER}.{PAYLOAD}.{SIGNATURE}\n",
    "non-ASCII digit": f"{HEADER}.{PAYLOAD}.AA\u0661A",
    "surrogate": f"{HEADER}.{PAYLOAD}.\udc80AAA",
    "header is a list": f"{part([])}.{PAYLOAD}.{SIGNATURE}",
    "payload is a string": f"{HEADER}.{part('x')}.{SIGNATURE}",
    "duplicate header member": f"{raw(DUPLICATE)}.{PAYLOAD}.{SIGNATURE}",
    "duplicate claim": f"{HEADER}.{raw(DUPLICATE)}.{SIGNATURE}",
    "payload nested too deep": f"{HEADER}.{raw(TOO_DEEP)}.{SIGNATURE}",
    "payload is not JSON": f"{HEADER}.{raw(b'hello')}.{SIGNATURE}",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed(text: str) -> None:
    assert reason_of(lambda: CompactJws.parse(text)) is Reason.MALFORMED_TOKEN


def test_length_is_bounded_before_decoding() -> None:
    payload = "A" * (limits.TOKEN_BYTES_MAX - len(HEADER) - len(SIGNATURE) - 2)
    at_bound = f"{HEADER}.{payload}.{SIGNATURE}"
    assert reason_of(lambda: CompactJws.parse(at_bound)) is Reason.MALFORMED_TOKEN
    assert reason_of(lambda: CompactJws.parse(at_bound + "A")) is Reason.OVERSIZE


def test_parts_of_a_token() -> None:
    jws = CompactJws.parse(f"{HEADER}.{PAYLOAD}.{SIGNATURE}")
    assert (jws.header, jws.payload) == ({"alg": "ES256"}, {"a": 1})
    assert jws.signing_input == f"{HEADER}.{PAYLOAD}".encode()
    assert jws.signature == b"\0\0\0"


GOOD: Mapping[str, JsonValue] = {"alg": "ES256", "typ": "t+jwt", "kid": "1"}
BAD_HEADERS: Mapping[str, Mapping[str, JsonValue]] = {
    "no alg": {"typ": "t+jwt", "kid": "1"},
    "no typ": {"alg": "ES256", "kid": "1"},
    "no kid": {"alg": "ES256", "typ": "t+jwt"},
    "typ in upper case": {**GOOD, "typ": "T+JWT"},
    "typ with media type prefix": {**GOOD, "typ": "application/t+jwt"},
    "typ not a string": {**GOOD, "typ": ["t+jwt"]},
    "alg none": {**GOOD, "alg": "none"},
    "alg HS256": {**GOOD, "alg": "HS256"},
    "alg in lower case": {**GOOD, "alg": "es256"},
    "alg not on this list": {**GOOD, "alg": "ES384"},
    "alg not a string": {**GOOD, "alg": None},
    "alg a list": {**GOOD, "alg": ["ES256"]},
    "with jku": {**GOOD, "jku": "https://evil.example/jwks"},
    "with jwk": {**GOOD, "jwk": {"kty": "EC"}},
    "with x5u": {**GOOD, "x5u": "https://evil.example/cert"},
    "with x5c": {**GOOD, "x5c": ["AAAA"]},
    "with x5t": {**GOOD, "x5t": "x"},
    "with crit": {**GOOD, "crit": ["b64"]},
    "with b64": {**GOOD, "b64": False},
    "with zip": {**GOOD, "zip": "DEF"},
    "with cty": {**GOOD, "cty": "JWT"},
    "with enc": {**GOOD, "enc": "A128GCM"},
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_header(header: Mapping[str, JsonValue]) -> None:
    jws = CompactJws.parse(f"{part(dict(header))}.{PAYLOAD}.{SIGNATURE}")
    admitted = frozenset({"ES256"})
    call = lambda: jws.check_header(typ="t+jwt", key_member="kid", algorithms=admitted)  # noqa: E731
    assert reason_of(call) is Reason.BAD_HEADER


def test_good_header() -> None:
    jws = CompactJws.parse(f"{part(dict(GOOD))}.{PAYLOAD}.{SIGNATURE}")
    assert jws.check_header(typ="t+jwt", key_member="kid", algorithms=frozenset(ALGORITHMS)) == (
        "ES256"
    )


def test_only_asymmetric_algorithms_exist() -> None:
    assert set(ALGORITHMS) == {"ES256", "ES384", "PS256", "RS256", "EdDSA"}


def test_each_algorithm_fits_its_own_kind_of_key() -> None:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    keys: Mapping[str, VerificationKey] = {
        "P-256": P256,
        "P-384": P384,
        "P-521": P521,
        "RSA": chains.rsa_2048().public_key(),
    }
    expected = {"ES256": {"P-256"}, "ES384": {"P-384"}, "PS256": {"RSA"}, "RS256": {"RSA"}}
    for algorithm in ALGORITHMS:
        fitting = {name for name, key in keys.items() if fits(algorithm, key)}
        assert fitting == expected.get(algorithm, set())
        assert not fits(algorithm, small)
        assert fits(algorithm, ED25519) is (algorithm == "EdDSA")
    assert not fits("none", P256)


@pytest.mark.parametrize("algorithm", ["ES384", "RS256", "PS256", "EdDSA"])
def test_a_key_of_another_kind_is_a_bad_header(algorithm: str) -> None:
    jws = CompactJws.parse(chains.root_token())
    call = lambda: verify_signature(jws, algorithm=algorithm, key=P256)  # noqa: E731
    assert reason_of(call) is Reason.BAD_HEADER


def test_a_der_signature_is_not_a_jws_signature() -> None:
    # RFC 7518 §3.4: R and S side by side, never ASN.1.
    header, payload, _ = chains.root_token().split(".")
    der = chains.ROOT_KEY.sign(f"{header}.{payload}".encode(), ec.ECDSA(hashes.SHA256()))
    jws = CompactJws.parse(f"{header}.{payload}.{encode_base64url(der)}")
    key = chains.ROOT_KEY.public_key()
    call = lambda: verify_signature(jws, algorithm="ES256", key=key)  # noqa: E731
    assert reason_of(call) is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("text", ["", "=", "AA=", "A", "AB", "A A", "A\n", "+/", "é"])
def test_not_canonical_base64url(text: str) -> None:
    with pytest.raises(InvalidValueError):
        decode_base64url(text)


def jwk(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, **members: object) -> dict[str, object]:
    family = ALGORITHMS["RS256" if isinstance(key, rsa.RSAPublicKey) else "ES256"]
    return {"kid": "1", **family.to_jwk(key, as_dict=True), **members}


EC_JWK = jwk(P256)
REFUSED_SETS: Mapping[str, object] = {
    "not an object": [],
    "no keys": {},
    "keys is an object": {"keys": {}},
    "key is a string": {"keys": ["x"]},
    "no kid": {"keys": [{name: value for name, value in EC_JWK.items() if name != "kid"}]},
    "empty kid": {"keys": [EC_JWK | {"kid": ""}]},
    "kid is a number": {"keys": [EC_JWK | {"kid": 1}]},
    "kid with a control character": {"keys": [EC_JWK | {"kid": "a\n"}]},
    "duplicate kid": {"keys": [EC_JWK, jwk(P384)]},
    "private EC key": {"keys": [EC_JWK | {"d": "AAAA"}]},
    "private key for encryption": {"keys": [EC_JWK | {"d": "AAAA", "use": "enc"}]},
    "private RSA key": {"keys": [jwk(chains.rsa_2048().public_key(), d="AAAA")]},
    "RSA prime": {"keys": [jwk(chains.rsa_2048().public_key(), p="AAAA")]},
    "symmetric key": {"keys": [{"kty": "oct", "k": "AAAA", "kid": "1"}]},
    "symmetric key without k": {"keys": [{"kty": "oct", "kid": "1"}]},
    "point not on the curve": {"keys": [EC_JWK | {"x": EC_JWK["y"]}]},
    "coordinate too short": {"keys": [EC_JWK | {"x": "AAAA"}]},
    "coordinate is a number": {"keys": [EC_JWK | {"x": 1}]},
    "no coordinate": {"keys": [{"kty": "EC", "crv": "P-256", "kid": "1"}]},
    "RSA without modulus": {"keys": [{"kty": "RSA", "e": "AQAB", "kid": "1"}]},
    "RSA under 2048 bits": {
        "keys": [jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key())]
    },
    "too many keys": {"keys": [EC_JWK | {"kid": str(number)} for number in range(129)]},
}


@pytest.mark.parametrize("document", REFUSED_SETS.values(), ids=REFUSED_SETS)
def test_refused_key_set(document: object) -> None:
    with pytest.raises(InvalidValueError):
        parse_jwks(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"x", b'{"keys":[],"keys":[]}', b" " * (256 * 1024 + 1)])
def test_key_set_that_is_not_strict_json(data: bytes) -> None:
    with pytest.raises(InvalidValueError):
        parse_jwks(data)


IGNORED: Mapping[str, dict[str, object]] = {
    "for encryption": EC_JWK | {"use": "enc"},
    "of a SPIFFE bundle": EC_JWK | {"use": "x509-svid"},
    "for signing only": EC_JWK | {"key_ops": ["sign"]},
    "unknown type": {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "1"},
    "unknown curve": EC_JWK | {"crv": "P-521"},
    "unknown algorithm": EC_JWK | {"alg": "ES256K"},
    "for key agreement": {"kty": "OKP", "crv": "X25519", "x": "AAAA", "kid": "1"},
}


@pytest.mark.parametrize("key", IGNORED.values(), ids=IGNORED)
def test_ignored_key(key: dict[str, object]) -> None:
    # RFC 7517 §5: a key we do not understand must not take the others down with it.
    keys = parse_jwks(json.dumps({"keys": [key, EC_JWK | {"kid": "2"}]}).encode())
    assert list(keys) == ["2"]


def test_length_of_a_key_set_is_bounded() -> None:
    document = json.dumps({"keys": [EC_JWK]}).encode()
    at_bound = document.ljust(JWKS_BYTES_MAX)
    assert list(parse_jwks(at_bound)) == ["1"]
    with pytest.raises(InvalidValueError, match="256 KiB"):
        parse_jwks(at_bound + b" ")


def test_empty_key_set_verifies_nothing() -> None:
    assert parse_jwks(b'{"keys":[]}') == {}


def test_key_set_keeps_every_kind() -> None:
    raw = ED25519.public_bytes_raw()
    okp = {"kty": "OKP", "crv": "Ed25519", "kid": "4", "x": encode_base64url(raw)}
    rsa_key = jwk(chains.rsa_2048().public_key(), kid="3", use="sig", alg="PS256")
    document = {"keys": [EC_JWK, jwk(P384, kid="2"), rsa_key, okp]}
    keys = parse_jwks(json.dumps(document).encode())
    assert list(keys) == ["1", "2", "3", "4"]
    assert keys["1"] == P256
