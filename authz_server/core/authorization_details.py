"""Narrowing of `authorization_details` (RFC 9396): whoever holds that entry may hand on this one.

RFC 9396 leaves open whether an absent member means "nothing" or "anything". So that no reading of
a link is wider than its parent's, an entry must carry exactly the members of the parent entry
that covers it, each list a part of the parent's, everything else unchanged.
"""

from collections.abc import Mapping, Sequence
from typing import Final

# The kinds of object a policy knows; of any other type only an exact copy is handed on.
KNOWN_TYPES: Final = frozenset(
    {"http", "grpc", "mcp_tool", "mcp_resource", "mcp_prompt", "a2a_agent", "tcp"}
)
_LIST_MEMBERS: Final = frozenset({"locations", "actions", "datatypes", "privileges"})  # §2.2


def all_covered(
    entries: Sequence[Mapping[str, object]], parents: Sequence[Mapping[str, object]]
) -> bool:
    """Tell whether each of `entries` is covered by one entry of `parents` of the same type."""
    return all(any(_covers(parent, entry) for parent in parents) for entry in entries)


def _covers(parent: Mapping[str, object], entry: Mapping[str, object]) -> bool:
    if entry["type"] not in KNOWN_TYPES:
        return _same(parent, entry)
    if parent.keys() != entry.keys():
        return False
    return all(
        _is_part(parent[name], value) if name in _LIST_MEMBERS else _same(parent[name], value)
        for name, value in entry.items()
    )


def _is_part(whole: object, part: object) -> bool:
    # An empty list is refused: some readers take it as "no restriction".
    if not isinstance(whole, tuple) or not isinstance(part, tuple) or not part:
        return False
    return all(any(_same(item, other) for other in whole) for item in part)


def _same(left: object, right: object) -> bool:
    """Compare JSON values by type and value: `true`, `1` and `1.0` are three values."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return type(left) is type(right) and left == right
