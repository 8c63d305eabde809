"""Header field lines as Envoy sends them, brought under the names that `core.request` reads.

What Envoy really sends was observed on Envoy 1.40:

- With `encode_raw_headers` every line arrives on its own in `header_map` and `headers` is empty,
  except that Envoy has already joined repeated `host`, `content-type`, `content-encoding` and
  `authorization` lines with a comma; the upstream gets those joined too.
- Without it `headers` is a map: all repeated lines are joined, bytes outside UTF-8 are replaced.
- `host` never arrives beside `:authority`, and a client's `x-envoy-auth-partial-body` never does.
"""

import re
import string
from collections.abc import Mapping
from typing import Final

from authz_server.core.errors import Reason, RequestFault
from authz_server.core.request import SECURITY_HEADERS, Headers

# RFC 9110 §5.6.2, in the lower case of a field name
_TOKEN_CHARACTERS: Final = (string.ascii_lowercase + string.digits + "!#$%&'*+-.^_`|~").encode()
_PSEUDO_HEADERS: Final = frozenset({":authority", ":method", ":path", ":protocol", ":scheme"})

# How a comma in one line of a security header is to be read. SECURITY: it may be a comma that was
# sent, or two lines that Envoy joined, and then another reader may have seen only one of them.
#
# The value can hold no comma: two lines were joined.
SINGLETONS: Final = frozenset(
    {
        ":authority",
        ":method",
        ":scheme",
        "a2a-version",
        "content-length",
        "content-type",
        "host",
        "mcp-method",
        "mcp-protocol-version",
        "txn-token",
        "workload-identity-token",
    }
)
# A comma may be part of the one value: unless lines arrive apart, it cannot be told from a join.
SINGLETONS_WITH_COMMA: Final = frozenset({"mcp-name", "mcp-session-id"})
# Defined as a list: one line or several mean the same (RFC 9110 §5.3), and whoever reads it reads
# a list. A joined `delegation-chain` keeps its order, which every link proves by hash.
LISTS: Final = frozenset(
    {
        "a2a-extensions",
        "content-encoding",
        "delegation-chain",
        "transfer-encoding",
        "upgrade",
        "x-a2a-extensions",
        "x-forwarded-client-cert",
    }
)
# The comma between parameters of one scheme is legal; another scheme behind it is a second line.
# RFC 9110 §11.4: credentials = auth-scheme [ 1*SP ( token68 / #auth-param ) ]
_TOKEN: Final = b"[A-Z" + re.escape(_TOKEN_CHARACTERS) + b"]+"
_PARAMETER: Final = _TOKEN + rb'[ \t]*=[ \t]*(?:[^\s",]+|"(?:[^"\\]|\\.)*")'
_CREDENTIALS_WITH_PARAMETERS: Final = re.compile(
    _TOKEN + rb" +" + _PARAMETER + rb"(?:[ \t]*,[ \t]*" + _PARAMETER + rb")*"
)
_JUDGED_BY_COMMA: Final = SINGLETONS | SINGLETONS_WITH_COMMA | {"authorization"}


def separate_lines(lines: list[tuple[str, bytes]]) -> Headers:
    """Return lines of `header_map`, in order, by lower-case name.

    Raises `RequestFault`: `DUPLICATE_HEADER` for a repeated security header, `MALFORMED_REQUEST`
    for a name that is not a token.
    """
    return _collect(lines, SINGLETONS)


def joined_lines(lines: list[tuple[str, bytes]]) -> Headers:
    """Return entries of `headers`, one for each name. Raises as `separate_lines`."""
    return _collect(lines, SINGLETONS | SINGLETONS_WITH_COMMA)


def _collect(lines: list[tuple[str, bytes]], singletons: frozenset[str]) -> Headers:
    names = "".join([name for name, _ in lines]).encode()
    # All names at once, a tenth of the cost of one match for each: without token characters, there
    # is one colon left of each pseudo-header and nothing else.
    rest = names.translate(None, _TOKEN_CHARACTERS)
    if rest.strip(b":"):  # Envoy's names are in lower case and do not come here
        rest = names.lower().translate(None, _TOKEN_CHARACTERS)
        lines = [(name.lower(), value) for name, value in lines]
    fields: dict[str, tuple[bytes, ...]] = {name: (value,) for name, value in lines}
    if len(fields) != len(lines):
        fields = _repeated(lines)
    if "" in fields or rest != b":" * len(_PSEUDO_HEADERS & fields.keys()):
        raise RequestFault(Reason.MALFORMED_REQUEST, "header name is not a token")
    if b"_" in names:
        _refuse_imitations(fields)
    for name in _JUDGED_BY_COMMA & fields.keys():
        if b"," in fields[name][0]:
            _check_comma(name, fields[name][0], singletons)
    return Headers(fields=fields)


def _repeated(lines: list[tuple[str, bytes]]) -> dict[str, tuple[bytes, ...]]:
    fields: dict[str, tuple[bytes, ...]] = {}
    for name, value in lines:
        if name in fields and name in SECURITY_HEADERS:
            raise RequestFault(Reason.DUPLICATE_HEADER, f"header `{name}` was sent more than once")
        fields[name] = (*fields.get(name, ()), value)
    return fields


def _refuse_imitations(fields: Mapping[str, tuple[bytes, ...]]) -> None:
    """Refuse `txn_token` and its like.

    SECURITY: CGI and WSGI turn both `-` and `_` into `_` (RFC 3875 §4.1.18), so behind us such a
    line would become, or replace, the header that was judged.
    """
    for name in fields:
        if "_" in name:
            meant = name.replace("_", "-")
            if meant in SECURITY_HEADERS or meant.startswith("x-authz-"):
                raise RequestFault(
                    Reason.MALFORMED_REQUEST, f"header imitates `{meant}` with an underscore"
                )


def _check_comma(name: str, value: bytes, singletons: frozenset[str]) -> None:
    if name == "authorization":
        is_joined = not _CREDENTIALS_WITH_PARAMETERS.fullmatch(value)
    else:
        is_joined = name in singletons
    if is_joined:
        raise RequestFault(Reason.DUPLICATE_HEADER, f"header `{name}` was sent more than once")
