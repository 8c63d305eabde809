"""Read what the decision point says of a call it did not allow, in each protocol's shape.

It is one problem document everywhere: the body `application/problem+json`, the `data` of a
JSON-RPC error, or the metadata of a `google.rpc.ErrorInfo` in `grpc-status-details-bin`. No client
library is imported here; their objects are known by what they have.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

_TYPES: Final = frozenset({"application/problem+json", "application/json"})
_URN: Final = "urn:authz-server:problem:"
_ERROR_DOMAIN: Final = "authz-server"
_DETAILS: Final = "grpc-status-details-bin"
_STATUSES: Final = frozenset({401, 403})
_BODY_BYTES_MAX: Final = 64 * 1024  # the server's own limit is 8 KiB
_TEXT_CHARS_MAX: Final = 1024
_CAUSES_MAX: Final = 8  # a client library wraps another's exception once or twice


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """The question put to people. `status` is `pending` or `rejected`."""

    id: str
    status: str
    expires_at: datetime | None
    approver_group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One problem document. `verdict` is `deny` or `escalate`, `status` that of HTTP."""

    verdict: str
    reason: str
    detail: str
    decision_id: str | None
    status: int
    access_request: AccessRequest | None = None


def answer_in_document(document: object) -> Answer | None:
    """Return the answer that decoded JSON holds, or None when it is no document of ours."""
    if not isinstance(document, Mapping) or document.get("verdict") not in {"deny", "escalate"}:
        return None
    if not _text(document, "type").startswith(_URN):
        return None
    status = document.get("status")
    return Answer(
        verdict=_text(document, "verdict"),
        reason=_text(document, "reason"),
        detail=_text(document, "detail"),
        decision_id=_text(document, "decision_id") or None,
        status=status if isinstance(status, int) else 403,
        access_request=_access_request(document.get("access_request")),
    )


def may_hold_answer(response: Any) -> bool:
    """Tell by status and type whether the body of an HTTP response is worth reading."""
    kind = str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
    return response.status_code in _STATUSES and kind in _TYPES


def answer_in_response(response: Any) -> Answer | None:
    """Return the answer in a response of httpx or httpx2, a JSON-RPC error's `data` included.

    None also while the body has not been read.
    """
    if not may_hold_answer(response):
        return None
    try:
        document = _json(response.content)
    except RuntimeError:  # `ResponseNotRead` of either library
        return None
    error = document.get("error") if isinstance(document, Mapping) else None
    return answer_in_document(error.get("data") if isinstance(error, Mapping) else document)


def answer_in_error(error: BaseException) -> Answer | None:
    """Return the answer in an exception of httpx, MCP, A2A or gRPC, or in what caused it."""
    cause: BaseException | None = error
    for _ in range(_CAUSES_MAX):
        if cause is None:
            return None
        if isinstance(cause, BaseExceptionGroup):
            return next(filter(None, map(answer_in_error, cause.exceptions)), None)
        answer = _answer_in_one(cause)
        if answer is not None:
            return answer
        cause = cause.__cause__
    return None


def _answer_in_one(error: BaseException) -> Answer | None:
    trailing: Callable[[], Any] | None = getattr(error, "trailing_metadata", None)
    if callable(trailing):
        return _answer_in_metadata(trailing()) or _answer_in_message(error)
    response = getattr(error, "response", None)
    if hasattr(response, "status_code") and hasattr(response, "headers"):
        return answer_in_response(response)
    return answer_in_document(getattr(getattr(error, "error", None), "data", None))


def _answer_in_metadata(metadata: Any) -> Answer | None:
    details = next((value for key, value in metadata or () if key == _DETAILS), None)
    if not isinstance(details, bytes) or len(details) > _BODY_BYTES_MAX:
        return None
    # A gRPC client has protobuf; nobody else needs it.
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    info = error_details_pb2.ErrorInfo()
    try:
        for detail in status_pb2.Status.FromString(details).details:
            if detail.Unpack(info) and info.domain == _ERROR_DOMAIN:
                return answer_in_document(_nested(info.metadata))
    except DecodeError:
        return None
    return None


def _answer_in_message(error: BaseException) -> Answer | None:
    # On a route of another protocol the whole body becomes the message of the status.
    details: Callable[[], Any] | None = getattr(error, "details", None)
    message = details() if callable(details) else None
    return answer_in_document(_json(message.encode())) if isinstance(message, str) else None


def _nested(metadata: Mapping[str, str]) -> dict[str, object]:
    """Undo the paths by which nested members are named: `access_request.id`."""
    document: dict[str, Any] = {}
    for path, value in metadata.items():
        name, _, member = path.partition(".")
        if member:
            document.setdefault(name, {})[member] = value
        else:
            document[name] = int(value) if name == "status" and value.isdecimal() else value
    return document


def _access_request(value: object) -> AccessRequest | None:
    if not isinstance(value, Mapping):
        return None
    return AccessRequest(
        id=_text(value, "id"),
        status=_text(value, "status"),
        expires_at=_time(_text(value, "expires_at")),
        approver_group=_text(value, "approver_group"),
    )


def _text(document: Mapping[Any, Any], name: str) -> str:
    value = document.get(name)
    return value[:_TEXT_CHARS_MAX] if isinstance(value, str) else ""


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.astimezone(UTC) if time.tzinfo else None


def _json(body: bytes) -> object:
    if len(body) > _BODY_BYTES_MAX:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
