"""Each unsafe setting lets something through on the real Envoy; put right, it does not.

The settings are the samples of the rules, word for word (`lint_site`).
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from authz_server._pb.envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.demo.authority import TrustDomainAuthority
from tests.e2e.lint_site import (
    HOST,
    TRUST_DOMAIN,
    Outcome,
    Site,
    allowed,
    by_path,
    get,
    header,
    long_ago,
    post,
    running,
)
from tests.e2e.raw_http import NoAnswerError, unix_post
from tests.e2e.waiting import until
from tests.lint_samples import samples

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("lint-proofs")]

Proof = Callable[[Site, str], None]
PROOFS: dict[str, Proof] = {}


def proves(*ids: str) -> Callable[[Proof], Proof]:
    """Register a proof of what the samples with these ids are said to do."""

    def register(proof: Proof) -> Proof:
        PROOFS.update(dict.fromkeys(ids, proof))
        return proof

    return register


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # Not `tmp_path`: the path of a Unix socket holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="lint-") as directory, running(Path(directory)) as one:
        yield one


@pytest.mark.parametrize("sample", [one.id for one in samples() if one.shown])
def test_what_is_found_lets_something_through(site: Site, sample: str) -> None:
    site.judge = by_path
    PROOFS[sample](site, sample)


def test_every_proof_is_told_and_every_tale_is_proved() -> None:
    assert set(PROOFS) == {one.id for one in samples() if one.shown}


def test_context_extensions_of_route_and_virtual_host_are_merged(site: Site) -> None:
    """As lint takes them: what a route does not say itself it has from around it."""
    extensions = site.ask("merged", get()).check.context_extensions
    assert extensions["resource"] == "of-the-route"
    assert extensions["bundle"] == "data"


CLOSED = get("/closed")


def is_held(site: Site, request: bytes, listener: str = "http") -> None:
    """The same request is denied where the setting is right."""
    outcome = site.ask(listener, request)
    assert outcome.status in {400, 403, 404, 503}, outcome
    assert not outcome.passed


# --- nobody is asked ----------------------------------------------------------------------------


@proves("EA101-1", "EA109-2", "EA301-1", "EA302-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, CLOSED)
    assert outcome.passed
    assert not outcome.checks
    is_held(site, CLOSED)


@proves("EA108-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, CLOSED)
    assert outcome.passed
    assert not outcome.checks
    is_held(site, CLOSED, f"{listener}-safe")


@proves("EA110-1")
def _(site: Site, listener: str) -> None:
    request = get("/closed", "x-internal: yes")
    outcome = site.ask(listener, request)
    assert outcome.passed
    assert not outcome.checks
    is_held(site, CLOSED, listener)


@proves("EA111-1")
def _(site: Site, listener: str) -> None:
    request = get("/closed", "Connection: Upgrade", "Upgrade: websocket")
    outcome = site.ask(listener, request)
    assert outcome.status == 101
    assert outcome.passed
    assert not outcome.checks
    is_held(site, CLOSED, listener)


@proves("EA103-1")
def _(site: Site, listener: str) -> None:
    is_held(site, CLOSED, listener)
    outcome = site.ask(f"{listener}-second", CLOSED, plain=True)
    assert outcome.passed
    assert not outcome.checks


@proves("EA107-1")
def _(site: Site, listener: str) -> None:
    request = get("/open?cached")
    assert site.ask(listener, request).status == 200
    banned = site.client(site.authority.issue_svid("/agent/banned"))
    outcome = site.ask(listener, request, tls=banned)
    assert outcome.status == 200
    assert not outcome.checks
    assert site.ask("http", request, tls=banned).status == 403


@proves("EA201-1")
def _(site: Site, listener: str) -> None:
    assert site.ask(listener, CLOSED).passed
    is_held(site, CLOSED, "http-dead")


@proves("EA202-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, CLOSED)
    assert outcome.status == 200
    assert not outcome.passed
    assert site.ask(f"{listener}-safe", CLOSED).status == 403


@proves("EA203-1", "EA203-3")
def _(site: Site, listener: str) -> None:
    with site.connect(listener) as connection:
        connection.send(get("/hang"))
        assert site.ask(f"{listener}-safe", get("/hang")).status == 503
        assert connection.is_silent()


@proves("EA205-1", "EA206-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, CLOSED)
    assert outcome.passed
    assert not outcome.checks
    is_held(site, CLOSED, f"{listener}-safe")


@proves("EA208-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, CLOSED)
    assert outcome.passed
    assert outcome.checks
    is_held(site, CLOSED)


@proves("EA803-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, CLOSED)
    assert outcome.passed
    assert not outcome.checks


@proves("EA805-1")
def _(site: Site, listener: str) -> None:
    is_held(site, CLOSED, listener)
    admin = next(one.admin for one in site.envoys if listener in one.ports)
    unix_post(admin, "/runtime_modify?authz.deny_at_disable=false")
    until(lambda: site.ask(listener, CLOSED).passed, "the switch")


# --- judged by what is not so --------------------------------------------------------------------


@proves("EA104-1", "EA112-1", "EA324-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, get("/open", "mcp-name: list"))
    assert header(outcome.check, "mcp-name") == [b"list"]
    assert outcome.hit.values("mcp-name") == ["delete_all"]
    assert site.ask("http", get("/open", "mcp-name: list")).hit.values("mcp-name") == ["list"]


@proves("EA104-3")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, get("/open?admin=0"))
    assert outcome.check.request.http.path == "/open?admin=0"
    assert outcome.hit.target == "/open?admin=1"


@proves("EA104-2", "EA320-1", "EA320-2")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, get("/open"))
    assert outcome.check.request.http.path == "/open"
    assert outcome.hit.target.startswith("/closed")
    assert site.ask("http", get("/open")).hit.target == "/open"


@proves("EA209-1", "EA305-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, post(b"delete everything"))
    assert not outcome.check.request.http.raw_body
    assert outcome.hit.body == b"delete everything"
    safe = site.ask("http", post(b"delete everything"))
    assert safe.check.request.http.raw_body == b"delete everything"


@proves("EA210-1", "EA210-2")
def _(site: Site, listener: str) -> None:
    body = b"harmless" * 40_000 + b"DROP TABLE"
    outcome = site.ask(listener, post(body))
    assert b"DROP" not in outcome.check.request.http.raw_body
    assert outcome.hit.body.endswith(b"DROP TABLE")
    safe = site.ask("http", post(body))
    assert safe.status == 413
    assert not safe.passed


@proves("EA211-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, post(b"a\xff\xfeb"))
    assert outcome.check.request.http.body.encode() != outcome.hit.body == b"a\xff\xfeb"
    safe = site.ask("http", post(b"a\xff\xfeb"))
    assert safe.check.request.http.raw_body == safe.hit.body


@proves("EA213-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, post(b"x" * 2000))
    assert outcome.status == 413
    assert not outcome.checks
    assert site.ask("http", post(b"x" * 2000)).passed


@proves("EA214-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", "txn-token: one", "txn-token: two")
    outcome = site.ask(listener, request)
    assert header(outcome.check, "txn-token") == [b"one,two"]
    assert outcome.hit.values("txn-token") == ["one", "two"]
    assert header(site.ask("http", request).check, "txn-token") == [b"one", b"two"]


@proves("EA215-1")
def _(site: Site, listener: str) -> None:
    assert not site.ask(listener, get()).check.source.certificate
    assert site.ask("http", get()).check.source.certificate


@proves("EA216-1")
def _(site: Site, listener: str) -> None:
    assert not site.ask(listener, get()).check.tls_session.sni
    assert site.ask("http", get()).check.tls_session.sni == HOST


@proves("EA217-1", "EA218-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", "mcp-name: delete_all")
    outcome = site.ask(listener, request)
    assert not header(outcome.check, "mcp-name")
    assert outcome.hit.values("mcp-name") == ["delete_all"]
    for safe in ("http", f"{listener}-safe"):
        assert header(site.ask(safe, request).check, "mcp-name") == [b"delete_all"]


def answering(name: str, value: str) -> Callable[[AttributeContext], CheckResponse]:
    """Return a PDP that allows and changes a header."""

    def judge(_: AttributeContext) -> CheckResponse:
        response = allowed()
        option = response.ok_response.headers.add()
        option.header.key, option.header.value = name, value
        return response

    return judge


@proves("EA220-1")
def _(site: Site, listener: str) -> None:
    site.judge = answering("x-authz-note", "a\x01b")
    unsafe, safe = site.ask(listener, get()), site.ask("http", get())
    assert safe.status == 500
    assert not safe.passed
    assert unsafe.status != 500


@proves("EA221-1")
def _(site: Site, listener: str) -> None:
    site.judge = answering(":path", "/closed")
    assert site.ask(listener, get("/open")).hit.target == "/closed"
    assert site.ask("http", get("/open")).hit.target == "/open"


@proves("EA304-1", "EA310-1")
def _(site: Site, listener: str) -> None:
    assert not site.ask(listener, get()).check.context_extensions
    assert site.ask("http", get()).check.context_extensions["bundle"] == "data"


@proves("EA321-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, get("/open", "x-host: admin.internal"))
    assert outcome.check.request.http.host == HOST
    assert outcome.hit.values("host") == ["admin.internal"]
    assert site.ask("http", get("/open", "x-host: admin.internal")).hit.values("host") == [HOST]


@proves("EA322-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, get())
    assert outcome.check.request.http.host == HOST
    assert outcome.hit.values("host") == ["admin.internal"]


@proves("EA323-1", "EA330-1")
def _(site: Site, listener: str) -> None:
    # Any cluster of this Envoy: here that of another enforcement point's upstream.
    assert site.ask(listener, get("/open", "x-cluster: mcp-data_upstream")).passed
    assert not site.ask(listener, get("/open", "x-cluster: nothing")).passed
    assert site.ask("http", get("/open", "x-cluster: nothing")).passed


@proves("EA325-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", host="admin.internal")
    assert site.ask(listener, request).hit.values("host") == ["admin.internal"]
    is_held(site, request)
    is_held(site, request, f"{listener}-safe")


@proves("EA326-1")
def _(site: Site, listener: str) -> None:
    site.ask(listener, get("/open?mirrored"))
    until(lambda: len(site.hits) == 2, "the copy")


@proves("EA327-1", "EA420-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", "Connection: Upgrade", "Upgrade: websocket")
    site.checks.clear()
    site.hits.clear()
    with site.connect(listener) as connection:
        connection.send(request)
        assert connection.answer().status == 101
        connection.send(b"anything at all\n")
        until(lambda: site.hits[0].more == b"anything at all\n", "the frame")
    assert len(site.checks) == 1
    is_held(site, request)


@proves("EA328-1")
def _(site: Site, listener: str) -> None:
    to = f"x-envoy-original-dst-host: 127.0.0.1:{site.upstream_port}"
    assert site.ask(listener, get("/open", to)).passed


@proves("EA401-1")
def _(site: Site, listener: str) -> None:
    assert site.ask(listener, get("/open/../closed")).hit.target == "/open/../closed"
    is_held(site, get("/open/../closed"))


@proves("EA402-1")
def _(site: Site, listener: str) -> None:
    assert site.ask(listener, get("//closed")).hit.target == "//closed"
    is_held(site, get("//closed"))


@proves("EA403-1")
def _(site: Site, listener: str) -> None:
    assert site.ask(listener, get("/open%2f..%2fclosed")).hit.target == "/open%2f..%2fclosed"
    is_held(site, get("/open%2f..%2fclosed"))
    is_held(site, get("/open%2f..%2fclosed"), f"{listener}-safe")


@proves("EA405-1", "EA406-1")
def _(site: Site, listener: str) -> None:
    host = f"{HOST}:8443" if listener == "EA405-1" else f"{HOST}."
    assert site.ask(listener, get(host=host)).check.request.http.host == host
    assert site.ask("http", get(host=host)).check.request.http.host == HOST


@proves("EA407-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", "txn_token: forged")
    assert site.ask(listener, request).hit.values("txn_token") == ["forged"]
    is_held(site, request)
    assert not site.ask(f"{listener}-safe", request).hit.values("txn_token")


@proves("EA411-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", "x-forwarded-for: 10.9.8.7")
    assert site.ask(listener, request).hit.values("x-envoy-external-address") == ["10.9.8.7"]
    assert site.ask("http", request).hit.values("x-envoy-external-address") == ["127.0.0.1"]


@proves("EA410-1", "EA412-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", "x-envoy-original-path: /closed")
    assert site.ask(listener, request).hit.values("x-envoy-original-path") == ["/closed"]
    assert not site.ask("http", request).hit.values("x-envoy-original-path")


FORGED = f"URI=spiffe://{TRUST_DOMAIN}/agent/admin"


@proves("EA413-1", "EA413-2", "EA414-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", f"x-forwarded-client-cert: {FORGED}")
    (value,) = site.ask(listener, request).hit.values("x-forwarded-client-cert")
    assert value.startswith(FORGED)
    (value,) = site.ask("http", request).hit.values("x-forwarded-client-cert")
    assert FORGED not in value


@proves("EA416-1")
def _(site: Site, listener: str) -> None:
    headers = (f"x-forwarded-client-cert: {FORGED}", "x-mesh: yes")
    (value,) = site.ask(listener, get("/open", *headers)).hit.values("x-forwarded-client-cert")
    assert value.startswith(FORGED)
    (value,) = site.ask("http", get("/open", *headers)).hit.values("x-forwarded-client-cert")
    assert FORGED not in value


@proves("EA415-1")
def _(site: Site, listener: str) -> None:
    (value,) = site.ask(listener, get()).hit.values("x-forwarded-client-cert")
    assert ";URI=" not in value
    (value,) = site.ask("http", get()).hit.values("x-forwarded-client-cert")
    assert ";URI=spiffe://" in value


@proves("EA417-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", "x-authz-verdict: allow")
    assert site.ask(listener, request).hit.values("x-authz-verdict") == ["allow"]
    assert not site.ask("http", request).hit.values("x-authz-verdict")


@proves("EA423-1")
def _(site: Site, listener: str) -> None:
    request = get("/open", version="1.0")
    assert site.ask(listener, request).checks
    assert not site.ask("http", request).checks


@proves("EA424-1")
def _(site: Site, listener: str) -> None:
    request = post(b"0\r\n\r\n", "Transfer-Encoding: chunked")
    assert site.ask(listener, request).passed
    is_held(site, request)


@proves("EA223-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, CLOSED)
    # The upstream stands in for the PDP here: it sees the question, and then the request.
    assert [hit.target for hit in outcome.hits] == ["/closed", "/closed"]
    is_held(site, CLOSED)


# --- who calls ----------------------------------------------------------------------------------


@proves("EA501-1")
def _(site: Site, listener: str) -> None:
    outcome = site.ask(listener, get(), plain=True)
    assert outcome.passed
    assert not outcome.check.source.principal
    assert site.ask("http", get(), plain=True).status == 0


@proves("EA502-2", "EA503-1")
def _(site: Site, listener: str) -> None:
    nobody = site.client(certificate=False)
    assert site.ask(listener, get(), tls=nobody).passed
    assert site.ask("http", get(), tls=nobody).status == 0


@proves("EA504-1")
def _(site: Site, listener: str) -> None:
    own = TrustDomainAuthority.create(TRUST_DOMAIN).issue_svid("/agent/admin")
    outcome = site.ask(listener, get(), tls=site.client(own))
    assert outcome.check.source.principal == f"spiffe://{TRUST_DOMAIN}/agent/admin"
    assert site.ask("http", get(), tls=site.client(own)).status == 0


@proves("EA505-1")
def _(site: Site, listener: str) -> None:
    expired = site.authority.issue_svid("/agent/old", now=long_ago(), lifetime=timedelta(hours=1))
    assert site.ask(listener, get(), tls=site.client(expired)).passed
    assert site.ask("http", get(), tls=site.client(expired)).status == 0


@proves("EA506-1")
def _(site: Site, listener: str) -> None:
    foreign = site.authority.issue_svid("spiffe://other.example/agent/admin")
    assert site.ask(listener, get(), tls=site.client(foreign)).passed
    for safe in ("http", f"{listener}-safe"):
        assert site.ask(safe, get(), tls=site.client(foreign)).status == 0


@proves("EA508-1", "EA508-2")
def _(site: Site, listener: str) -> None:
    assert site.ask(listener, get(), tls=site.client(tls12=True)).passed
    with pytest.raises(NoAnswerError):
        site.connect("http", tls=site.client(tls12=True))


@proves("EA509-1")
def _(site: Site, listener: str) -> None:
    first = b"PROXY TCP4 10.9.8.7 127.0.0.1 4321 443\r\n"
    check = site.ask(listener, get(), first=first).check
    assert check.source.address.socket_address.address == "10.9.8.7"


# --- TCP ----------------------------------------------------------------------------------------


def lets_through(site: Site, listener: str) -> bool:
    """Whether a request on a TCP listener reaches the upstream."""
    return site.ask(listener, get()).passed


@proves("EA102-1", "EA201-3", "EA208-2")
def _(site: Site, listener: str) -> None:
    assert lets_through(site, listener)
    assert not lets_through(site, "tcp-dead" if listener == "EA201-3" else "tcp")


@proves("EA601-1", "EA601-2")
def _(site: Site, listener: str) -> None:
    before = site.connections
    with site.connect(listener):
        until(lambda: site.connections > before, "a connection")
    before = site.connections
    assert not lets_through(site, "tcp")
    assert site.connections == before


@proves("EA605-1")
def _(site: Site, listener: str) -> None:
    def ending(listener: str) -> str:
        with site.connect(listener) as connection:
            connection.send(get())
            with pytest.raises(NoAnswerError) as error:
                connection.answer()
        return str(error.value)

    assert "alert" not in ending(listener).lower()
    assert "access_denied" in ending("tcp").lower().replace(" ", "_")


@proves("EA702-1", "EA702-2", "EA703-1")
def _(site: Site, listener: str) -> None:
    assert site.ask(listener, get()).checks
    for safe in ("remote", "remote-stranger"):
        outcome = site.ask(safe, get())
        assert outcome.status == 503
        assert not outcome.checks


@proves("EA705-1")
def _(site: Site, listener: str) -> None:
    assert site.ask("http", get()).passed
    outcome = site.ask(listener, get())
    assert outcome.status >= 400
    assert not outcome.checks
    assert not outcome.passed


# --- MCP ----------------------------------------------------------------------------------------

JSON = ("Content-Type: application/json", "Accept: application/json, text/event-stream")
VERSION = "2026-07-28"  # the only one for which the filter compares headers


def call(name: str, **more: object) -> bytes:
    meta = {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": name, "arguments": {}, "_meta": meta, **more}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return json.dumps(message).encode()


def metadata(outcome: Outcome) -> Any:
    """What the MCP filter told the PDP."""
    found = outcome.check.metadata_context.filter_metadata
    return MessageToDict(found["envoy.filters.http.mcp"]) if found else {}


@proves("EA901-1")
def _(site: Site, listener: str) -> None:
    request = post(b"[" + call("delete_all") + b"]", *JSON)
    outcome = site.ask(listener, request)
    assert not metadata(outcome)
    assert outcome.passed
    is_held(site, request, "mcp")


@proves("EA902-1")
def _(site: Site, listener: str) -> None:
    request = post(call("delete_all"), *JSON, "Mcp-Method: tools/call", "Mcp-Name: list")
    outcome = site.ask(listener, request)
    assert metadata(outcome)["params"]["name"] == "list"
    assert b"delete_all" in outcome.hit.body
    assert metadata(site.ask("mcp", request))["params"]["name"] == "delete_all"


@proves("EA903-1")
def _(site: Site, listener: str) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"a"}}'
    assert site.ask(listener, post(body, *JSON)).passed
    is_held(site, post(body, *JSON), "mcp")


@proves("EA904-1")
def _(site: Site, listener: str) -> None:
    request = post(call("write", text="x" * 20_000), *JSON)
    outcome = site.ask(listener, request)
    assert outcome.status >= 400, outcome
    assert not outcome.passed
    assert site.ask("mcp", request).passed
