"""A URL that somebody is asked to call: one spelling, or no URL.

An agent posts to the push notification URL it is given, so a rule must see the host that the
agent's HTTP client will connect to. Parsers disagree about most of what a URL may hold (user
information, backslashes, IPv4 addresses in hexadecimal, Unicode that a resolver maps to ASCII), so
only the part of RFC 3986 that all of them, WHATWG's included, read alike is taken.
"""

import re
from dataclasses import dataclass
from typing import Final

from authz_server.core import limits
from authz_server.core.errors import InvalidValueError, RequestFault
from authz_server.core.paths import Target, canonical_host

_URL: Final = re.compile(r"(https?)://([^/?#\\@ ]+)((?:[/?][^#\\ ]*)?)", re.IGNORECASE)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class WebUrl:
    """An absolute `http` or `https` URL without user information and fragment.

    `text` is its canonical form: lower-case scheme and host, no default port, canonical path, query
    as sent. `host` is a DNS name in ASCII, a dotted IPv4 address, or an IPv6 address in brackets.
    Where it leads is not checked: no name is resolved.
    """

    text: str
    host: str

    @classmethod
    def parse(cls, text: str) -> "WebUrl":
        """Return the URL that `text` spells. Raises `InvalidValueError`, without quoting it."""
        if len(text) > limits.POLICY_STRING_BYTES_MAX:
            raise InvalidValueError("URL is longer than 4 KiB")
        match = _URL.fullmatch(text) if text.isascii() and text.isprintable() else None
        if match is None:
            raise InvalidValueError(
                "URL is not absolute `http` or `https` in ASCII, or has user information, a blank, "
                "a backslash or a fragment"
            )
        scheme, authority = match[1].lower(), match[2]
        try:
            host = canonical_host(authority)
            target = Target.parse(match[3] if match[3].startswith("/") else f"/{match[3]}")
        except RequestFault as error:
            raise InvalidValueError(f"URL: {error.detail}") from error
        port = _port(authority)
        shown = "" if port in {None, _DEFAULT_PORTS[scheme]} else f":{port}"
        query = f"?{target.query}" if target.query else ""
        return cls(text=f"{scheme}://{host}{shown}{target.path}{query}", host=host)


def _port(authority: str) -> int | None:
    """Return the port of an authority that `canonical_host` has accepted."""
    _, colon, port = authority.rpartition(":")
    return int(port) if colon and not port.endswith("]") else None
