"""A JSON document out of a raw HTTP body, strictly.

Strict because two readers must agree: what is not declared as JSON in UTF-8, is compressed, or
could be read in two ways (`strict_json`) is refused.
"""

import re
from typing import Final

from authz_server.core import limits, strict_json
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.request import HttpRequest
from authz_server.core.strict_json import JsonValue

JSON: Final = frozenset({"application/json"})
ANY_JSON: Final = JSON | {"application/*+json"}  # RFC 6839 §3.1

_SUFFIXED: Final = re.compile(r"application/[a-z0-9][a-z0-9!#$&^_.-]*\+json")  # RFC 6838 §4.2


def document(http: HttpRequest, media_types: frozenset[str] = JSON) -> JsonValue:
    """Return the JSON value in the body, whose media type is one of `media_types`.

    Raises `RequestFault` (`MALFORMED_BODY`). Its size is bounded by `http.request_line`.
    """
    _check_media_type(http, media_types)
    try:
        return strict_json.loads(
            http.body,
            depth_max=limits.JSON_DEPTH_MAX,
            members_max=limits.JSON_MEMBERS_MAX,
            parse_float=strict_json.exact_or_whole,
        )
    except InvalidValueError as error:
        raise _malformed(f"body is not strict JSON: {error}") from error


def _check_media_type(http: HttpRequest, media_types: frozenset[str]) -> None:
    content_type = http.headers.text("content-type") or ""
    media_type, _, parameters = content_type.partition(";")
    if not _is_one_of(media_type.strip(" ").lower(), media_types):
        raise _malformed(f"content type is not `{'` or `'.join(sorted(media_types))}`")
    if parameters.replace(" ", "").lower() not in {"", "charset=utf-8", 'charset="utf-8"'}:
        raise _malformed("content type has a parameter other than `charset=utf-8`")
    if (http.headers.text("content-encoding") or "identity").lower() != "identity":
        raise _malformed("body is compressed")


def _is_one_of(media_type: str, media_types: frozenset[str]) -> bool:
    if media_type in media_types:
        return True
    return media_types is ANY_JSON and _SUFFIXED.fullmatch(media_type) is not None


def _malformed(detail: str) -> RequestFault:
    return RequestFault(Reason.MALFORMED_BODY, detail)
