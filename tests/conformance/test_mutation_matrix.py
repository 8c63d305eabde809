"""A valid chain of three hops: every single-field change of every token denies, for its own reason.

The matrix is generated from the tokens themselves: each member of each header and each claim, times
every kind of change. Two attackers make each change. A thief has no key and keeps the signature; a
rightful signer signs its own token again, and presents it with the tokens after it as they were.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from authz_server.agent.signing import sign
from authz_server.core.errors import Reason
from authz_server.core.jose import decode_base64url, encode_base64url
from authz_server.demo.authority import TrustDomainAuthority
from tests.harness.chains import (
    ASSISTANT,
    DOMAIN,
    NOW,
    RESEARCH,
    ROOT_KEY,
    reason,
    svid,
    three_hops,
)

CHAIN: Final = three_hops()
TOKENS: Final = ("root", "link 1", "link 2")
KEYS: Final = (ROOT_KEY, svid(ASSISTANT).key, svid(RESEARCH).key)

ABSENT: Final = object()
DOUBLED: Final = object()
# What a member is changed into. Where that is what it was, there is nothing to see.
CHANGES: Final[Mapping[str, object]] = {
    "absent": ABSENT,
    "doubled": DOUBLED,
    "null": None,
    "true": True,
    "a number": 7,
    "a fraction": 1795521600.5,
    "a huge number": 2**63,
    "no text": "",
    "another text": "other",
    "a control character": "a\x00b",
    "an empty list": [],
    "a list": ["other"],
    "an empty object": {},
    "an object": {"other": "x"},
}

B, K, M, S = Reason.BAD_HEADER, Reason.UNKNOWN_KEY, Reason.MALFORMED_TOKEN, Reason.BAD_SIGNATURE
C, W, L, A = (
    Reason.CHAIN_BROKEN,
    Reason.SCOPE_WIDENED,
    Reason.LIFETIME_TOO_LONG,
    Reason.WRONG_AUDIENCE,
)
UNREADABLE: Final = frozenset({"doubled", "a huge number"})  # by the strict reader of JSON
LEGAL: Final = None  # the rightful signer may say so: what follows it does not fit any more

# Per member: what a change leads to, and which changes lead elsewhere.
Row = tuple[Reason | None, Mapping[str, Reason | None]]
HEADER: Final[Mapping[str, Row]] = {
    "alg": (B, {}),
    "typ": (B, {}),
    "kid": (B, {"no text": K, "another text": K, "a control character": K}),
    "x5c": (B, {}),
}
TEXT: Final[Row] = (M, {"another text": LEGAL})
ROOT: Final[Mapping[str, Row]] = {
    "iss": (M, {"another text": Reason.UNKNOWN_ISSUER}),
    "aud": (A, {}),
    "iat": (M, {"a number": L}),
    "exp": (M, {}),
    "txn": TEXT,
    "jti": (M, {"absent": LEGAL, "another text": LEGAL}),
    "sub": TEXT,
    "scope": TEXT,
    "req_wl": (M, {"another text": C}),
    "act": (M, {}),
    # An empty list could be read as "nothing" and as "no restriction".
    "authorization_details": (M, {"absent": LEGAL}),
    "tctx": (M, {"absent": LEGAL, "an empty object": LEGAL, "an object": LEGAL}),
    "dlg": (M, {"absent": LEGAL, "a number": LEGAL}),
}
LINK: Final[Mapping[str, Row]] = {
    "iss": (M, {"another text": C}),
    "sub": (M, {"another text": C}),
    "txn": (M, {"another text": C}),
    "may_act": (M, {}),
    "aud": (M, {"a list": W}),
    "scope": (M, {"another text": W}),
    "iat": (M, {"a number": L}),
    "exp": (M, {}),
    "jti": TEXT,
    "prh": (M, {"another text": C}),
    "dlg": (M, {"absent": LEGAL, "a number": Reason.CHAIN_TOO_DEEP}),
}
# The whole trust domain is the root's audience: the first link may name any part of it.
FIRST_LINK: Final = {**LINK, "aud": (M, {"a list": LEGAL})}
TABLES: Final[tuple[Mapping[str, Row], ...]] = (ROOT, FIRST_LINK, LINK)
# What strangers may put beside the members that are there.
ADDED_HEADER: Final = ("jku", "jwk", "x5u", "x5t", "crit", "b64", "zip", "cty", "p2c", "new")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One change of one member of one token."""

    token: int
    part: int  # 0: header, 1: payload
    member: str
    change: str

    def __str__(self) -> str:
        where = ("header", "payload")[self.part]
        return f"{TOKENS[self.token]}: {where} `{self.member}` becomes {self.change}"

    def text(self) -> str:
        """Return the JSON text of the part, changed."""
        before = part(self.token, self.part)
        value = CHANGES[self.change]
        if value is ABSENT:
            return json.dumps({k: v for k, v in before.items() if k != self.member})
        if value is DOUBLED:
            again = f"{json.dumps(self.member)}: {json.dumps(before[self.member])}"
            return "{" + again + ", " + json.dumps(before)[1:]
        return json.dumps({**before, self.member: value})

    def tokens(self, *, signed: bool) -> tuple[str, ...]:
        """Return the chain with this change, the token signed again or not."""
        parts = CHAIN[self.token].split(".")
        parts[self.part] = encode_base64url(self.text().encode())
        if signed:
            parts[2] = signature(f"{parts[0]}.{parts[1]}", self.token)
        changed = list(CHAIN)
        changed[self.token] = ".".join(parts)
        return tuple(changed)

    @property
    def own(self) -> Reason | None:
        """What is wrong with the token itself when its rightful signer signed it."""
        if self.change in UNREADABLE:
            return M
        table = HEADER if self.part == 0 else TABLES[self.token]
        default, others = table[self.member]
        return others.get(self.change, default)

    @property
    def expected_signed(self) -> Reason | None:
        """What a rightful signer meets: the token's own fault, or the hash in the next one."""
        if self.own is not None or self.token == len(CHAIN) - 1:
            return self.own
        return C

    @property
    def expected_unsigned(self) -> Reason | None:
        """What a thief meets: the signature, unless the token is refused before it is looked at."""
        before_signature = self.part == 0 or self.member == "iss" or self.change in UNREADABLE
        return self.own if before_signature else S


def part(token: int, index: int) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(decode_base64url(CHAIN[token].split(".")[index]))
    return decoded


def signature(signing_input: str, token: int) -> str:
    from authz_server.core.jose import ALGORITHMS

    return encode_base64url(ALGORITHMS["ES256"].sign(signing_input.encode(), KEYS[token]))


def mutations() -> Iterator[Mutation]:
    for token in range(len(CHAIN)):
        for index in (0, 1):
            for member, value in part(token, index).items():
                for change, changed in CHANGES.items():
                    if changed != value:
                        yield Mutation(token=token, part=index, member=member, change=change)


MATRIX: Final = tuple(mutations())


def test_the_chain_itself_is_valid_and_the_matrix_whole() -> None:
    assert reason(*CHAIN) is None
    for token in range(len(CHAIN)):
        assert part(token, 0).keys() <= HEADER.keys()
        assert part(token, 1).keys() == TABLES[token].keys()
    assert len(MATRIX) > 500


def test_a_thief_changes_a_member() -> None:
    wrong = [
        (str(mutation), found, mutation.expected_unsigned)
        for mutation in MATRIX
        if (found := reason(*mutation.tokens(signed=False))) is not mutation.expected_unsigned
    ]
    assert not wrong
    assert all(mutation.expected_unsigned is not None for mutation in MATRIX)


def test_a_rightful_signer_changes_a_member() -> None:
    wrong = [
        (str(mutation), found, mutation.expected_signed)
        for mutation in MATRIX
        if (found := reason(*mutation.tokens(signed=True))) is not mutation.expected_signed
    ]
    assert not wrong
    # What is left is the last signer's own business: another name for its link, or the same `dlg`.
    legal = {str(mutation) for mutation in MATRIX if mutation.expected_signed is None}
    assert legal == {
        "link 2: payload `jti` becomes another text",
        "link 2: payload `dlg` becomes absent",
    }


@pytest.mark.parametrize("token", range(3), ids=TOKENS)
@pytest.mark.parametrize("member", ADDED_HEADER)
def test_a_header_member_too_many(token: int, member: str) -> None:
    for value in ("https://evil.example", {"kty": "EC"}, ["exp"], True):
        header = {**part(token, 0), member: value}
        assert reason(*_signed_again(token, header, part(token, 1))) is B


# By claim: what it means in the root, and in a link, where it is not understood or narrows.
ADDED: Final[Mapping[str, tuple[object, Reason, Reason]]] = {
    "cnf": ({"jkt": "x"}, M, M),
    "client_id": ("x", C, M),
    "act": ({"sub": "x"}, M, M),
    "nbf": (int(NOW.timestamp()) + 3600, Reason.NOT_YET_VALID, Reason.NOT_YET_VALID),
    "authorization_details": ([{"type": "x"}], C, W),
    "new": ("x", C, M),
}


@pytest.mark.parametrize("claim", ADDED)
def test_a_claim_too_many(claim: str) -> None:
    value, in_root, in_link = ADDED[claim]
    for token in range(len(CHAIN)):
        payload = {**part(token, 1), claim: value}
        expected = in_root if token == 0 else in_link
        assert reason(*_signed_again(token, part(token, 0), payload)) is expected, TOKENS[token]


def test_another_certificate() -> None:
    other, own = svid(RESEARCH), svid(ASSISTANT)
    foreign = TrustDomainAuthority.create(DOMAIN, now=NOW).issue_svid(ASSISTANT, now=NOW)
    damaged = bytearray(base64.b64decode(_x5c(own)[0]))
    damaged[-1] ^= 1
    for x5c, expected in (
        (_x5c(other), C),
        (_x5c(foreign), K),  # the same name from an authority of its own
        ([base64.b64encode(damaged).decode()], K),
        (_x5c(own) * 5, Reason.OVERSIZE),
        (_x5c(own)[0], B),
    ):
        assert reason(*_signed_again(1, {**part(1, 0), "x5c": x5c}, part(1, 1))) is expected, x5c


@pytest.mark.parametrize("token", range(3), ids=TOKENS)
def test_another_algorithm_of_the_same_key(token: int) -> None:
    for algorithm in ("none", "HS256", "ES384", "ES512", "RS256", "PS256", "EdDSA", "es256"):
        assert (
            reason(*_signed_again(token, {**part(token, 0), "alg": algorithm}, part(token, 1))) is B
        )


def test_actors_of_the_root() -> None:
    """Within `act`: who it is, who says so, and that `req_wl` says the same."""
    act = part(0, 1)["act"]
    for change, expected in {
        "sub": ("spiffe://td.example/agent/other", C),
        "iss": ("spiffe://other.example", C),
        "cnf": ({"jkt": "x"}, M),
        "act": ({"iss": DOMAIN.uri, "sub": act["sub"]}, Reason.CHAIN_CYCLE),
    }.items():
        payload = {**part(0, 1), "act": {**act, change: expected[0]}}
        assert reason(*_signed_again(0, part(0, 0), payload)) is expected[1], change


def test_delegates_of_a_link() -> None:
    may_act = part(1, 1)["may_act"]
    for change, expected in {
        "sub": ("spiffe://td.example/agent/other", C),  # the link after it is from another
        "iss": ("spiffe://other.example", C),
        "cnf": ({"jkt": "x"}, M),
    }.items():
        payload = {**part(1, 1), "may_act": {**may_act, change: expected[0]}}
        assert reason(*_signed_again(1, part(1, 0), payload)) is expected[1], change


def _x5c(of: Any) -> list[str]:
    from cryptography.hazmat.primitives.serialization import Encoding

    return [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in of.certificates]


def _signed_again(
    token: int, header: Mapping[str, object], payload: Mapping[str, object]
) -> tuple[str, ...]:
    """Return the chain with one token made anew by its rightful signer, whatever `alg` says."""
    signed = sign({**header, "alg": "ES256"}, payload, KEYS[token])
    body = f"{encode_base64url(json.dumps(dict(header)).encode())}.{signed.split('.')[1]}"
    changed = list(CHAIN)
    changed[token] = f"{body}.{signature(body, token)}"
    return tuple(changed)
