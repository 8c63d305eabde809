"""The members of a JSON object of A2A, however they are spelled, and of the types they must have.

Protobuf's JSON form takes each member in camelCase and in snake_case (the SDK's 0.3 client sends
the latter), and other readers ignore letter case. So a member that is looked up may be spelled in
one of the two ways, once, and nothing that a laxer reader takes for it may stand beside it.
"""

from collections.abc import Mapping
from typing import Final

from authz_server.core import limits
from authz_server.core.errors import Reason, RequestFault

Members = dict[str, object]

# Every member that is looked up, anywhere. A member of another name is covered by the digest
# alone, and free to exist: extensions and later versions add some.
_NAMES: Final = (
    *("acceptedOutputModes", "blocking", "bytes", "config", "configuration", "content"),
    *("contextId", "data", "extensions", "file", "fileWithBytes", "fileWithUri", "historyLength"),
    *("id", "kind", "mediaType", "message", "messageId", "mimeType", "parent", "parts"),
    "pushNotification",
    *("pushNotificationConfig", "pushNotificationConfigId", "raw", "referenceTaskIds", "request"),
    *("returnImmediately", "role", "taskId", "taskPushNotificationConfig", "tenant", "text"),
    *("uri", "url"),
)


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)


def _bare(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


_BY_SPELLING: Final = {_snake(name): name for name in _NAMES} | {name: name for name in _NAMES}
_BARE: Final = frozenset(map(_bare, _NAMES))


def members_of(value: Mapping[str, object], what: str) -> Members:
    """Return the members of an object that are looked up, by their camelCase names.

    Raises `RequestFault` (`MALFORMED_BODY`) for one misspelled or given in both spellings.
    """
    found: Members = {}
    for key, member in value.items():
        name = _BY_SPELLING.get(key)
        if name in found or (name is None and _bare(key) in _BARE):
            raise malformed(f"a member of {what} is misspelled or given more than once")
        if name is not None:
            found[name] = member
    return found


def in_camel_case(value: Mapping[str, object]) -> dict[str, object]:
    """Return `value` with the names of members we know in camelCase."""
    return {_BY_SPELLING.get(key, key): member for key, member in value.items()}


def one_of(members: Members, names: tuple[str, ...]) -> object:
    """Return the one member of those `names` that there is. Raises `RequestFault`."""
    present = [name for name in names if members.get(name) is not None]
    if len(present) != 1:
        raise malformed(f"there is not exactly one `{'` or `'.join(names)}`")
    return members[present[0]]


def as_object(value: object, what: str) -> dict[str, object]:
    """Return `value`, a JSON object. Raises `RequestFault` (`MALFORMED_BODY`)."""
    if not isinstance(value, dict):
        raise malformed(f"`{what}` is not an object")
    return value


def as_list(value: object, what: str) -> list[object]:
    """Return `value`, a JSON array. Raises `RequestFault` (`MALFORMED_BODY`)."""
    if not isinstance(value, list):
        raise malformed(f"`{what}` is not a list")
    return value


def text_of(members: Members, name: str) -> str | None:
    """Return a short printable text; None if missing or empty, which is the same to protobuf."""
    value = members.get(name)
    return short_text(value, name) if value is not None and value != "" else None


def texts_of(members: Members, name: str) -> tuple[str, ...]:
    """Return a list of such texts. Raises `RequestFault`, `OVERSIZE` among them."""
    items = as_list([] if members.get(name) is None else members[name], name)
    if len(items) > limits.ARGUMENT_ITEMS_MAX:
        raise RequestFault(Reason.OVERSIZE, f"`{name}` has too many items")
    return tuple(short_text(item, name) for item in items)


def short_text(value: object, name: str) -> str:
    """Return `value`, an id or a URI. Raises `RequestFault` (`MALFORMED_BODY`)."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise malformed(f"`{name}` is not a printable string")
    if len(value) > limits.IDENTIFIER_CHARS_MAX:
        raise malformed(f"`{name}` is longer than {limits.IDENTIFIER_CHARS_MAX} characters")
    return value


def malformed(detail: str) -> RequestFault:
    """Return the fault of a body that no two readers are sure to read alike."""
    return RequestFault(Reason.MALFORMED_BODY, detail)
