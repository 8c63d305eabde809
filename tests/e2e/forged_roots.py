"""Roots that are almost right, by name: the reason they are denied for, and how to make them."""

import json
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.forge import ISSUER, TRUST_DOMAIN, Forge, b64, jws, new_key, spiffe
from tests.e2e.workshop import ABSENT, NARROW, OTHER, WIDE, Make, Workshop, flipped, now


def public_pem(forge: Forge) -> bytes:
    return forge.issuer_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def signature_of(token: str, replacement: bytes) -> str:
    return token.rpartition(".")[0] + "." + b64(replacement)


def der_signature(work: Workshop) -> str:
    token = work.root()
    data = token.rpartition(".")[0].encode()
    return signature_of(token, work.forge.issuer_key.sign(data, ec.ECDSA(hashes.SHA256())))


def raw_payload(work: Workshop, edit: Callable[[str], str]) -> str:
    text = edit(json.dumps(work.forge.root_claims(NARROW)))
    return jws(
        work.forge.root_header(), text.encode("utf-8", "surrogatepass"), work.forge.issuer_key
    )


def nested_actors(count: int, sub: str = "") -> dict[str, object]:
    actor: dict[str, object] = {}
    for number in range(count):
        inner = {"iss": f"spiffe://{TRUST_DOMAIN}", "sub": sub or spiffe(f"agent/x{number}")}
        actor = inner | ({"act": actor} if actor else {})
    return {"act": {"iss": f"spiffe://{TRUST_DOMAIN}", "sub": NARROW} | {"act": actor}}


ROOTS: dict[str, tuple[str, Make]] = {
    # algorithm and key
    "jwt-01 none": ("MALFORMED_TOKEN", lambda w: w.root(header={"alg": "none"}, key=None)),
    "jwt-01b none, signed": ("BAD_HEADER", lambda w: w.root(header={"alg": "none"})),
    "jwt-01c nOnE": ("BAD_HEADER", lambda w: w.root(header={"alg": "nOnE"})),
    "jwt-02 HMAC over the public key": (
        "BAD_HEADER",
        lambda w: w.root(header={"alg": "HS256"}, key=public_pem(w.forge)),
    ),
    "jwt-02b HMAC over the key set": (
        "BAD_HEADER",
        lambda w: w.root(header={"alg": "HS256"}, key=w.forge.jwks),
    ),
    "jwt-02c HMAC under an asymmetric name": (
        "BAD_SIGNATURE",
        lambda w: w.root(key=public_pem(w.forge)),
    ),
    "jwt-03 algorithm not admitted": ("BAD_HEADER", lambda w: w.root(header={"alg": "ES384"})),
    "jwt-03b algorithm is a list": ("BAD_HEADER", lambda w: w.root(header={"alg": ["ES256"]})),
    "jwt-03c no algorithm": ("BAD_HEADER", lambda w: w.root(header={"alg": ABSENT})),
    "jwt-04 kid as a path": ("UNKNOWN_KEY", lambda w: w.root(header={"kid": "../../dev/null"})),
    "jwt-04b kid as SQL": ("UNKNOWN_KEY", lambda w: w.root(header={"kid": "' OR 1=1"})),
    "jwt-04c kid empty": ("UNKNOWN_KEY", lambda w: w.root(header={"kid": ""})),
    "jwt-04d kid a number": ("BAD_HEADER", lambda w: w.root(header={"kid": 1})),
    "jwt-04e kid a list": ("BAD_HEADER", lambda w: w.root(header={"kid": ["sts-1"]})),
    "jwt-04f kid null": ("BAD_HEADER", lambda w: w.root(header={"kid": None})),
    "jwt-04g no kid": ("BAD_HEADER", lambda w: w.root(header={"kid": ABSENT})),
    "jwt-04h kid as an attribute": ("UNKNOWN_KEY", lambda w: w.root(header={"kid": "__class__"})),
    "jwt-05 jku": (
        "BAD_HEADER",
        lambda w: w.root(header={"jku": "http://127.0.0.1:1/jwks"}, key=new_key()),
    ),
    "jwt-05b x5u": ("BAD_HEADER", lambda w: w.root(header={"x5u": "http://127.0.0.1:1/c"})),
    "jwt-05c embedded jwk": (
        "BAD_HEADER",
        lambda w: w.root(header={"jwk": json.loads(w.forge.jwks)["keys"][0]}),
    ),
    "jwt-05d x5c instead of kid": (
        "BAD_HEADER",
        lambda w: w.root(header={"x5c": w.other.x5c, "kid": ABSENT}, key=w.other.key),
    ),
    "jwt-06 crit": ("BAD_HEADER", lambda w: w.root(header={"crit": ["exp"]})),
    "jwt-07 b64=false": ("BAD_HEADER", lambda w: w.root(header={"crit": ["b64"], "b64": False})),
    "jwt-08 zip": ("BAD_HEADER", lambda w: w.root(header={"zip": "DEF"})),
    "jwt-08b cty": ("BAD_HEADER", lambda w: w.root(header={"cty": "JWT"})),
    "jwt-08c unknown member": ("BAD_HEADER", lambda w: w.root(header={"x": 1})),
    # times
    "jwt-09 no exp": ("MALFORMED_TOKEN", lambda w: w.root({"exp": ABSENT})),
    "jwt-09b no iat": ("MALFORMED_TOKEN", lambda w: w.root({"iat": ABSENT})),
    "jwt-09c expired": ("EXPIRED", lambda w: w.root({"iat": now() - 300, "exp": now() - 60})),
    "jwt-09d expires before it begins": (
        "MALFORMED_TOKEN",
        lambda w: w.root({"exp": now() - 60}),
    ),
    "jwt-09e exp null": ("MALFORMED_TOKEN", lambda w: w.root({"exp": None})),
    "jwt-10 exp 10**30": ("MALFORMED_TOKEN", lambda w: w.root({"exp": 10**30})),
    "jwt-10b a day": ("LIFETIME_TOO_LONG", lambda w: w.root({"exp": now() + 86400})),
    "jwt-10c iat long ago": (
        "LIFETIME_TOO_LONG",
        lambda w: w.root({"iat": 0}),
    ),
    "jwt-11 exp as text": ("MALFORMED_TOKEN", lambda w: w.root({"exp": "9999999999"})),
    "jwt-11b exp as float": ("MALFORMED_TOKEN", lambda w: w.root({"exp": now() + 60.5})),
    "jwt-11c exp as bool": ("MALFORMED_TOKEN", lambda w: w.root({"exp": True})),
    "jwt-11d exp in exponent form": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: t.replace('"dlg": 0', '"dlg": 0e0')),
    ),
    "jwt-11e exp negative": ("MALFORMED_TOKEN", lambda w: w.root({"exp": -1})),
    "jwt-12 nbf ahead": ("NOT_YET_VALID", lambda w: w.root({"nbf": now() + 120})),
    "jwt-12b iat ahead": (
        "NOT_YET_VALID",
        lambda w: w.root({"iat": now() + 120, "exp": now() + 240}),
    ),
    "jwt-12c nbf as text": ("MALFORMED_TOKEN", lambda w: w.root({"nbf": "0"})),
    # audience and issuer
    "jwt-13 another trust domain": (
        "WRONG_AUDIENCE",
        lambda w: w.root({"aud": "spiffe://other.example"}),
    ),
    "jwt-13b no aud": ("WRONG_AUDIENCE", lambda w: w.root({"aud": ABSENT})),
    "jwt-13c aud without scheme": ("WRONG_AUDIENCE", lambda w: w.root({"aud": TRUST_DOMAIN})),
    "jwt-13d aud with a slash": (
        "WRONG_AUDIENCE",
        lambda w: w.root({"aud": f"spiffe://{TRUST_DOMAIN}/"}),
    ),
    "jwt-14 aud with a stranger": (
        "WRONG_AUDIENCE",
        lambda w: w.root({"aud": ["spiffe://other.example", f"spiffe://{TRUST_DOMAIN}"]}),
    ),
    "jwt-14b aud an object": (
        "WRONG_AUDIENCE",
        lambda w: w.root({"aud": {f"spiffe://{TRUST_DOMAIN}": 1}}),
    ),
    "jwt-15 unknown issuer": ("UNKNOWN_ISSUER", lambda w: w.root({"iss": "https://evil.example"})),
    "jwt-15b issuer with a slash": ("UNKNOWN_ISSUER", lambda w: w.root({"iss": ISSUER + "/"})),
    "jwt-15c issuer in upper case": ("UNKNOWN_ISSUER", lambda w: w.root({"iss": ISSUER.upper()})),
    "jwt-15d issuer a list": ("MALFORMED_TOKEN", lambda w: w.root({"iss": [ISSUER]})),
    "jwt-15e issuer with a newline": ("MALFORMED_TOKEN", lambda w: w.root({"iss": ISSUER + "\n"})),
    # strict parsing
    "jwt-16 member twice": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: '{"sub": "bob@example.org", ' + t[1:]),
    ),
    "jwt-16b member twice, escaped": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: '{"\\u0073ub": "bob@example.org", ' + t[1:]),
    ),
    "jwt-16c header member twice": (
        "MALFORMED_TOKEN",
        lambda w: jws(
            b'{"alg":"none","alg":"ES256","typ":"txntoken+jwt","kid":"sts-1"}',
            w.forge.root_claims(NARROW),
            w.forge.issuer_key,
        ),
    ),
    "jwt-16d nested member twice": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: t.replace('"act": {', '"act": {"sub": "x", ')),
    ),
    "jwt-17 access token": ("BAD_HEADER", lambda w: w.root(header={"typ": "at+jwt"})),
    "jwt-17b plain JWT": ("BAD_HEADER", lambda w: w.root(header={"typ": "JWT"})),
    "jwt-17c other letter case": ("BAD_HEADER", lambda w: w.root(header={"typ": "TxnToken+JWT"})),
    "jwt-17d media type in full": (
        "BAD_HEADER",
        lambda w: w.root(header={"typ": "application/txntoken+jwt"}),
    ),
    "jwt-17e no typ": ("BAD_HEADER", lambda w: w.root(header={"typ": ABSENT})),
    "jwt-17f link as root": ("BAD_HEADER", lambda w: w.root(header={"typ": "delegation-link+jwt"})),
    "jwt-18 signature bit": ("BAD_SIGNATURE", lambda w: flipped(w.root(), 2)),
    "jwt-18b zero signature": ("BAD_SIGNATURE", lambda w: signature_of(w.root(), bytes(64))),
    "jwt-18c short signature": ("BAD_SIGNATURE", lambda w: signature_of(w.root(), bytes(63))),
    "jwt-18d DER signature": ("BAD_SIGNATURE", der_signature),
    "jwt-18e another key": ("BAD_SIGNATURE", lambda w: w.root(key=new_key())),
    "jwt-18f payload bit": ("MALFORMED_TOKEN|BAD_SIGNATURE", lambda w: flipped(w.root(), 1)),
    "jwt-19 payload of another root": (
        "BAD_SIGNATURE",
        lambda w: ".".join(
            part
            for part in (
                w.root().split(".")[0],
                w.root({"scope": "crm.admin"}).split(".")[1],
                w.root().split(".")[2],
            )
        ),
    ),
    "jwt-20 5000 digits": (
        "OVERSIZE",
        lambda w: raw_payload(w, lambda t: '{"x": ' + "9" * 5000 + ", " + t[1:]),
    ),
    "jwt-20b 400 digits": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: '{"x": ' + "9" * 400 + ", " + t[1:]),
    ),
    "jwt-20c 2**53": ("MALFORMED_TOKEN", lambda w: w.root({"x": 2**53})),
    "jwt-21 nested 500 deep": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: '{"x": ' + "[" * 500 + "]" * 500 + ", " + t[1:]),
    ),
    "jwt-21b six actors": ("CHAIN_TOO_DEEP", lambda w: w.root(nested_actors(5))),
    "jwt-21c an actor twice": ("CHAIN_CYCLE", lambda w: w.root(nested_actors(2, OTHER))),
    "jwt-22 NaN": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: '{"x": NaN, ' + t[1:]),
    ),
    "jwt-22b Infinity": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: '{"x": -Infinity, ' + t[1:]),
    ),
    "jwt-23 padding": ("MALFORMED_TOKEN", lambda w: w.root() + "="),
    "jwt-23b spare bits": (
        "MALFORMED_TOKEN",
        lambda w: w.root()[:-1] + chr(ord(w.root()[-1]) + 1),
    ),
    "jwt-23c blank inside": ("MALFORMED_TOKEN", lambda w: w.root().replace(".", ". ", 1)),
    "jwt-23d four parts": ("MALFORMED_TOKEN", lambda w: w.root() + ".x"),
    "jwt-23e two parts": ("MALFORMED_TOKEN", lambda w: w.root().rpartition(".")[0]),
    "jwt-23f five parts": ("MALFORMED_TOKEN", lambda w: "e30.e30.e30.e30.e30"),
    "jwt-23g empty": ("MALFORMED_TOKEN", lambda w: ""),
    "jwt-23h base64 alphabet": ("MALFORMED_TOKEN", lambda w: "+/" + w.root()),
    "jwt-23i trailing newline": ("MALFORMED_TOKEN", lambda w: w.root() + "\n"),
    "jwt-23j line separator": ("MALFORMED_TOKEN", lambda w: w.root() + "\x85"),
    "jwt-24 no act": ("MALFORMED_TOKEN", lambda w: w.root({"act": ABSENT})),
    "jwt-24b act is text": ("MALFORMED_TOKEN", lambda w: w.root({"act": NARROW})),
    "jwt-24c actor without issuer": ("MALFORMED_TOKEN", lambda w: w.root({"act": {"sub": NARROW}})),
    "jwt-24d actor of a foreign issuer": (
        "CHAIN_BROKEN",
        lambda w: w.root({"act": {"iss": "spiffe://other.example", "sub": NARROW}}),
    ),
    "jwt-24e req_wl disagrees": ("CHAIN_BROKEN", lambda w: w.root({"req_wl": WIDE})),
    "jwt-24f actor is no SPIFFE ID": (
        "MALFORMED_TOKEN",
        lambda w: w.root({"act": {"iss": f"spiffe://{TRUST_DOMAIN}", "sub": NARROW + "/"}}),
    ),
    "jwt-24g for another caller": ("LEAF_MISMATCH", lambda w: w.forge.root(WIDE)),
    "jwt-25 lone surrogate": ("MALFORMED_TOKEN", lambda w: w.root({"sub": "\ud800"})),
    "jwt-25b NUL in the subject": ("MALFORMED_TOKEN", lambda w: w.root({"sub": "alice\0"})),
    "jwt-25c newline in the subject": ("MALFORMED_TOKEN", lambda w: w.root({"sub": "a\n2026 ok"})),
    "jwt-25d empty subject": ("MALFORMED_TOKEN", lambda w: w.root({"sub": ""})),
    "jwt-25e subject a list": ("MALFORMED_TOKEN", lambda w: w.root({"sub": ["alice"]})),
    "jwt-25f no transaction": ("MALFORMED_TOKEN", lambda w: w.root({"txn": ABSENT})),
    "jwt-25g scope a list": ("MALFORMED_TOKEN", lambda w: w.root({"scope": ["crm.read"]})),
    "jwt-25h scope with a tab": ("MALFORMED_TOKEN", lambda w: w.root({"scope": "a\tb"})),
    "jwt-30 64 kB": ("OVERSIZE", lambda w: w.root({"x": "a" * 48_000})),
    "jwt-30b 4097 bytes": ("OVERSIZE", lambda w: "a" * 4097),
    "jwt-35 byte order mark": (
        "MALFORMED_TOKEN",
        lambda w: raw_payload(w, lambda t: "\ufeff" + t),
    ),
    "jwt-35b payload a list": ("MALFORMED_TOKEN", lambda w: raw_payload(w, lambda t: f"[{t}]")),
    "jwt-35c UTF-16": (
        "MALFORMED_TOKEN",
        lambda w: jws(
            w.forge.root_header(),
            json.dumps(w.forge.root_claims(NARROW)).encode("utf-16"),
            w.forge.issuer_key,
        ),
    ),
    "jwt-35d after the payload": ("MALFORMED_TOKEN", lambda w: raw_payload(w, lambda t: t + "{}")),
    "jwt-36 Bearer": ("MALFORMED_TOKEN", lambda w: "Bearer " + w.root()),
    "jwt-37 key confirmation": ("MALFORMED_TOKEN", lambda w: w.root({"cnf": {"jkt": "x"}})),
}
