"""What an operator says of a TCP listener, and what a connection or a tunnel is read as."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz_server.core.attributes import Protocol
from authz_server.core.chain import DelegationPolicy
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.paths import canonical_destination
from authz_server.core.pdp import decide, read_operation
from authz_server.core.request import AccessRequest, Headers, HttpRequest, RouteContext
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.authority import envoy_certificate
from authz_server.servers.wire import access_request
from tests.harness.world import World, spiffe_id

TOLD = {
    "node": "db-1",
    "bundle": "databases",
    "resource": "orders-db",
    "audience": "tcp://orders-db.example",
    "workload_id": "spiffe://cases.example.org/service/orders-db",
    "require_delegation": "true",
    "label.stage": "production",
}


def connection(
    labels: Mapping[str, str], *, sni: str = "", extensions: Mapping[str, str] | None = None
) -> AccessRequest:
    message = CheckRequest()
    message.attributes.source.address.socket_address.address = "192.0.2.7"
    message.attributes.destination.labels.update(labels)
    message.attributes.tls_session.sni = sni
    message.attributes.context_extensions.update(extensions or {})
    return access_request(message.SerializeToString())


def request_of(
    method: str = "CONNECT", host: str = "db.example:5432", path: str = ""
) -> HttpRequest:
    return HttpRequest(
        method=method, scheme="https", host=host, path=path, headers=Headers(fields={})
    )


# --- a listener ------------------------------------------------------------------------------


def test_labels_of_a_listener_are_its_context() -> None:
    assert RouteContext.of(connection(TOLD)) == RouteContext(
        bundle="databases",
        resource="orders-db",
        audience="tcp://orders-db.example",
        workload_id=SpiffeId.parse("spiffe://cases.example.org/service/orders-db"),
        protocol=Protocol.TCP,
        require_delegation=True,
        labels={"stage": "production"},
    )
    assert connection(TOLD).node == "db-1"


@pytest.mark.parametrize("labels", [{}, {"node": "db-1"}, {"node": "", "protocol": "tcp"}])
def test_a_listener_that_says_nothing_is_judged_by_the_default(labels: Mapping[str, str]) -> None:
    assert RouteContext.of(connection(labels)) == RouteContext(protocol=Protocol.TCP)


@pytest.mark.parametrize(
    "labels",
    [
        {"audiance": "x"},
        {"app": "orders-db"},  # somebody else's labels
        {"protocol": "http"},
        {"protocol": "mcp"},
        {"require_delegation": "yes"},
        {"workload_id": "orders-db"},
        # What Envoy makes of `true` and of a number: without the check, no delegation is required,
        # and any listener's resource will do.
        {"require_delegation": ""},
        {"bundle": ""},
        {"resource": ""},
        {"label.stage": ""},
    ],
)
def test_anything_unclear_is_denied(labels: Mapping[str, str]) -> None:
    with pytest.raises(RequestFault) as caught:
        RouteContext.of(connection({**labels, "node": "db-1"}))
    assert caught.value.reason is Reason.MALFORMED_REQUEST


def test_too_many_labels_are_denied() -> None:
    with pytest.raises(RequestFault) as caught:
        RouteContext.of(connection({f"label.{i}": "x" for i in range(100)}))
    assert caught.value.reason is Reason.OVERSIZE


def test_two_descriptions_are_one_too_many() -> None:
    both = connection({"bundle": "databases"}, extensions={"bundle": "databases"})
    with pytest.raises(RequestFault, match="twice"):
        RouteContext.of(both)
    # A proxy that is not Envoy may have extensions for connections too.
    told = connection({"node": "x"}, extensions={"bundle": "databases"})
    assert RouteContext.of(told).bundle == "databases"


def test_labels_say_nothing_of_an_http_route() -> None:
    """Naive: a node's labels, common to all listeners, would name the bundle of every route."""
    message = CheckRequest()
    attributes = message.attributes
    attributes.destination.labels.update({"node": "n", "bundle": "weak"})
    attributes.request.http.method, attributes.request.http.path = "GET", "/"
    attributes.request.http.header_map.headers.add(key=":method", raw_value=b"GET")
    request = access_request(message.SerializeToString())
    assert request.http is not None
    assert RouteContext.of(request).bundle == "default"
    assert RouteContext.of(replace(request, labels={"bundle": "weak"})).bundle == "default"


def test_the_record_names_bundle_and_resource_of_a_listener() -> None:
    world = World()
    decision = decide(connection(TOLD, sni="Orders-DB.example"), world.snapshot(), world.now)
    assert (decision.bundle, decision.reason) == ("databases", Reason.NO_PRINCIPAL)
    assert decision.action is not None
    assert decision.resource is not None
    assert (decision.action.protocol, decision.action.name) == ("tcp", "connect")
    assert (decision.resource.resource, decision.resource.host) == (
        "orders-db",
        "orders-db.example",
    )
    assert decision.environment is not None
    assert decision.environment.sni == "orders-db.example"


@pytest.mark.parametrize(
    ("told", "reason"), [("true", Reason.DELEGATION_REQUIRED), ("false", None)]
)
def test_a_listener_can_require_what_no_connection_carries(
    told: str, reason: Reason | None
) -> None:
    """Stricter than the server, never laxer, as a route of HTTP."""
    world = World()
    request = replace(
        connection({"bundle": "databases", "require_delegation": told}),
        peer_certificate=envoy_certificate(world.svid("agent/assistant")),
    )
    laxer = world.snapshot(
        delegation=DelegationPolicy(require=False, delegator_trust_domains=frozenset())
    )
    decision = decide(request, laxer, world.now)
    assert decision.reason is (reason or Reason.NO_MATCHING_RULE)
    assert decide(request, world.snapshot(), world.now).reason is Reason.DELEGATION_REQUIRED


# --- a connection ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sni", "host"),
    [("", None), ("db.example", "db.example"), ("DB.Example", "db.example"), ("db_1", "db_1")],
)
def test_host_of_a_connection_is_its_server_name(sni: str, host: str | None) -> None:
    request = connection({}, sni=sni)
    operation = read_operation(request, RouteContext.of(request), {})
    assert (operation.obj.type, operation.obj.host, operation.obj.uri) == ("tcp", host, None)
    assert request.sni == host


@pytest.mark.parametrize("sni", ["a..b", "a,b", "a b", "-a", "a\x1b[2J", "ä.example", "a" * 300])
def test_a_server_name_that_is_no_host_is_denied(sni: str) -> None:
    request = connection({}, sni=sni)
    with pytest.raises(RequestFault) as caught:
        read_operation(request, RouteContext.of(request), {})
    assert caught.value.reason is Reason.MALFORMED_REQUEST
    world = World()
    resource = decide(request, world.snapshot(), world.now).resource
    assert resource is not None
    assert resource.host is not None
    assert resource.host.isprintable()


# --- a tunnel --------------------------------------------------------------------------------

TUNNEL = RouteContext.parse({"protocol": "tcp", "resource": "orders-db", "label.stage": "x"})


@pytest.mark.parametrize(
    ("authority", "host", "uri"),
    [
        ("db.example:5432", "db.example", "tcp://db.example:5432"),
        ("DB.Example:05432", "db.example", "tcp://db.example:5432"),
        ("[2001:DB8::1]:443", "[2001:db8::1]", "tcp://[2001:db8::1]:443"),
        ("192.0.2.7:1", "192.0.2.7", "tcp://192.0.2.7:1"),
    ],
)
def test_a_tunnel_names_its_destination(authority: str, host: str, uri: str) -> None:
    request = replace(connection({}), http=request_of(host=authority))
    operation = read_operation(request, TUNNEL, {})
    assert (operation.act.protocol, operation.act.name) == ("tcp", "connect")
    assert (operation.obj.host, operation.obj.uri) == (host, uri)
    assert (operation.obj.resource, dict(operation.obj.labels)) == ("orders-db", {"stage": "x"})
    assert operation.arguments_seen


@pytest.mark.parametrize(
    "authority",
    ["", ":5432", "db.example", "db.example:", "db.example:0", "db.example:65536", "db.example:+1",
     "u@db.example:1", "a.example,b.example:1", "db.example.:1", "2001:db8::1", "db.example:1:2"],
)  # fmt: skip
def test_an_unclear_destination_is_denied(authority: str) -> None:
    with pytest.raises(RequestFault) as caught:
        canonical_destination(authority)
    assert caught.value.reason is Reason.MALFORMED_REQUEST


def test_tunnel_routes_ask_for_what_other_routes_ask_for() -> None:
    """A route of a tunnel answers in HTTP, and its denial says so."""
    world = World()
    request = replace(
        connection({}),
        labels={},
        extensions={"protocol": "tcp"},
        http=request_of(),
        peer_principal=spiffe_id("agent/assistant"),
    )
    decision = decide(request, world.snapshot(), world.now)
    assert decision.protocol is Protocol.HTTP
    assert decision.action is not None
    assert decision.action.protocol == "tcp"
    refused = decide(replace(request, http=request_of("PATCH")), world.snapshot(), world.now)
    assert refused.action is not None
    assert (refused.action.protocol, refused.action.name) == ("tcp", "PATCH")
