"""The request as the enforcement point described it: bounded, typed, and free of protobuf.

An `AccessRequest` holds what Envoy saw, byte for byte. It proves structure and size, not meaning:
canonical path and host, protocol and principal are established in `pdp.decide`, so that a denial
for any of them still records who asked for what.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from authz_server.core import limits
from authz_server.core.attributes import Protocol
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.spiffe import SpiffeId

# Headers whose repetition would let two readers see two requests. A comma-joined value of one of
# these is as bad as two lines, and is refused where the value is parsed.
SECURITY_HEADERS: Final = frozenset(
    {
        ":authority",
        ":method",
        ":path",
        ":scheme",
        "a2a-extensions",
        "a2a-version",
        "authorization",
        "content-encoding",
        "content-length",
        "content-type",
        "delegation-chain",
        "host",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "mcp-session-id",
        "transfer-encoding",
        "txn-token",
        "upgrade",
        "workload-identity-token",
        "x-a2a-extensions",
        "x-forwarded-client-cert",
    }
)

NODE_LABEL: Final = "node"  # of `destination.labels`: which Envoy asks, not what stands behind it

_NO_METADATA: Mapping[str, Mapping[str, object]] = MappingProxyType({})
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """Header fields as received: lower-case names, raw bytes, one entry per field line."""

    fields: Mapping[str, tuple[bytes, ...]]

    def lines(self, name: str) -> tuple[bytes, ...]:
        """Return every value of `name` (lower case), oldest first."""
        return self.fields.get(name, ())

    def one(self, name: str) -> bytes | None:
        """Return the only value of `name`, or None.

        Raises `RequestFault` (`DUPLICATE_HEADER`) when there is more than one field line.
        """
        lines = self.fields.get(name)
        if lines is None:
            return None
        if len(lines) != 1:
            raise RequestFault(Reason.DUPLICATE_HEADER, f"header `{name}` was sent more than once")
        return lines[0]

    def text(self, name: str) -> str | None:
        """Return the only value of `name` as ASCII text without surrounding blanks, or None.

        Raises `RequestFault`: `DUPLICATE_HEADER` as in `one`, `MALFORMED_REQUEST` outside
        printable ASCII.
        """
        value = self.one(name)
        if value is None:
            return None
        if not value.isascii() or not (text := value.decode("ascii")).isprintable():
            raise RequestFault(
                Reason.MALFORMED_REQUEST, f"header `{name}` is not printable ASCII text"
            )
        return text.strip(" ")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """`AttributeContext.Request.http`. `path` is raw and includes the query."""

    method: str
    scheme: str
    host: str
    path: str
    headers: Headers
    body: bytes = b""
    body_truncated: bool = False
    protocol: str = ""  # HTTP/1.1, HTTP/2
    size: int = -1  # bytes of the body as Envoy counts them; -1 unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteContext:
    """The operator's context extensions of one route (interface section 6).

    `whole_body` (`body: whole`) says that Envoy buffers bodies there, so that one that is not in a
    check does not exist. Nothing else in a check tells: over HTTP/2 no header announces a body, and
    `size` is 0 until Envoy has read some of it.
    """

    bundle: str = "default"
    resource: str | None = None
    audience: str | None = None
    workload_id: SpiffeId | None = None
    protocol: Protocol = Protocol.HTTP
    require_delegation: bool = False
    strip_delegation: bool = False
    whole_body: bool = False
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, extensions: Mapping[str, str]) -> "RouteContext":
        """Return the context spelled by `extensions`.

        Raises `RequestFault` (`OVERSIZE`, `MALFORMED_REQUEST`) for an unknown key or value: a
        misspelt `audience` must not silently switch a check off.
        """
        if len(extensions) > limits.CONTEXT_EXTENSIONS_MAX:
            raise RequestFault(Reason.OVERSIZE, "route has too many context extensions")
        return _route_context(tuple(extensions.items()))

    @classmethod
    def of(cls, request: "AccessRequest") -> "RouteContext":
        """Return what the operator says of the route or listener that `request` came by.

        Envoy's network filter has no context extensions. What is said of a TCP listener stands in
        the labels that its own `bootstrap_metadata_labels_key` names, under the same keys.

        Raises `RequestFault` as `parse`, and for a listener that is described twice, in values
        that are not text, or as speaking something else than TCP.
        """
        told = {key: value for key, value in request.labels.items() if key != NODE_LABEL}
        if request.fault is not None and told and not request.extensions:
            # SECURITY: a guess could apply the mode of a bundle that this is not judged by.
            raise RequestFault(Reason.MALFORMED_REQUEST, "route and listener cannot be told apart")
        if request.http is not None or request.fault is not None:
            return cls.parse(request.extensions)
        if told and request.extensions:
            raise RequestFault(Reason.MALFORMED_REQUEST, "listener is described twice")
        if not all(told.values()):
            # Envoy makes an empty text of a number or a bare `true`: a check would be off unseen.
            raise RequestFault(Reason.MALFORMED_REQUEST, "listener has a label that is not text")
        route = cls.parse({"protocol": Protocol.TCP.value, **(told or request.extensions)})
        if route.protocol is not Protocol.TCP:
            raise RequestFault(
                Reason.MALFORMED_REQUEST, "listener speaks another `protocol` than its label names"
            )
        return route


# A mesh has as many contexts as routes, and every request repeats one of them: 6.5 us without.
@functools.lru_cache(maxsize=1024)
def _route_context(extensions: tuple[tuple[str, str], ...]) -> RouteContext:
    labels = {}
    values: dict[str, str] = {}
    for key, value in extensions:
        if key.startswith("label."):
            labels[key.removeprefix("label.")] = value
        elif key in _CONTEXT_KEYS:
            values[key] = value
        else:
            raise RequestFault(
                Reason.MALFORMED_REQUEST, f"route has an unknown context extension `{key[:64]}`"
            )
    return RouteContext(
        bundle=values.get("bundle") or "default",
        resource=values.get("resource") or None,
        audience=values.get("audience") or None,
        workload_id=_workload_id(values.get("workload_id")),
        protocol=_protocol(values.get("protocol")),
        require_delegation=_flag(values, "require_delegation"),
        strip_delegation=_flag(values, "strip_delegation"),
        whole_body=_whole_body(values.get("body")),
        labels=MappingProxyType(labels),
    )


_CONTEXT_KEYS = frozenset(
    {
        "bundle",
        "resource",
        "audience",
        "workload_id",
        "protocol",
        "require_delegation",
        "strip_delegation",
        "body",
    }
)


def _workload_id(text: str | None) -> SpiffeId | None:
    if not text:
        return None
    try:
        return SpiffeId.parse(text)
    except InvalidValueError as error:
        raise RequestFault(
            Reason.MALFORMED_REQUEST, "route's `workload_id` is not a SPIFFE ID"
        ) from error


def _protocol(text: str | None) -> Protocol:
    if not text:
        return Protocol.HTTP
    if text not in {"http", "grpc", "mcp", "a2a", "tcp"}:
        raise RequestFault(Reason.MALFORMED_REQUEST, "route names an unknown `protocol`")
    return Protocol(text)


def _whole_body(text: str | None) -> bool:
    if text not in {None, "none", "whole"}:
        raise RequestFault(Reason.MALFORMED_REQUEST, "route's `body` is not `whole` or `none`")
    return text == "whole"


def _flag(values: Mapping[str, str], key: str) -> bool:
    text = values.get(key, "false")
    if text not in {"true", "false"}:
        raise RequestFault(Reason.MALFORMED_REQUEST, f"route's `{key}` is not `true` or `false`")
    return text == "true"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """One CheckRequest, decoded and bounded.

    `peer_certificate` is the URL-encoded PEM of `source.certificate`, empty without client TLS.
    `peer_principal` is Envoy's own reading of it, used only to notice a disagreement. `http` is
    None for a TCP connection, and where `fault` says what made the HTTP part unreadable: such a
    request is denied, and its record still says who sent it. `labels` are the listener's
    (`destination.labels`), of a TCP connection alone.
    """

    peer_certificate: str
    peer_principal: str
    source_address: str | None  # IP without port
    listener: str | None  # destination address:port
    destination_principal: str
    node: str | None  # `destination.labels["node"]` (bootstrap_metadata_labels_key)
    sni: str | None
    http: HttpRequest | None
    extensions: Mapping[str, str]  # raw; parsed by `RouteContext.of` inside the decision
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: _NO_METADATA)
    fault: RequestFault | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)
