"""`x-forwarded-client-cert`: what a proxy says of the certificate its own client showed.

Envoy writes one element for each hop, the newest last, as text or (`format: JSON`, since 1.40) as a
JSON array. Both are read here, structure only: whether the proxy that wrote an element is to be
believed is `core.callers`' business.

SECURITY: the text form does not escape a `,` or `;` inside a URI, so that a certificate whose URI
holds one reads as two members, or as two elements. SPIFFE IDs hold neither; believe text only from
proxies whose clients are certified by SPIFFE authorities, or have them write JSON.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from authz_server.core import limits, strict_json
from authz_server.core.errors import InvalidValueError
from authz_server.core.strict_json import JsonValue

_MEMBERS: Final = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns", "issuer"})
_JSON_DEPTH_MAX: Final = 3  # an array of objects of arrays
# Envoy, "x-forwarded-client-cert": `,` `;` and `=` in a value need quotes, `"` in them a backslash.
_PAIR: Final = re.compile(r'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*+)"|([^",;=\\\s\x00-\x1f]*+))')
_ELEMENT_END: Final = re.compile(r"[ \t]*,[ \t]*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class XfccElement:
    """One hop: `uris` are the URI names of the client's certificate, `by` those of the proxy's.

    `certificate_sha256` is hex, over the DER of the client's certificate; None when not said.
    """

    by: tuple[str, ...]
    uris: tuple[str, ...]
    certificate_sha256: str | None = None


def parse_xfcc(text: str) -> tuple[XfccElement, ...]:
    """Return the elements of one header value, in either form, the newest last.

    Raises `InvalidValueError` for anything that is not wholly well formed, for a member that Envoy
    does not write, and over the bounds of `core.limits`.
    """
    if len(text) > limits.XFCC_BYTES_MAX:
        raise InvalidValueError("value is longer than 32 KiB")
    # INVARIANT: the text form begins with a letter, so that no value is both.
    elements = _json_elements(text) if text.startswith("[") else _text_elements(text)
    if not 0 < len(elements) <= limits.XFCC_ELEMENTS_MAX:
        raise InvalidValueError("value does not have 1 to 16 elements")
    return tuple(_element(members) for members in elements)


def _element(members: Mapping[str, tuple[str, ...]]) -> XfccElement:
    hashes = members.get("hash", ())
    if len(hashes) > 1 or not all(map(_SHA256.fullmatch, hashes)):
        raise InvalidValueError("element has more than one hash, or one that is not SHA-256")
    return XfccElement(
        by=members.get("by", ()),
        # `URI=` is how Envoy says that it was told to name URIs and the certificate has none.
        uris=tuple(filter(None, members.get("uri", ()))),
        certificate_sha256=hashes[0] if hashes else None,
    )


def _text_elements(text: str) -> list[dict[str, tuple[str, ...]]]:
    elements: list[dict[str, tuple[str, ...]]] = [{}]
    position = 0
    while True:
        pair = _PAIR.match(text, position)
        if pair is None:
            raise InvalidValueError("value is neither `key=value` pairs nor JSON")
        name = pair[1].lower()
        if name not in _MEMBERS:
            raise InvalidValueError("element has an unknown member")
        value = pair[3] if pair[2] is None else re.sub(r"\\(.)", r"\1", pair[2])
        elements[-1][name] = (*elements[-1].get(name, ()), value)
        position = pair.end()
        if position == len(text):
            return elements
        if text[position] == ";":
            position += 1
        elif end := _ELEMENT_END.match(text, position):
            position = end.end()
            elements.append({})
        else:
            raise InvalidValueError("value has text between its pairs")


def _json_elements(text: str) -> list[dict[str, tuple[str, ...]]]:
    document = strict_json.loads(
        text.encode(), depth_max=_JSON_DEPTH_MAX, members_max=limits.JSON_MEMBERS_MAX
    )
    if not isinstance(document, list):
        raise InvalidValueError("value is not a JSON array")
    return [_json_element(element) for element in document]


def _json_element(element: JsonValue) -> dict[str, tuple[str, ...]]:
    if not isinstance(element, dict) or not element.keys() <= _MEMBERS:
        raise InvalidValueError("element is not an object, or has an unknown member")
    return {name: _texts(value) for name, value in element.items()}


def _texts(value: JsonValue) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    texts = tuple(item for item in values if isinstance(item, str))
    if len(texts) != len(values):
        raise InvalidValueError("element has a member that is not text")
    return texts
