"""A running server: the agent is escalated, a person approves over HTTP, the retry passes."""

import http.client
import json
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from authz_server.agent.signing import sign
from authz_server.core.errors import ConfigurationError
from authz_server.core.jose import ALGORITHMS
from authz_server.core.spiffe import SpiffeId
from authz_server.settings import load_settings
from tests.pdp_site import PdpSite
from tests.server_process import running

ISSUER, CLIENT, BOB = "https://login.example.org", "authz-approvals", "bob@example.org"


def _post(address: str, path: str, token: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        connection.request("POST", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_whole_way_of_an_approval(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = dict(ALGORITHMS["ES256"].to_jwk(key.public_key(), as_dict=True))
    jwk.pop("key_ops", None)
    (tmp_path / "login.jwks.json").write_text(json.dumps({"keys": [jwk | {"kid": "k1"}]}))
    issuer = {"issuer": ISSUER, "jwks_file": "login.jwks.json", "audiences": CLIENT}
    approvals = {"groups": {"approvers": [BOB, "alice@example.org"]}, "issuers": [issuer]}
    site = PdpSite.create(tmp_path, approvals=approvals)
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": CLIENT, "iat": now, "exp": now + 600, "email_verified": True}
    bob, alice = (
        sign({"alg": "ES256", "kid": "k1"}, claims | {"email": name}, key)
        for name in (BOB, "alice@example.org")
    )
    with running(site) as server:
        assert server.reason(site.check_request("/ask/a")) == "ESCALATED_BY_RULE"
        answer = server.check(site.check_request("/ask/a"))
        ticket = json.loads(answer.denied_response.body)["access_request"]
        path = f"/v1/approvals/{ticket['id']}"
        assert json.loads(server.get(f"{path}/status")[1])["status"] == "pending"
        assert _post(server.http, f"{path}/approve", "no-token")[0] == 401
        assert _post(server.http, f"{path}/approve", alice)[0] == 403, "she is the subject"
        status, document = _post(server.http, f"{path}/approve", bob)
        assert (status, document["status"]) == (200, "approved")
        assert json.loads(server.get(f"{path}/status")[1])["status"] == "approved"
        assert server.reason(site.check_request("/ask/a")) == "OK"
        assert json.loads(server.get(f"{path}/status")[1])["status"] == "consumed"
        assert server.reason(site.check_request("/ask/a")) == "ESCALATED_BY_RULE"
        assert server.get("/v1/openapi.json")[0] == 200
        (event,) = (one for one in server.events if one["event"] == "approval_answered")
        assert (event["approval"], event["approver"]) == (ticket["id"], BOB)


def test_the_port_speaks_tls_to_probes_and_asks_for_no_certificate(tmp_path: Path) -> None:
    site = PdpSite.create(
        tmp_path,
        listen={"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "http_tls": True},
        tls={
            "mode": "files",
            "certificate": "server.pem",
            "private_key": "server.key",
            "allowed_clients": ["spiffe://site.example.org/envoy/*"],
        },
    )
    own = site.authority.issue_svid(SpiffeId.parse("spiffe://site.example.org/authz"))
    (tmp_path / "server.pem").write_bytes(own.cert_chain_pem)
    (tmp_path / "server.key").write_bytes(own.key_pem)
    context = ssl.create_default_context(cadata=site.authority.bundle_pem.decode())
    context.check_hostname = False  # an SVID has no DNS name
    with running(site) as server:
        for path, expected in (("/healthz", 200), ("/readyz", 200), ("/v1/approvals", 401)):
            probe = http.client.HTTPSConnection(server.http, timeout=20, context=context)
            probe.request("GET", path)
            assert probe.getresponse().status == expected
            probe.close()
        with pytest.raises((http.client.HTTPException, OSError)):
            server.get("/healthz")


def test_without_a_ledger_there_is_no_api(tmp_path: Path) -> None:
    site = PdpSite.create(tmp_path, ledger={"mode": "off"})
    with running(site) as server:
        assert server.get("/v1/approvals")[0] == 404


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"listen": {"grpc": "127.0.0.1:0", "http": "0.0.0.0:0"},
          "approvals": {"issuers": [{"issuer": ISSUER, "jwks_file": "k", "audiences": "a"}]}},
         "needs `listen.http_tls`"),
        ({"listen": {"http_tls": True}}, "needs `tls.mode`"),
        ({"approvals": {"groups": {"g": ["one"]}, "two_persons": ["g"]}}, "two members"),
        ({"approvals": {"two_persons": ["absent"]}}, "two members"),
        ({"approvals": {"webhooks": [{"url": "http://10.0.0.1/", "secret_file": "s"}]}},
         "loopback alone"),
        ({"approvals": {"webhooks": [{"url": "ftp://x/", "secret_file": "s"}]}}, "https"),
        ({"telemetry": {"otlp_endpoint": "http://collector:4318"}}, "loopback alone"),
    ],
)  # fmt: skip
def test_an_unsafe_configuration_is_refused(
    tmp_path: Path, sections: dict[str, Any], complaint: str
) -> None:
    site = PdpSite.create(tmp_path, **sections)
    with pytest.raises(ConfigurationError, match=complaint):
        load_settings(site.configuration)
