"""MCP Streamable HTTP: method, tool, resource, prompt, task and arguments out of the raw body.

The body is what the server behind Envoy will act on, so the body decides; everything else that
says the same is a cross-check (`mcp_cross_checks`).
"""

import hashlib
from collections.abc import Mapping
from typing import Final

from authz_server.core import canonical_json
from authz_server.core.arguments import Declaration, NamedArguments, declared
from authz_server.core.attributes import (
    ActionAttributes,
    AttributeMap,
    ObjectAttributes,
    Protocol,
    no_attributes,
)
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.paths import CanonicalHost, Target, parse_query
from authz_server.core.protocols import json_rpc
from authz_server.core.protocols.http import declares_body, request_line
from authz_server.core.protocols.json_rpc import Message
from authz_server.core.protocols.mcp_cross_checks import (
    Claims,
    check_filter,
    check_headers,
    checked_revision,
)
from authz_server.core.protocols.mcp_methods import METHODS, RESPONSE, RESPONSE_METHOD, STATELESS
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import HttpRequest, RouteContext
from authz_server.core.uris import check_uri

_MEMBERS: Final = frozenset({"name", "uri", "arguments", "taskId", "_meta", "ref"})
_MEMBERS_FOLDED: Final = frozenset(map(str.casefold, _MEMBERS))
# `_meta` of a request that differs from one call to the next and changes nothing of what is done.
_VOLATILE: Final = frozenset(
    {
        "progressToken",
        "traceparent",  # W3C Trace Context and Baggage, SEP-414
        "tracestate",
        "baggage",
        "io.modelcontextprotocol/clientCapabilities",
        "io.modelcontextprotocol/clientInfo",
        "io.modelcontextprotocol/logLevel",
        "io.modelcontextprotocol/protocolVersion",
    }
)
# `ref.type` of completion/complete -> (object type, member of `ref` that names the object).
_REFERENCES: Final = {
    "ref/prompt": ("mcp_prompt", "name"),
    "ref/resource": ("mcp_resource", "uri"),
}
_Object = tuple[str, str | None, str | None]  # type, tool or prompt, uri or task


def operation(
    http: HttpRequest,
    route: RouteContext,
    metadata: Mapping[str, Mapping[str, object]],
    declaration: Declaration,
) -> Operation:
    """Return the operation an MCP message asks for.

    `declaration` points into `params.arguments`; its arguments lie over those of the top level.
    Raises `RequestFault` (those of `http.request_line` and `json_rpc.parse`, `UNSUPPORTED_METHOD`,
    `HEADER_BODY_MISMATCH`); it carries the id to echo as far as one was read.
    """
    target, host = request_line(http)
    query = _query(http, target)
    revision = checked_revision(http.headers)
    if http.method in {"GET", "DELETE"} and revision != STATELESS:
        return _session(http, route, target, host, query)
    if http.method != "POST":
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "MCP has no such HTTP method")
    message = json_rpc.parse(http)
    with json_rpc.answered_to(message.id_json):
        claims = _claims(message, revision, declaration)
        check_headers(http.headers, revision, claims)
        check_filter(metadata, claims)
        return _operation(claims, route, target, host, query)


def _query(http: HttpRequest, target: Target) -> AttributeMap:
    """Return the query, by which some servers choose a tenant or what a session may do."""
    query = parse_query(target.query) if target.query else no_attributes()
    if "_method" in query and query["_method"] != http.method:
        raise RequestFault(Reason.MALFORMED_REQUEST, "query overrides the method")
    return query


def _claims(message: Message, revision: str | None, declaration: Declaration) -> Claims:
    """Return what the body says, after checking method and shape of `params`."""
    method = METHODS.get(message.method) if message.method is not None else RESPONSE_METHOD
    if method is None:
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "MCP method is unknown")
    if not method.exists_in(revision):
        raise RequestFault(
            Reason.UNSUPPORTED_METHOD, "MCP method is not one of the revision that is spoken"
        )
    params = message.params
    # `Name` beside `name` would be one member to a case-insensitive reader (GHSA-4gph-2hhr-5mwg).
    if any(key.casefold() in _MEMBERS_FOLDED and key not in _MEMBERS for key in params):
        raise _malformed("`params` has a member in unusual case")
    arguments = params.get(method.arguments, {})
    if not isinstance(arguments, dict):
        raise _malformed(f"`params.{method.arguments}` is not an object")
    return Claims(
        message=message,
        method=method,
        name=None if method.member is None else _name(params, method.member),
        arguments=NamedArguments(arguments, declared(declaration, arguments))
        if arguments or declaration
        else no_attributes(),
    )


def _name(members: Mapping[str, object], member: str) -> str:
    name = members.get(member)
    if not isinstance(name, str) or not name or not name.isprintable():
        raise _malformed(f"`{member}` is not a printable string")
    if member == "uri":
        check_uri(name)
    return name


def _operation(
    claims: Claims,
    route: RouteContext,
    target: Target,
    host: CanonicalHost,
    query: AttributeMap,
) -> Operation:
    message = claims.message
    kind, tool, uri = _object(claims)
    return Operation(
        act=ActionAttributes(
            protocol=Protocol.MCP,
            name=message.method or RESPONSE,
            read_only=claims.method.read_only,
        ),
        obj=ObjectAttributes(
            type=kind,
            host=host,
            path=target.path,
            segments=target.segments,
            query=query,
            tool=tool,
            uri=uri,
            args=claims.arguments,
            args_sha256=_with_query(target.query, _digest(message)),
            resource=route.resource,
            labels=route.labels,
        ),
        json_rpc_id=message.id_json,
    )


def _object(claims: Claims) -> _Object:
    method, name = claims.method, claims.name
    if claims.message.method == "completion/complete":
        return _completed(claims.message.params)
    if method.member == "name":
        return method.kind, name, None
    return method.kind, None, name


def _completed(params: Mapping[str, object]) -> _Object:
    """Return the prompt or resource that a completion is of: its values may be as secret."""
    reference = params.get("ref")
    if not isinstance(reference, dict) or reference.get("type") not in _REFERENCES:
        raise _malformed("`params.ref` is not a reference to a prompt or a resource")
    kind, member = _REFERENCES[reference["type"]]
    if member == "name":
        return kind, _name(reference, member), None
    template = reference.get(member)  # an RFC 6570 template is no URI yet
    if not isinstance(template, str) or not template or not template.isprintable():
        raise _malformed("`params.ref.uri` is not a printable string")
    return kind, None, template


def _session(
    http: HttpRequest,
    route: RouteContext,
    target: Target,
    host: CanonicalHost,
    query: AttributeMap,
) -> Operation:
    """Return the opening (GET) or ending (DELETE) of a session; a rule must name it."""
    if http.body or declares_body(http):
        raise _malformed(f"a {http.method} request must not have a body")
    return Operation(
        act=ActionAttributes(
            protocol=Protocol.MCP, name=http.method, read_only=http.method == "GET"
        ),
        obj=ObjectAttributes(
            type="mcp_session",
            host=host,
            path=target.path,
            segments=target.segments,
            query=query,
            args_sha256=_with_query(target.query, None),
            resource=route.resource,
            labels=route.labels,
        ),
    )


def _digest(message: Message) -> str | None:
    """Return SHA-256 over the RFC 8785 form of the arguments, hex; None without any.

    SECURITY: over the whole arguments, not the declared ones, or an approval would cover what its
    approver never saw (ADR 0050). A message with parameters beside name and arguments (a task, an
    input response, a `_meta` that may act) is digested whole, and so is a client's answer, each
    under a prefix that no arguments object can produce.
    """
    if message.method is None:
        return hashlib.sha256(b"answer\0" + _canonical(message.answer)).hexdigest()
    covered = dict(message.params)
    meta = covered.pop("_meta", None)
    if isinstance(meta, dict) and not meta.keys() <= _VOLATILE:
        covered["_meta"] = {name: meta[name] for name in meta.keys() - _VOLATILE}
    if not covered:
        return None
    if covered.keys() <= {"name", "arguments"}:
        return hashlib.sha256(_canonical(covered.get("arguments", {}))).hexdigest()
    return hashlib.sha256(b"params\0" + _canonical(covered)).hexdigest()


def _with_query(query: str, digest: str | None) -> str | None:
    """Return a digest that covers the raw query too; without a query it is `digest`."""
    if not query:
        return digest
    return hashlib.sha256(f"query\0{query}\0{digest or ''}".encode("ascii")).hexdigest()


def _canonical(value: object) -> bytes:
    # INVARIANT: parsed by `strict_json`, so it has a canonical form.
    return canonical_json.dumps(value)  # type: ignore[arg-type]


def _malformed(detail: str) -> RequestFault:
    return RequestFault(Reason.MALFORMED_BODY, detail)
