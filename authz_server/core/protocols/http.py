"""HTTP: method, canonical host and path, decoded query.

Besides reading the request this module refuses what makes an upstream read another one: a method,
path or host override that contradicts the request line, protocol upgrades (their frames are never
checked again), and a body where the method has none.
"""

import hashlib
import re
from typing import Final

from authz_server.core import limits
from authz_server.core.arguments import Declaration, declared
from authz_server.core.attributes import (
    ActionAttributes,
    AttributeMap,
    ObjectAttributes,
    Protocol,
    no_attributes,
)
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.paths import CanonicalHost, Target, canonical_host, parse_query
from authz_server.core.protocols.json_body import ANY_JSON, document
from authz_server.core.protocols.operation import Operation
from authz_server.core.request import HttpRequest, RouteContext

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# `_` may be escaped in either place; names are compared as loosely as any framework would.
_FORM_METHOD: Final = re.compile(rb"(?:^|[&;])\s*(?:_|%5f)method(?:=|&|;|$)", re.IGNORECASE)
_PART_METHOD: Final = re.compile(rb"name\*?\s*=\s*[^;\r\n]{0,16}?(?:_|%5f)method", re.IGNORECASE)
# A name in JSON may be spelt with escapes, any letter in any case.
_JSON_METHOD: Final = re.compile(
    b'"'
    + b"".join(
        rb"(?:%c|\\u00%02x|\\u00%02x)" % (letter, letter, ord(chr(letter).upper()))
        for letter in b"_method"
    )
    + rb'"[ \t\r\n]*:',
    re.IGNORECASE,
)
_READ_ONLY: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110 §9.2.1 safe methods
_CONTENT_UNDEFINED: Final = frozenset({"DELETE", "OPTIONS"})
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})  # RFC 9110 §9.3.1: no defined meaning

# Request headers that some upstreams believe over the request line. None is ever used as a fact.
_METHOD_OVERRIDES: Final = ("x-http-method-override", "x-http-method", "x-method-override")
_PATH_OVERRIDES: Final = ("x-original-url", "x-rewrite-url", "x-original-uri", "x-rewrite-uri")
_HOST_OVERRIDES: Final = ("x-forwarded-host", "x-host", "x-original-host", "x-forwarded-server")
# What an upstream must get as it was judged; an operator may well set the host ones himself.
TARGET_OVERRIDES: Final = frozenset((*_METHOD_OVERRIDES, *_PATH_OVERRIDES))
OVERRIDES: Final = TARGET_OVERRIDES | {*_HOST_OVERRIDES, "forwarded"}


def operation(http: HttpRequest, route: RouteContext, declaration: Declaration) -> Operation:
    """Return the operation an HTTP request asks for.

    `declaration` points into the JSON body; a request that has a body then has to have one of JSON.
    `args_sha256` covers raw query and body: SHA-256 of `query`, a zero byte, and the body.
    Raises `RequestFault` (`UNSUPPORTED_METHOD`, `NON_CANONICAL_PATH`, `MALFORMED_REQUEST`,
    `MALFORMED_BODY`, `BODY_TRUNCATED`, `OVERSIZE`).
    """
    target, host = request_line(http)
    if http.method in _WITHOUT_BODY and (http.body or declares_body(http)):
        raise RequestFault(Reason.MALFORMED_BODY, f"a {http.method} request must not have a body")
    query: AttributeMap = parse_query(target.query) if target.query else no_attributes()
    if "_method" in query and query["_method"] != http.method:
        raise RequestFault(Reason.MALFORMED_REQUEST, "query overrides the method")
    if http.body and _body_names_method(http):
        raise RequestFault(Reason.MALFORMED_REQUEST, "body has a field that overrides the method")
    return Operation(
        act=ActionAttributes(
            protocol=Protocol.HTTP, name=http.method, read_only=http.method in _READ_ONLY
        ),
        obj=ObjectAttributes(
            type="http",
            host=host,
            path=target.path,
            segments=target.segments,
            query=query,
            args=_arguments(http, route, declaration) if declaration else no_attributes(),
            args_sha256=_digest(target.query, http.body),
            resource=route.resource,
            labels=route.labels,
        ),
        arguments_seen=body_seen(http, route) or _is_contentless(http),
    )


def request_line(http: HttpRequest) -> tuple[Target, CanonicalHost]:
    """Check what every protocol over HTTP shares; return target and host."""
    if http.method not in METHODS:
        raise RequestFault(
            Reason.UNSUPPORTED_METHOD, "method is not one of GET HEAD POST PUT PATCH DELETE OPTIONS"
        )
    if http.body_truncated:
        raise RequestFault(Reason.BODY_TRUNCATED, "only a part of the body was sent for the check")
    if len(http.body) > limits.BODY_BYTES_MAX:
        raise RequestFault(Reason.OVERSIZE, "body is larger than 256 KiB")
    target = Target.parse(http.path)
    host = canonical_host(http.host)
    _refuse_overrides(http, target, host)
    if http.headers.lines("upgrade"):
        raise RequestFault(
            Reason.UNSUPPORTED_METHOD, "protocol upgrades are refused: their frames are not checked"
        )
    return target, host


def _refuse_overrides(http: HttpRequest, target: Target, host: CanonicalHost) -> None:
    fields = http.headers.fields
    for name in _METHOD_OVERRIDES:
        if name in fields and http.headers.text(name) != http.method:
            raise _contradiction(name, "method")
    for name in _PATH_OVERRIDES:
        if name in fields and not _same_target(http.headers.text(name), target):
            raise _contradiction(name, "path")
    for name in _HOST_OVERRIDES:
        if name in fields and not _same_host(http.headers.text(name), host):
            raise _contradiction(name, "host")
    if "forwarded" in fields and not _forwarded_agrees(http.headers.lines("forwarded"), host):
        raise _contradiction("forwarded", "host")


def _body_names_method(http: HttpRequest) -> bool:
    """Tell whether a form or JSON has the field `_method`, which frameworks take for the method."""
    media_type = (http.headers.text("content-type") or "").partition(";")[0].strip().lower()
    if media_type == "application/x-www-form-urlencoded":
        return _FORM_METHOD.search(http.body) is not None
    if media_type == "multipart/form-data":
        return _PART_METHOD.search(http.body) is not None
    return media_type.endswith("json") and _JSON_METHOD.search(http.body) is not None


def _same_target(text: str | None, target: Target) -> bool:
    try:
        return text is not None and Target.parse(text) == target
    except RequestFault:
        return False


def _same_host(text: str | None, host: CanonicalHost) -> bool:
    try:
        return text is not None and canonical_host(text) == host
    except RequestFault:
        return False


def _forwarded_agrees(lines: tuple[bytes, ...], host: CanonicalHost) -> bool:
    """Tell whether every `host` parameter of RFC 7239 §5.3 names the request's own host."""
    text = b",".join(lines).decode("latin-1")
    for element in text.replace(";", ",").split(","):
        name, _, value = element.partition("=")
        if name.strip().lower() == "host" and not _same_host(value.strip().strip('"'), host):
            return False
    return True


def _contradiction(name: str, what: str) -> RequestFault:
    return RequestFault(
        Reason.MALFORMED_REQUEST, f"header `{name}` contradicts the {what} of the request"
    )


def _arguments(http: HttpRequest, route: RouteContext, declaration: Declaration) -> AttributeMap:
    """Return the declared arguments; of a request without a body all are None.

    SECURITY: a body that was not shown to us may hold them all the same. None would be a lie that
    switches off every rule on what they must not be.
    """
    if not body_seen(http, route):
        raise RequestFault(
            Reason.BODY_TRUNCATED, "arguments are in the body, which was not sent for the check"
        )
    return declared(declaration, document(http, ANY_JSON) if http.body else None)


def _digest(query: str, body: bytes) -> str | None:
    if not query and not body:
        return None
    return hashlib.sha256(query.encode("ascii") + b"\0" + body).hexdigest()


def declares_body(http: HttpRequest) -> bool:
    """Tell whether the framing announces a body (RFC 9112 §6), shown to us or not."""
    length = http.headers.text("content-length")
    return (length is not None and length != "0") or "transfer-encoding" in http.headers.fields


def body_seen(http: HttpRequest, route: RouteContext) -> bool:
    """Tell whether the body, if the request has one, is in front of us.

    Without `with_request_body` Envoy sends none. HTTP/1 framing tells whether one exists, and so
    does a declared length. Over HTTP/2 a body may come that nothing announces: there it takes the
    operator's word that Envoy buffers bodies (`RouteContext.whole_body`).
    """
    if http.body or http.method in _WITHOUT_BODY:
        return True
    if declares_body(http):
        return False
    declared_empty = http.headers.lines("content-length") != ()
    # SECURITY: Envoy names the version in every check; other proxies do not, over HTTP/2 either.
    return declared_empty or http.protocol.startswith("HTTP/1") or route.whole_body


def _is_contentless(http: HttpRequest) -> bool:
    """Tell whether the request announces no body and an approval of it needs nothing of one.

    Its method gives content no meaning (RFC 9110 §9.3.5, §9.3.7), or it was not described by an
    Envoy, which always says the HTTP version, and nothing was counted: a check written by hand.
    """
    if declares_body(http):
        return False
    return http.method in _CONTENT_UNDEFINED or (not http.protocol and http.size == 0)
