"""The door: bytes of a `CheckRequest` in, an `AccessRequest` out; answers go back by `answer`.

With `answer`, this is the only user of the generated messages.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct, Value

from authz_server._pb.envoy.config.core.v3.address_pb2 import Address
from authz_server._pb.envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz_server.core import limits
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.request import NODE_LABEL, AccessRequest, Headers, HttpRequest
from authz_server.servers.answer import check_response
from authz_server.servers.header_lines import joined_lines, separate_lines

__all__ = ["access_request", "check_request_from_json", "check_response"]

_PARTIAL_BODY: Final = "x-envoy-auth-partial-body"
_NO_METADATA: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType({})
_CONTENT_LENGTH_DIGITS_MAX: Final = 18  # below 2**63, and a bound on what `int` is given


def access_request(data: bytes) -> AccessRequest:
    """Return the request that the bytes of one `CheckRequest` describe.

    What is wrong with the HTTP part alone becomes the request's `fault`, so that its denial can say
    who sent it: `OVERSIZE` over any bound of `core.limits`, `DUPLICATE_HEADER` for a repeated
    security header, `MALFORMED_REQUEST` for anything else that is ambiguous or contradicts itself.
    Not checked here: what the values mean.

    Raises `RequestFault` (`OVERSIZE`, `MALFORMED_REQUEST`) when even the rest cannot be read.
    """
    if len(data) > limits.CHECK_REQUEST_BYTES_MAX:
        raise RequestFault(Reason.OVERSIZE, "check request is too large")
    try:
        attributes = CheckRequest.FromString(data).attributes
    except DecodeError as error:
        raise RequestFault(Reason.MALFORMED_REQUEST, "check request cannot be decoded") from error
    has_http = attributes.request.HasField("http")
    if not (has_http or attributes.HasField("source") or attributes.HasField("destination")):
        raise RequestFault(Reason.MALFORMED_REQUEST, "check request describes no request")
    source, destination = attributes.source, attributes.destination
    certificate = source.certificate
    if len(certificate) > limits.PEER_CERTIFICATE_BYTES_MAX:
        raise RequestFault(Reason.OVERSIZE, "peer certificate is too large")
    extensions = attributes.context_extensions
    if len(extensions) > limits.CONTEXT_EXTENSIONS_MAX:
        raise RequestFault(Reason.OVERSIZE, "route has too many context extensions")
    http, fault = None, None
    if has_http:
        try:
            http = _http_request(attributes.request.http)
        except RequestFault as found:
            fault = found
    return AccessRequest(
        peer_certificate=certificate,
        peer_principal=source.principal,
        source_address=source.address.socket_address.address or None,
        listener=_listener(destination.address),
        destination_principal=destination.principal,
        node=destination.labels.get(NODE_LABEL),
        # Names are compared in one spelling; TLS leaves the case to the client (RFC 6066 §3).
        sni=attributes.tls_session.sni.lower() or None,
        http=http,
        extensions=dict(extensions),
        metadata=_metadata(attributes.metadata_context.filter_metadata),
        fault=fault,
        labels={} if has_http else dict(destination.labels),
    )


def check_request_from_json(data: bytes) -> bytes:
    """Return the bytes of the `CheckRequest` spelled by `data` in protobuf's JSON form.

    Raises `InvalidValueError` for anything else, unknown members included.
    """
    if not data.lstrip().startswith(b"{"):  # protobuf's parser takes `[]` for an empty message
        raise InvalidValueError("not a CheckRequest in protobuf JSON: not an object")
    try:
        return json_format.Parse(data, CheckRequest()).SerializeToString()
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValueError(f"not a CheckRequest in protobuf JSON: {error}") from error


def _listener(address: Address) -> str | None:
    socket = address.socket_address
    if host := socket.address:
        return f"[{host}]:{socket.port_value}" if ":" in host else f"{host}:{socket.port_value}"
    if internal := address.envoy_internal_address.server_listener_name:
        return f"envoy://{internal}"
    return address.pipe.path or None


def _http_request(http: AttributeContext.HttpRequest) -> HttpRequest:
    method, path, host, scheme = http.method, http.path, http.host, http.scheme
    if not method or http.query or http.fragment:
        # Envoy always says the method, and leaves these two empty: the query is part of `path`.
        raise RequestFault(Reason.MALFORMED_REQUEST, "request line is not as Envoy describes it")
    _check_size(method, limits.METHOD_BYTES_MAX, "method")
    _check_size(path, limits.RAW_PATH_BYTES_MAX, "path")
    _check_size(host, limits.HOST_BYTES_MAX, "host")
    if http.body:
        # SECURITY: string mode replaces bytes outside UTF-8, so that what is judged here is not
        # what the upstream gets (GHSA-9g5w-hqr3-w2ph).
        raise RequestFault(Reason.MALFORMED_REQUEST, "body was sent as text, not as bytes")
    body = http.raw_body
    if len(body) > limits.BODY_BYTES_MAX:
        raise RequestFault(Reason.OVERSIZE, "body is too large")
    headers = _headers(http)
    _check_same(
        headers,
        (":path", path),
        (":method", method),
        (":authority", host),
        (":scheme", scheme),
        ("host", host),
    )
    return HttpRequest(
        method=method,
        scheme=scheme,
        host=host,
        path=path,
        headers=headers,
        body=body,
        body_truncated=_is_truncated(headers, len(body), http.size),
        protocol=http.protocol,
        size=http.size,
    )


def _check_size(text: str, bytes_max: int, what: str) -> None:
    if len(text) > bytes_max or (not text.isascii() and len(text.encode()) > bytes_max):
        raise RequestFault(Reason.OVERSIZE, f"{what} is too long")


def _check_same(headers: Headers, *expected: tuple[str, str]) -> None:
    """Raise `RequestFault` if a header that is there says something else than `expected`."""
    for name, value in expected:
        lines = headers.fields.get(name)
        if lines is not None and lines[0] != value.encode():
            raise RequestFault(Reason.MALFORMED_REQUEST, f"`{name}` contradicts the request line")


def _headers(http: AttributeContext.HttpRequest) -> Headers:
    lines = http.header_map.headers
    joined = http.headers
    if lines and joined:
        raise RequestFault(Reason.MALFORMED_REQUEST, "headers were sent in two forms")
    if not lines and not joined:
        # No HTTP request is without headers: the filter was told to send none of them.
        raise RequestFault(Reason.MALFORMED_REQUEST, "no headers were sent")
    if max(len(lines), len(joined)) > limits.HEADERS_MAX:
        raise RequestFault(Reason.OVERSIZE, "too many headers")
    if lines:
        return separate_lines([(line.key, line.raw_value or line.value.encode()) for line in lines])
    return joined_lines([(name, value.encode()) for name, value in joined.items()])


def _is_truncated(headers: Headers, body_bytes: int, size: int) -> bool:
    length = headers.fields.get("content-length")
    partial = headers.fields.get(_PARTIAL_BODY)
    declared = 0
    if length is not None:
        digits = length[0]
        if not digits.isdigit() or len(digits) > _CONTENT_LENGTH_DIGITS_MAX:
            raise RequestFault(Reason.MALFORMED_REQUEST, "`content-length` is not a number")
        declared = int(digits)
        if declared < body_bytes:
            raise RequestFault(Reason.MALFORMED_REQUEST, "body is longer than its declared length")
    if partial is not None and partial != (b"false",):
        return True
    # Envoy counts what it buffered. A body of unknown size is how agentgateway marks one it cut.
    if body_bytes and size < 0:
        return True
    # An empty body is one that was not asked for, not one that was cut.
    return 0 < body_bytes < declared


def _metadata(by_filter: Mapping[str, Struct]) -> Mapping[str, Mapping[str, object]]:
    if not by_filter:
        return _NO_METADATA
    reader = _StructReader()
    return {name: reader.struct(struct) for name, struct in by_filter.items()}


class _StructReader:
    """Turns the `Struct`s of one request into plain values, within one bound for all of them.

    Depth needs none of its own: protobuf refuses bytes with over 100 messages in one another.
    """

    __slots__ = ("_members",)

    def __init__(self) -> None:
        self._members = 0

    def struct(self, struct: Struct) -> dict[str, object]:
        """Return the members of `struct`."""
        self._count(len(struct.fields))
        return {name: self._value(value) for name, value in struct.fields.items()}

    def _value(self, value: Value) -> object:
        match value.WhichOneof("kind"):
            case "string_value":
                return value.string_value
            case "number_value" if math.isfinite(value.number_value):
                return value.number_value
            case "bool_value":
                return value.bool_value
            case "null_value":
                return None
            case "struct_value":
                return self.struct(value.struct_value)
            case "list_value":
                items = value.list_value.values
                self._count(len(items))
                return [self._value(item) for item in items]
        raise RequestFault(Reason.MALFORMED_REQUEST, "filter metadata holds no JSON value")

    def _count(self, members: int) -> None:
        self._members += members
        if self._members > limits.JSON_MEMBERS_MAX:
            raise RequestFault(Reason.OVERSIZE, "filter metadata is too large")
