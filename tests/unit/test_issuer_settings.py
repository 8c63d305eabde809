"""Several issuers, each with keys, algorithms, audiences and lifetimes of its own."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from authz_server.core.chain_cache import ChainCache
from authz_server.core.errors import ConfigurationError, Reason
from authz_server.core.root_grant import verify_root
from authz_server.core.snapshot import Snapshot
from authz_server.core.trust import RootKind
from authz_server.reload.loader import load_snapshot
from authz_server.settings import load_settings
from tests.harness.chains import DOMAIN, TRUST, reason_of, root_claims, root_token
from tests.pdp_site import ISSUER, PdpSite

URL = {"issuer": ISSUER, "jwks_url": "https://sts.example/jwks.json"}
ACCESS = URL | {
    "kind": "access_token",
    "audiences": "https://mesh.example",
    "agents": {"client-7": "spiffe://site.example.org/agent/a"},
}


def loaded(directory: Path, *issuers: dict[str, Any]) -> Snapshot:
    site = PdpSite.create(directory, delegation={"issuers": list(issuers)})
    return load_snapshot(load_settings(site.configuration), chains=ChainCache())


def test_an_issuer_with_an_address_has_no_keys_from_files(tmp_path: Path) -> None:
    snapshot = loaded(tmp_path / "a", URL, ACCESS | {"issuer": "https://idp"})
    sts, idp = snapshot.trust.issuers[ISSUER], snapshot.trust.issuers["https://idp"]
    assert (dict(sts.keys), sts.kind, sts.audiences) == ({}, RootKind.TXN_TOKEN, frozenset())
    assert idp.kind is RootKind.ACCESS_TOKEN
    assert idp.audiences == frozenset({"https://mesh.example"})
    assert {client: str(agent) for client, agent in idp.agents.items()} == ACCESS["agents"]
    assert snapshot.trust.has_access_token_issuer


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithms": ["ES384"]},
        {"max_lifetime_s": 60},
        {"audiences": ["https://mesh.example", "https://second.example"]},
        {"agents": {"client-7": "spiffe://site.example.org/agent/b"}},
        {"agents": {"client-8": "spiffe://site.example.org/agent/a"}},
        {"subject_claim": "email"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_a_proof_depends_on_is_in_the_revision_of_trust(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A proof that is remembered under the old terms must not be met under the new ones."""
    site = PdpSite.create(tmp_path / "a", delegation={"issuers": [ACCESS]})
    before = load_snapshot(load_settings(site.configuration), chains=ChainCache())
    document = yaml.safe_load(site.configuration.read_text())
    document["delegation"] = {"issuers": [ACCESS | changes]}
    site.configuration.write_text(yaml.safe_dump(document))
    after = load_snapshot(load_settings(site.configuration), chains=ChainCache())
    assert before.trust.revision != after.trust.revision


@pytest.mark.parametrize(
    ("issuer", "fault"),
    [
        (URL | {"jwks_url": "http://sts.example/jwks"}, "must be an address `https://"),
        (URL | {"jwks_url": "http://127.0.0.1.evil.example/"}, "must be an address `https://"),
        (URL | {"jwks_url": "https://user:pw@sts.example/"}, "without credentials"),
        (URL | {"jwks_url": "http://user:pw@127.0.0.1/"}, "without credentials"),
        (URL | {"jwks_url": "file:///etc/passwd"}, "must be an address `https://"),
        (URL | {"jwks_file": "k.json"}, "exactly one of"),
        (URL | {"jwks_max_stale_s": 119}, "jwks_max_stale_s"),
        (URL | {"jwks_url": "http://localhost/", "jwks_ca_file": "ca.pem"}, "jwks_ca_file"),
        ({"issuer": ISSUER, "jwks_file": "k.json", "jwks_ca_file": "ca.pem"}, "jwks_ca_file"),
        ({k: v for k, v in ACCESS.items() if k != "agents"}, "`delegation.issuers[0].agents` is"),
        ({k: v for k, v in ACCESS.items() if k != "audiences"}, "audiences` is required"),
        (ACCESS | {"agents": {"client-7": "agent a"}}, "agents"),
        (URL | {"agents": ACCESS["agents"]}, "is for the kind `access_token` alone"),
        (URL | {"subject_claim": "email"}, "is for the kind `access_token` alone"),
        (ACCESS | {"kind": "id_token"}, "kind"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, issuer: dict[str, Any], fault: str) -> None:
    site = PdpSite.create(tmp_path / "a", delegation={"issuers": [issuer]})
    with pytest.raises(ConfigurationError) as refused:
        load_settings(site.configuration)
    assert fault in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/k", "http://[::1]/k", "http://localhost/k"])
def test_plain_http_stays_on_this_machine(tmp_path: Path, url: str) -> None:
    site = PdpSite.create(tmp_path / "a", delegation={"issuers": [URL | {"jwks_url": url}]})
    assert load_settings(site.configuration).delegation.issuers[0].jwks_url == url


def test_an_issuer_of_txn_tokens_may_have_an_audience_of_its_own() -> None:
    from dataclasses import replace

    (issuer,) = TRUST.issuers.values()
    other = replace(issuer, audiences=frozenset({"https://mesh.example"}))

    def reason(**changes: object) -> Reason | None:
        token = root_token(root_claims(**changes))
        issuers = {other.issuer: other}
        return reason_of(lambda: verify_root(token, issuers=issuers, trust_domain=DOMAIN))

    assert reason(aud="https://mesh.example") is None
    assert reason() is Reason.WRONG_AUDIENCE, "the trust domain is not meant any more"
    assert reason(aud=["https://mesh.example", DOMAIN.uri]) is Reason.WRONG_AUDIENCE


def test_one_issuers_key_proves_nothing_of_another() -> None:
    from dataclasses import replace

    (issuer,) = TRUST.issuers.values()
    second = replace(issuer, issuer="https://second.example", keys={})
    issuers = {issuer.issuer: issuer, second.issuer: second}
    token = root_token(root_claims(iss="https://second.example"))
    found = reason_of(lambda: verify_root(token, issuers=issuers, trust_domain=DOMAIN))
    assert found is Reason.UNKNOWN_KEY
