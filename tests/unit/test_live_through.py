"""Steps as real requests: what a request can bring about, and what came back, by real sockets."""

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2

from authz_server._pb.fleet.v1 import fleet_pb2 as fleet
from authz_server.agent.issuer import DevelopmentIssuer
from authz_server.core.decision import Verdict
from authz_server.core.errors import Reason
from authz_server.core.jose import CompactJws
from authz_server.core.spiffe import TrustDomain
from authz_server.demo.authority import TrustDomainAuthority, write_svid
from authz_server.live.grpc_call import request_message
from authz_server.live.observed import LiveCallError
from authz_server.live.targets import Target, load_targets
from authz_server.live.through import LiveEnvoys
from authz_server.policy.consistency import Step
from authz_server.policy.scenarios import Surroundings, load_scenarios
from authz_server.policy.source import FaultLog

AGENT, NEXT = "spiffe://d.example/agent/one", "spiffe://d.example/agent/two"
RECEIVER = "spiffe://d.example/agent/analyst"
DENIED = {
    "type": "urn:authz-server:problem:denied",
    "verdict": "deny",
    "reason": "NO_MATCHING_RULE",
    "status": 403,
    "decision_id": "d-1",
}
AnswerOf = tuple[int, dict[str, str], bytes]
ALLOW: AnswerOf = (200, {"x-authz-decision-id": "d-2"}, b"{}")
DENY: AnswerOf = (403, {"content-type": "application/problem+json"}, json.dumps(DENIED).encode())
ENVOYS_OWN: AnswerOf = (503, {}, b"upstream connect error")


@contextmanager
def answering(answer: AnswerOf) -> Iterator[tuple[str, list[Any]]]:
    """A plain HTTP server, as a sidecar is to its client; yields its address and the requests."""
    requests: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            requests.append((self.command, self.path, dict(self.headers), body))
            status, headers, content = answer
            self.send_response(status)
            for name, value in (headers | {"content-length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815 -- as http.server calls them

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def tcp(answer: bytes) -> Iterator[str]:
    """A TCP server that reads a byte, and answers or (with nothing to say) closes."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def envoys(directory: Path, *targets: dict[str, Any]) -> LiveEnvoys:
    authority = TrustDomainAuthority.create("d.example")
    agents = {AGENT: "one", NEXT: "two"}
    for spiffe_id, name in agents.items():
        (directory / name).mkdir()
        write_svid(authority.issue_svid(spiffe_id), directory / name)
        (directory / name / "bundle.pem").write_bytes(authority.bundle_pem)
    issuer = DevelopmentIssuer.create(
        issuer="https://sts.d.example", trust_domain=TrustDomain.parse("d.example")
    )
    (directory / "sts.key.pem").write_bytes(issuer.key_pem)
    common = {"bundle": "data", "protocol": "http", "host": "data.example", "caller": AGENT}
    document = {
        "trust_domain": "d.example",
        "issuer": {"issuer": issuer.issuer, "key_file": "sts.key.pem"},
        "agents": agents,
        "targets": [
            common | {"name": f"way-{number}"} | target for number, target in enumerate(targets)
        ],
    }
    (directory / "targets.yaml").write_text(yaml.safe_dump(document))
    return LiveEnvoys(load_targets(directory / "targets.yaml"))


def step(**changes: Any) -> Step:
    scenario = {
        "name": "one",
        "task": "read",
        "agent": AGENT,
        "subject": "alice@example.org",
        "chain": {"scope": ["data.read"], "purpose": "support"},
        "steps": [{"bundle": "data", "act": {"name": "GET"}, "obj": {"path": "/v1/x"}} | changes],
        "expect": {"data": "allow"},
    }
    log = FaultLog()
    around = Surroundings(domains={"data": "data"})
    data = json.dumps(scenario).encode()
    (found,) = load_scenarios(data, file="s.yaml", surroundings=around, log=log)
    assert not log.faults
    return found.steps[0]


def test_a_request_is_what_the_step_says(tmp_path: Path) -> None:
    with answering(ALLOW) as (address, requests):
        asked = step(
            act={"name": "POST"},
            obj={"path": "/v1/customers/C-17", "query": {"q": "a b"}, "args": {"tier": "gold"}},
        )
        said = envoys(tmp_path, {"address": address}).ask(asked)
    assert (said.verdict, said.reason, said.decision_id) == (Verdict.ALLOW, Reason.OK, "d-2")
    ((method, path, headers, body),) = requests
    assert (method, path) == ("POST", "/v1/customers/C-17?q=a+b")
    assert json.loads(body) == {"tier": "gold"}
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["host"] == "data.example"
    claims = CompactJws.parse(headers["txn-token"]).payload
    assert (claims["sub"], claims["scope"], claims["tctx"]) == (
        "alice@example.org",
        "data.read",
        {"purpose": "support"},
    )
    assert claims["act"] == {"iss": "spiffe://d.example", "sub": AGENT}
    assert "delegation-chain" not in headers


def test_a_step_without_a_chain_presents_none(tmp_path: Path) -> None:
    with answering(DENY) as (address, requests):
        said = envoys(tmp_path, {"address": address}).ask(step(chain=None))
    assert (said.verdict, said.reason) == (Verdict.DENY, Reason.NO_MATCHING_RULE)
    assert "txn-token" not in {name.lower() for name in requests[0][2]}


def test_a_chain_is_handed_on_link_by_link(tmp_path: Path) -> None:
    with answering(ALLOW) as (address, requests):
        live = envoys(tmp_path, {"address": address, "caller": NEXT, "workload_id": RECEIVER})
        live.ask(
            step(
                sub={"id": NEXT},
                chain={"scope": ["data.read"], "mode": "handoff", "actors": [AGENT, NEXT]},
            )
        )
    headers = {name.lower(): value for name, value in requests[0][2].items()}
    root = CompactJws.parse(headers["txn-token"]).payload
    links = [CompactJws.parse(link).payload for link in headers["delegation-chain"].split(", ")]
    assert root["act"] == {"iss": "spiffe://d.example", "sub": AGENT}
    assert [(link["iss"], link["may_act"]["sub"]) for link in links] == [  # type: ignore[index, call-overload]
        (AGENT, NEXT),
        (NEXT, RECEIVER),
    ]
    assert [link["dlg"] for link in links] == [1, 0]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"env": {"now": 1}}, "env.now"),
        ({"env": {"source_ip": "10.0.0.1"}}, "env.source_ip"),
        ({"sub": {"kind": "service"}}, "sub.kind"),
        ({"chain": {"assurance": "sts"}}, "chain.assurance"),
        ({"obj": {"path": "/x", "resource": "orders"}}, "obj.resource"),
        ({"obj": {"path": "/x", "labels": {"stage": "staging"}}}, "obj.labels"),
        ({"obj": {"path": "/x", "host": "other.example"}}, "obj.host"),
        ({"obj": {"path": "/x", "args_sha256": "00"}}, "obj.args_sha256"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_request_brings_about_is_not_asked(
    tmp_path: Path, changes: dict[str, Any], missing: str
) -> None:
    with answering(ALLOW) as (address, requests):
        live = envoys(tmp_path, {"address": address, "resource": "customers"})
        with pytest.raises(LiveCallError, match=rf"s\.yaml:1: .* brings about {missing}$"):
            live.ask(step(**changes))
    assert requests == []


def test_what_the_route_says_may_be_counted_on(tmp_path: Path) -> None:
    route = {"resource": "customers", "labels": {"stage": "production"}}
    with answering(ALLOW) as (address, _):
        live = envoys(tmp_path, {"address": address} | route)
        obj = {"path": "/x", "host": "data.example", **route}
        assert live.ask(step(obj=obj)).verdict is Verdict.ALLOW


def test_two_ways_that_disagree_are_no_answer(tmp_path: Path) -> None:
    with answering(ALLOW) as (open_one, _), answering(DENY) as (closed_one, _):
        live = envoys(tmp_path, {"address": closed_one}, {"address": open_one})
        with pytest.raises(LiveCallError, match="way-0 says deny, way-1 says allow"):
            live.ask(step())


def test_an_answer_of_envoy_itself_is_no_verdict(tmp_path: Path) -> None:
    with answering(ENVOYS_OWN) as (address, _):
        live = envoys(tmp_path, {"address": address})
        with pytest.raises(LiveCallError, match="gave no decision: HTTP 503"):
            live.ask(step())


def test_where_nobody_listens_or_nothing_is_known(tmp_path: Path) -> None:
    with answering(ALLOW) as (address, _):
        pass
    live = envoys(tmp_path, {"address": address})
    with pytest.raises(LiveCallError, match="way-0 does not answer"):
        live.ask(step())
    with pytest.raises(LiveCallError, match="no target has the bundle `data` and `mcp`"):
        live.ask(step(act={"protocol": "mcp", "name": "tools/list"}))
    with pytest.raises(LiveCallError, match="no target has the bundle `data` and `http`"):
        live.ask(step(sub={"id": NEXT}))


def test_every_fault_of_a_step_is_known_before_anything_is_sent(tmp_path: Path) -> None:
    with answering(ALLOW) as (address, requests):
        live = envoys(tmp_path, {"address": address}, {"address": address})
        stranger = "spiffe://d.example/agent/three"
        asked = step(env={"now": 1}, chain={"actors": [stranger, AGENT]})
        messages = [fault.message for fault in live.faults(asked)]
    assert messages == [
        f"`agents` of the targets has no SVID for `{stranger}`",
        "no request to way-0 brings about env.now",
        "no request to way-1 brings about env.now",
    ]
    assert requests == []
    assert list(live.faults(step())) == []


@pytest.mark.parametrize(("answer", "verdict"), [(b"S", Verdict.ALLOW), (b"", Verdict.DENY)])
def test_a_connection_tells_its_verdict_alone(
    tmp_path: Path, answer: bytes, verdict: Verdict
) -> None:
    with tcp(answer) as address:
        live = envoys(tmp_path, {"address": address, "protocol": "tcp"})
        said = live.ask(step(act={"protocol": "tcp", "name": "connect"}, obj={}, chain=None))
    assert (said.verdict, said.reason, said.decision_id) == (verdict, None, None)


def fleet_target(tmp_path: Path, **changes: Any) -> Target:
    files = descriptor_pb2.FileDescriptorSet()
    fleet.DESCRIPTOR.CopyToProto(files.file.add())
    (tmp_path / "fleet.binpb").write_bytes(files.SerializeToString())
    values = {
        "name": "fleet",
        "bundle": "infrastructure",
        "protocol": "grpc",
        "address": "127.0.0.1:1",
        "host": "fleet.example",
        "caller": AGENT,
        "descriptors": tmp_path / "fleet.binpb",
    }
    return Target.model_validate(values | changes)


def test_a_grpc_message_is_made_of_the_arguments(tmp_path: Path) -> None:
    target = fleet_target(tmp_path)
    message = request_message(target, "fleet.v1.Deployments/Get", {"name": "checkout"})
    assert fleet.GetRequest.FromString(message).name == "checkout"
    assert request_message(target, "any.Service/Method", {}) == b""


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("fleet.v1.Deployments/Gone", {"name": "x"}),
        ("other.v1.Service/Get", {"name": "x"}),
        ("fleet.v1.Deployments/Get", {"naem": "x"}),
        ("fleet.v1.Deployments/Get", {"name": 7}),
        ("nothing", {"name": "x"}),
    ],
)
def test_no_message_can_be_made_of(tmp_path: Path, method: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(LiveCallError, match="no message for"):
        request_message(fleet_target(tmp_path), method, arguments)


def test_arguments_need_descriptors(tmp_path: Path) -> None:
    with pytest.raises(LiveCallError, match="needs `descriptors`"):
        request_message(fleet_target(tmp_path, descriptors=None), "a.B/C", {"name": "x"})
    (tmp_path / "fleet.binpb").write_bytes(b"\xff\xff")
    with pytest.raises(LiveCallError, match="no message for"):
        request_message(
            fleet_target(tmp_path, descriptors=tmp_path / "gone.binpb"), "a.B/C", {"name": "x"}
        )
