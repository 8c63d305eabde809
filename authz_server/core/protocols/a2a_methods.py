"""Which A2A operation a request names: by JSON-RPC method, or by HTTP method and path.

Two versions (0.3 and 1.0) times two bindings (JSON-RPC and HTTP+JSON) spell one operation in four
ways. Each gets one action name, the JSON-RPC method of 0.3, so that one rule covers all of them.

A2A 1.0 §9 (JSON-RPC), §11 (HTTP+JSON); A2A 0.3 §7, and its `google.api.http` annotations.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from authz_server.core.errors import Reason, RequestFault

CARD_ACTION: Final = "agent/getCard"  # ours: reading the public card is no method of any version


class Version(StrEnum):
    """The two versions whose messages differ."""

    V0_3 = "0.3"
    V1_0 = "1.0"


# 1.0 §3.6: `Major.Minor`; a patch number, which SHOULD NOT be sent, means nothing.
_VERSION: Final = re.compile(r"(0\.3|1\.0)(?:\.[0-9]{1,4})?")

# Action -> read-only. Following a task changes nothing, nor does reading a card.
ACTIONS: Final[Mapping[str, bool]] = {
    "message/send": False,
    "message/stream": False,
    "tasks/get": True,
    "tasks/list": True,
    "tasks/cancel": False,
    "tasks/resubscribe": True,
    "tasks/pushNotificationConfig/set": False,
    "tasks/pushNotificationConfig/get": True,
    "tasks/pushNotificationConfig/list": True,
    "tasks/pushNotificationConfig/delete": False,
    "agent/getAuthenticatedExtendedCard": True,
    CARD_ACTION: True,
}
_METHODS_1_0: Final[Mapping[str, str]] = {
    "SendMessage": "message/send",
    "SendStreamingMessage": "message/stream",
    "GetTask": "tasks/get",
    "ListTasks": "tasks/list",
    "CancelTask": "tasks/cancel",
    "SubscribeToTask": "tasks/resubscribe",
    "CreateTaskPushNotificationConfig": "tasks/pushNotificationConfig/set",
    "GetTaskPushNotificationConfig": "tasks/pushNotificationConfig/get",
    "ListTaskPushNotificationConfig": "tasks/pushNotificationConfig/list",
    "ListTaskPushNotificationConfigs": "tasks/pushNotificationConfig/list",
    "DeleteTaskPushNotificationConfig": "tasks/pushNotificationConfig/delete",
    "GetExtendedAgentCard": "agent/getAuthenticatedExtendedCard",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The operation that a path of the HTTP+JSON binding names.

    `task_id` is the one in the path. `before` are the segments ahead of the operation: a base path,
    a tenant, or both.
    """

    action: str
    task_id: str | None = None
    before: tuple[str, ...] = ()


def json_rpc_action(method: str) -> tuple[str, Version]:
    """Return the action of a JSON-RPC method, and the version that calls it so.

    Raises `RequestFault` (`UNSUPPORTED_METHOD`).
    """
    if method in _METHODS_1_0:
        return _METHODS_1_0[method], Version.V1_0
    if method in ACTIONS and method != CARD_ACTION:
        return method, Version.V0_3
    raise RequestFault(Reason.UNSUPPORTED_METHOD, "A2A method is unknown")


def parse_version(text: str) -> Version:
    """Return the version that an `A2A-Version` names; empty text is 0.3 (1.0 §3.6).

    Raises `RequestFault` (`UNSUPPORTED_METHOD`).
    """
    match = _VERSION.fullmatch(text or Version.V0_3)
    if match is None:
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "A2A version is unknown")
    return Version(match[1])


# One segment of our own reading: what RFC 3986 allows in one, but `:`, which sets off a verb, and
# escapes. SECURITY: `%3A` is a colon to a server that decodes a path before it matches routes.
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,=@-]+")
_CARD: Final = (".well-known", "agent-card.json")
_CONFIGS: Final = "pushNotificationConfigs"
# No id, tenant or base path may be called like these, so that every path has one reading. In any
# letter case: some servers (ASP.NET Core) find routes by either.
_RESERVED: Final = frozenset(map(str.casefold, ("tasks", _CONFIGS, "extendedAgentCard", *_CARD)))

_SINGLE: Final[Mapping[tuple[str, str], str]] = {
    ("POST", "message:send"): "message/send",
    ("POST", "message:stream"): "message/stream",
    ("GET", "tasks"): "tasks/list",
    ("GET", "extendedAgentCard"): "agent/getAuthenticatedExtendedCard",
}
_OF_A_TASK: Final[Mapping[tuple[str, str], str]] = {
    ("GET", ""): "tasks/get",
    ("POST", "cancel"): "tasks/cancel",
    ("GET", "subscribe"): "tasks/resubscribe",
    ("POST", "subscribe"): "tasks/resubscribe",
}
_OF_CONFIGS: Final[Mapping[tuple[str, bool], str]] = {
    ("POST", False): "tasks/pushNotificationConfig/set",
    ("GET", False): "tasks/pushNotificationConfig/list",
    ("GET", True): "tasks/pushNotificationConfig/get",
    ("DELETE", True): "tasks/pushNotificationConfig/delete",
}


def http_route(method: str, segments: tuple[str, ...]) -> Route | None:
    """Return the operation that method and canonical path name in the HTTP+JSON binding.

    None when the path has nothing of that binding, so that it can be a JSON-RPC endpoint. Raises
    `RequestFault`: `UNSUPPORTED_METHOD` for a path or method that the binding does not define,
    `NON_CANONICAL_PATH` for an escape, which the binding has no use for.
    """
    if any("%" in segment for segment in segments):
        raise RequestFault(Reason.NON_CANONICAL_PATH, "an A2A path has no use for an escape")
    if segments[-2:] == ("v1", "card"):  # 0.3 `GET /v1/card`; `card` alone may be an endpoint
        found = (
            Route(action="agent/getAuthenticatedExtendedCard", before=segments[:-1])
            if method == "GET"
            else None
        )
    elif not any(":" in segment or _is_reserved(segment) for segment in segments):
        return None
    else:
        found = _named(method, segments)
    if found is None or not all(map(_is_plain, found.before)):
        raise RequestFault(Reason.UNSUPPORTED_METHOD, "method and path name no A2A operation")
    return found


def _named(method: str, segments: tuple[str, ...]) -> Route | None:
    if segments[-2:] == _CARD:
        return Route(action=CARD_ACTION, before=segments[:-2]) if method == "GET" else None
    if segments[-3:-2] == ("tasks",) and segments[-1] == _CONFIGS:
        return _of_configs(method, segments[-2], None, segments[:-3])
    if segments[-4:-3] == ("tasks",) and segments[-2] == _CONFIGS:
        return _of_configs(method, segments[-3], segments[-1], segments[:-4])
    if segments[-2:-1] == ("tasks",):
        task_id, _, verb = segments[-1].partition(":")
        action = _OF_A_TASK.get((method, verb)) if verb or ":" not in segments[-1] else None
        return _route(action, task_id, segments[:-2])
    return _route(_SINGLE.get((method, segments[-1])), None, segments[:-1])


def _of_configs(
    method: str, task_id: str, config_id: str | None, before: tuple[str, ...]
) -> Route | None:
    if config_id is not None and not _is_plain(config_id):
        return None
    return _route(_OF_CONFIGS.get((method, config_id is not None)), task_id, before)


def _route(action: str | None, task_id: str | None, before: tuple[str, ...]) -> Route | None:
    if action is None or (task_id is not None and not _is_plain(task_id)):
        return None
    return Route(action=action, task_id=task_id, before=before)


def _is_plain(segment: str) -> bool:
    return not _is_reserved(segment) and _SEGMENT.fullmatch(segment) is not None


def _is_reserved(segment: str) -> bool:
    return segment.casefold() in _RESERVED
