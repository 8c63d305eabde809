"""A2A 1.0 and 0.3, over JSON-RPC and as HTTP+JSON: what one agent asks another to do.

The body and the path are what the agent behind Envoy will act on, so they decide. The `A2A-Version`
header and the metadata of Envoy's A2A filter are cross-checks. A path of the HTTP+JSON binding is
read as that binding and every other path as a JSON-RPC endpoint, so no request can be both.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from authz_server.core import canonical_json, limits
from authz_server.core.arguments import Declaration, declared
from authz_server.core.attributes import (
    AMBIGUOUS,
    ActionAttributes,
    AttributeMap,
    ObjectAttributes,
    Protocol,
)
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.paths import CanonicalHost, Target, parse_query
from authz_server.core.protocols import json_body, json_rpc
from authz_server.core.protocols.a2a_members import malformed, short_text
from authz_server.core.protocols.a2a_methods import (
    ACTIONS,
    Route,
    Version,
    http_route,
    json_rpc_action,
    parse_version,
)
from authz_server.core.protocols.a2a_params import Facts, read
from authz_server.core.protocols.http import body_seen, declares_body, request_line
from authz_server.core.protocols.json_rpc import Message
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import HttpRequest, RouteContext

MEDIA_TYPES: Final = frozenset({"application/json", "application/a2a+json"})
_FILTER: Final = "envoy.filters.http.a2a"
_VERSION_HEADER: Final = "a2a-version"
_EXTENSION_HEADERS: Final = ("a2a-extensions", "x-a2a-extensions")  # 1.0, 0.3
_NO_ID: Final = "null"
_NO_DECLARATION: Final[Declaration] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What both bindings start from. `version` is the one claimed, if any is."""

    http: HttpRequest
    route: RouteContext
    declaration: Declaration
    target: Target
    host: CanonicalHost
    query: AttributeMap
    version: Version | None
    extensions: tuple[str, ...]  # that the headers switch on


def operation(
    http: HttpRequest,
    route: RouteContext,
    metadata: Mapping[str, Mapping[str, object]],
    declaration: Declaration = _NO_DECLARATION,
) -> Operation:
    """Return the operation an A2A request asks for.

    Raises `RequestFault` (those of `http.request_line` and `json_rpc.parse`, `UNSUPPORTED_METHOD`,
    `HEADER_BODY_MISMATCH`); it carries the id to echo where the request is JSON-RPC.
    """
    target, host = request_line(http)
    named = http_route(http.method, target.segments)
    if named is None and http.method != "POST":
        raise RequestFault(
            Reason.UNSUPPORTED_METHOD, "path is not one of A2A's HTTP binding, and no POST"
        )
    with json_rpc.answered_to(_NO_ID if named is None else None):
        query = parse_query(target.query)
        if "_method" in query and query["_method"] != http.method:
            raise RequestFault(Reason.MALFORMED_REQUEST, "query overrides the method")
        request = _Request(
            http=http,
            route=route,
            declaration=declaration,
            target=target,
            host=host,
            query=query,
            version=_claimed_version(http, query),
            extensions=_extensions(http),
        )
        if named is None:
            return _json_rpc(request, metadata.get(_FILTER))
        return _http_json(request, named)


# --- JSON-RPC ---------------------------------------------------------------------------------


def _json_rpc(request: _Request, seen: Mapping[str, object] | None) -> Operation:
    message = json_rpc.parse(request.http, MEDIA_TYPES)
    id_json = message.id_json or _NO_ID
    with json_rpc.answered_to(id_json):
        if message.method is None:
            raise RequestFault(Reason.UNSUPPORTED_METHOD, "an A2A agent asks its caller nothing")
        action, version = json_rpc_action(message.method)
        if request.version not in {None, version}:
            raise _mismatch(f"`A2A-Version` is not that of the method, {version}")
        _cross_check_filter(seen, message)
        facts = read(action, message.params, version)
        if facts.task_id is None and _names_a_task(action):
            raise malformed("`params` do not name the task")
        operation = _operation(request, action, version, facts)
        return replace(operation, json_rpc_id=id_json)


def _names_a_task(action: str) -> bool:
    return action.startswith("tasks/") and action != "tasks/list"


def _cross_check_filter(seen: Mapping[str, object] | None, message: Message) -> None:
    """Compare with what Envoy's A2A filter read, if that filter runs and stores it."""
    if seen is not None and "method" in seen and seen["method"] != message.method:
        raise _mismatch("Envoy's A2A filter read another method than the body has")


# --- HTTP+JSON --------------------------------------------------------------------------------


def _http_json(request: _Request, named: Route) -> Operation:
    version = request.version or Version.V0_3  # 1.0 §3.6: what a request without the header is
    params = _params(request)
    facts = read(named.action, params, version, is_protobuf=True)
    facts = replace(
        facts,
        task_id=_agreed("task", named.task_id, facts.task_id),
        tenant=_agreed("tenant", _tenant(named, version), facts.tenant),
    )
    return _operation(request, named.action, version, facts)


def _agreed(what: str, in_path: str | None, in_body: str | None) -> str | None:
    """Return what path and body name. SECURITY: which of the two a server takes is its choice."""
    if None not in {in_path, in_body} and in_path != in_body:
        raise _mismatch(f"path and body name two {what}s")
    return in_path or in_body


def _params(request: _Request) -> Mapping[str, object]:
    """Return the body, or for a method without one the query."""
    http = request.http
    if http.method != "POST":
        if http.body or declares_body(http):
            raise malformed(f"a {http.method} request must not have a body")
        if AMBIGUOUS in request.query.values():
            raise RequestFault(Reason.MALFORMED_REQUEST, "a query parameter is given twice")
        return request.query
    if not http.body:
        # SECURITY: one that was kept back may name another task, or a tenant that a rule forbids.
        if not body_seen(http, request.route):
            raise RequestFault(Reason.BODY_TRUNCATED, "the body was not sent for the check")
        return {}
    params = json_body.document(http, MEDIA_TYPES)
    if not isinstance(params, dict):
        raise malformed("body is not a JSON object")
    if {name.casefold() for name in params} & {"jsonrpc", "method"}:
        raise _mismatch("path is one of A2A's HTTP binding, and the body is JSON-RPC")
    return params


def _tenant(named: Route, version: Version) -> str | None:
    """Return the tenant in the path: the last segment before the operation, if there is one.

    SECURITY: a base path looks the same and counts too, so that a tenant is never overlooked.
    """
    before = named.before
    if version is Version.V0_3 and before[-1:] == ("v1",):
        before = before[:-1]
    return before[-1] if before else None


# --- both -------------------------------------------------------------------------------------


def _operation(request: _Request, action: str, version: Version, facts: Facts) -> Operation:
    args = facts.attributes() | {"version": str(version)}
    extensions = tuple(sorted({*request.extensions, *facts.extensions}))
    if extensions:
        args["extensions"] = extensions
    return Operation(
        act=ActionAttributes(protocol=Protocol.A2A, name=action, read_only=ACTIONS[action]),
        obj=ObjectAttributes(
            type="a2a_agent",
            host=request.host,
            path=request.target.path,
            segments=request.target.segments,
            query=request.query,
            uri=facts.task_id,
            args=args | declared(request.declaration, facts.document),
            args_sha256=_digest(request, version, facts),
            resource=request.route.resource,
            labels=request.route.labels,
        ),
    )


def _claimed_version(http: HttpRequest, query: AttributeMap) -> Version | None:
    """Return the version that header or query claim; None without either."""
    claims = [value for name, value in query.items() if name.casefold() == _VERSION_HEADER]
    header = http.headers.text(_VERSION_HEADER)
    versions = {
        parse_version(claim) if isinstance(claim, str) else None
        for claim in (header, *claims)
        if claim is not None
    }
    if len(versions) > 1 or None in versions:
        raise _mismatch("header and query name different A2A versions")
    return versions.pop() if versions else None


def _extensions(http: HttpRequest) -> tuple[str, ...]:
    """Return the extensions that the headers, lists separated by commas, switch on."""
    found: set[str] = set()
    for name in _EXTENSION_HEADERS:
        found.update(item.strip() for item in (http.headers.text(name) or "").split(","))
    found.discard("")
    if len(found) > limits.ARGUMENT_ITEMS_MAX:
        raise RequestFault(Reason.OVERSIZE, "too many A2A extensions")
    return tuple(sorted(short_text(item, "A2A-Extensions") for item in found))


def _digest(request: _Request, version: Version, facts: Facts) -> str | None:
    """Return SHA-256 over the RFC 8785 form of everything that acts, hex; None if nothing does.

    Task and tenant in the path are not in it: an approval is bound to the path itself.
    """
    covered = {
        "params": facts.covered if request.http.method == "POST" else {},
        "query": request.target.query,
        "extensions": list(request.extensions),
    }
    covered = {name: value for name, value in covered.items() if value}
    if not covered:
        return None
    canonical = canonical_json.dumps(covered | {"version": str(version)})  # type: ignore[arg-type]
    return hashlib.sha256(canonical).hexdigest()


def _mismatch(detail: str) -> RequestFault:
    return RequestFault(Reason.HEADER_BODY_MISMATCH, detail)
