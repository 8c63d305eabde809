"""The demonstration's token service: a person's token and an agent's connection, or nothing."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.core.jose import parse_jwks
from authz_server.core.root_grant import verify_root
from authz_server.core.spiffe import SpiffeId, TrustDomain
from authz_server.core.trust import Issuer
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from authz_server.demo.token_exchange import (
    GRANT_TYPE,
    ID_TOKEN,
    TXN_TOKEN,
    ExchangeRefusedError,
    SignIn,
    TokenExchange,
    ask,
    serving,
)

DOMAIN = TrustDomain.parse("sts.example.org")
STS, AGENT = (SpiffeId.parse(f"{DOMAIN.uri}/{name}") for name in ("sts", "agent"))
ISSUER = DevelopmentIssuer.create(issuer="https://sts.example.org", trust_domain=DOMAIN)
SIGN_IN = SignIn(
    issuer="https://login.example.org",
    audience=ISSUER.issuer,
    key=ec.generate_private_key(ec.SECP256R1()),
)
NOW = int(time.time())


def form(**changes: str | None) -> dict[str, str]:
    values = {
        "grant_type": GRANT_TYPE,
        "subject_token": SIGN_IN.person_token("alice@example.org", now=NOW),
        "subject_token_type": ID_TOKEN,
        "requested_token_type": TXN_TOKEN,
        "scope": "crm.read",
        "request_details": '{"purpose": "case", "dlg": 1}',
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


@pytest.fixture
def svids(tmp_path: Path) -> dict[SpiffeId, Path]:
    authority = TrustDomainAuthority.create(DOMAIN)
    found = {}
    for spiffe_id in (STS, AGENT):
        directory = tmp_path / spiffe_id.path.strip("/")
        directory.mkdir()
        write_svid(authority.issue_svid(spiffe_id), directory)
        (directory / "bundle.pem").write_bytes(authority.bundle_pem)
        found[spiffe_id] = directory
    return found


@pytest.fixture
def url(svids: dict[SpiffeId, Path]) -> Iterator[str]:
    exchange = TokenExchange(issuer=ISSUER, sign_in=SIGN_IN)
    with serving(exchange, "127.0.0.1", svids[STS], lambda: NOW) as url:
        yield url


def test_the_grant_is_for_the_person_and_to_whoever_holds_the_connection(
    url: str, svids: dict[SpiffeId, Path]
) -> None:
    root = ask(url, svids[AGENT], form(), service=STS)
    issuer = Issuer(
        issuer=ISSUER.issuer,
        algorithms=frozenset({"ES256"}),
        max_lifetime_s=300,
        keys=parse_jwks(ISSUER.jwks().encode()),
    )
    proved = verify_root(root, issuers={ISSUER.issuer: issuer}, trust_domain=DOMAIN)
    grant = proved.token.grant
    assert (grant.subject, grant.delegate, grant.hops_left) == ("alice@example.org", AGENT, 1)
    assert grant.scope == frozenset({"crm.read"})
    assert proved.purpose == "case"


STRANGER = SignIn(
    issuer="https://login.example.org",
    audience=ISSUER.issuer,
    key=ec.generate_private_key(ec.SECP256R1()),
)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"subject_token": None}, "invalid_grant"),
        ({"subject_token": "a.b.c"}, "invalid_grant"),
        ({"subject_token": STRANGER.person_token("alice", now=NOW)}, "invalid_grant"),
        ({"subject_token": SIGN_IN.person_token("alice", now=NOW - 301)}, "invalid_grant"),
        ({"subject_token": SIGN_IN.person_token("alice", now=NOW + 60)}, "invalid_grant"),
        ({"subject_token_type": TXN_TOKEN}, "invalid_request"),
        ({"actor_token": "x"}, "invalid_request"),
        ({"request_details": "{"}, "invalid_request"),
        ({"request_details": "[]"}, "invalid_request"),
    ],
)
def test_refused(
    url: str, svids: dict[SpiffeId, Path], changes: dict[str, str | None], code: str
) -> None:
    with pytest.raises(ExchangeRefusedError) as refused:
        ask(url, svids[AGENT], form(**changes), service=STS)
    assert refused.value.code == code


def test_a_person_token_goes_to_the_service_alone(url: str, svids: dict[SpiffeId, Path]) -> None:
    with pytest.raises(ExchangeRefusedError, match="not the token service"):
        ask(url, svids[AGENT], form(), service=AGENT)


def test_strangers_do_not_get_so_far(url: str, tmp_path: Path) -> None:
    other = TrustDomainAuthority.create(DOMAIN)
    directory = tmp_path / "stranger"
    directory.mkdir()
    write_svid(other.issue_svid(AGENT), directory)
    (directory / "bundle.pem").write_bytes(other.bundle_pem)
    with pytest.raises(ExchangeRefusedError, match="no answer"):
        ask(url, directory, form(), service=STS)
