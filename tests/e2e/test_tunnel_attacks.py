"""Tricks with CONNECT and with what stands before TLS, at a real Envoy in front of PostgreSQL.

`tunnel` is as rendered. `anywhere` admits every destination and extended CONNECT: what Envoy
rejects at `tunnel` must not get past the PDP alone.
"""

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.e2e.postgres_mesh import CLIENTS, HOST, SSL_REQUEST, TARGET, Site, ended, first_bytes
from tests.e2e.raw_http import NoAnswerError, RawConnection

ALLOWED, DENIED = "allow", "deny NO_MATCHING_RULE"
TO_PAYROLL = "payroll-db.internal:5432"


@pytest.fixture
def site(postgres_site: Site) -> Site:
    return postgres_site


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A request, and the outcome at each listener.

    An outcome is `allow`, `deny REASON` by the PDP, or the status Envoy answers with by itself.
    `lines` follow the request line, `body` the head.
    """

    name: str
    line: str = f"CONNECT {TARGET}"
    lines: tuple[str, ...] = (f"Host: {TARGET}",)
    body: bytes = b""
    tunnel: str
    anywhere: str

    def __str__(self) -> str:
        return self.name


ATTACKS = [
    Attack(name="as-it-should-be", tunnel=ALLOWED, anywhere=ALLOWED),
    Attack(name="upper-case", line=f"CONNECT {TARGET.upper()}", tunnel=ALLOWED, anywhere=ALLOWED),
    Attack(name="no-host", lines=(), tunnel=ALLOWED, anywhere=ALLOWED),
    # Of two destinations the one in the request target counts; the other one is overwritten.
    Attack(name="two-hosts", lines=(f"Host: {TO_PAYROLL}",), tunnel=ALLOWED, anywhere=ALLOWED),
    Attack(name="two-hosts-swapped", line=f"CONNECT {TO_PAYROLL}", tunnel="404", anywhere=DENIED),
    Attack(
        name="other-host",
        line=f"CONNECT {TO_PAYROLL}",
        lines=(f"Host: {TO_PAYROLL}",),
        tunnel="404",
        anywhere=DENIED,
    ),
    Attack(name="other-port", line=f"CONNECT {HOST}:22", tunnel="404", anywhere=DENIED),
    Attack(name="no-port", line=f"CONNECT {HOST}", tunnel="400", anywhere="400"),
    Attack(name="user", line=f"CONNECT x@{TARGET}", tunnel="400", anywhere="400"),
    Attack(name="path", line="CONNECT /v1/customers", tunnel="400", anywhere="400"),
    Attack(name="absolute", line=f"CONNECT https://{TARGET}/", tunnel="400", anywhere="400"),
    Attack(
        name="length",
        lines=("Content-Length: 8",),
        body=SSL_REQUEST,
        tunnel="400",
        anywhere="400",
    ),
    Attack(
        name="chunked",
        lines=("Transfer-Encoding: chunked",),
        body=b"8\r\n" + SSL_REQUEST,
        tunnel="501",
        anywhere="501",
    ),
    Attack(
        name="upgrade",
        lines=("Upgrade: websocket", "Connection: upgrade"),
        tunnel="403",
        anywhere="403",
    ),
    Attack(
        name="method-override",
        line="GET /",
        lines=(f"Host: {TARGET}", "X-HTTP-Method: CONNECT"),
        tunnel="404",
        anywhere="404",
    ),
]


def answered(site: Site, listener: str, head: bytes) -> tuple[str, bytes]:
    """Send `head` as the assistant; return the outcome, and what PostgreSQL then said."""
    before = site.ledger.last()
    with site.open(listener, "assistant", alpn=["http/1.1"]) as connection:
        raw = RawConnection.over(connection)
        raw.send(head)
        answer = raw.answer(to_method="CONNECT")
        said = b""
        if answer.status == 200:
            connection.sendall(SSL_REQUEST)
            said = first_bytes(connection)
    records = site.ledger.since(before)
    if not records:
        return str(answer.status), said
    (record,) = records
    assert answer.headers["x-authz-decision-id"] == record.decision_id
    if record.outcome == ALLOWED:
        return (ALLOWED if answer.status == 200 else str(answer.status)), said
    assert answer.status == 403
    return record.outcome, said


@pytest.mark.parametrize("listener", ["tunnel", "anywhere"])
@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_attack(site: Site, listener: str, attack: Attack) -> None:
    expected = attack.tunnel if listener == "tunnel" else attack.anywhere
    reached = site.reached()
    lines = [f"{attack.line} HTTP/1.1", *attack.lines, f"Txn-Token: {site.root()}", "", ""]
    outcome, said = answered(site, listener, "\r\n".join(lines).encode() + attack.body)
    assert (outcome, said) == (expected, b"N" if expected == ALLOWED else b"")
    assert site.reached() - reached == (expected == ALLOWED)


def test_a_port_that_is_taken_off_is_no_destination(site: Site) -> None:
    """Naive: port 22 comes in where 5432 is meant, and the PDP would see neither."""
    reached = site.reached()
    lines = [f"CONNECT {HOST}:22 HTTP/1.1", f"Host: {HOST}:22", f"Txn-Token: {site.root()}", "", ""]
    outcome, _ = answered(site, "stripped", "\r\n".join(lines).encode())
    assert outcome == "deny MALFORMED_REQUEST"
    assert site.reached() == reached


def test_a_grant_sent_twice_opens_no_tunnel(site: Site) -> None:
    lines = [f"CONNECT {TARGET} HTTP/1.1", *[f"Txn-Token: {site.root()}"] * 2, "", ""]
    assert answered(site, "tunnel", "\r\n".join(lines).encode())[0] == "deny DUPLICATE_HEADER"


def test_early_data_of_a_denied_tunnel_never_arrives(site: Site) -> None:
    """Bytes behind the CONNECT, before anybody has said yes."""
    reached, before = site.reached(), site.ledger.last()
    with site.open("tunnel", "assistant", alpn=["http/1.1"]) as connection:
        raw = RawConnection.over(connection)
        raw.send(f"CONNECT {TARGET} HTTP/1.1\r\n\r\n".encode() + SSL_REQUEST)
        assert raw.answer().status == 403
        with pytest.raises(NoAnswerError):
            raw.answer()  # PostgreSQL would have said `N`
    (record,) = site.ledger.since(before)
    assert record.outcome == "deny DELEGATION_REQUIRED"
    assert site.reached() == reached


# --- HTTP/2 ----------------------------------------------------------------------------------

ENDS = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)
PLAIN = ((":method", "CONNECT"), (":authority", TARGET))
EXTENDED = (*PLAIN, (":scheme", "https"), (":path", "/x"))


def over_http2(
    site: Site, listener: str, fields: tuple[tuple[str, str], ...], early: bytes = b""
) -> tuple[str, bytes]:
    """Open a stream as the assistant; return its status, or `reset`, and the first data."""
    settings = h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
    stream = h2.connection.H2Connection(settings)
    stream.initiate_connection()
    stream.send_headers(1, [*fields, ("txn-token", site.root())])
    if early:
        stream.send_data(1, early)
    status = "reset"
    with site.open(listener, "assistant", alpn=["h2"]) as connection:
        connection.sendall(stream.data_to_send())
        while data := connection.recv(65536):
            for event in stream.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[b":status"].decode()
                    if status == "200":
                        stream.send_data(1, SSL_REQUEST)
                elif isinstance(event, h2.events.DataReceived) and status == "200":
                    return status, event.data
                elif isinstance(event, ENDS):
                    return status, b""
            connection.sendall(stream.data_to_send())
    return status, b""


@pytest.mark.parametrize(
    ("listener", "fields", "outcome", "reason"),
    [
        ("tunnel", PLAIN, ("200", b"N"), "OK"),
        ("anywhere", PLAIN, ("200", b"N"), "OK"),
        ("tunnel", (*PLAIN, ("host", TO_PAYROLL)), ("200", b"N"), "OK"),
        # RFC 9113 §8.5: no path with a plain CONNECT.
        ("tunnel", EXTENDED, ("reset", b""), None),
        # RFC 8441: Envoy takes `bytestream` for a plain one, path and all, where it is let in.
        ("tunnel", (*EXTENDED, (":protocol", "bytestream")), ("reset", b""), None),
        ("anywhere", (*EXTENDED, (":protocol", "bytestream")), ("403",), "UNSUPPORTED_METHOD"),
        ("anywhere", (*EXTENDED, (":protocol", "websocket")), ("404",), None),
    ],
)
def test_over_http2(
    site: Site,
    listener: str,
    fields: tuple[tuple[str, str], ...],
    outcome: tuple[object, ...],
    reason: str | None,
) -> None:
    before, reached = site.ledger.last(), site.reached()
    assert over_http2(site, listener, fields)[: len(outcome)] == outcome
    reasons = [record.document["reason"] for record in site.ledger.since(before)]
    assert reasons == ([reason] if reason else [])
    assert site.reached() - reached == (outcome[0] == "200")


def test_early_data_of_a_denied_tunnel_never_arrives_over_http2(site: Site) -> None:
    reached, before = site.reached(), site.ledger.last()
    twice = (*PLAIN, ("txn-token", "a.b.c"))
    assert over_http2(site, "tunnel", twice, early=SSL_REQUEST)[0] == "403"
    (record,) = site.ledger.since(before)
    assert record.outcome == "deny DUPLICATE_HEADER"
    assert site.reached() == reached


# --- what stands before TLS ------------------------------------------------------------------


def proxy_header(*tlvs: bytes) -> bytes:
    """Return a PROXY protocol v2 header that says: from 10.1.2.3 to 10.9.9.9."""
    addresses = bytes([10, 1, 2, 3, 10, 9, 9, 9]) + struct.pack("!HH", 1111, 5432)
    body = addresses + b"".join(struct.pack("!BH", 0xE0, len(tlv)) + tlv for tlv in tlvs)
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", len(body)) + body


@pytest.mark.parametrize("listener", ["orders", "tunnel", "greeting"])
def test_a_proxy_header_is_believed_by_no_rendered_listener(site: Site, listener: str) -> None:
    reached, before = site.reached(), site.ledger.last()
    address = ("127.0.0.1", site.inbound.ports[listener])
    with socket.create_connection(address, timeout=15) as connection:
        connection.sendall(proxy_header(site.root().encode()))
        said = b""
        with suppress(ConnectionError):
            while data := connection.recv(65536):
                said += data
        assert said[:1] in {b"", b"\x15"}  # at most an alert (RFC 8446 §5.1)
    assert (site.reached(), site.ledger.last()) == (reached, before)


def test_a_chain_in_a_proxy_header_is_no_chain(site: Site) -> None:
    """The header stands before TLS: whoever is on the way writes it, or another one over it.

    The same header makes the addresses of the record, which is why no listener should read it.
    """
    reached, before = site.reached(), site.ledger.last()
    header = proxy_header(site.root().encode())
    with site.open("proxied", "assistant", before_tls=header) as connection:
        connection.sendall(SSL_REQUEST)
        assert ended(connection)
    (record,) = site.ledger.since(before)
    document: Any = record.document
    assert document["principal"]["spiffe_id"] == str(CLIENTS["assistant"])
    assert (document["chain"], document["reason"]) == (None, "NO_MATCHING_RULE")
    assert document["environment"]["source_ip"] == "10.1.2.3"
    assert document["pep"]["listener"] == "10.9.9.9:5432"
    assert site.reached() == reached
