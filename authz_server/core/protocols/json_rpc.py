"""One JSON-RPC 2.0 message out of a raw HTTP body, strictly.

Strict because two readers must agree: duplicate members, members that differ from the defined ones
only by case, batches, unknown members, byte order marks and compressed bodies are all refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from authz_server.core import limits, strict_json
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.request import HttpRequest

JSON: Final = frozenset({"application/json"})

_MEMBERS = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_ID_CHARS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request, a notification (no id) or a response (no method).

    `id_json` is the id as JSON text, ready to be echoed.
    """

    method: str | None
    params: Mapping[str, object]
    id_json: str | None


def parse(http: HttpRequest, media_types: frozenset[str] = JSON) -> Message:
    """Return the one message in the body.

    Raises `RequestFault` (`MALFORMED_BODY`, `OVERSIZE`).
    """
    value = document(http, media_types)
    if not isinstance(value, dict):
        raise _malformed("body is not one JSON-RPC object; batches are refused")
    return _message(value)


def document(http: HttpRequest, media_types: frozenset[str] = JSON) -> object:
    """Return the JSON value in the body, whose media type is one of `media_types`.

    Raises `RequestFault` (`MALFORMED_BODY`, `OVERSIZE`).
    """
    _check_media_type(http, media_types)
    if len(http.body) > limits.BODY_BYTES_MAX:
        raise RequestFault(Reason.OVERSIZE, "body is larger than 256 KiB")
    try:
        return strict_json.loads(
            http.body,
            depth_max=limits.JSON_DEPTH_MAX,
            members_max=limits.JSON_MEMBERS_MAX,
        )
    except InvalidValueError as error:
        raise _malformed(f"body is not strict JSON: {error}") from error


def _check_media_type(http: HttpRequest, media_types: frozenset[str]) -> None:
    content_type = http.headers.text("content-type") or ""
    media_type, _, parameters = content_type.partition(";")
    if media_type.strip().lower() not in media_types:
        raise _malformed(f"content type is not `{'` or `'.join(sorted(media_types))}`")
    if parameters.replace(" ", "").lower() not in {"", "charset=utf-8", 'charset="utf-8"'}:
        raise _malformed("content type has a parameter other than `charset=utf-8`")
    if (http.headers.text("content-encoding") or "identity").lower() != "identity":
        raise _malformed("body is compressed")


def _message(value: Mapping[str, object]) -> Message:
    unknown = value.keys() - _MEMBERS
    if unknown:
        raise _malformed("JSON-RPC object has a member that JSON-RPC 2.0 does not define")
    if value.get("jsonrpc") != "2.0":
        raise _malformed("`jsonrpc` is not `2.0`")
    method = value.get("method")
    if not isinstance(method, str | None) or ("method" in value and method is None):
        raise _malformed("`method` is not a string")
    is_response = "result" in value or "error" in value
    if ("method" in value) == is_response or method == "":
        raise _malformed("message is neither a request nor a response")
    params = value.get("params", {})
    if not isinstance(params, dict):
        raise _malformed("`params` is not an object")
    return Message(method=method, params=params, id_json=_id_json(value))


def _id_json(value: Mapping[str, object]) -> str | None:
    if "id" not in value:
        return None
    identifier = value["id"]
    # JSON-RPC 2.0 §4: a string or a number; MCP forbids null. A fraction is no identifier.
    if isinstance(identifier, str) and len(identifier) <= _ID_CHARS_MAX:
        return json.dumps(identifier)
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        return str(identifier)
    raise _malformed("`id` is not a short string or an integer")


def _malformed(detail: str) -> RequestFault:
    return RequestFault(Reason.MALFORMED_BODY, detail)
