"""HTTP/2 through both Envoys, frame by frame: what HTTP/1 cannot say, and what is hidden in it.

As in `test_attacks`: `wide` may do everything but reach `/admin*` and host `admin.example`.
"""

import contextlib
import json
from dataclasses import dataclass

import pytest

from tests.e2e.attack_mesh import PROFILES, Mesh
from tests.e2e.raw_http import NoAnswerError
from tests.e2e.raw_http2 import Fields, RawHttp2


def get(
    *more: tuple[str, str],
    method: str = "GET",
    path: str = "/public/x",
    authority: str = "tool.example",
    scheme: str = "https",
) -> Fields:
    pseudo = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)]
    return [*pseudo, *more]


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One request. `outcomes`: hardened and default, as in `attacks.yaml`; `reset` is no answer."""

    fields: Fields
    outcomes: tuple[str, str]
    body: bytes | None = None
    listener: str = "tool"
    ends: bool = True


def both(outcome: str) -> tuple[str, str]:
    return outcome, outcome


RESET = both("reset")
UPGRADE = (("connection", "upgrade"), ("upgrade", "websocket"))
WEBSOCKET = ((":protocol", "websocket"), ("sec-websocket-version", "13"))
JSON = ("content-type", "application/json")
LARGE = b'{"order":{"amount":99999}}'
PSEUDO = list(get())

TRIES = {
    # --- tunnels and upgrades
    "connect": Try(
        fields=[(":method", "CONNECT"), (":authority", "admin.example:443")],
        ends=False,
        outcomes=both("reject 404"),
    ),
    "connect-with-a-path": Try(fields=get(method="CONNECT"), outcomes=RESET),
    "extended-connect": Try(fields=get(*WEBSOCKET, method="CONNECT"), ends=False, outcomes=RESET),
    "extended-connect-where-websocket-is-on": Try(
        fields=get(*WEBSOCKET, method="CONNECT"), ends=False, listener="upgrade", outcomes=RESET
    ),
    "connect-udp": Try(
        fields=get((":protocol", "connect-udp"), method="CONNECT", path="/.well-known/masque/udp/"),
        ends=False,
        listener="upgrade",
        outcomes=RESET,
    ),
    "protocol-without-connect": Try(fields=get(WEBSOCKET[0]), outcomes=RESET),
    "upgrade-header": Try(fields=get(*UPGRADE), listener="upgrade", outcomes=RESET),
    "upgrade-header-alone": Try(fields=get(UPGRADE[1]), listener="upgrade", outcomes=RESET),
    # --- pseudo-headers
    "two-paths": Try(fields=[*PSEUDO, (":path", "/admin")], outcomes=RESET),
    "two-methods": Try(fields=[*PSEUDO, (":method", "DELETE")], outcomes=RESET),
    "two-authorities": Try(fields=[*PSEUDO, (":authority", "admin.example")], outcomes=RESET),
    "pseudo-after-a-header": Try(fields=[*PSEUDO[:3], ("x-a", "b"), PSEUDO[3]], outcomes=RESET),
    "unknown-pseudo-header": Try(fields=[*PSEUDO, (":foo", "x")], outcomes=RESET),
    "no-path": Try(fields=PSEUDO[:3], outcomes=RESET),
    "empty-path": Try(fields=get(path=""), outcomes=RESET),
    "absolute-path": Try(fields=get(path="https://admin.example/public/x"), outcomes=RESET),
    "asterisk": Try(fields=get(path="*"), outcomes=RESET),
    "path-without-a-slash": Try(fields=get(path="admin"), outcomes=RESET),
    "dot-segment": Try(
        fields=get(path="/public/../admin"),
        outcomes=("deny DENIED_BY_RULE", "deny NON_CANONICAL_PATH"),
    ),
    "fragment": Try(fields=get(path="/admin#/public"), outcomes=both("reject 400")),
    "blank-in-the-path": Try(fields=get(path="/public/x y"), outcomes=RESET),
    "request-line-in-the-path": Try(
        fields=get(path="/public/x HTTP/1.1\r\nHost: admin.example\r\n\r\nGET /admin"),
        outcomes=RESET,
    ),
    "request-line-in-the-method": Try(
        fields=get(method="GET /admin HTTP/1.1\r\nx: "), outcomes=RESET
    ),
    "scheme-that-is-a-line": Try(fields=get(scheme="https://admin.example/?"), outcomes=RESET),
    # --- host
    "host-beside-the-authority": Try(
        fields=get(("host", "admin.example")),
        outcomes=both("allow"),  # Envoy drops it
    ),
    "host-without-an-authority": Try(
        fields=[PSEUDO[0], PSEUDO[1], PSEUDO[3], ("host", "admin.example")],
        outcomes=both("deny DENIED_BY_RULE"),
    ),
    "authority-that-is-a-list": Try(
        fields=get(authority="tool.example,admin.example"),
        outcomes=("reject 404", "deny DUPLICATE_HEADER"),
    ),
    "authority-with-user-information": Try(
        fields=get(authority="tool.example@admin.example"), outcomes=RESET
    ),
    "authority-with-a-line": Try(fields=get(authority="tool.example\r\nx: y"), outcomes=RESET),
    "empty-authority": Try(fields=get(authority=""), outcomes=RESET),
    # --- methods
    "lower-case-method": Try(fields=get(method="get"), outcomes=both("deny UNSUPPORTED_METHOD")),
    "trace": Try(fields=get(method="TRACE"), outcomes=both("deny UNSUPPORTED_METHOD")),
    "unknown-method": Try(fields=get(method="FOO"), outcomes=both("deny UNSUPPORTED_METHOD")),
    # --- headers
    "upper-case-name": Try(fields=get(("Txn-Token", "x")), outcomes=RESET),
    "line-in-a-value": Try(fields=get(("x-a", "b\r\ntxn-token: c")), outcomes=RESET),
    "nul-in-a-value": Try(fields=get(("x-a", "b\0c")), outcomes=RESET),
    "line-in-a-name": Try(fields=get(("x-a: b\r\ntxn-token", "c")), outcomes=RESET),
    "token-twice": Try(
        fields=get(("txn-token", "a"), ("txn-token", "b")), outcomes=both("deny DUPLICATE_HEADER")
    ),
    "500-cookies": Try(fields=get(*[("cookie", "a=b")] * 500), outcomes=RESET),
    "300-headers": Try(fields=get(*[(f"x-{n}", "1") for n in range(300)]), outcomes=RESET),
    # --- framing
    "transfer-encoding": Try(
        fields=get(("transfer-encoding", "chunked"), method="POST"),
        body=b"0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
        outcomes=RESET,
    ),
    "te": Try(fields=get(("te", "gzip")), outcomes=RESET),
    "longer-than-declared": Try(
        fields=get(("content-length", "1"), method="POST"), body=b"abcde", outcomes=RESET
    ),
    "shorter-than-declared": Try(
        fields=get(("content-length", "9"), method="POST"), body=b"abcde", outcomes=RESET
    ),
    "two-lengths": Try(
        fields=get(("content-length", "5"), ("content-length", "6"), method="POST"),
        body=b"abcde",
        outcomes=RESET,
    ),
    # --- bodies
    "body-of-a-get": Try(  # the default Envoy neither shows nor announces it on this listener
        fields=get(), body=b"evil", outcomes=("deny MALFORMED_BODY", "allow")
    ),
    "body-of-a-get-where-bodies-are-judged": Try(
        fields=get(path="/public/orders"),
        body=b"evil",
        listener="rest",
        outcomes=both("deny MALFORMED_BODY"),
    ),
    "body-without-a-length": Try(
        fields=get(JSON, method="POST", path="/public/orders"),
        body=LARGE,
        listener="rest",
        outcomes=both("deny DENIED_BY_RULE"),
    ),
    "no-body-where-nobody-said-that-it-would-be-seen": Try(
        fields=get(JSON, method="POST", path="/public/orders"),
        listener="rest",
        outcomes=("allow", "deny BODY_TRUNCATED"),
    ),
    "control": Try(fields=get(), outcomes=both("allow")),
}


ANSWERED = [name for name, case in TRIES.items() if case.outcomes != RESET]


def send(mesh: Mesh, profile: str, case: Try) -> tuple[RawHttp2, int]:
    """Open a connection and send one request; the answer is still to be read."""
    tls = mesh.tls_with(mesh.svid("wide"), "wide")
    connection = RawHttp2(mesh.envoys[profile].ports[case.listener], tls=tls)
    stream = connection.open(case.fields, end=case.ends and case.body is None)
    if case.body is not None:
        connection.send(stream, case.body)
    return connection, stream


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ANSWERED)
def test_answered(mesh: Mesh, name: str, profile: str) -> None:
    case = TRIES[name]
    seq, hits = mesh.ledger.last(), len(mesh.workload.hits)
    connection, stream = send(mesh, profile, case)
    with connection:
        answer = connection.answer(stream)
    outcome = f"reject {answer.status}"
    for record in mesh.ledger.since(seq):
        outcome = record.outcome
        assert answer.headers["x-authz-decision-id"] == record.decision_id
        if outcome != "allow":
            assert f"deny {json.loads(answer.body)['reason']}" == outcome
    assert outcome == case.outcomes[PROFILES.index(profile)]
    reached = mesh.workload.hits[hits:]
    assert len(reached) == (outcome == "allow")
    for hit in reached:
        assert hit.values("host") == ("tool.example",)
        assert hit.target == dict(case.fields)[":path"]
        assert hit.values("upgrade") == ()


@pytest.mark.parametrize("profile", PROFILES)
def test_reset(mesh: Mesh, profile: str) -> None:
    """All at once: Envoy takes a second to close each of these connections."""
    seq, hits = mesh.ledger.last(), len(mesh.workload.hits)
    refused = {name: case for name, case in TRIES.items() if case.outcomes == RESET}
    opened = {name: send(mesh, profile, case) for name, case in refused.items()}
    answered = {}
    for name, (connection, stream) in opened.items():
        with connection, contextlib.suppress(NoAnswerError):
            answered[name] = connection.answer(stream)
    assert answered == {}
    assert mesh.ledger.since(seq) == []
    assert mesh.workload.hits[hits:] == []
