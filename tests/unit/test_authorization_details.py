"""Which authorization details may be handed on by the holder of which."""

from collections.abc import Mapping

import pytest

from authz_server.core.authorization_details import all_covered
from authz_server.core.claims import Claims
from authz_server.core.strict_json import JsonValue

Entry = dict[str, JsonValue]
TOOL: Entry = {
    "type": "mcp_tool",
    "locations": ["https://a", "https://b"],
    "actions": ["call", "list"],
    "identifier": "export",
}
UNKNOWN: Entry = {"type": "payment", "limit": 1, "actions": ["a", "b"]}


def frozen(*entries: Entry) -> tuple[Mapping[str, object], ...]:
    return Claims({"authorization_details": list(entries)}).details() or ()


CASES: Mapping[str, tuple[Entry, Entry, bool]] = {
    "the same": (TOOL, TOOL, True),
    "fewer locations": (TOOL, {**TOOL, "locations": ["https://b"]}, True),
    "fewer actions": (TOOL, {**TOOL, "actions": ["list"]}, True),
    "another order": (TOOL, {**TOOL, "actions": ["list", "call"]}, True),
    "no actions left": (TOOL, {**TOOL, "actions": []}, False),
    "one action more": (TOOL, {**TOOL, "actions": ["call", "list", "admin"]}, False),
    "actions not a list": (TOOL, {**TOOL, "actions": "call"}, False),
    "another identifier": (TOOL, {**TOOL, "identifier": "import"}, False),
    "another type": (TOOL, {**TOOL, "type": "mcp_prompt"}, False),
    "a member dropped": (TOOL, {k: v for k, v in TOOL.items() if k != "identifier"}, False),
    "a member added": (TOOL, {**TOOL, "privileges": ["admin"]}, False),
    "an own member, equal": ({**TOOL, "rows": [1]}, {**TOOL, "rows": [1]}, True),
    "an own member, less": ({**TOOL, "rows": [1, 2]}, {**TOOL, "rows": [1]}, False),
    "an own member, true for 1": ({**TOOL, "rows": 1}, {**TOOL, "rows": True}, False),
    "an own member, 1.0 for 1": ({**TOOL, "rows": 1}, {**TOOL, "rows": 1.0}, False),
    "unknown type, the same": (UNKNOWN, UNKNOWN, True),
    "unknown type, fewer actions": (UNKNOWN, {**UNKNOWN, "actions": ["a"]}, False),
    "unknown type, another order": (UNKNOWN, {**UNKNOWN, "actions": ["b", "a"]}, False),
    "unknown type, true for 1": (UNKNOWN, {**UNKNOWN, "limit": True}, False),
    "unknown type, true for 1 in a list": (
        {"type": "x", "o": [1]},
        {"type": "x", "o": [True]},
        False,
    ),
    "unknown type, a longer list": ({"type": "x", "o": [1]}, {"type": "x", "o": [1, 1]}, False),
    "unknown type, nested the same": (
        {"type": "x", "o": {"a": [1, {"b": None}]}},
        {"type": "x", "o": {"a": [1, {"b": None}]}},
        True,
    ),
    "unknown type, nested other": (
        {"type": "x", "o": {"a": [1, {"b": None}]}},
        {"type": "x", "o": {"a": [1, {"b": False}]}},
        False,
    ),
}


@pytest.mark.parametrize(("parent", "entry", "expected"), CASES.values(), ids=CASES)
def test_cover(parent: Entry, entry: Entry, expected: bool) -> None:
    assert all_covered(frozen(entry), frozen(parent)) is expected


def test_each_entry_needs_one_parent_that_covers_all_of_it() -> None:
    read: Entry = {**TOOL, "actions": ["read"]}
    write: Entry = {**TOOL, "actions": ["write"]}
    both: Entry = {**TOOL, "actions": ["read", "write"]}
    assert all_covered(frozen(read, write), frozen(both))
    assert not all_covered(frozen(both), frozen(read, write))
    assert not all_covered(frozen(read), ())
