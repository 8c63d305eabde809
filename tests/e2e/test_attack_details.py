"""What a line of the attack table cannot say: several requests, HTTP/2, TCP, what is recorded."""

import hashlib
from typing import cast

import grpc
import pytest

from authz_server.core import limits
from tests.e2e.attack_mesh import PROFILES, Mesh, Record
from tests.e2e.forge import spiffe
from tests.e2e.raw_http import NoAnswerError, RawConnection, exchange
from tests.e2e.recorder import Hit
from tests.e2e.waiting import until


def request(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: tool.example", *headers, "", ""]).encode()


def section(record: Record, name: str) -> dict[str, object]:
    return cast("dict[str, object]", record.document[name])


@pytest.mark.parametrize("profile", PROFILES)
def test_pipelined_requests_are_judged_one_by_one(mesh: Mesh, profile: str) -> None:
    """upgrade-06: allow, deny, allow, written at once; the denied one never arrives."""
    seq, before = mesh.ledger.last(), len(mesh.workload.hits)
    with RawConnection(mesh.envoys[profile].ports["tool"], tls=mesh.tls("narrow")) as connection:
        connection.send(request("/public/one") + request("/admin") + request("/public/three"))
        statuses = [connection.answer().status for _ in range(3)]
    assert statuses == [200, 403, 200]
    assert [hit.target for hit in mesh.workload.hits[before:]] == ["/public/one", "/public/three"]
    outcomes = [record.outcome for record in mesh.ledger.since(seq)]
    assert outcomes == ["allow", "deny DENIED_BY_RULE", "allow"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_request_hidden_in_a_body_is_not_a_request(mesh: Mesh, profile: str) -> None:
    seq, before = mesh.ledger.last(), len(mesh.workload.hits)
    hidden = request("/admin")
    head = f"POST /public/x HTTP/1.1\r\nHost: tool.example\r\nContent-Length: {len(hidden)}\r\n\r\n"
    answer = exchange(
        mesh.envoys[profile].ports["tool"], head.encode() + hidden, tls=mesh.tls("narrow")
    )
    assert answer.status == 200
    assert len(mesh.ledger.since(seq)) == 1
    assert [hit.target for hit in mesh.workload.hits[before:]] == ["/public/x"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_long_path_is_cut_in_the_record_and_known_by_its_digest(mesh: Mesh, profile: str) -> None:
    """path-28."""
    seq, path = mesh.ledger.last(), "/" + "a" * 8000
    exchange(mesh.envoys[profile].ports["tool"], request(path), tls=mesh.tls("narrow"))
    (record,) = mesh.ledger.since(seq)
    resource = section(record, "resource")
    assert len(str(resource["path"])) <= limits.RECORD_FIELD_CHARS_MAX
    assert resource["path_sha256"] == hashlib.sha256(path.encode()).hexdigest()


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_the_client_says_of_itself_is_recorded(mesh: Mesh, profile: str) -> None:
    """spoof-03, spoof-06: principal and source address are those of the connection."""
    seq, before = mesh.ledger.last(), len(mesh.workload.hits)
    forged = spiffe("agent/other")
    headers = [f"X-Forwarded-Client-Cert: URI={forged}", "X-Forwarded-For: 203.0.113.9"]
    exchange(
        mesh.envoys[profile].ports["tool"], request("/public/x", *headers), tls=mesh.tls("narrow")
    )
    (record,), (hit,) = mesh.ledger.since(seq), mesh.workload.hits[before:]
    assert section(record, "principal")["spiffe_id"] == spiffe("agent/narrow")
    assert section(record, "environment")["source_ip"] == "127.0.0.1"
    assert not any(forged in value for value in hit.values("x-forwarded-client-cert"))


@pytest.mark.parametrize("profile", PROFILES)
def test_no_token_is_recorded(mesh: Mesh, profile: str) -> None:
    seq = mesh.ledger.last()
    token = mesh.forge.root(spiffe("agent/narrow"))
    port = mesh.envoys[profile].ports["tool"]
    exchange(port, request("/public/x", f"Txn-Token: {token}"), tls=mesh.tls("narrow"))
    (record,) = mesh.ledger.since(seq)
    assert section(record, "chain")["token_sha256"] == [hashlib.sha256(token.encode()).hexdigest()]
    assert not any(part in str(record.document) for part in token.split("."))


# --- HTTP/2 ----------------------------------------------------------------------------------


def call_over_http2(
    mesh: Mesh, profile: str, method: str, metadata: tuple[tuple[str, str], ...]
) -> tuple[grpc.StatusCode, list[Hit]]:
    """Call `method` through Envoy over HTTP/2; return the status and what the workload saw."""
    before, svid = len(mesh.workload.hits), mesh.svid("narrow")
    credentials = grpc.ssl_channel_credentials(
        mesh.forge.authority.pem, svid.key_pem, svid.certificate_pem
    )
    options = [("grpc.ssl_target_name_override", "tool.example")]
    target = f"127.0.0.1:{mesh.envoys[profile].ports['tool']}"
    with grpc.secure_channel(target, credentials, options) as channel:
        call = channel.unary_unary(
            method, request_serializer=lambda data: data, response_deserializer=lambda data: data
        )
        try:
            call(b"", metadata=metadata, timeout=10)
            status = grpc.StatusCode.OK
        except grpc.RpcError as error:
            status = cast("grpc.Call", error).code()
    return status, mesh.workload.hits[before:]


@pytest.mark.parametrize("profile", ["hardened"])
def test_a_token_twice_over_http2(mesh: Mesh, profile: str) -> None:
    seq, token = mesh.ledger.last(), mesh.forge.root(spiffe("agent/narrow"))
    twice = (("txn-token", token), ("txn-token", token))
    status, hits = call_over_http2(mesh, profile, "/public/x", twice)
    assert (status, hits) == (grpc.StatusCode.PERMISSION_DENIED, [])
    assert [record.outcome for record in mesh.ledger.since(seq)] == ["deny DUPLICATE_HEADER"]


@pytest.mark.parametrize("profile", ["hardened"])
def test_an_ordinary_call_over_http2_arrives(mesh: Mesh, profile: str) -> None:
    token = mesh.forge.root(spiffe("agent/narrow"))
    _, hits = call_over_http2(mesh, profile, "/public/x", (("txn-token", token),))
    assert [hit.target for hit in hits] == ["/public/x"]


# --- TCP -------------------------------------------------------------------------------------


def test_tcp_is_judged_by_identity(mesh: Mesh) -> None:
    seq, port = mesh.ledger.last(), mesh.envoys["hardened"].ports["tcp"]
    assert exchange(port, request("/over-tcp"), tls=mesh.tls("wide")).status == 200
    connections = mesh.workload.connections
    with pytest.raises(NoAnswerError):
        exchange(port, request("/over-tcp"), tls=mesh.tls("narrow"))
    assert mesh.workload.connections == connections
    outcomes = [record.outcome for record in mesh.ledger.since(seq)]
    assert outcomes == ["allow", "deny NO_MATCHING_RULE"]


def test_tcp_reaches_nobody_before_the_verdict(mesh: Mesh) -> None:
    """A connection that says nothing is not judged, and so must not be connected either."""
    envoy, total = mesh.envoys["hardened"], "cluster.tcp_upstream.upstream_cx_total"
    before, active = envoy.statistic(total), "tcp.tcp.downstream_cx_total"
    connections, seq = envoy.statistic(active), mesh.ledger.last()
    with RawConnection(envoy.ports["tcp"], tls=mesh.tls("wide")):
        until(lambda: envoy.statistic(active) > connections, "the connection at Envoy")
        assert envoy.statistic(total) == before
    # Envoy takes the end of the connection for its first data, and asks then.
    until(lambda: mesh.ledger.last() > seq, "the check of the closed connection")
