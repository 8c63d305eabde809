"""Canonical absolute URIs: one spelling or a denial, as `paths` has it for request targets.

A rule compares a resource's URI as text. Whoever serves it may normalise first, so a spelling that
normalisation would change is refused (RFC 3986 §6.2.2): a dot segment, an escaped letter, an upper
case scheme, a character that is not escaped and must be.
"""

import re
from typing import Final

from authz_server.core import limits
from authz_server.core.errors import Reason, RequestFault

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]{0,63}):(?=.)")
_AUTHORITY: Final = re.compile(r"//([^/?#]*)")
_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*")  # RFC 3986 §2
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-F]{2})")  # upper case, §6.2.2.1
_UNRESERVED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"  # §2.3
_CONTROLS: Final = bytes((*range(0x20), 0x7F))
_SHAPING: Final = b"/\\%;#"  # what would change the shape of the path once decoded
_NEVER_ESCAPED: Final = re.compile(
    "|".join(f"%{octet:02X}" for octet in _UNRESERVED + _CONTROLS + _SHAPING)
)
# WHATWG "special" schemes: parsers lower the case of their hosts. Of others they leave it.
_HOST_IS_NAME: Final = frozenset({"http", "https", "ws", "wss", "ftp", "file"})


def check_uri(uri: str) -> None:
    """Refuse a URI that has another spelling or another reading.

    Raises `RequestFault`: `OVERSIZE` over 4 KiB, `NON_CANONICAL_PATH` naming what is not canonical.
    """
    if len(uri) > limits.POLICY_STRING_BYTES_MAX:
        raise RequestFault(Reason.OVERSIZE, "URI is longer than 4 KiB")
    scheme = _SCHEME.match(uri)
    if scheme is None:
        raise _non_canonical("URI does not begin with a scheme in lower case")
    if _CHARACTERS.fullmatch(uri) is None:
        raise _non_canonical("URI has a character that must be escaped")
    if _BAD_ESCAPE.search(uri):
        raise _non_canonical("URI has a percent-escape that is malformed or in lower case")
    if _NEVER_ESCAPED.search(uri):
        raise _non_canonical("URI escapes a letter, digit, control character, separator or `%`")
    path = uri[scheme.end() :]
    if authority := _AUTHORITY.match(path):
        _check_authority(scheme[1], authority[1])
        path = path[authority.end() :]
    _check_path(re.split("[?#]", path, maxsplit=1)[0])


def _check_authority(scheme: str, authority: str) -> None:
    if authority.count("@") > 1:
        raise _non_canonical("URI has two `@` before its path")
    host = authority.rpartition("@")[2]
    if scheme in _HOST_IS_NAME and (host != host.lower() or "%" in host):
        raise _non_canonical("host of the URI is not in lower case, or escaped")


def _check_path(path: str) -> None:
    if "//" in path:
        raise _non_canonical("path of the URI has an empty segment")
    if {".", ".."} & set(path.split("/")):
        raise _non_canonical("path of the URI has a dot segment")


def _non_canonical(detail: str) -> RequestFault:
    return RequestFault(Reason.NON_CANONICAL_PATH, detail)
