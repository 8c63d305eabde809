"""Access tokens as roots: where the operator says so, for the agent the operator says, or not."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from authz_server._pb.envoy.service.auth.v3 import external_auth_pb2 as auth
from authz_server.agent.signing import sign
from authz_server.core.decision import Decision
from authz_server.core.errors import Reason
from authz_server.core.pdp import decide
from authz_server.core.snapshot import Revocations, Snapshot
from authz_server.core.spiffe import SpiffeId
from authz_server.core.trust import Issuer, RootKind, TrustMaterial
from authz_server.demo.authority import envoy_certificate
from authz_server.servers import wire
from tests.harness import casebook
from tests.harness.casebook import Case
from tests.harness.world import DOMAIN, World, spiffe_id

IDP = "https://idp.cases.example.org"
MESH = "https://mesh.cases.example.org"
KEY = ec.generate_private_key(ec.SECP256R1())
CLIENT = "client-7"


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def a_case() -> Case:
    """Return a case that a root alone lets pass over plain HTTP."""
    return next(
        case
        for case in casebook.cases()
        if case.expect["verdict"] == "allow"
        and case.spec["chain"]
        and not case.spec["chain"].get("links")
        and case.extensions.get("protocol", "http") == "http"
    )


CASE = a_case()
AGENT = CASE.spec["caller"]
GRANT = CASE.spec["chain"]["root"]


def snapshot(world: World, revocations: Revocations | None = None) -> Snapshot:
    plain = world.snapshot(revocations)
    issuer = Issuer(
        issuer=IDP,
        algorithms=frozenset({"ES256"}),
        max_lifetime_s=600,
        keys={"idp-1": KEY.public_key()},
        kind=RootKind.ACCESS_TOKEN,
        audiences=frozenset({MESH, "https://second.example"}),
        agents={
            CLIENT: SpiffeId.parse(spiffe_id(AGENT)),
            "client-8": SpiffeId.parse(spiffe_id("agent/other")),
        },
    )
    trust = TrustMaterial(
        revision="with-access-tokens",
        bundles=plain.trust.bundles,
        issuers={**plain.trust.issuers, IDP: issuer},
    )
    return world.snapshot(revocations, trust=trust)


def access_token(world: World, header: Mapping[str, object] | None = None, **changes: Any) -> str:
    issued_at = int(world.now.timestamp())
    claims = {
        "iss": IDP,
        "aud": MESH,
        "iat": issued_at,
        "exp": issued_at + 300,
        "sub": casebook_subject(),
        "client_id": CLIENT,
        "jti": "at-1",
        "scope": GRANT["scope"],
        **changes,
    }
    members = {"alg": "ES256", "typ": "at+jwt", "kid": "idp-1", **(header or {})}
    return sign(members, {k: v for k, v in claims.items() if v is not None}, KEY)


def casebook_subject() -> str:
    from tests.harness.world import PEOPLE

    return str(PEOPLE.get(GRANT["sub"], GRANT["sub"]))


def asked(
    world: World,
    *,
    authorization: str | None = None,
    txn_token: str | None = None,
    chain: str | None = None,
    seen: Snapshot | None = None,
    caller: str | None = AGENT,
    after_s: float = 0,
) -> Decision:
    message = auth.CheckRequest.FromString(casebook.check_request(CASE, world))
    headers = message.attributes.request.http.header_map.headers
    kept = [h for h in headers if h.key not in {"txn-token", "delegation-chain", "authorization"}]
    lines = [(h.key, h.raw_value) for h in kept]
    for name, value in (
        ("authorization", authorization),
        ("txn-token", txn_token),
        ("delegation-chain", chain),
    ):
        if value is not None:
            lines.append((name, value.encode()))
    del headers[:]
    for key, line in lines:
        headers.add(key=key, raw_value=line)
    if caller is not None:
        message.attributes.source.certificate = envoy_certificate(world.svid(caller))
    request = wire.access_request(message.SerializeToString())
    return decide(request, seen or snapshot(world), world.now + timedelta(seconds=after_s))


def bearer(world: World, **changes: Any) -> str:
    return f"Bearer {access_token(world, **changes)}"


def test_it_lets_pass_what_a_txn_token_would(world: World) -> None:
    decision = asked(world, authorization=bearer(world))
    assert decision.reason is Reason.OK, decision.detail
    assert decision.chain is not None
    assert decision.chain.subject == casebook_subject()
    assert decision.chain.actors == (spiffe_id(AGENT),)
    assert (decision.chain.txn, decision.chain.subject_issuer) == ("at-1", IDP)
    assert decision.chain.assurance == "hop_signed"
    assert asked(world, authorization="bearer   " + access_token(world)).reason is Reason.OK
    second = access_token(world, {"typ": "application/at+jwt"}, aud=["https://second.example"])
    assert asked(world, authorization=f"Bearer {second}").reason is Reason.OK


def test_without_such_an_issuer_nobody_reads_it(world: World) -> None:
    plain = world.snapshot()
    found = asked(world, authorization=bearer(world), seen=plain)
    assert found.reason is Reason.DELEGATION_REQUIRED
    with_txn = world.root(GRANT)
    assert (
        asked(world, authorization="Bearer x", txn_token=with_txn, seen=plain).reason is Reason.OK
    )


REFUSED: Mapping[str, tuple[Mapping[str, Any], Reason]] = {
    "another issuer": ({"iss": "https://evil.example"}, Reason.UNKNOWN_ISSUER),
    "an issuer of txn-tokens": ({"iss": "https://sts.cases.example.org"}, Reason.UNKNOWN_ISSUER),
    "another key": ({"header": {"kid": "idp-2"}}, Reason.UNKNOWN_KEY),
    "an id token": ({"header": {"typ": "JWT"}}, Reason.BAD_HEADER),
    "a txn-token by type": ({"header": {"typ": "txntoken+jwt"}}, Reason.BAD_HEADER),
    "a key of its own": ({"header": {"jwk": {}}}, Reason.BAD_HEADER),
    "for another": ({"aud": "https://other.example"}, Reason.WRONG_AUDIENCE),
    "for us and another": ({"aud": [MESH, "https://other.example"]}, Reason.WRONG_AUDIENCE),
    "for nobody": ({"aud": []}, Reason.WRONG_AUDIENCE),
    "no audience": ({"aud": None}, Reason.WRONG_AUDIENCE),
    "the trust domain is not meant": ({"aud": DOMAIN.uri}, Reason.WRONG_AUDIENCE),
    "a client that is no agent": ({"client_id": "client-9"}, Reason.UNREGISTERED_IDENTITY),
    "another agent's": ({"client_id": "client-8"}, Reason.LEAF_MISMATCH),
    "no client": ({"client_id": None}, Reason.MALFORMED_TOKEN),
    "the client's own": ({"sub": CLIENT}, Reason.CHAIN_BROKEN),
    "no id": ({"jti": None}, Reason.MALFORMED_TOKEN),
    "no scope": ({"scope": None}, Reason.MALFORMED_TOKEN),
    "no subject": ({"sub": None}, Reason.MALFORMED_TOKEN),
    "too long a life": ({"exp": 4_000_000_000}, Reason.LIFETIME_TOO_LONG),
    "bound to a key": ({"cnf": {"jkt": "x"}}, Reason.MALFORMED_TOKEN),
    "an actor that is not its client": (
        {"act": {"iss": IDP, "sub": "spiffe://cases.example.org/agent/other"}},
        Reason.CHAIN_BROKEN,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(world: World, name: str) -> None:
    changes, reason = REFUSED[name]
    assert asked(world, authorization=bearer(world, **changes)).reason is reason


def test_expired(world: World) -> None:
    token = bearer(world)
    assert asked(world, authorization=token, after_s=329).reason is Reason.OK
    assert asked(world, authorization=token, after_s=330).reason is Reason.EXPIRED


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Bearer", Reason.MALFORMED_TOKEN),
        ("Bearer opaque", Reason.MALFORMED_TOKEN),
        ("Bearer a.b.c d", Reason.MALFORMED_TOKEN),
        ("Bearer a.b.c, Bearer d.e.f", Reason.DUPLICATE_HEADER),
        ("Bearer " + "a" * 5000, Reason.OVERSIZE),
        ("Basic YTpi", Reason.DELEGATION_REQUIRED),
        ("WPT a.b.c", Reason.DELEGATION_REQUIRED),
    ],
)
def test_where_a_bearer_token_is_a_root_any_other_denies(
    world: World, line: str, reason: Reason
) -> None:
    assert asked(world, authorization=line).reason is reason


def test_neither_kind_passes_in_the_place_of_the_other(world: World) -> None:
    assert asked(world, txn_token=access_token(world)).reason is Reason.UNKNOWN_ISSUER
    in_bearer = f"Bearer {world.root(GRANT)}"
    assert asked(world, authorization=in_bearer).reason is Reason.UNKNOWN_ISSUER


def test_what_was_proved_as_one_kind_is_not_known_as_the_other(world: World) -> None:
    seen = snapshot(world)
    token = access_token(world)
    assert asked(world, authorization=f"Bearer {token}", seen=seen).reason is Reason.OK
    assert asked(world, txn_token=token, seen=seen).reason is Reason.UNKNOWN_ISSUER


def test_beside_a_txn_token_it_must_say_the_same(world: World) -> None:
    root = world.root(GRANT)
    for changes, reason in (
        ({}, Reason.OK),
        ({"sub": "bob@example.org"}, Reason.CHAIN_BROKEN),
        ({"client_id": "client-8"}, Reason.LEAF_MISMATCH),
        ({"iss": "https://evil.example"}, Reason.UNKNOWN_ISSUER),
        ({"scope": None}, Reason.MALFORMED_TOKEN),
    ):
        found = asked(world, authorization=bearer(world, **changes), txn_token=root)
        assert found.reason is reason, changes
    found = asked(world, authorization=bearer(world), txn_token=root)
    assert found.chain is not None
    assert found.chain.txn != "at-1", "the txn-token is the root"


def test_links_without_any_root_still_break(world: World) -> None:
    assert asked(world, chain="a.b.c").reason is Reason.CHAIN_BROKEN
    assert asked(world, authorization="Basic x", chain="a.b.c").reason is Reason.CHAIN_BROKEN


def test_it_does_not_hand_on_unless_its_issuer_says_so(world: World) -> None:
    token = access_token(world)
    spec = {"by": AGENT, "to": "agent/other", "audience": [MESH], "scope": GRANT["scope"]}
    link = world.link({**spec, "claims": {"txn": "at-1"}}, token, token_like(token))
    found = asked(world, authorization=f"Bearer {token}", chain=link)
    assert found.reason is Reason.CHAIN_TOO_DEEP


def token_like(token: str) -> str:
    """Return a token with the transaction that links of an access token name."""
    import base64

    payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return sign({"alg": "ES256"}, {**payload, "txn": payload["jti"]}, KEY)


@pytest.mark.parametrize(
    "revocations",
    [
        Revocations(jti=frozenset({"at-1"})),
        Revocations(kid=frozenset({"idp-1"})),
        Revocations(subject=frozenset({casebook_subject()})),
        Revocations(spiffe_id=frozenset({spiffe_id(AGENT)})),
    ],
)
def test_revoked_alone_and_beside(world: World, revocations: Revocations) -> None:
    seen = snapshot(world, revocations)
    assert asked(world, authorization=bearer(world), seen=seen).reason is Reason.REVOKED
    found = asked(world, authorization=bearer(world), txn_token=world.root(GRANT), seen=seen)
    assert found.reason is Reason.REVOKED


def test_an_unknown_key_names_the_issuer_to_ask_and_no_other_fault_does(world: World) -> None:
    found = asked(world, authorization=bearer(world, header={"kid": "idp-2"}))
    assert (found.reason, found.missing_key_of) == (Reason.UNKNOWN_KEY, IDP)
    assert asked(world, authorization=bearer(world, aud="x")).missing_key_of is None
