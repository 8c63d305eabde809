"""What says the same as an MCP body, and must: `Mcp-*` headers, `_meta`, Envoy's MCP filter.

Intermediaries route, limit and log by the headers (revision 2026-07-28, SEP-2243) and the server
acts on the body, so whatever revision a client claims, a header that is there must agree. Revision
2026-07-28 also requires them to be there. Servers compare too, but only those of that revision.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from authz_server.core.attributes import AMBIGUOUS, AttributeMap
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.protocols.json_rpc import Message
from authz_server.core.protocols.mcp_methods import REVISIONS, STATELESS, Method
from authz_server.core.request import Headers

FILTER: Final = "envoy.filters.http.mcp"

_PARAM_PREFIX: Final = "mcp-param-"
_META_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
_META_NAMES: Final = (_META_VERSION, "io.modelcontextprotocol/clientCapabilities")
_FILTER_RESPONSE: Final = "__jsonrpc_response"  # the filter's name for a message without a method
_SESSION_ID: Final = re.compile(r"[\x21-\x7e]{1,1024}")  # MCP: visible ASCII; ours are opaque texts
_DECIMAL: Final = re.compile(r"-?[0-9]{1,64}(?:\.[0-9]{1,64})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What the body says, for everything else to agree with.

    `name` is None for a method that is applied to nothing that has one.
    """

    message: Message
    method: Method
    name: str | None
    arguments: AttributeMap


def checked_revision(headers: Headers) -> str | None:
    """Return the revision that the request is of, None without the header.

    Raises `RequestFault`: `UNSUPPORTED_METHOD` for an unknown revision, `MALFORMED_REQUEST` for a
    session id that is none.
    """
    revision = headers.text("mcp-protocol-version")
    if revision is not None and revision not in REVISIONS:
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "MCP protocol version is unknown")
    session = headers.text("mcp-session-id")
    if session is not None and not _SESSION_ID.fullmatch(session):
        raise RequestFault(Reason.MALFORMED_REQUEST, "`mcp-session-id` is not short visible ASCII")
    return revision


def check_headers(headers: Headers, revision: str | None, claims: Claims) -> None:
    """Compare the headers with the body. Raises `RequestFault` (`HEADER_BODY_MISMATCH`)."""
    message, required = claims.message, revision == STATELESS
    _check_header(headers, "mcp-method", message.method, required=required)
    _check_header(headers, "mcp-name", claims.name, required=required and claims.method.named)
    _check_meta(message.params, revision, required=required and message.id_json is not None)
    for name in headers.fields:
        if name.startswith(_PARAM_PREFIX):
            _check_parameter(headers, name, claims.arguments)


def check_filter(metadata: Mapping[str, Mapping[str, object]], claims: Claims) -> None:
    """Compare with what Envoy's MCP filter read, if that filter runs and saw a message.

    Its numbers are doubles, as everything in a `google.protobuf.Struct` is.
    """
    seen = metadata.get(FILTER)
    if seen is None:
        return
    message = claims.message
    if "method" in seen and seen["method"] != (message.method or _FILTER_RESPONSE):
        raise _mismatch("Envoy's MCP filter read another method than the body has")
    if "id" in seen and seen["id"] != message.id:
        raise _mismatch("Envoy's MCP filter read another id than the body has")
    params = seen.get("params")
    member = claims.method.member
    if (
        member is not None
        and isinstance(params, dict)
        and params.get(member, claims.name) != claims.name
    ):
        raise _mismatch("Envoy's MCP filter read another name than the body has")


def _check_header(headers: Headers, name: str, expected: str | None, *, required: bool) -> None:
    value = headers.text(name)
    if value is None:
        if required:
            raise _mismatch(f"revision {STATELESS} requires the header `{name}`")
    elif expected is None or _decoded(value) != expected:
        raise _mismatch(f"header `{name}` differs from the body")


def _check_meta(params: Mapping[str, object], revision: str | None, *, required: bool) -> None:
    meta = params.get("_meta", {})
    if not isinstance(meta, dict):
        raise RequestFault(Reason.MALFORMED_BODY, "`params._meta` is not an object")
    if required and not meta.keys() >= set(_META_NAMES):
        raise _mismatch(f"revision {STATELESS} requires version and capabilities in `_meta`")
    if meta.get(_META_VERSION, revision) != revision:
        raise _mismatch("header `mcp-protocol-version` differs from the body")


def _check_parameter(headers: Headers, name: str, arguments: AttributeMap) -> None:
    """Compare `Mcp-Param-{Name}` with the argument of that name, in whatever letter case.

    A tool's schema may give the header another name than its argument has, or take it from deeper
    inside. The decision point does not know the schema: then a declaration has to say so.
    """
    value = headers.text(name)
    wanted = name.removeprefix(_PARAM_PREFIX)
    found = [arguments[key] for key in arguments if key.lower() == wanted]
    if len(found) != 1:
        raise _mismatch("an `Mcp-Param` header has the name of no argument, given or declared")
    if value is None or not _mirrors(_decoded(value), found[0]):
        raise _mismatch("an `Mcp-Param` header differs from its argument")


def _mirrors(text: str | None, argument: object) -> bool:
    if text is None or argument is None or argument is AMBIGUOUS:
        return False
    if isinstance(argument, bool):
        return text == ("true" if argument else "false")
    if isinstance(argument, int | float):
        return _DECIMAL.fullmatch(text) is not None and Decimal(text) == Decimal(repr(argument))
    return text == argument


def _decoded(value: str) -> str | None:
    """Return a header value, decoding the `=?base64?…?=` form; None when that form is broken."""
    if not (value.startswith("=?base64?") and value.endswith("?=") and len(value) >= 11):
        return value
    encoded = value[9:-2]
    try:
        octets = base64.b64decode(encoded, validate=True)
        # One spelling each: trailing bits that decoding drops would hide a second one.
        return octets.decode("utf-8") if base64.b64encode(octets).decode() == encoded else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _mismatch(detail: str) -> RequestFault:
    return RequestFault(Reason.HEADER_BODY_MISMATCH, detail)
