"""The HTTP API of approvals: what an approver sees and answers, and what a waiting agent may ask.

Four operations are for approvers, who prove themselves (`approver`) and see the requests of their
own groups alone. One is for whoever holds the id of a request: whether it has been answered. The
id is 64 random bits that only the agent and its approvers are given, and the answer says nothing
that the agent was not told with it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from authz_server.core import strict_json
from authz_server.core.errors import InvalidValueError, LedgerError, RequestFault
from authz_server.core.record import format_time
from authz_server.ledger.approval_document import approval_json
from authz_server.ledger.approvals import (
    ApprovalRefused,
    ApprovalRequest,
    Approvals,
    ApprovalStatus,
    Refusal,
)
from authz_server.ledger.query import LookupFault
from authz_server.servers.admin_http import ApiRequest, Page
from authz_server.servers.approver import ApproverProof, KeysUnreadableError, NotProvedError
from authz_server.servers.check_service import Clock

LIST_MAX: Final = 200
LIST_DEFAULT: Final = 50
REASON_CHARS_MAX: Final = 500
APPROVAL_ID: Final = "[0-9a-f]{16}"  # the whole of it: no beginning of an id finds anything

_PARAMETERS_MAX: Final = 8
_JSON_DEPTH_MAX: Final = 4
_CHALLENGE: Final = 'Bearer realm="approvals"'


# (the request after the answer, who gave it): called from the thread of the connection.
AnswerObserver = Callable[[ApprovalRequest, str], None]


class _Problem(Exception):
    """An RFC 9457 answer: ends the handling of a request."""

    def __init__(
        self, status: HTTPStatus, kind: str, detail: str, *headers: tuple[str, str]
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One request, taken apart. `approval_id` is empty where the path has none."""

    request: ApiRequest
    parameters: Mapping[str, str]
    approval_id: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One line of the API. `path` has `{id}` where the id stands; `name` is its method below."""

    method: str
    path: str
    name: str
    summary: str


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/v1/approvals",
        name="list",
        summary="List the requests of your approver groups, newest first.",
    ),
    Operation(
        method="GET",
        path="/v1/approvals/{id}",
        name="show",
        summary="Show one request of your approver groups in full.",
    ),
    Operation(
        method="POST",
        path="/v1/approvals/{id}/approve",
        name="approve",
        summary="Approve a pending request; the agent's next identical attempt passes.",
    ),
    Operation(
        method="POST",
        path="/v1/approvals/{id}/reject",
        name="reject",
        summary="Reject a pending request; nobody is asked again before its deadline.",
    ),
    Operation(
        method="GET",
        path="/v1/approvals/{id}/status",
        name="status",
        summary="Ask, as the agent that was given the id, whether it has been answered.",
    ),
)
OPENAPI_PATH: Final = "/v1/openapi.json"


class ApprovalsApi:
    """Answers below `/v1/` (an `admin_http.Api`). Used from any thread."""

    def __init__(
        self,
        approvals: Approvals,
        *,
        proof: ApproverProof,
        clock: Clock,
        document: Mapping[str, object],
        answered: AnswerObserver = lambda _request, _approver: None,
    ) -> None:
        """`document` is the OpenAPI description to serve; `answered` is told of each answer."""
        self._approvals = approvals
        self._answered = answered
        self._proof = proof
        self._clock = clock
        self._document = document
        self._routes = tuple(
            (operation, re.compile(operation.path.replace("{id}", f"({APPROVAL_ID})")))
            for operation in OPERATIONS
        )
        self._handlers: Mapping[str, Callable[[_Call], Page]] = {
            "list": self._list,
            "show": self._show,
            "approve": self._approve,
            "reject": self._reject,
            "status": self._status,
        }

    def answer(self, request: ApiRequest) -> Page:
        """Return the answer to `request`; a problem document for whatever is wrong."""
        try:
            return self._dispatch(request)
        except _Problem as problem:
            return _problem_page(problem)
        except LookupFault:
            return _problem_page(
                _Problem(HTTPStatus.NOT_FOUND, "not-found", "there is no such request for you")
            )
        except ApprovalRefused as refused:
            return _problem_page(_refused(refused))
        except (LedgerError, KeysUnreadableError):
            # SECURITY: the message of a database names hosts and files.
            return _problem_page(
                _Problem(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "try again later")
            )

    def _dispatch(self, request: ApiRequest) -> Page:
        if request.body is None:
            raise _Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "body",
                "a body must be small and say its size",
            )
        parts = urlsplit(request.target)
        if parts.path == OPENAPI_PATH and request.method == "GET":
            return Page.json(HTTPStatus.OK, self._document)
        allowed = []
        for operation, pattern in self._routes:
            match = pattern.fullmatch(parts.path)
            if match is None:
                continue
            if operation.method != request.method:
                allowed.append(operation.method)
                continue
            call = _Call(
                request=request,
                parameters=_parameters(parts.query),
                approval_id=match[1] if match.groups() else "",
                now=self._clock(),
            )
            return self._handlers[operation.name](call)
        if allowed:
            raise _Problem(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "method",
                "this is asked with another method",
                ("Allow", ", ".join(allowed)),
            )
        raise _Problem(HTTPStatus.NOT_FOUND, "not-found", "there is no such resource")

    def _list(self, call: _Call) -> Page:
        groups = self._approvals.groups_of(self._approver(call))
        limit, status = _limit(call.parameters), _status_parameter(call.parameters)
        found = self._approvals.list(now=call.now, status=status, of_groups=groups, limit=limit)
        return Page.json(HTTPStatus.OK, {"approvals": [approval_json(one) for one in found]})

    def _show(self, call: _Call) -> Page:
        return _approval_page(self._visible(call, self._approver(call)))

    def _approve(self, call: _Call) -> Page:
        approver = self._answering(call)
        if _members(call.request):
            raise _Problem(HTTPStatus.BAD_REQUEST, "body", "an approval has no members")
        answered = self._approvals.approve(call.approval_id, approver=approver, now=call.now)
        self._answered(answered, approver)
        return _approval_page(answered)

    def _reject(self, call: _Call) -> Page:
        approver, reason = self._answering(call), _reason(_members(call.request))
        answered = self._approvals.reject(
            call.approval_id, approver=approver, reason=reason, now=call.now
        )
        self._answered(answered, approver)
        return _approval_page(answered)

    def _status(self, call: _Call) -> Page:
        found = self._approvals.show(call.approval_id, now=call.now)
        document = {
            "id": found.id,
            "status": found.status.value,
            "expires_at": format_time(found.expires_at),
        }
        return Page.json(HTTPStatus.OK, document)

    def _approver(self, call: _Call) -> str:
        try:
            return self._proof.prove(call.request, call.now)
        except NotProvedError as error:
            headers = (("WWW-Authenticate", _CHALLENGE),)
            raise _Problem(
                HTTPStatus.UNAUTHORIZED, "not-authenticated", str(error), *headers
            ) from error

    def _answering(self, call: _Call) -> str:
        """Return who answers, once that is somebody who can see the request."""
        approver = self._approver(call)
        # SECURITY: no simple form of a browser can send this type, so that a page elsewhere cannot
        # answer with a client certificate of whoever looks at it (CWE-352).
        try:
            content_type = call.request.headers.text("content-type") or ""
        except RequestFault as fault:
            raise _Problem(HTTPStatus.BAD_REQUEST, "headers", fault.detail) from fault
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise _Problem(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media-type", "send `application/json`"
            )
        self._visible(call, approver)
        return approver

    def _visible(self, call: _Call, approver: str) -> ApprovalRequest:
        """Return the request; to those outside of its group it does not exist."""
        found = self._approvals.show(call.approval_id, now=call.now)
        if found.approver_group not in self._approvals.groups_of(approver):
            raise LookupFault("not of this approver's groups")
        return found


def _approval_page(request: ApprovalRequest) -> Page:
    return Page.json(HTTPStatus.OK, approval_json(request))


def _problem_page(problem: _Problem) -> Page:
    document = {
        "type": f"urn:authz-server:problem:approvals:{problem.kind}",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
    }
    return Page(
        status=problem.status,
        content_type="application/problem+json",
        body=json.dumps(document).encode() + b"\n",
        headers=problem.headers,
    )


def _refused(refused: ApprovalRefused) -> _Problem:
    kind = refused.refusal.value.replace("_", "-")
    if refused.refusal in {Refusal.NOT_PENDING, Refusal.EXPIRED, Refusal.SAME_PERSON}:
        return _Problem(HTTPStatus.CONFLICT, kind, str(refused))
    return _Problem(HTTPStatus.FORBIDDEN, kind, str(refused))


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_PARAMETERS_MAX)
    except ValueError as error:
        raise _Problem(HTTPStatus.BAD_REQUEST, "query", "too many parameters") from error
    parameters = dict(pairs)
    if len(parameters) != len(pairs) or not parameters.keys() <= {"status", "limit"}:
        raise _Problem(
            HTTPStatus.BAD_REQUEST, "query", "parameters are `status` and `limit`, once each"
        )
    return parameters


def _limit(parameters: Mapping[str, str]) -> int:
    text = parameters.get("limit", str(LIST_DEFAULT))
    if not re.fullmatch("[0-9]{1,3}", text) or not 0 < int(text) <= LIST_MAX:
        raise _Problem(HTTPStatus.BAD_REQUEST, "query", f"`limit` must be 1 to {LIST_MAX}")
    return int(text)


def _status_parameter(parameters: Mapping[str, str]) -> ApprovalStatus | None:
    text = parameters.get("status")
    if text is None:
        return None
    try:
        return ApprovalStatus(text)
    except ValueError as error:
        known = ", ".join(f"`{status}`" for status in ApprovalStatus)
        raise _Problem(HTTPStatus.BAD_REQUEST, "query", f"`status` is one of {known}") from error


def _members(request: ApiRequest) -> Mapping[str, object]:
    """Return the members of the body; none of an empty one."""
    if not request.body:
        return {}
    try:
        value = strict_json.loads(request.body, depth_max=_JSON_DEPTH_MAX, members_max=8)
    except InvalidValueError as error:
        raise _Problem(HTTPStatus.BAD_REQUEST, "body", "the body is not JSON") from error
    if not isinstance(value, dict):
        raise _Problem(HTTPStatus.BAD_REQUEST, "body", "the body is not a JSON object")
    return value


def _reason(members: Mapping[str, object]) -> str:
    reason = members.get("reason")
    if members.keys() != {"reason"} or not isinstance(reason, str) or not reason.strip():
        raise _Problem(HTTPStatus.BAD_REQUEST, "body", "a rejection has exactly a `reason`")
    if len(reason) > REASON_CHARS_MAX:
        raise _Problem(
            HTTPStatus.BAD_REQUEST, "body", f"`reason` is longer than {REASON_CHARS_MAX} characters"
        )
    return reason
