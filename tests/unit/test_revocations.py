"""What is revoked denies, in whatever part of a request it appears; and who revoked it is known."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli.main import group
from authz_server.core.chain import PresentedChain, VerifiedChain
from authz_server.core.errors import InvalidValueError, LedgerError, Reason
from authz_server.core.revocation import RevocationKind, check_chain
from authz_server.core.snapshot import Revocations
from authz_server.ledger.query import LookupFault
from authz_server.ledger.revocations import Handle, RevocationRefused, RevocationStore
from authz_server.ledger.store import Ledger
from tests.harness.chains import (
    ASSISTANT,
    NOW,
    PARTNER,
    RESEARCH,
    SUBJECT,
    TOOL,
    TXN,
    reason_of,
    root_claims,
    root_token,
    three_hops,
    verify,
    workload,
)

AGENT = "spiffe://td.example/agent/research"
CHAIN = three_hops()


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/authz.db"
    Ledger.open(url, approval_ttl_s=60).close()
    return url


@pytest.fixture
def store(url: str) -> RevocationStore:
    return RevocationStore.open(url)


def handle(kind: str, value: str) -> Handle:
    return Handle.parse(RevocationKind(kind), value)


# --- what a revocation denies ----------------------------------------------------------------


def revoked(kind: str, value: str) -> Revocations:
    values: dict[str, frozenset[str]] = {kind: frozenset({value})}
    return Revocations(**values)  # type: ignore[arg-type]


def denied(chain: VerifiedChain, revocations: Revocations) -> Reason | None:
    return reason_of(lambda: check_chain(chain, revocations))


def certificate_sha256(name: str) -> str:
    grant = {str(g.delegator): g for g in verify(*CHAIN).grants}[str(workload(name))]
    assert grant.certificate_sha256 is not None
    return grant.certificate_sha256


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("txn", TXN),
        ("jti", "root-1"),
        ("jti", f"link-{RESEARCH.path}"),
        ("jti", f"link-{TOOL.path}"),
        ("spiffe_id", str(ASSISTANT)),
        ("spiffe_id", str(RESEARCH)),
        ("spiffe_id", str(TOOL)),
        ("subject", SUBJECT),
        ("kid", "sts-1"),
        ("kid", certificate_sha256("agent/assistant")),
        ("kid", certificate_sha256("agent/research")),
    ],
    ids=lambda value: "certificate" if len(value) == 64 else value,  # else another in each worker
)
def test_every_handle_of_every_part_denies(kind: str, value: str) -> None:
    chain = verify(*CHAIN)
    check_chain(chain, Revocations())
    for other in RevocationKind:
        # A subject may be a workload: its name counts as either.
        is_it = other.value == kind or (kind, other.value) == ("subject", "spiffe_id")
        expected = Reason.REVOKED if is_it else None
        assert denied(chain, revoked(other.value, value)) is expected


def test_nothing_else_does() -> None:
    chain = verify(*CHAIN)
    for kind in RevocationKind:
        for value in (SUBJECT.upper(), TXN + " ", "", str(workload("agent/resear")), "sts"):
            check_chain(chain, revoked(kind.value, value))


def test_a_workload_is_revoked_as_a_subject_and_as_an_earlier_actor_too() -> None:
    alone = verify(root_token(root_claims(sub=str(RESEARCH))))
    assert reason_of(lambda: check_chain(alone, revoked("spiffe_id", str(RESEARCH)))) == "REVOKED"
    earlier = str(workload("agent/before", PARTNER))
    act = {
        "iss": "spiffe://td.example",
        "sub": str(ASSISTANT),
        "act": {"iss": PARTNER.uri, "sub": earlier},
    }
    nested = verify(root_token(root_claims(act=act)))
    assert reason_of(lambda: check_chain(nested, revoked("spiffe_id", earlier))) == "REVOKED"


def test_revocation_outlives_the_proof_that_is_remembered() -> None:
    from authz_server.core.chain_cache import ChainCache
    from tests.harness.chains import DOMAIN, POLICY, TRUST

    cache = ChainCache()
    presented = PresentedChain(root=CHAIN[0], links=CHAIN[1:])
    for _ in range(2):
        chain = cache.verify(presented, trust=TRUST, policy=POLICY, trust_domain=DOMAIN, now=NOW)
        assert denied(chain, revoked("txn", TXN)) is Reason.REVOKED
    assert len(cache) == 1


# --- the ledger ------------------------------------------------------------------------------


def test_each_change_has_a_number_and_nothing_is_forgotten(store: RevocationStore) -> None:
    assert store.list(now=NOW) == ([], 0)
    first, one = store.add(handle("spiffe_id", AGENT), by="bob", now=NOW, reason="acts strangely")
    later = NOW + timedelta(seconds=1)
    second, two = store.add(handle("jti", "j1"), by="eve", now=later)
    assert (one, two) == (1, 2)
    assert store.list(now=later) == ([second, first], 2)
    (ended,), three = store.remove(first.id[:6], by="carol", now=later)
    assert (ended.id, ended.removed_by, ended.removed_at, three) == (first.id, "carol", later, 3)
    assert store.list(now=later) == ([second], 3)
    assert store.list() == ([second, ended], 3)
    assert (ended.reason, ended.revoked_by, ended.revoked_at) == ("acts strangely", "bob", NOW)


def test_a_handle_is_revoked_as_long_as_any_of_its_revocations_is_in_force(
    store: RevocationStore,
) -> None:
    agent = handle("spiffe_id", AGENT)
    store.add(agent, by="bob", now=NOW)
    store.add(agent, by="automat", now=NOW, expires_at=NOW + timedelta(minutes=1))
    (left,), _ = store.list(now=NOW + timedelta(minutes=2))
    assert left.revoked_by == "bob", "a short one does not shorten a long one"
    ended, _ = store.remove(agent, by="bob", now=NOW)
    assert len(ended) == 2
    assert store.list(now=NOW)[0] == []


def test_it_ends_when_it_says(store: RevocationStore) -> None:
    end = NOW + timedelta(hours=1)
    revocation, revision = store.add(handle("subject", "alice"), by="bob", now=NOW, expires_at=end)
    assert store.list(now=end - timedelta(microseconds=1)) == ([revocation], revision)
    assert store.list(now=end) == ([], revision)
    with pytest.raises(RevocationRefused, match="no revocation in force"):
        store.remove(revocation.id, by="bob", now=end)
    assert store.list(now=NOW)[1] == revision, "what is refused changes no number"


def test_what_cannot_be_is_refused(store: RevocationStore) -> None:
    with pytest.raises(RevocationRefused, match="before it begins"):
        store.add(handle("jti", "x"), by="bob", now=NOW, expires_at=NOW)
    with pytest.raises(RevocationRefused, match="called `beef`"):
        store.remove("beef", by="bob", now=NOW)
    for number in range(20):
        store.add(handle("jti", f"x{number}"), by="bob", now=NOW)
    with pytest.raises(LookupFault, match="more than one"):
        store.remove("", by="bob", now=NOW)
    for kind, value in (
        ("spiffe_id", "spiffe://TD.example/a"),
        ("spiffe_id", "agent"),
        ("spiffe_id", AGENT + "\n"),
        ("jti", ""),
        ("subject", "a\0b"),
        ("txn", "x" * 2049),
    ):
        with pytest.raises(InvalidValueError):
            handle(kind, value)


def test_another_kind_of_database_is_no_list_of_revocations(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        RevocationStore.open(f"sqlite:///{tmp_path}/none.db")


# --- the command -----------------------------------------------------------------------------


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(group, ["revocations", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_adds_lists_and_removes(url: str) -> None:
    out = run("add", "--ledger", url, "--spiffe-id", AGENT, "--reason", "why", "--as", "bob@x")
    assert "revision 1" in out
    run("add", "--ledger", url, "--subject", "alice@example.org", "--expires-in", "2h")
    lines = run("list", "--ledger", url, "--output", "json").splitlines()
    assert lines[0] == "revision 2"
    newest, oldest = map(json.loads, lines[1:])
    assert (oldest["kind"], oldest["value"], oldest["revoked_by"]) == ("spiffe_id", AGENT, "bob@x")
    assert (oldest["reason"], oldest["expires_at"], oldest["removed_at"]) == ("why", None, None)
    assert newest["expires_at"] > newest["revoked_at"]
    assert "@" in newest["revoked_by"], "the account, unless told otherwise"
    assert AGENT in run("list", "--ledger", url)
    assert "revision 3" in run("remove", "--ledger", url, oldest["id"][:6])
    assert AGENT not in run("list", "--ledger", url)
    assert AGENT in run("list", "--ledger", url, "--all")
    assert "refused" in run("remove", "--ledger", url, "--spiffe-id", AGENT, code=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["add"],
        ["add", "--jti", "a", "--kid", "b"],
        ["add", "--spiffe-id", "no id"],
        ["add", "--jti", "a", "--expires-in", "soon"],
        ["add", "--jti", "a", "--expires-in", "0s"],
        ["remove"],
        ["remove", "1234", "--jti", "a"],
    ],
)
def test_a_command_that_says_nothing_clear_changes_nothing(url: str, arguments: list[str]) -> None:
    run(*arguments, "--ledger", url, code=2)
    assert RevocationStore.open(url).list() == ([], 0)


def test_a_server_without_a_ledger_hears_of_no_revocation(tmp_path: Path) -> None:
    from tests.pdp_site import PdpSite

    site = PdpSite.create(tmp_path / "site", ledger={"mode": "off"})
    out = run("add", "--config", str(site.configuration), "--jti", "a", code=2)
    assert "no server reads revocations" in out


def test_changes_at_the_same_time_have_numbers_of_their_own(url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def add(number: int) -> int:
        return RevocationStore.open(url).add(handle("jti", f"j{number}"), by="bob", now=NOW)[1]

    with ThreadPoolExecutor(8) as pool:
        revisions = list(pool.map(add, range(40)))
    assert sorted(revisions) == list(range(1, 41))
    found, revision = RevocationStore.open(url).list(now=NOW)
    assert (len(found), revision) == (40, 40)
