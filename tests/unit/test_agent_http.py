"""The httpx flows over real connections: what a server is sent, and what a refusal raises."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import httpx2
import pytest

from authz_server.agent import Delegation, Delegator, Denied, Escalated, HandOff, Patience, serving
from authz_server.agent.http_flow import DelegationFlow
from authz_server.agent.httpx2_auth import Httpx2Delegation
from authz_server.agent.httpx_auth import HttpxDelegation
from authz_server.agent.mcp_client import McpDelegation
from tests.harness.chains import ASSISTANT, CRM, NOW, RESEARCH, svid, three_hops, verify

ROOT, FIRST, _ = three_hops()
RECEIVED = Delegation(root=ROOT, chain=f"{FIRST} ,  {FIRST}")
PROBLEM = {
    "type": "urn:authz-server:problem:access-denied",
    "verdict": "deny",
    "reason": "LEAF_MISMATCH",
    "detail": "delegation: no",
    "status": 403,
    "decision_id": "d-1",
}
ESCALATION = PROBLEM | {
    "type": "urn:authz-server:problem:approval-required",
    "verdict": "escalate",
    "access_request": {"id": "a", "status": "pending", "approver_group": "g"},
}


@dataclass
class Service:
    """A server that keeps the header lines of each request and answers as it is told."""

    port: int
    requests: list[list[tuple[str, str]]] = field(default_factory=list)
    answers: list[tuple[int, str, object]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def delegation(self) -> dict[str, list[str]]:
        """Return the delegation headers of the last request, every line of them."""
        found: dict[str, list[str]] = {}
        for name, value in self.requests[-1]:
            if name.lower() in {"txn-token", "delegation-chain"}:
                found.setdefault(name.lower(), []).append(value)
        return found


@pytest.fixture
def service() -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.requests.append(list(self.headers.items()))
            status, kind, document = (
                found.answers.pop(0) if found.answers else (200, "application/json", {"ok": True})
            )
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Service(port=server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


Get = Callable[..., Any]


def _sync(library: Any) -> Get:
    def get(url: str, auth: Any, **options: Any) -> Any:
        with library.Client(auth=auth, trust_env=False, verify=False) as client:
            return client.get(url, **options)

    return get


def _async(library: Any) -> Get:
    def get(url: str, auth: Any, **options: Any) -> Any:
        async def run() -> Any:
            async with library.AsyncClient(auth=auth, trust_env=False, verify=False) as client:
                return await client.get(url, **options)

        return asyncio.run(run())

    return get


KINDS: dict[str, tuple[Get, type[DelegationFlow]]] = {
    "httpx": (_sync(httpx), HttpxDelegation),
    "httpx async": (_async(httpx), HttpxDelegation),
    "httpx2": (_sync(httpx2), Httpx2Delegation),
    "httpx2 async": (_async(httpx2), Httpx2Delegation),
}
each_kind = pytest.mark.parametrize(("get", "flow"), KINDS.values(), ids=KINDS)


@each_kind
def test_what_was_received_goes_on_byte_for_byte(
    service: Service, get: Get, flow: type[DelegationFlow]
) -> None:
    with serving(RECEIVED):
        get(service.url, flow(), headers={"Txn-Token": "older", "x-other": "kept"})
    assert service.delegation() == {"txn-token": [ROOT], "delegation-chain": [RECEIVED.chain]}
    assert ("x-other", "kept") in service.requests[-1]


@each_kind
def test_a_call_that_hands_off_adds_a_link(
    service: Service, get: Get, flow: type[DelegationFlow]
) -> None:
    hand_off = HandOff(to=str(RESEARCH), audience=[CRM], scope=["crm.read"])
    delegator = Delegator(svid(ASSISTANT), clock=NOW.timestamp)
    get(service.url, flow(delegator, hand_off, delegation=Delegation(root=ROOT)))
    sent = service.delegation()
    assert sent["txn-token"] == [ROOT]
    (link,) = sent["delegation-chain"]
    assert verify(ROOT, link).grants[-1].delegate == RESEARCH


@each_kind
def test_outside_of_a_request_nothing_is_sent(
    service: Service, get: Get, flow: type[DelegationFlow]
) -> None:
    assert get(service.url, flow()).json() == {"ok": True}
    assert service.delegation() == {}


@each_kind
def test_other_hosts_are_shown_nothing(
    service: Service, get: Get, flow: type[DelegationFlow]
) -> None:
    with serving(RECEIVED):
        get(service.url, flow(hosts=["crm.example"]))
        assert service.delegation() == {}
        get(service.url, flow(hosts=["127.0.0.1"]))
        assert service.delegation()["txn-token"] == [ROOT]


JSON_RPC = {"jsonrpc": "2.0", "id": 1, "error": {"code": 403, "message": "no", "data": PROBLEM}}


@each_kind
@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("application/problem+json", PROBLEM),
        ("application/problem+json; charset=utf-8", PROBLEM),
        ("application/json", JSON_RPC),
    ],
)
def test_a_denial_is_raised(
    service: Service, get: Get, flow: type[DelegationFlow], kind: str, document: object
) -> None:
    service.answers.append((403, kind, document))
    with pytest.raises(Denied) as caught:
        get(service.url, flow())
    assert (caught.value.reason, caught.value.decision_id) == ("LEAF_MISMATCH", "d-1")
    assert len(service.requests) == 1


@each_kind
@pytest.mark.parametrize(
    ("status", "kind", "document"),
    [
        (403, "application/problem+json", {"type": "about:blank"}),
        (403, "text/plain", PROBLEM),
        (200, "application/problem+json", PROBLEM),
        (503, "application/problem+json", PROBLEM),
        (401, "application/json", [1]),
    ],
)
def test_what_the_service_itself_says_is_returned(
    service: Service,
    get: Get,
    flow: type[DelegationFlow],
    status: int,
    kind: str,
    document: object,
) -> None:
    service.answers.append((status, kind, document))
    response = get(service.url, flow())
    assert (response.status_code, response.json()) == (status, document)


@each_kind
def test_an_escalation_can_be_waited_for(
    service: Service, get: Get, flow: type[DelegationFlow]
) -> None:
    service.answers += [(403, "application/problem+json", ESCALATION)] * 3
    with pytest.raises(Escalated) as caught:
        get(service.url, flow())
    quick = Patience(timeout_s=30, first_s=0.001, longest_s=0.001)
    response = caught.value.wait_for_approval(lambda: get(service.url, flow()), quick)
    assert response.json() == {"ok": True}
    assert len(service.requests) == 4


@pytest.mark.parametrize("status", [401, 403])
def test_an_mcp_session_is_left_to_read_its_own_denials(service: Service, status: int) -> None:
    service.answers.append((status, "application/json", JSON_RPC))
    with serving(RECEIVED):
        response = _async(httpx2)(service.url, McpDelegation())
    assert response.status_code == status
    assert service.delegation()["txn-token"] == [ROOT]
