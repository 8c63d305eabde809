"""Nothing that leaves the server holds a token, an argument value, a query, a body or a secret.

One server with every output switched on is sent requests with planted values; then every byte it
wrote or sent is searched for them, also in encodings. Digests of the arguments must be there.
"""

import base64
import json
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz_server.cli import main
from tests.faults.test_webhooks import listening
from tests.otlp_collector import collecting
from tests.pdp_site import PdpSite
from tests.server_process import running

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PLANTED = {
    "query value": "planted-query-7f3a",
    "argument value": "planted-argument-91bc",
    "body": "planted-body-5d20",
    "cookie": "planted-cookie-c0de",
    "basic credentials": "planted-basic-aa17",
    "key header": "planted-apikey-02ff",
    "webhook secret": "planted-webhook-secret-0123456789",
    "receiver key": "planted-receiver-key-77",
}


def _spellings(secret: str) -> set[bytes]:
    encoded = base64.b64encode(secret.encode()).rstrip(b"=")
    return {
        secret.encode(),
        urllib.parse.quote(secret, safe="").encode(),
        encoded[:-1],
        secret.encode().hex().encode(),
    }


def _request(site: PdpSite, path: str, headers: Mapping[str, str], *, mcp: bool = False) -> bytes:
    extra = {
        **headers,
        "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
        "cookie": f"session={PLANTED['cookie']}",
        "x-api-key": PLANTED["key header"],
    }
    if mcp:
        extra["content-type"] = "application/json"
    request = CheckRequest.FromString(site.check_request(path, headers=extra))
    if mcp:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                "params": {"name": "x", "arguments": {"a": PLANTED["argument value"]}}}  # fmt: skip
        http = request.attributes.request.http
        http.method = "POST"
        for line in http.header_map.headers:
            if line.key == ":method":
                line.raw_value = b"POST"
        http.raw_body = json.dumps(call | {"note": PLANTED["body"]}).encode()
        request.attributes.context_extensions["protocol"] = "mcp"
    return request.SerializeToString()


def _commands(site: PdpSite, approval: str) -> bytes:
    """Return what every command that reads the ledger prints."""
    runs = [
        ["decisions", "list", "--output", "json"],
        ["decisions", "list"],
        *(["decisions", "export", "--format", form] for form in ("jsonl", "ocsf", "cloudevents")),
        *(["decisions", "report", "--framework", "hipaa", "--from", "1d", "--format", form]
          for form in ("markdown", "html")),
        ["approvals", "list", "--output", "json"],
        ["approvals", "show", approval],
    ]  # fmt: skip
    shown = b""
    for arguments in runs:
        result = CliRunner().invoke(main.group, [*arguments, "--config", str(site.configuration)])
        assert result.exit_code == 0, result.output
        shown += result.output.encode()
    return shown


def test_no_output_holds_a_planted_value(tmp_path: Path) -> None:
    secret_file = tmp_path / "webhook.secret"
    secret_file.write_text(PLANTED["webhook secret"])
    tokens: set[str] = set()
    with collecting() as collector, listening() as inbox:
        hook = f"http://127.0.0.1:{inbox.port}/hook?key={PLANTED['receiver key']}"
        site = PdpSite.create(
            tmp_path / "site",
            approvals={
                "groups": {"approvers": ["bob@example.org"]},
                "webhooks": [{"url": hook, "secret_file": str(secret_file)}],
            },
            telemetry={"otlp_endpoint": collector.endpoint},
        )
        query = f"q={PLANTED['query value']}"
        chain = site.chain()
        tokens.update(chain.values())
        broken = {"txn-token": chain["txn-token"][:-3] + "AAA"}
        tokens.update(broken.values())
        basic = {"authorization": f"Basic {PLANTED['basic credentials']}"}
        answers = b""
        with running(site) as server:
            for request in (
                _request(site, f"/open/a?{query}", chain),
                _request(site, f"/ask/b?{query}", chain),
                _request(site, f"/open/closed/c?{query}", {**chain, **basic}),
                _request(site, f"/open/%zz?{query}", chain),
                _request(site, f"/open/d?{query}", broken),
                _request(site, f"/open/e?{query}", {}),
                _request(site, "/mcp", chain, mcp=True),
            ):
                answers += server.check(request).SerializeToString()
            inbox.wait_for(1)
            collector.wait_for_logs(7)
            answers += server.get("/metrics")[1] + server.get("/readyz")[1]
            server.wait_until(lambda: server.metric("authz_webhooks_sent_total") == 1)
            assert server.metric("authz_telemetry_dropped_total") == 0
            approval = json.loads(inbox.got[0][1])["data"]["id"]
            answers += server.get(f"/v1/approvals/{approval}/status")[1]
        shown = _commands(site, approval)
        outputs = {
            "answers, metrics and pages": answers,
            "log": server.log.read_bytes(),
            "ledger": b"".join(file.read_bytes() for file in site.ledger.parent.iterdir()),
            "commands": shown,
            "webhooks": b"".join(
                body + json.dumps(headers).encode() for headers, body in inbox.got
            ),
            "telemetry": b"".join(body for _, body in collector.posts),
        }
    assert TRACE.encode() in outputs["ledger"], "the requests did arrive"
    assert re.search(rb'"args_sha256":"[0-9a-f]{64}"', outputs["commands"]), "digests are kept"
    assert bytes.fromhex(TRACE) in outputs["telemetry"]
    for name, secret in (*PLANTED.items(), *((f"token {n}", t) for n, t in enumerate(tokens))):
        pieces = _spellings(secret) if name in PLANTED else _parts(secret)
        for place, output in outputs.items():
            for piece in pieces:
                assert piece not in output, f"{name} is in {place}"


def _parts(token: str) -> set[bytes]:
    """Return what is secret of a token: its signature, and its claims as they are spelled."""
    _, payload, signature = token.split(".")[:3]
    return {payload.encode(), signature.encode()[:40]}


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The naive log line, a request as text, is found out by the same search."""
    site = PdpSite.create(tmp_path)
    chain = site.chain()
    message = CheckRequest.FromString(_request(site, f"/open/a?q={PLANTED['query value']}", chain))
    naive = str(message).encode()
    assert any(piece in naive for piece in _spellings(PLANTED["query value"]))
    assert any(piece in naive for piece in _spellings(PLANTED["cookie"]))
