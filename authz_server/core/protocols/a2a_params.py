"""What an A2A request says: members of `params`, or of the HTTP+JSON body, that a rule may read.

Where the two versions have several names for one thing (`a2a_members` says how each may be
spelled), one of them may occur: an agent that reads another than we do would do something else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from authz_server.core.attributes import AttributeValue
from authz_server.core.errors import InvalidValueError
from authz_server.core.protocols.a2a_members import (
    Members,
    as_list,
    as_object,
    in_camel_case,
    malformed,
    members_of,
    one_of,
    short_text,
    text_of,
    texts_of,
)
from authz_server.core.protocols.a2a_methods import Version
from authz_server.core.web_url import WebUrl

_MESSAGE_ID: Final = ("messageId", "message_id")
_PUSH: Final = ("taskPushNotificationConfig", "pushNotificationConfig", "pushNotification")
# 1.0, 0.3, and the number of the enum, which protobuf takes too.
_ROLES: Final[Mapping[object, str]] = dict.fromkeys(("ROLE_USER", "user", 1), "user") | (
    dict.fromkeys(("ROLE_AGENT", "agent", 2), "agent")
)
_KINDS: Final[Mapping[str, str]] = {"text": "text", "raw": "file", "url": "url", "data": "data"}
_BY_REFERENCE: Final = frozenset({"uri", "fileWithUri"})
_FILE_MEMBERS: Final = ("uri", "fileWithUri", "bytes", "fileWithBytes")
# Members of a file in 0.3 -> what 1.0 calls them in the part itself.
_FILE_IN_1_0: Final[Mapping[str, str]] = {
    "uri": "url",
    "fileWithUri": "url",
    "bytes": "raw",
    "fileWithBytes": "raw",
    "mimeType": "mediaType",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one request says. A fact that its operation does not have is None or empty.

    `document` is `params` as 1.0 has it whatever the version, in camelCase, with the message at
    `/message` and its parts at `/message/parts`, for the pointers of a bundle. `covered` is what an
    approval is bound to: everything but the id of the message, which a client makes anew for every
    call.
    """

    document: Mapping[str, object]
    covered: Mapping[str, object]
    tenant: str | None = None
    task_id: str | None = None
    context_id: str | None = None
    role: str | None = None
    part_kinds: tuple[str, ...] = ()
    push_url: WebUrl | None = None
    extensions: tuple[str, ...] = ()
    reference_task_ids: tuple[str, ...] = ()
    blocking: bool | None = None

    def attributes(self) -> dict[str, AttributeValue]:
        """Return what `r.obj.args` has by itself; what the request lacks is missing."""
        values: dict[str, AttributeValue] = {
            "tenant": self.tenant,
            "task_id": self.task_id,
            "context_id": self.context_id,
            "role": self.role,
            "part_kinds": self.part_kinds or None,
            "push_url": self.push_url.text if self.push_url else None,
            "push_host": self.push_url.host if self.push_url else None,
            "reference_task_ids": self.reference_task_ids or None,
            "blocking": self.blocking,
        }
        return {name: value for name, value in values.items() if value is not None}


def read(
    action: str,
    params: Mapping[str, object],
    version: Version,
    *,
    is_protobuf: bool = False,
) -> Facts:
    """Return what the `params` of `action` say.

    `is_protobuf`: they may be the JSON form of 0.3's protobuf messages, as over its HTTP binding.

    Raises `RequestFault` (`MALFORMED_BODY`) for a member misspelled, of the wrong type, or named
    twice, and for a push notification URL that clients could read differently.
    """
    members = members_of(params, "params")
    tenant = text_of(members, "tenant")
    match action:
        case "message/send" | "message/stream":
            is_wrapped = is_protobuf and version is Version.V0_3
            return _read_message(params, members, version, is_wrapped=is_wrapped)
        case "tasks/pushNotificationConfig/set":
            task_id = _task_id(action, members, version)
            push_url = _push_url(members, ("config", *_PUSH))
            if push_url is None:
                raise malformed("a push notification config has no URL")
            return _facts(params, tenant=tenant, task_id=task_id, push_url=push_url)
        case "tasks/list":
            return _facts(params, tenant=tenant, context_id=text_of(members, "contextId"))
        case "agent/getAuthenticatedExtendedCard" | "agent/getCard":
            return _facts(params, tenant=tenant)
    return _facts(params, tenant=tenant, task_id=_task_id(action, members, version))


def _facts(
    params: Mapping[str, object],
    *,
    tenant: str | None,
    task_id: str | None = None,
    context_id: str | None = None,
    push_url: WebUrl | None = None,
) -> Facts:
    return Facts(
        document=in_camel_case(params),
        covered=params,
        tenant=tenant,
        task_id=task_id,
        context_id=context_id,
        push_url=push_url,
    )


def _task_id(action: str, members: Members, version: Version) -> str | None:
    """Return the task that `params` name.

    The id of a push notification config is called `id` in 1.0, where 0.3 has the task's.
    """
    of_config = action.startswith("tasks/pushNotificationConfig/")
    if not of_config or (version is Version.V0_3 and not action.endswith("/set")):
        used, other = "id", "taskId"
    else:
        used, other = "taskId", "pushNotificationConfigId"
    if other in members:
        raise malformed(f"`params.{other}` is not what A2A {version} calls it")
    if members.get("parent") is None:
        return text_of(members, used)
    # `tasks/{id}` or `tasks/{id}/pushNotificationConfigs`, in the protobuf messages of 0.3.
    collection, _, task_id = str(members["parent"]).partition("/")
    if used in members or collection != "tasks":
        raise malformed("`parent` is not a task, or not the only name of it")
    return short_text(task_id.partition("/")[0], "parent")


def _read_message(
    params: Mapping[str, object], outer: Members, version: Version, *, is_wrapped: bool
) -> Facts:
    held = as_object(one_of(outer, ("message", "request")), "message")
    message = members_of(held, "message")
    parts = as_list(one_of(message, ("parts", "content")), "parts")
    part_kinds = tuple(sorted({_part_kind(part) for part in parts}))
    configuration = outer.get("configuration")
    settings = members_of(
        as_object({} if configuration is None else configuration, "configuration"), "configuration"
    )
    role = message.get("role")
    if not isinstance(role, str | int) or isinstance(role, bool) or role not in _ROLES:
        raise malformed("`role` of the message is not that of a user or an agent")
    text_of(message, "messageId")
    return Facts(
        document={
            **in_camel_case(params),
            "message": {
                **in_camel_case(held),
                "parts": [_part_in_1_0(part, is_wrapped=is_wrapped) for part in parts],
            },
            "configuration": in_camel_case(as_object(configuration or {}, "configuration")),
        },
        covered=_without_message_id(params, held),
        tenant=text_of(outer, "tenant"),
        task_id=text_of(message, "taskId"),
        context_id=text_of(message, "contextId"),
        role=_ROLES[role],
        part_kinds=part_kinds,
        push_url=_push_url(settings, _PUSH),
        extensions=texts_of(message, "extensions"),
        reference_task_ids=texts_of(message, "referenceTaskIds"),
        blocking=_blocking(settings, version),
    )


def _without_message_id(
    params: Mapping[str, object], held: Mapping[str, object]
) -> dict[str, object]:
    kept = {name: value for name, value in held.items() if name not in _MESSAGE_ID}
    return {name: kept if value is held else value for name, value in params.items()}


def _blocking(configuration: Members, version: Version) -> bool | None:
    """Return whether the caller waits for the end of the task; None where 0.3 leaves it open."""
    given = {name: configuration.get(name) for name in ("blocking", "returnImmediately")}
    if any(not isinstance(value, bool | None) for value in given.values()):
        raise malformed("`blocking` or `returnImmediately` is not true or false")
    if None not in given.values():
        raise malformed("`blocking` and `returnImmediately` are the names of two versions")
    if given["blocking"] is not None:
        return bool(given["blocking"])
    if given["returnImmediately"] is not None or version is Version.V1_0:
        return not given["returnImmediately"]
    return None


def _part_kind(part: object) -> str:
    """Return `text`, `data`, `file` (its bytes are in the message) or `url` (the agent fetches)."""
    members = members_of(as_object(part, "a part"), "a part")
    if members.get("data", part) is None:
        # To protobuf `null` is content, which would take the place of another.
        raise malformed("`data` of a part is null")
    found = [name for name in (*_KINDS, "file") if members.get(name) is not None]
    if len(found) != 1:
        raise malformed("a part does not have exactly one content")
    (name,) = found
    if "kind" in members and members["kind"] != name:
        raise malformed("`kind` of a part is not that of its content")
    if name != "file":
        return _KINDS[name]
    file = members_of(as_object(members["file"], "file"), "file")
    (held, *more) = [name for name in _FILE_MEMBERS if file.get(name) is not None] or [""]
    if not held or more:
        raise malformed("a file part has not exactly one of content and address")
    return "url" if held in _BY_REFERENCE else "file"


def _part_in_1_0(part: object, *, is_wrapped: bool) -> dict[str, object]:
    """Return a part, found sound by `_part_kind`, with the members that 1.0 would give it.

    SECURITY: a server of both versions does the same with either, and one pointer has to find it.
    """
    shown = in_camel_case(as_object(part, "a part"))
    if is_wrapped and isinstance(shown.get("data"), dict):
        shown["data"] = _unwrapped(as_object(shown["data"], "data"))
    if shown.get("file") is not None:
        for name, value in in_camel_case(as_object(shown["file"], "file")).items():
            if name in _FILE_IN_1_0:
                shown[_FILE_IN_1_0[name]] = value
    return shown


def _unwrapped(data: dict[str, object]) -> dict[str, object]:
    """Return what a data part holds, of which 0.3's protobuf makes `{"data": {…}}`."""
    inner = data.get("data")
    if not isinstance(inner, dict):
        return data
    if len(data) > 1:
        raise malformed("`data` of a part holds two things to two readers")
    return inner


def _push_url(holder: Members, names: tuple[str, ...]) -> WebUrl | None:
    found = list(_push_urls(holder, names))
    if not found:
        return None
    if len(found) > 1:
        raise malformed("more than one push notification URL")
    if not isinstance(found[0], str):
        raise malformed("a push notification URL is not a string")
    try:
        return WebUrl.parse(found[0])
    except InvalidValueError as error:
        raise malformed(f"push notification {error}") from error


def _push_urls(holder: Members, names: tuple[str, ...]) -> Iterator[object]:
    """Yield every URL wherever some version has it. SECURITY: which one is called is its choice."""
    if holder.get("url") is not None:
        yield holder["url"]
    for name in names:
        if holder.get(name) is not None:
            yield from _push_urls(members_of(as_object(holder[name], name), name), names)
