"""SPIFFE IDs and trust domains: an id in hand is always well formed.

The grammar is SPIFFE-ID §2, canonical form only: §2.4 makes scheme and trust domain
case-insensitive, and we accept the lower-case spelling alone, so that equal ids are equal strings.
"""

import re
from dataclasses import dataclass, field
from typing import Self

from authz_server.core import limits
from authz_server.core.errors import InvalidValueError

# SECURITY: `fullmatch` and never `$`, which would also accept a trailing newline.
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")  # SPIFFE-ID §2.1
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")  # SPIFFE-ID §2.2
_PATTERN_SEGMENT = re.compile(r"[a-zA-Z0-9._*-]+")
_SCHEME = "spiffe://"


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """The name of a trust domain, such as `prod.example.org`."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the trust domain named by `text` (no scheme).

        Raises `InvalidValueError` outside the grammar of SPIFFE-ID §2.1 or over 255 bytes.
        """
        if len(text) > limits.TRUST_DOMAIN_BYTES_MAX:
            raise InvalidValueError("trust domain is longer than 255 bytes")
        if not _TRUST_DOMAIN.fullmatch(text):
            raise InvalidValueError("trust domain has a character outside `[a-z0-9._-]`, or none")
        return cls(text)

    def __str__(self) -> str:
        return self.name

    @property
    def uri(self) -> str:
        """The id of the trust domain itself, the audience of every root grant."""
        return _SCHEME + self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """The id of a workload: a trust domain and a non-empty path (X509-SVID §5.2)."""

    trust_domain: TrustDomain
    path: str  # begins with "/", never ends with one
    _text: str = field(init=False, repr=False, compare=False)  # read many times in a decision

    def __post_init__(self) -> None:
        object.__setattr__(self, "_text", f"{_SCHEME}{self.trust_domain.name}{self.path}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the workload id spelled by `text`.

        Raises `InvalidValueError` for anything but the canonical spelling: other scheme, upper-case
        trust domain, port, query, percent-encoding, empty or dot segments, over 2048 bytes, or no
        path at all (a trust domain is nobody's identity).
        """
        name, slash, path = split_uri(text)
        if not slash:
            raise InvalidValueError("SPIFFE ID names a trust domain, not a workload")
        for segment in path.split("/"):
            _check_segment(segment, _SEGMENT)
        return cls(TrustDomain.parse(name), "/" + path)

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True, slots=True)
class SpiffeIdPattern:
    """A SPIFFE ID in which `*` stands for any characters within one path segment.

    INVARIANT: never crosses a `/` and never matches in the trust domain.
    """

    text: str
    _regex: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the pattern spelled by `text`; without `*` it matches exactly one id."""
        name, slash, path = split_uri(text)
        if not slash:
            raise InvalidValueError("pattern names a trust domain, not a workload")
        TrustDomain.parse(name)
        for segment in path.split("/"):
            _check_segment(segment, _PATTERN_SEGMENT)
            if segment.count("*") > 1:
                # Two stars in a segment make backtracking quadratic and rarely mean anything.
                raise InvalidValueError("pattern has more than one `*` in a path segment")
        return cls(text, re.compile(re.escape(text).replace(r"\*", "[a-zA-Z0-9._-]*")))

    def matches(self, spiffe_id: SpiffeId) -> bool:
        """Tell whether `spiffe_id` falls under this pattern."""
        return self._regex.fullmatch(str(spiffe_id)) is not None

    @property
    def trust_domain(self) -> TrustDomain:
        """The one trust domain whose ids it can match."""
        return TrustDomain(split_uri(self.text)[0])

    @property
    def specificity(self) -> tuple[bool, int, int]:
        """Order by: exact before wildcard, then literal characters, then fewer wildcards."""
        stars = self.text.count("*")
        return (stars == 0, len(self.text) - stars, -stars)


def split_uri(text: str) -> tuple[str, str, str]:
    """Split `spiffe://domain/path` into domain, slash and path, checking scheme and length."""
    if len(text) > limits.SPIFFE_ID_BYTES_MAX:
        raise InvalidValueError("SPIFFE ID is longer than 2048 bytes")
    if not text.startswith(_SCHEME):
        raise InvalidValueError("SPIFFE ID does not start with `spiffe://`")
    return text[len(_SCHEME) :].partition("/")


def _check_segment(segment: str, grammar: re.Pattern[str]) -> None:
    if segment in {"", ".", ".."}:
        raise InvalidValueError("SPIFFE ID has an empty, `.` or `..` path segment")
    if not grammar.fullmatch(segment):
        raise InvalidValueError("SPIFFE ID has a path character outside `[a-zA-Z0-9._-]`")
