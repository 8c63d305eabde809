"""Canonical path, query and host: one spelling or a denial.

Envoy, the upstream and a rule must read the same resource out of the same bytes. So a path is
accepted only if it has one reading: we normalise what RFC 3986 §6.2.2 calls equivalent (escapes of
unreserved characters, case of hex digits), strip one trailing slash, and refuse whatever two
parsers are known to read differently. A rule therefore never sees an escape of a plain letter.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType, Self

from authz_server.core import limits
from authz_server.core.attributes import AMBIGUOUS, AttributeValue
from authz_server.core.errors import Reason, RequestFault

CanonicalHost = NewType("CanonicalHost", str)

# RFC 3986 §3.3 pchar without ";": path parameters are dropped by some servers and kept by others.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,=:@/-]*")
_ESCAPED_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,=:@/-]|%[0-9A-Fa-f]{2})*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Escapes whose decoding would change the shape of the path somewhere behind us: separators,
# a second round of decoding, parameters, a fragment.
_SHAPING = frozenset(b"/\\%;#")
_QUERY = re.compile(r"[\x21-\x7e]*")
_REG_NAME = re.compile(
    r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*"
)
_IPV6 = re.compile(r"\[[0-9a-f:.]+\]")
_PORT = re.compile(r"[0-9]{1,5}")
# What resolvers take for an IPv4 address, in whatever notation (WHATWG URL, "ends in a number").
_NUMERIC_NAME = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


@dataclass(frozen=True, slots=True)
class Target:
    """A canonical request target.

    `path` begins with "/", has no empty, `.` or `..` segment, no trailing slash (but the root), and
    is ASCII in RFC 3986 normal form. `query` is raw, without "?".
    """

    path: str
    query: str

    @classmethod
    def parse(cls, raw: str) -> Self:
        """Return the canonical form of an origin-form target (RFC 9112 §3.2.1).

        Raises `RequestFault`: `OVERSIZE`, or `NON_CANONICAL_PATH` naming what has two readings.
        """
        if len(raw) > limits.RAW_PATH_BYTES_MAX:
            raise RequestFault(Reason.OVERSIZE, "path is longer than 8 KiB")
        path, _, query = raw.partition("?")
        if len(path) > limits.POLICY_STRING_BYTES_MAX:
            # No matcher function would see it; the sender is at fault, not the policy's owner.
            raise RequestFault(Reason.OVERSIZE, "path without query is longer than 4 KiB")
        if not _QUERY.fullmatch(query) or "#" in query:
            raise _non_canonical("query has a space, control, non-ASCII or `#` character")
        if _PLAIN_PATH.fullmatch(path) is None:
            path = _normalised(path)
        _check_segments(path)
        return cls(path.rstrip("/") or "/", query)

    @property
    def segments(self) -> tuple[str, ...]:
        """The path split at "/"; empty for the root."""
        return tuple(self.path[1:].split("/")) if len(self.path) > 1 else ()


def _normalised(path: str) -> str:
    if not path.startswith("/"):
        raise _non_canonical("path does not begin with `/`")
    if _ESCAPED_PATH.fullmatch(path) is None:
        if _BAD_ESCAPE.search(path):
            raise _non_canonical("path has a malformed percent-escape")
        raise _non_canonical("path has a character that must be escaped, or `;`, `\\` or `#`")
    return _ESCAPES.sub(_normalised_run, path)


def _normalised_run(run: re.Match[str]) -> str:
    octets = bytes.fromhex(run[0].replace("%", ""))
    for octet in octets:
        if octet < 0x20 or octet == 0x7F:
            raise _non_canonical("path escapes a control character")
        if octet in _SHAPING:
            raise _non_canonical("path escapes a separator, `%`, `;` or `#`")
    try:
        octets.decode("utf-8")  # overlong forms and lone continuation bytes are refused here
    except UnicodeDecodeError as error:
        raise _non_canonical("path escapes bytes that are not UTF-8") from error
    return "".join(chr(o) if o in _UNRESERVED else f"%{o:02X}" for o in octets)


def _check_segments(path: str) -> None:
    if "//" in path:
        raise _non_canonical("path has an empty segment")
    if path.count("/") > limits.PATH_SEGMENTS_MAX:
        raise RequestFault(Reason.OVERSIZE, "path has more than 256 segments")
    if "/." in path and any(segment in {".", ".."} for segment in path.split("/")):
        raise _non_canonical("path has a dot segment")
    # A blank at the edge of a segment is trimmed by some servers: `/admin%20` is `/admin` to them.
    if "%20" in path and any(
        segment.startswith("%20") or segment.endswith("%20") for segment in path.split("/")
    ):
        raise _non_canonical("path has a blank at the edge of a segment")


def _non_canonical(detail: str) -> RequestFault:
    return RequestFault(Reason.NON_CANONICAL_PATH, detail)


def parse_query(query: str) -> Mapping[str, AttributeValue]:
    """Return the decoded parameters of a raw query (`application/x-www-form-urlencoded`).

    A name given more than once maps to `AMBIGUOUS`: which one the upstream takes is unknown.
    Raises `RequestFault`: `OVERSIZE` over 256 parameters, `MALFORMED_REQUEST` for a broken escape
    or escaped bytes that are not UTF-8.
    """
    parameters: dict[str, AttributeValue] = {}
    if not query:
        return parameters
    pairs = query.split("&")
    if len(pairs) > limits.QUERY_PARAMETERS_MAX:
        raise RequestFault(Reason.OVERSIZE, "query has more than 256 parameters")
    for pair in pairs:
        name, _, value = pair.partition("=")
        key = _form_decoded(name)
        parameters[key] = AMBIGUOUS if key in parameters else _form_decoded(value)
    return parameters


def _form_decoded(text: str) -> str:
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise RequestFault(Reason.MALFORMED_REQUEST, "query has a malformed percent-escape")
    octets = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1")
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestFault(
            Reason.MALFORMED_REQUEST, "query escapes bytes that are not UTF-8"
        ) from error


def canonical_host(authority: str) -> CanonicalHost:
    """Return the host of an authority: lower case, without port, an IPv6 address as in RFC 5952.

    Raises `RequestFault` (`MALFORMED_REQUEST`) for an empty host, user information, a trailing dot,
    a list of hosts, an over-long name, an address in a notation that is not its only one, or
    anything that is neither a name nor an address.
    """
    if len(authority) > limits.HOST_BYTES_MAX:
        raise RequestFault(Reason.MALFORMED_REQUEST, "host is longer than a DNS name can be")
    host, port = _split_port(authority.lower())
    if port is not None and not (_PORT.fullmatch(port) and 0 < int(port) < 65536):
        raise RequestFault(Reason.MALFORMED_REQUEST, "host has a malformed port")
    if _REG_NAME.fullmatch(host):
        if _NUMERIC_NAME.fullmatch(host):
            _check_ipv4(host)
        return CanonicalHost(host)
    if _IPV6.fullmatch(host):
        return CanonicalHost(_ipv6(host))
    raise RequestFault(Reason.MALFORMED_REQUEST, "host is not one plain DNS name or IP address")


def _check_ipv4(host: str) -> None:
    try:
        ipaddress.IPv4Address(host)  # four decimal numbers without leading zeros
    except ValueError as error:
        raise RequestFault(
            Reason.MALFORMED_REQUEST, "host is an IPv4 address in another notation than 192.0.2.1"
        ) from error


def _ipv6(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host[1:-1])
    except ValueError as error:
        raise RequestFault(Reason.MALFORMED_REQUEST, "host is not an IPv6 address") from error
    if address.ipv4_mapped is not None:
        raise RequestFault(Reason.MALFORMED_REQUEST, "host is an IPv4 address written as IPv6")
    return f"[{address}]"


def canonical_destination(authority: str) -> tuple[CanonicalHost, int]:
    """Return host and port of the authority that a CONNECT names (RFC 9110 §9.3.6).

    Raises `RequestFault` (`MALFORMED_REQUEST`) as `canonical_host`, and for one without a port:
    CONNECT has no default.
    """
    host = canonical_host(authority)
    port = _split_port(authority)[1]
    if port is None:
        raise RequestFault(Reason.MALFORMED_REQUEST, "destination of a tunnel has no port")
    return host, int(port)


def _split_port(authority: str) -> tuple[str, str | None]:
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not rest:
            return host + bracket, None
        return host + bracket, rest.removeprefix(":") if rest.startswith(":") else ""
    host, colon, port = authority.partition(":")
    return host, port if colon else None
