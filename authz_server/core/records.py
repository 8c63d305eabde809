"""Bounded, value-free descriptions of a resource for the record."""

import hashlib

from authz_server.core import limits
from authz_server.core.attributes import ObjectAttributes
from authz_server.core.decision import ResourceRecord
from authz_server.core.request import AccessRequest, RouteContext


def resource_record(obj: ObjectAttributes, route: RouteContext) -> ResourceRecord:
    """Describe an established resource. A path over the record's bound is cut, its digest kept."""
    path = obj.path
    digest = None
    if path is not None and len(path) > limits.RECORD_FIELD_CHARS_MAX:
        digest = _sha256(path)
        path = path[: limits.RECORD_FIELD_CHARS_MAX]
    return ResourceRecord(
        type=obj.type,
        host=obj.host,
        path=path,
        path_sha256=digest,
        tool=_cut(obj.tool),
        uri=_cut(obj.uri),
        resource=obj.resource,
        audience=route.audience,
        args_sha256=obj.args_sha256,
    )


def attempted_resource(request: AccessRequest, route: RouteContext | None) -> ResourceRecord:
    """Describe what a request that cannot be read was aimed at: raw path, without its query.

    The query may hold argument values, which no record keeps.
    """
    http = request.http
    if http is None:
        return ResourceRecord(
            type="tcp" if request.fault is None else "http",
            host=_cut(_printable(request.sni)) if request.sni else None,
            resource=route.resource if route else None,
            audience=route.audience if route else None,
        )
    return ResourceRecord(
        type="http",
        host=_cut(_printable(http.host)),
        path=_cut(_printable(http.path.partition("?")[0])),
        path_sha256=_sha256(http.path),
        resource=route.resource if route else None,
        audience=route.audience if route else None,
    )


def _printable(text: str) -> str:
    """Escape what could forge a log line or drive a terminal (CWE-117)."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")


def _cut(text: str | None) -> str | None:
    return text[: limits.RECORD_FIELD_CHARS_MAX] if text is not None else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
