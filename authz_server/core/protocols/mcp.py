"""MCP Streamable HTTP: method, tool, resource, prompt and arguments out of the raw body.

The body is what the server behind Envoy will act on, so the body decides. The `Mcp-*` headers
(revision 2026-07-28) and the metadata of Envoy's MCP filter are cross-checks: when present they
must say the same, whatever protocol revision the client claims.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Final

import rfc8785

from authz_server.core.attributes import (
    AMBIGUOUS,
    ActionAttributes,
    AttributeValue,
    ObjectAttributes,
    Protocol,
)
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.paths import CanonicalHost, Target
from authz_server.core.protocols import json_rpc
from authz_server.core.protocols.http import request_line
from authz_server.core.protocols.json_rpc import Message
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import Headers, HttpRequest, RouteContext

REVISIONS: Final = frozenset({"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"})
RESPONSE: Final = "response"  # action name of a client's answer to a server-initiated request
_FILTER: Final = "envoy.filters.http.mcp"

# Every client-to-server message of the revisions above -> (object type, member of `params` that
# names the object, read-only). A method that is not here is denied.
_METHODS: Final[Mapping[str, tuple[str, str | None, bool]]] = {
    "initialize": ("mcp_session", None, True),
    "ping": ("mcp_session", None, True),
    "server/discover": ("mcp_session", None, True),
    "subscriptions/listen": ("mcp_session", None, True),
    "logging/setLevel": ("mcp_session", None, False),
    "completion/complete": ("mcp_session", None, True),
    "notifications/initialized": ("mcp_session", None, True),
    "notifications/cancelled": ("mcp_session", None, False),
    "notifications/progress": ("mcp_session", None, True),
    "notifications/roots/list_changed": ("mcp_session", None, True),
    "notifications/tasks/status": ("mcp_session", None, True),
    "tools/list": ("mcp_tool", None, True),
    "tools/call": ("mcp_tool", "name", False),
    "resources/list": ("mcp_resource", None, True),
    "resources/templates/list": ("mcp_resource", None, True),
    "resources/read": ("mcp_resource", "uri", True),
    "resources/subscribe": ("mcp_resource", "uri", True),
    "resources/unsubscribe": ("mcp_resource", "uri", True),
    "prompts/list": ("mcp_prompt", None, True),
    "prompts/get": ("mcp_prompt", "name", True),
    "tasks/list": ("mcp_session", None, True),
    "tasks/get": ("mcp_session", "taskId", True),
    "tasks/result": ("mcp_session", "taskId", True),
    "tasks/update": ("mcp_session", "taskId", False),
    "tasks/cancel": ("mcp_session", "taskId", False),
}
_NAMES: Final = frozenset({"name", "uri", "arguments", "taskid", "_meta"})


def operation(
    http: HttpRequest, route: RouteContext, metadata: Mapping[str, Mapping[str, object]]
) -> Operation:
    """Return the operation an MCP message asks for.

    Raises `RequestFault` (those of `http.request_line` and `json_rpc.parse`, `UNSUPPORTED_METHOD`,
    `HEADER_BODY_MISMATCH`).
    """
    target, host = request_line(http)
    if http.method in {"GET", "DELETE"}:
        return _session(http, route, target, host)
    if http.method != "POST":
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "MCP is spoken with POST, GET and DELETE")
    message = json_rpc.parse(http)
    name = _checked_name(message)
    _cross_check(http.headers, message, name)
    _cross_check_filter(metadata.get(_FILTER), message, name)
    return _operation(message, name, route, target, host)


def _operation(
    message: Message, name: str | None, route: RouteContext, target: Target, host: CanonicalHost
) -> Operation:
    method = message.method or RESPONSE
    kind, member, read_only = _METHODS.get(method, ("mcp_session", None, True))
    return Operation(
        act=ActionAttributes(protocol=Protocol.MCP, name=method, read_only=read_only),
        obj=ObjectAttributes(
            type=kind,
            host=host,
            path=target.path,
            segments=target.segments,
            tool=name if member == "name" else None,
            uri=name if member in {"uri", "taskId"} else None,
            args=_readable(_arguments(message)),
            args_sha256=_digest(message),
            resource=route.resource,
            labels=route.labels,
        ),
        json_rpc_id=message.id_json,
    )


def _session(
    http: HttpRequest, route: RouteContext, target: Target, host: CanonicalHost
) -> Operation:
    """Return the opening (GET) or ending (DELETE) of a session; a rule must name it."""
    if http.body:
        raise RequestFault(Reason.MALFORMED_BODY, f"a {http.method} request must not have a body")
    return Operation(
        act=ActionAttributes(
            protocol=Protocol.MCP, name=http.method, read_only=http.method == "GET"
        ),
        obj=ObjectAttributes(
            type="mcp_session",
            host=host,
            path=target.path,
            segments=target.segments,
            resource=route.resource,
            labels=route.labels,
        ),
    )


def _checked_name(message: Message) -> str | None:
    """Return what the method is applied to, after checking method and shape of `params`."""
    if message.method is None:
        return None
    if message.method not in _METHODS:
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "MCP method is unknown")
    # `Name` beside `name` would be one member to a case-insensitive reader (GHSA-4gph-2hhr-5mwg).
    if any(
        key.lower() in _NAMES and key not in {"taskId"} and key != key.lower()
        for key in message.params
    ):
        raise RequestFault(Reason.MALFORMED_BODY, "`params` has a member in unusual case")
    member = _METHODS[message.method][1]
    if member is None:
        return None
    name = message.params.get(member)
    if not isinstance(name, str) or not name or not name.isprintable():
        raise RequestFault(Reason.MALFORMED_BODY, f"`params.{member}` is not a printable string")
    return name


def _cross_check(headers: Headers, message: Message, name: str | None) -> None:
    method = headers.text("mcp-method")
    if method is not None and method != message.method:
        raise _mismatch("header `mcp-method` differs from the body")
    named = headers.text("mcp-name")
    if named is not None and _decoded(named) != name:
        raise _mismatch("header `mcp-name` differs from the body")
    revision = headers.text("mcp-protocol-version")
    if revision is not None and revision not in REVISIONS:
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "MCP protocol version is unknown")
    meta = message.params.get("_meta", {})
    if not isinstance(meta, dict):
        raise RequestFault(Reason.MALFORMED_BODY, "`params._meta` is not an object")
    claimed = meta.get("io.modelcontextprotocol/protocolVersion")
    if claimed is not None and claimed != revision:
        raise _mismatch("header `mcp-protocol-version` differs from the body")


def _decoded(value: str) -> str | None:
    """Return a header value, decoding the `=?base64?…?=` form; None when that form is broken."""
    if not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None


def _cross_check_filter(
    seen: Mapping[str, object] | None, message: Message, name: str | None
) -> None:
    """Compare with what Envoy's MCP filter read, if that filter runs and saw a request."""
    if seen is None or message.method is None:
        return
    if "method" in seen and seen["method"] != message.method:
        raise _mismatch("Envoy's MCP filter read another method than the body has")
    params = seen.get("params")
    if name is None or not isinstance(params, dict):
        return
    member = _METHODS[message.method][1]
    if member in params and params[member] != name:
        raise _mismatch("Envoy's MCP filter read another name than the body has")


def _mismatch(detail: str) -> RequestFault:
    return RequestFault(Reason.HEADER_BODY_MISMATCH, detail)


def _arguments(message: Message) -> Mapping[str, object]:
    arguments = message.params.get("arguments", {})
    if not isinstance(arguments, dict):
        raise RequestFault(Reason.MALFORMED_BODY, "`params.arguments` is not an object")
    return arguments


def _readable(arguments: Mapping[str, object]) -> Mapping[str, AttributeValue]:
    """Return the scalar arguments; a nested one is there but fails the matcher that reads it."""
    return {
        key: value if value is None or isinstance(value, str | bool | int | float) else AMBIGUOUS
        for key, value in arguments.items()
    }


def _digest(message: Message) -> str | None:
    """Return SHA-256 over the RFC 8785 form of the arguments, hex; None without parameters.

    A message with parameters beside name and arguments (a task, an input response) is digested
    whole, under a prefix that no arguments object can produce, so that nothing that acts escapes an
    approval. `_meta` is left out: progress tokens and client data differ from one call to the next.
    """
    covered = {key: value for key, value in message.params.items() if key != "_meta"}
    if not covered:
        return None
    if covered.keys() <= {"name", "arguments"}:
        return hashlib.sha256(_canonical(covered.get("arguments", {}))).hexdigest()
    return hashlib.sha256(b"params\0" + _canonical(covered)).hexdigest()


def _canonical(value: object) -> bytes:
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except rfc8785.CanonicalizationError as error:
        raise RequestFault(
            Reason.MALFORMED_BODY, "arguments have no canonical form (RFC 8785)"
        ) from error
