"""`x-forwarded-client-cert` as two real Envoys in a row write it, and whom the PDP takes it for.

A client calls an edge Envoy, which calls the tool's Envoy under its own SVID. Every combination of
how the two treat the header is up, so that one request shows one combination.
"""

import base64
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e import envoy_profiles
from tests.e2e.attack_mesh import (
    PDP_TIMEOUT_S,
    Mesh,
    Record,
    running_mesh,
    surroundings,
    write_svid,
)
from tests.e2e.envoy_profiles import RunningEnvoy, start_envoy
from tests.e2e.forge import TRUST_DOMAIN, spiffe
from tests.e2e.raw_http import Answer, exchange

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("xfcc")]

Tree = dict[str, Any]
EXTENSIONS = "type.googleapis.com/envoy.extensions"
EDGE, NARROW, WIDE = spiffe("proxy/edge"), spiffe("agent/narrow"), spiffe("agent/wide")
MODES: dict[str, Tree] = {
    "sanitize": {"forward_client_cert_details": "SANITIZE_SET"},
    "append": {"forward_client_cert_details": "APPEND_FORWARD"},
    "json": {
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"uri": True, "format": "JSON"},
    },
    "forward": {"forward_client_cert_details": "FORWARD_ONLY"},
}
AUDIENCE = spiffe("authz")
JWT_KEY = ec.generate_private_key(ec.SECP256R1())
FORGED = f"By={EDGE};Hash={'0' * 64};URI={WIDE}"


@dataclass(frozen=True)
class Row:
    mesh: Mesh
    edge: RunningEnvoy
    tool: RunningEnvoy

    def ask(self, way: str, caller: str = "narrow", *headers: str) -> tuple[Answer, Record]:
        """Send a request to the edge listener `way` as `agent/<caller>`."""
        return self.send(self.edge.ports[way], *headers, tls=self.mesh.tls(caller))

    def send(self, port: int, *headers: str, tls: Any) -> tuple[Answer, Record]:
        seq = self.mesh.ledger.last()
        lines = ["GET /public/x HTTP/1.1", "Host: tool.example", *headers, "", ""]
        answer = exchange(port, "\r\n".join(lines).encode("latin-1"), tls=tls)
        found = self.mesh.ledger.since(seq)
        assert len(found) == 1, answer
        (record,) = found
        return answer, record


def principal(record: Record) -> tuple[str, str, list[str]]:
    found: Any = record.document["principal"]
    return found["spiffe_id"], found["assurance"], found["proxies"]


@pytest.fixture(scope="module")
def row() -> Iterator[Row]:
    identity = {
        "trusted_proxies": [spiffe("proxy/*")],
        "bearer": {"jwt_svid": {"audiences": [AUDIENCE]}},
        "trust_bundles": {"source": "files", "files": {TRUST_DOMAIN: ["trust.pem", "jwt.json"]}},
    }
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as directory,
        running_mesh(
            Path(directory), profiles=(), identity=identity, files={"jwt.json": jwt_bundle()}
        ) as mesh,
    ):
        tool = start_envoy(tool_tree(mesh), "tool", mesh.directory, mesh.group)
        edge = start_envoy(edge_tree(mesh, tool), "edge", mesh.directory, mesh.group)
        yield Row(mesh=mesh, edge=edge, tool=tool)


def jwt_bundle() -> bytes:
    jwk = dict(jwt.algorithms.ECAlgorithm.to_jwk(JWT_KEY.public_key(), as_dict=True))
    jwk.pop("key_ops", None)
    return json.dumps({"keys": [jwk | {"use": "jwt-svid", "kid": "j1"}]}).encode()


def tool_tree(mesh: Mesh) -> Tree:
    """Return the hardened Envoy, once for each mode, and once without asking for a certificate."""
    tree = envoy_profiles.hardened(surroundings(mesh, "tool", PDP_TIMEOUT_S))
    listeners = tree["static_resources"]["listeners"]
    tool = listeners[0]
    listeners[:] = [named(tool, name, mode) for name, mode in MODES.items()]
    bearer = named(tool, "bearer", {})
    tls = bearer["filter_chains"][0]["transport_socket"]["typed_config"]
    tls["require_client_certificate"] = False
    del tls["common_tls_context"]["validation_context"]
    listeners.append(bearer)
    return tree


def named(listener: Tree, name: str, settings: Tree) -> Tree:
    copy = deepcopy(listener) | {"name": name}
    copy["filter_chains"][0]["filters"][0]["typed_config"].update(settings)
    return copy


def edge_tree(mesh: Mesh, tool: RunningEnvoy) -> Tree:
    """Return an Envoy with a listener `<mode>-<mode of the tool>` for every pair, without a PDP."""
    tree = envoy_profiles.default(surroundings(mesh, "edge", PDP_TIMEOUT_S))
    certificate, key = write_svid(mesh.forge.authority.issue(EDGE), mesh.directory, "edge-svid")
    resources = tree["static_resources"]
    plain = resources["listeners"][0]
    manager = plain["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["http_filters"][0]
    tls = plain["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    own = {
        "certificate_chain": {"filename": str(certificate)},
        "private_key": {"filename": str(key)},
    }
    tls["tls_certificates"] = [own]
    upstream = next(c for c in resources["clusters"] if c["name"] == "workload")
    resources["clusters"] = [to_tool(upstream, mode, tool.ports[mode], own) for mode in MODES]
    resources["listeners"] = []
    for mode, settings in MODES.items():
        for to in MODES:
            listener = named(
                plain, f"{mode}-{to}", {"set_current_client_cert_details": {"uri": True}}
            )
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            manager.update(settings)
            manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"] = to
            resources["listeners"].append(listener)
    return tree


def to_tool(cluster: Tree, name: str, port: int, certificate: Tree) -> Tree:
    copy = deepcopy(cluster) | {"name": name}
    assignment = copy["load_assignment"]
    assignment["cluster_name"] = name
    endpoint = assignment["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"]["socket_address"]["port_value"] = port
    copy["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificates": [certificate],
            },
        },
    }
    return copy


@pytest.mark.parametrize(
    "forged", [(), (f"X-Forwarded-Client-Cert: {FORGED}",)], ids=["", "forged"]
)
@pytest.mark.parametrize("tool", ["append", "json", "forward"])
@pytest.mark.parametrize("edge", ["sanitize", "append", "json"])
def test_the_client_behind_a_proxy_is_the_principal(
    row: Row, edge: str, tool: str, forged: tuple[str, ...]
) -> None:
    answer, record = row.ask(f"{edge}-{tool}", "narrow", *forged)
    assert principal(record) == (NARROW, "proxied", [EDGE])
    assert (answer.status, record.outcome) == (200, "allow")
    der = row.mesh.svid("narrow").x5c[0]
    found: Any = record.document["principal"]
    assert found["certificate_sha256"] == hashlib.sha256(base64.b64decode(der)).hexdigest()


@pytest.mark.parametrize(
    "forged", ["[", '[{"uri":["x"]}]', f'[{{"by":["{EDGE}"],"uri":["{WIDE}"]}}]']
)
@pytest.mark.parametrize("edge", ["append", "json"])
def test_json_from_the_client_never_makes_it_another(row: Row, edge: str, forged: str) -> None:
    _, record = row.ask(f"{edge}-append", "narrow", f"X-Forwarded-Client-Cert: {forged}")
    if record.document["principal"] is None:
        assert record.outcome == "deny MALFORMED_PRINCIPAL"
    else:
        assert principal(record) == (NARROW, "proxied", [EDGE])


@pytest.mark.parametrize("edge", ["sanitize", "append", "json"])
def test_an_envoy_that_replaces_the_header_hides_the_client(row: Row, edge: str) -> None:
    _, record = row.ask(f"{edge}-sanitize")
    assert principal(record) == (EDGE, "mtls", [])


def test_an_outsider_is_not_a_proxy_whatever_it_sends(row: Row) -> None:
    header = f"X-Forwarded-Client-Cert: {FORGED}"
    for mode in MODES:
        _, record = row.send(row.tool.ports[mode], header, tls=row.mesh.tls("narrow"))
        assert principal(record) == (NARROW, "mtls", [])


def test_a_proxy_that_passes_on_what_it_is_sent_speaks_for_itself_alone(row: Row) -> None:
    _, record = row.ask("forward-append")
    assert principal(record) == (EDGE, "mtls", [])
    _, record = row.ask("forward-append", "narrow", f"X-Forwarded-Client-Cert: URI={WIDE}")
    assert record.outcome == "deny MALFORMED_PRINCIPAL"


@pytest.mark.parametrize(
    "name",
    [
        f"{NARROW};URI={WIDE}",  # spiffe-22
        f"https://{TRUST_DOMAIN}/agent/wide",
        f"{NARROW}/../wide",
    ],
)
@pytest.mark.parametrize("edge", ["sanitize", "append", "json"])
def test_a_client_whose_certificate_is_no_svid_is_nobody(row: Row, edge: str, name: str) -> None:
    tls = row.mesh.tls_with(row.mesh.forge.authority.issue(name), f"odd-{edge}")
    _, record = row.send(row.edge.ports[f"{edge}-append"], tls=tls)
    assert record.outcome == "deny MALFORMED_PRINCIPAL"


@pytest.mark.parametrize(
    ("name", "as_text"), [(f"{NARROW},By={EDGE};URI={WIDE}", WIDE), (f"{NARROW};DNS=x", NARROW)]
)
def test_text_cannot_escape_a_name_and_json_can(row: Row, name: str, as_text: str) -> None:
    """What keeps such a name out of the text form is an authority that signs SPIFFE IDs alone."""
    tls = row.mesh.tls_with(row.mesh.forge.authority.issue(name), "unescaped")
    _, record = row.send(row.edge.ports["json-json"], tls=tls)
    assert record.outcome == "deny MALFORMED_PRINCIPAL"
    _, record = row.send(row.edge.ports["sanitize-append"], tls=tls)
    assert principal(record) == (as_text, "proxied", [EDGE])


# --- without a certificate ---------------------------------------------------------------------


def jwt_svid(**changes: object) -> str:
    now = int(time.time())
    claims = {"sub": NARROW, "aud": [AUDIENCE], "iat": now, "exp": now + 300} | changes
    return jwt.encode(claims, JWT_KEY, algorithm="ES256", headers={"kid": "j1"})


def test_a_jwt_svid_stands_in_for_a_certificate(row: Row) -> None:
    nobody = row.mesh.tls_with(None, "nobody")
    answer, record = row.send(
        row.tool.ports["bearer"], f"Authorization: Bearer {jwt_svid()}", tls=nobody
    )
    assert principal(record) == (NARROW, "bearer", [])
    assert (answer.status, record.outcome) == (200, "allow")


@pytest.mark.parametrize(
    ("token", "outcome"),
    [
        (jwt_svid(aud=["spiffe://mesh.example/other"]), "deny WRONG_AUDIENCE"),
        (jwt_svid(exp=1), "deny EXPIRED"),
        (jwt_svid(sub="spiffe://other.example/a"), "deny UNKNOWN_TRUST_DOMAIN"),
        (None, "deny NO_PRINCIPAL"),
    ],
    ids=["audience", "expired", "domain", "none"],
)
def test_a_jwt_svid_at_fault_is_not_authenticated(
    row: Row, token: str | None, outcome: str
) -> None:
    nobody = row.mesh.tls_with(None, "nobody")
    header = [f"Authorization: Bearer {token}"] if token else []
    # XFCC beside it is nothing: no proxy has proved itself.
    forged = f"X-Forwarded-Client-Cert: {FORGED}"
    answer, record = row.send(row.tool.ports["bearer"], *header, forged, tls=nobody)
    assert (answer.status, record.outcome) == (401, outcome)
