"""`identities`: who is registered and not seen, seen and not registered, and who lends its name."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from authz_server.cli.main import group
from authz_server.core.decision import Decision, PrincipalRecord
from authz_server.core.errors import Reason
from authz_server.core.parties import PROFILE_CONTRADICTED
from authz_server.ledger.store import Ledger
from tests.ledger_samples import allow, chain, deny, record
from tests.pdp_site import ISSUER, PdpSite

A, B, TOOL, GATEWAY, STRANGER = (
    f"spiffe://site.example.org/{name}"
    for name in ("agent/a", "agent/b", "tool/crm", "service/gateway", "agent/stranger")
)
INVENTORY = {
    "identities": [
        {"id": "spiffe://site.example.org/agent/a", "kind": "agent", "owner": "team-a"},
        {"id": "spiffe://site.example.org/agent/b*", "kind": "agent", "owner": "team-b"},
        {"id": TOOL, "kind": "tool", "owner": "team-crm"},
        {"id": GATEWAY, "kind": "service", "owner": "team-gw"},
        {"id": "spiffe://site.example.org/agent/retired", "kind": "agent", "owner": "team-a"},
        {"id": "alice@example.org", "kind": "human"},
    ]
}


class Site:
    def __init__(self, directory: Path) -> None:
        self.site = PdpSite.create(directory)
        (directory / "identities.yaml").write_text(yaml.safe_dump(INVENTORY))
        self.now = datetime.now(UTC)

    def commit(self, *decisions: Decision) -> None:
        ledger = Ledger.open(f"sqlite:///{self.site.ledger}", approval_ttl_s=60)
        ledger.commit([record(replace(decision, time=self.now)) for decision in decisions])
        ledger.close()

    def run(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        command = ["identities", *arguments, "--config", str(self.site.configuration)]
        result = CliRunner().invoke(group, [*command, "--output", "json"], catch_exceptions=False)
        assert result.exit_code == code, result.output
        table = CliRunner().invoke(group, command, catch_exceptions=False)
        assert table.exit_code == code
        return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def called(caller: str, *actors: str, subject: str = "alice@example.org") -> Decision:
    principal = PrincipalRecord(
        spiffe_id=caller, trust_domain="site.example.org", kind=None, assurance="mtls"
    )
    return allow(principal=principal, chain=chain(*(actors or (caller,)), subject=subject))


def test_each_entry_with_everyone_who_went_by_it(site: Site) -> None:
    site.commit(called(A), called(B, A, B), called(f"{B}2"), deny(principal=called(A).principal))
    found = {entry["id"]: entry for entry in site.run("list")}
    assert found.keys() == {entry["id"] for entry in INVENTORY["identities"]}
    a, b = found[A], found["spiffe://site.example.org/agent/b*"]
    assert (a["kind"], a["owner"], a["as_principal"], a["as_actor"], a["denied"]) == (
        "agent", "team-a", 2, 2, 1,
    )  # fmt: skip
    assert (b["identities"], b["as_principal"]) == (2, 2), "one entry, two workloads"
    assert found["alice@example.org"]["as_subject"] == 4
    assert found[TOOL]["last_seen"] is None


def test_unseen_is_what_nobody_went_by(site: Site) -> None:
    site.commit(called(A), called(B, A, B))
    unseen = {entry["id"] for entry in site.run("unseen")}
    assert unseen == {TOOL, GATEWAY, "spiffe://site.example.org/agent/retired"}


def test_what_is_older_than_the_window_was_not_seen(site: Site) -> None:
    site.now = datetime(2026, 1, 1, tzinfo=UTC)
    site.commit(called(A))
    assert len(site.run("unseen", "--within", "7d")) == len(INVENTORY["identities"])
    assert len(site.run("unseen", "--within", "9999w")) == len(INVENTORY["identities"]) - 2


def test_unregistered_is_who_called_or_acted_without_an_entry(site: Site) -> None:
    site.commit(called(A))
    assert site.run("unregistered") == []
    refused = deny(Reason.UNREGISTERED_IDENTITY, principal=called(STRANGER).principal, chain=None)
    site.commit(refused, called(A, f"{STRANGER}2", A))
    found = {entry["id"]: entry for entry in site.run("unregistered", code=1)}
    assert found.keys() == {STRANGER, f"{STRANGER}2"}
    assert (found[STRANGER]["as_principal"], found[STRANGER]["denied"]) == (1, 1)
    assert found[f"{STRANGER}2"]["as_actor"] == 1


def test_borrowed_nothing(site: Site) -> None:
    site.commit(called(A), called(TOOL, A, TOOL), called(GATEWAY, GATEWAY, subject=GATEWAY))
    assert site.run("borrowed") == []


def test_borrowed_one_identity_for_many_subjects(site: Site) -> None:
    crowd = [called(A, subject=f"person{n}@example.org") for n in range(25)]
    site.commit(*crowd, called(B), called(f"{B}2"))
    (sign,) = site.run("borrowed", code=1)
    assert (sign["id"], sign["sign"], sign["decisions"]) == (A, "acts for 25 subjects", 25)
    assert site.run("borrowed", "--subjects-min", "26") == []


def test_an_identity_like_all_others_is_not_unusual(site: Site) -> None:
    site.commit(
        *(called(c, subject=f"p{n}@example.org") for c in (A, B, f"{B}2") for n in range(25))
    )
    assert site.run("borrowed") == []


def test_borrowed_the_grant_of_a_person_at_a_service(site: Site) -> None:
    site.commit(called(GATEWAY), called(GATEWAY), called(TOOL, A, TOOL))
    (sign,) = site.run("borrowed", code=1)
    assert sign["id"] == GATEWAY
    assert sign["sign"] == "service holds the grant of `alice@example.org`"
    assert sign["decisions"] == 2


def test_borrowed_an_identity_that_its_issuer_took_for_something_else(site: Site) -> None:
    denied = replace(deny(Reason.CHAIN_BROKEN), detail=PROFILE_CONTRADICTED, chain=chain(GATEWAY))
    site.commit(denied, denied, deny(Reason.CHAIN_BROKEN))
    (sign,) = site.run("borrowed", code=1)
    assert (sign["id"], sign["sign"], sign["decisions"]) == (GATEWAY, PROFILE_CONTRADICTED, 2)


@pytest.mark.parametrize(
    ("profile", "path", "reason"),
    [
        ("ai_agent", "agent/a", "OK"),
        ("ai_agent", "service/a", "CHAIN_BROKEN"),
        ("service", "service/a", "OK"),
        ("service", "agent/a", "CHAIN_BROKEN"),
        ("user", "agent/a", "CHAIN_BROKEN"),
        ("something_new", "agent/a", "OK"),
        (None, "service/a", "OK"),
    ],
)
def test_an_issuer_that_contradicts_the_inventory_denies(
    tmp_path: Path, profile: str | None, path: str, reason: str
) -> None:
    """Decided offline, by the command, with a root whose `act` says what the actor is."""
    from google.protobuf.json_format import MessageToJson

    from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
    from authz_server.agent.signing import sign

    site = PdpSite.create(tmp_path / "site")
    inventory = [
        {"id": f"spiffe://site.example.org/{kind}/*", "kind": kind, "owner": "x"}
        for kind in ("agent", "service")
    ]
    (site.directory / "identities.yaml").write_text(yaml.safe_dump({"identities": inventory}))
    svid = site.authority.issue_svid(f"/{path}")
    now = int(datetime.now(UTC).timestamp())
    act = {"iss": "spiffe://site.example.org", "sub": str(svid.spiffe_id)}
    claims = {
        "iss": ISSUER,
        "aud": "spiffe://site.example.org",
        "iat": now,
        "exp": now + 60,
        "txn": "t",
        "sub": "alice@example.org",
        "scope": "data.read",
        "req_wl": act["sub"],
        "act": act | ({"sub_profile": profile} if profile else {}),
    }
    header = {"alg": "ES256", "typ": "txntoken+jwt", "kid": site.issuer.kid}
    root = sign(header, claims, site.issuer._key)
    data = site.check_request("/open/a", headers={"txn-token": root}, svid=svid)
    result = CliRunner().invoke(
        group,
        ["check", "--config", str(site.configuration)],
        input=MessageToJson(CheckRequest.FromString(data)),
        catch_exceptions=False,
    )
    assert json.loads(result.stdout)["reason"] == reason
