"""PostgreSQL behind Envoy: who gets in, on whose behalf, and what the ledger says of it."""

from contextlib import suppress
from hashlib import sha256
from typing import Any

import psycopg
import pytest

from authz_server.agent import Delegation
from tests.e2e.postgres_mesh import (
    ALICE,
    BOB,
    CAROL,
    CLIENTS,
    GREETING,
    HOST,
    MAIL,
    SSL_REQUEST,
    TARGET,
    Site,
    ended,
    first_bytes,
)
from tests.e2e.waiting import until


@pytest.fixture
def site(postgres_site: Site) -> Site:
    return postgres_site


def answer(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    with connection:
        row = connection.execute("SELECT 40 + 2").fetchone()
    assert row is not None
    return int(row[0])


def direct(site: Site, listener: str, client: str = "orders") -> psycopg.Connection[Any]:
    """Connect with the client's own SVID as certificate; libpq does the TLS, nobody else."""
    return psycopg.connect(
        host=HOST,
        hostaddr="127.0.0.1",
        port=site.inbound.ports[listener],
        user="authz",
        dbname="postgres",
        sslnegotiation="direct",
        sslmode="verify-full",
        sslrootcert=str(site.directory / "trust.pem"),
        sslcert=str(site.directory / f"{client}.pem"),
        sslkey=str(site.directory / f"{client}.key.pem"),
        connect_timeout=15,
    )


def only_record(site: Site, before: int) -> dict[str, Any]:
    until(lambda: len(site.ledger.since(before)) > 0, "the record of the connection")
    (record,) = site.ledger.since(before)
    return record.document


def allowed(site: Site, port: str) -> dict[str, Any]:
    """Run a query through `port` and return the record of it."""
    before = site.ledger.last()
    assert answer(site.connect(port)) == 42
    document = only_record(site, before)
    assert document["verdict"] == "allow"
    return document


def denied(site: Site, port: str, *, verdict: str = "deny") -> dict[str, Any]:
    """Be refused at `port`, PostgreSQL none the wiser, and return the record of it."""
    before, reached = site.ledger.last(), site.reached()
    with pytest.raises(psycopg.OperationalError):
        site.connect(port)
    document = only_record(site, before)
    assert document["verdict"] == verdict
    assert site.reached() == reached
    return document


def presenting(site: Site, client: str, delegation: Delegation | None) -> None:
    """Make `delegation` that of the client's tunnels, and return when its Envoy has noticed."""
    site.leave(client, delegation)
    expected = sha256(delegation.root.encode()).hexdigest() if delegation else None

    def noticed() -> bool:
        before = site.ledger.last()
        with suppress(psycopg.OperationalError):
            site.connect(f"{client}_tunnel").close()
        chain = only_record(site, before)["chain"]
        return (chain["token_sha256"][0] if chain else None) == expected

    until(noticed, "the delegation at Envoy")


# --- raw connections -------------------------------------------------------------------------


def test_a_plain_client_runs_a_query_through_two_envoys(site: Site) -> None:
    document = allowed(site, "orders_raw")
    assert document["bundle"] == "databases"
    assert document["rules"] == ["orders-service"]
    assert document["principal"]["spiffe_id"] == str(CLIENTS["orders"])
    assert document["action"] == {"protocol": "tcp", "name": "connect", "read_only": False}
    assert document["resource"]["resource"] == "orders-db"
    assert document["resource"]["host"] == document["environment"]["sni"] == HOST
    assert document["chain"] is None
    listener = f"127.0.0.1:{site.inbound.ports['orders']}"
    assert document["pep"] == {"listener": listener, "node": "db"}


def test_a_socket_where_libpq_looks_for_one_will_do(site: Site) -> None:
    before = site.ledger.last()
    directory = site.directory / "psql"
    assert answer(psycopg.connect(f"host={directory} user=authz dbname=postgres")) == 42
    assert only_record(site, before)["principal"]["spiffe_id"] == str(CLIENTS["orders"])


def test_a_client_that_does_tls_itself_needs_no_envoy(site: Site) -> None:
    before = site.ledger.last()
    assert answer(direct(site, "orders")) == 42
    assert only_record(site, before)["principal"]["spiffe_id"] == str(CLIENTS["orders"])


def test_a_denied_client_never_reaches_the_server(site: Site) -> None:
    total = "cluster.orders_upstream.upstream_cx_total"
    connections = site.inbound.statistic(total)
    document = denied(site, "assistant_raw")
    assert document["reason"] == "NO_MATCHING_RULE"
    with pytest.raises(psycopg.OperationalError, match="access denied"):  # the TLS alert
        direct(site, "orders", "assistant")
    assert site.inbound.statistic(total) == connections


def test_each_listener_has_a_bundle_of_its_own(site: Site) -> None:
    before, reached = site.ledger.last(), site.reached()
    with site.open("payroll", "orders", server_name="payroll-db.internal") as connection:
        connection.sendall(SSL_REQUEST)
        assert ended(connection)
    document = only_record(site, before)
    assert (document["bundle"], document["reason"]) == ("payroll", "NO_MATCHING_RULE")
    assert document["resource"]["resource"] == "payroll-db"
    assert site.reached() == reached


def test_the_server_name_of_another_listener_opens_none(site: Site) -> None:
    """The client chooses it: at payroll's listener it asks for the database it may reach."""
    before, reached = site.ledger.last(), site.reached()
    with pytest.raises(psycopg.OperationalError):
        direct(site, "payroll")
    assert (site.ledger.last(), site.reached()) == (before, reached)


def test_a_listener_that_says_nothing_is_judged_as_nothing(site: Site) -> None:
    before, reached = site.ledger.last(), site.reached()
    with pytest.raises(psycopg.OperationalError):
        direct(site, "unsaid")
    assert only_record(site, before)["bundle"] == "default"
    assert site.reached() == reached


def test_tls_that_is_passed_on_proves_nobody(site: Site) -> None:
    """Its server name is seen; without a certificate there is no principal, and no way in."""
    before, reached = site.ledger.last(), site.reached()
    with pytest.raises(psycopg.OperationalError):
        direct(site, "passing")
    document = only_record(site, before)
    assert (document["reason"], document["environment"]["sni"]) == ("NO_PRINCIPAL", HOST)
    assert (document["bundle"], document["resource"]["host"]) == ("databases", HOST)
    assert site.reached() == reached


def test_a_server_that_speaks_first_says_nothing_before_the_verdict(site: Site) -> None:
    before = site.ledger.last()
    # Naive: without ON_DOWNSTREAM_DATA its greeting is there, and nobody has been asked.
    with site.open("early", "assistant") as connection:
        assert first_bytes(connection) == GREETING
        assert site.ledger.last() == before
    until(lambda: site.ledger.last() > before, "the check of the closed connection")
    before = site.ledger.last()
    with site.open("greeting", "assistant") as connection:
        connection.sendall(b"EHLO\r\n")
        assert ended(connection)
    assert only_record(site, before)["reason"] == "NO_MATCHING_RULE"
    with site.open("greeting", "orders") as connection:
        connection.sendall(b"EHLO\r\n")
        assert first_bytes(connection) == GREETING


def test_through_a_tunnel_a_server_may_speak_first(site: Site) -> None:
    head = f"CONNECT {MAIL} HTTP/1.1\r\nHost: {MAIL}\r\n\r\n".encode()
    with site.open("greeting_tunnel", "orders") as connection:
        connection.sendall(head)
        said = b""
        while not said.endswith(GREETING):
            data = first_bytes(connection)
            assert data
            said += data
        assert said.startswith(b"HTTP/1.1 200")
    with site.open("greeting_tunnel", "assistant") as connection:
        connection.sendall(head)
        assert first_bytes(connection).startswith(b"HTTP/1.1 403")


# --- tunnels ---------------------------------------------------------------------------------


def test_an_agent_reaches_the_database_on_behalf_of_a_person(site: Site) -> None:
    presenting(site, "assistant", Delegation(root=site.root(ALICE)))
    document = allowed(site, "assistant_tunnel")
    assert (document["bundle"], document["rules"]) == ("databases", ["orders-agent"])
    assert document["principal"]["spiffe_id"] == str(CLIENTS["assistant"])
    assert document["chain"]["subject"] == ALICE
    assert document["chain"]["actors"] == [str(CLIENTS["assistant"])]
    assert document["action"] == {"protocol": "tcp", "name": "connect", "read_only": False}
    resource = document["resource"]
    assert (resource["resource"], resource["uri"]) == ("orders-db", f"tcp://{TARGET}")
    # The next connection is made for somebody else.
    presenting(site, "assistant", Delegation(root=site.root(BOB)))
    assert allowed(site, "assistant_tunnel")["chain"]["subject"] == BOB


def test_an_agent_hands_on_the_database(site: Site) -> None:
    presenting(site, "research", site.linked())
    chain = allowed(site, "research_tunnel")["chain"]
    assert chain["actors"] == [str(CLIENTS["assistant"]), str(CLIENTS["research"])]
    presenting(site, "research", site.linked("https://crm.example"))
    assert denied(site, "research_tunnel")["reason"] == "WRONG_AUDIENCE"


def test_without_a_chain_there_is_no_tunnel(site: Site) -> None:
    presenting(site, "assistant", None)
    document = denied(site, "assistant_tunnel")
    assert (document["reason"], document["chain"]) == ("DELEGATION_REQUIRED", None)


def test_a_stolen_chain_opens_no_tunnel(site: Site) -> None:
    presenting(site, "research", Delegation(root=site.root()))
    document = denied(site, "research_tunnel")
    assert document["reason"] == "LEAF_MISMATCH"
    assert document["chain"]["subject"] == ALICE  # whose it was


def test_a_grant_of_something_else_opens_no_tunnel(site: Site) -> None:
    presenting(site, "assistant", Delegation(root=site.root(scope="crm.read")))
    assert denied(site, "assistant_tunnel")["reason"] == "NO_MATCHING_RULE"


def test_a_connection_waits_for_a_person(site: Site) -> None:
    """Asked, approved, and connected to once; then somebody is asked again."""
    presenting(site, "assistant", Delegation(root=site.root(scope="orders.repair")))
    document = denied(site, "assistant_tunnel", verdict="escalate")
    assert document["rules"] == ["orders-repair"]
    site.command("approvals", "approve", document["access_request"]["id"], "--as", CAROL)
    approved = allowed(site, "assistant_tunnel")
    assert (approved["approval"]["approver"], approved["rules"]) == (CAROL, ["orders-repair"])
    again = denied(site, "assistant_tunnel", verdict="escalate")
    assert again["access_request"]["id"] != document["access_request"]["id"]


# --- while it runs ---------------------------------------------------------------------------


def test_a_revoked_client_makes_no_further_connection(site: Site) -> None:
    with site.connect("leaver_raw") as connection:
        leaver = str(CLIENTS["leaver"])
        site.command("revocations", "add", "--spiffe-id", leaver, "--reason", "left")

        def refused() -> bool:
            try:
                site.connect("leaver_raw").close()
            except psycopg.OperationalError:
                return True
            return False

        until(refused, "the revocation")
        assert denied(site, "leaver_raw")["reason"] == "REVOKED"
        # What is open stays open: a connection is checked once, and its life is bounded instead.
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("listener", ["short", "short_tunnel"])
def test_the_life_of_a_connection_is_bounded(site: Site, listener: str) -> None:
    """Rendered listeners say 15 minutes; this one half a second."""
    client = "orders" if listener == "short" else "assistant"
    with site.open(listener, client) as connection:
        if listener == "short_tunnel":
            head = (
                f"CONNECT {TARGET} HTTP/1.1\r\nHost: {TARGET}\r\nTxn-Token: {site.root()}\r\n\r\n"
            )
            connection.sendall(head.encode())
            assert first_bytes(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(SSL_REQUEST)
        assert first_bytes(connection) == b"N"
        assert ended(connection)


def test_without_a_pdp_nothing_connects(site: Site) -> None:
    presenting(site, "assistant", Delegation(root=site.root()))
    allowed(site, "orders_raw")
    site.pdp.kill()
    try:
        reached = site.reached()
        for port in ("orders_raw", "assistant_tunnel"):
            with pytest.raises(psycopg.OperationalError):
                site.connect(port)
        with pytest.raises(psycopg.OperationalError):
            direct(site, "orders")
        assert site.reached() == reached
    finally:
        site.start_pdp()
    allowed(site, "orders_raw")
    allowed(site, "assistant_tunnel")
