"""One JSON-RPC 2.0 message out of a raw HTTP body, strictly.

Strict because two readers must agree: members that differ from the defined ones only by case,
batches and unknown members are refused, beside what `json_body` refuses.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from authz_server.core.errors import Reason, RequestFault
from authz_server.core.protocols.json_body import JSON, document
from authz_server.core.request import HttpRequest

_MEMBERS = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_ID_CHARS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request, a notification (no id) or a response (no method).

    `answer` is what a response holds, `{"result": …}` or `{"error": …}`. `id_json` is the id as
    JSON text, ready to be echoed.
    """

    method: str | None
    params: Mapping[str, object]
    answer: Mapping[str, object]
    id: str | int | None
    id_json: str | None


def parse(http: HttpRequest, media_types: frozenset[str] = JSON) -> Message:
    """Return the one message in the body.

    Raises `RequestFault` (`MALFORMED_BODY`).
    """
    value = document(http, media_types)
    if not isinstance(value, dict):
        raise _malformed("body is not one JSON-RPC object; batches are refused")
    return _message(value)


class answered_to:  # noqa: N801 -- a context manager, as in `contextlib`
    """Tell a fault raised inside by which id its answer is to be known."""

    __slots__ = ("_id_json",)

    def __init__(self, id_json: str | None) -> None:
        self._id_json = id_json

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, RequestFault) and error.json_rpc_id is None:
            error.json_rpc_id = self._id_json


def _message(value: Mapping[str, object]) -> Message:
    unknown = value.keys() - _MEMBERS
    if unknown:
        raise _malformed("JSON-RPC object has a member that JSON-RPC 2.0 does not define")
    if value.get("jsonrpc") != "2.0":
        raise _malformed("`jsonrpc` is not `2.0`")
    identifier = _id(value)
    id_json = _id_json(identifier)
    with answered_to(id_json):
        method = value.get("method")
        if not isinstance(method, str | None) or ("method" in value and method is None):
            raise _malformed("`method` is not a string")
        answer = {name: value[name] for name in ("result", "error") if name in value}
        if len(answer) > 1 or ("method" in value) == bool(answer) or method == "":
            raise _malformed("message is neither a request nor a response")
        if answer and (identifier is None or "params" in value):
            raise _malformed("a response has an `id` and no `params`")
        params = value.get("params", {})
        if not isinstance(params, dict):
            raise _malformed("`params` is not an object")
    return Message(method=method, params=params, answer=answer, id=identifier, id_json=id_json)


def _id(value: Mapping[str, object]) -> str | int | None:
    if "id" not in value:
        return None
    identifier = value["id"]
    # JSON-RPC 2.0 §4: a string or a number; MCP forbids null. A fraction is no identifier.
    if isinstance(identifier, str) and len(identifier) <= _ID_CHARS_MAX:
        return identifier
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        return identifier
    raise _malformed("`id` is not a short string or an integer")


def _id_json(identifier: str | int | None) -> str | None:
    if isinstance(identifier, str):
        return json.dumps(identifier)
    return None if identifier is None else str(identifier)


def _malformed(detail: str) -> RequestFault:
    return RequestFault(Reason.MALFORMED_BODY, detail)
