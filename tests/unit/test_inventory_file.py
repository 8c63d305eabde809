"""`identities.yaml`: every entry, every fault with its line."""

from pathlib import Path

import pytest

from authz_server.core.attributes import Kind
from authz_server.core.errors import ConfigurationError
from authz_server.core.identities import Inventory
from authz_server.core.spiffe import SpiffeId
from authz_server.identity.file_content import FileContent
from authz_server.identity.inventory_file import PATTERNS_MAX, parse_inventory


def _parse(text: str) -> Inventory:
    return parse_inventory(FileContent(Path("identities.yaml"), text.encode()))


def _faults(text: str) -> list[tuple[int, int, str]]:
    with pytest.raises(ConfigurationError) as caught:
        _parse(text)
    assert {fault.file for fault in caught.value.faults} == {"identities.yaml"}
    return [(fault.line, fault.column, fault.message) for fault in caught.value.faults]


def test_entries() -> None:
    inventory = _parse("""\
identities:
  - {id: "spiffe://p.org/agent/research-*", kind: agent, owner: team-research,
     purpose: "literature search", labels: {clearance: internal, region: "eu"}}
  - {id: "spiffe://p.org/agent/research-lead", kind: agent, owner: team-lead}
  - {id: "spiffe://p.org/tool/crm", kind: tool}
  - {id: "alice@example.org", kind: human, labels: {department: support}}
""")
    found = inventory.find(SpiffeId.parse("spiffe://p.org/agent/research-1"))
    assert found is not None
    assert (found.kind, found.owner, found.purpose) == (
        Kind.AGENT,
        "team-research",
        "literature search",
    )
    assert dict(found.labels) == {"clearance": "internal", "region": "eu"}
    lead = inventory.find(SpiffeId.parse("spiffe://p.org/agent/research-lead"))
    assert lead is not None
    assert lead.owner == "team-lead", "the exact entry outranks the pattern"
    assert inventory.find(SpiffeId.parse("spiffe://p.org/agent/other")) is None
    alice = inventory.find_subject("alice@example.org")
    assert alice is not None
    assert alice.kind is Kind.HUMAN


def test_an_empty_inventory_is_legal() -> None:
    inventory = _parse("identities: []\n")
    assert not inventory.exact
    assert not inventory.patterns


@pytest.mark.parametrize(
    ("entry", "column", "message"),
    [
        ("{kind: agent}", 5, "`id` is required"),
        ("{id: a}", 5, "`kind` is required"),
        ("{id: 7, kind: human}", 10, "`id` must be text; quote it"),
        ("{id: '', kind: human}", 10, "`id` must be 1 to 1024 printable characters"),
        ('{id: "a\\tb", kind: human}', 10, "`id` must be 1 to 1024 printable characters"),
        (
            "{id: a, kind: robot}",
            19,
            "`kind` must be one of `agent`, `tool`, `service`, `proxy`, `human`",
        ),
        (
            "{id: a, kind: Agent}",
            19,
            "`kind` must be one of `agent`, `tool`, `service`, `proxy`, `human`; "
            "did you mean `agent`?",
        ),
        ("{id: a, kind: human, owner: [b]}", 26, "`owner` must be text; quote it"),
        ("{id: a, kind: human, labels: b}", 34, "`labels` must be a mapping"),
        ("{id: a, kind: human, labels: {b: 1}}", 38, "`b` must be text; quote it"),
        ("{id: a, kind: human, ownr: b}", 26, "`ownr` is not a known key; did you mean `owner`?"),
        ("{id: a, kind: human, zz: b}", 26, "`zz` is not a known key"),
        ("text", 5, "an identity must be a mapping"),
        (
            '{id: "spiffe://p.org", kind: tool}',
            10,
            "`id` is not valid: SPIFFE ID names a trust domain, not a workload",
        ),
        (
            '{id: "SPIFFE://p.org/a", kind: tool}',
            10,
            "`id` is not valid: SPIFFE ID does not start with `spiffe://`",
        ),
        (
            '{id: "*@example.org", kind: human}',
            10,
            "`id` is not valid: SPIFFE ID does not start with `spiffe://`",
        ),
        (
            '{id: "spiffe://p.org/**", kind: tool}',
            10,
            "`id` is not valid: pattern has more than one `*` in a path segment",
        ),
        (
            '{id: "spiffe://*.org/a", kind: tool}',
            10,
            "`id` is not valid: trust domain has a character outside `[a-z0-9._-]`, or none",
        ),
    ],
)
def test_a_faulty_entry(entry: str, column: int, message: str) -> None:
    text = f"identities:\n  - {{id: first, kind: human}}\n  - {entry}\n"
    assert _faults(text) == [(3, column, message)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", (1, 1, "must be a mapping with the key `identities`")),
        ("- a\n", (1, 1, "must be a mapping with the key `identities`")),
        ("identities:\n", (1, 12, "`identities` must be a list")),
        ("identities: {a: b}\n", (1, 1, "`identities` must be a list")),
        (
            "identities: []\nidentites: []\n",
            (2, 1, "`identites` is not a known key; did you mean `identities`?"),
        ),
    ],
)
def test_a_faulty_file(text: str, fault: tuple[int, int, str]) -> None:
    assert _faults(text) == [fault]


def test_all_faults_come_at_once() -> None:
    text = """\
identities:
  - {id: a, kind: human, ownr: x, labels: {b: 1, c: true}}
  - {kind: human}
  - {id: a, kind: human}
  - {id: a, kind: human}
  - {id: "spiffe://p.org/a/*", kind: agent}
  - {id: "spiffe://p.org/*/b", kind: agent}
"""
    assert _faults(text) == [
        (2, 26, "`ownr` is not a known key; did you mean `owner`?"),
        (2, 47, "`b` must be text; quote it"),
        (2, 53, "`c` must be text; quote it"),
        (3, 5, "`id` is required"),
        (4, 10, "`a` is already listed in line 2"),
        (5, 10, "`a` is already listed in line 2"),
        (
            7,
            10,
            "pattern `spiffe://p.org/*/b` and `spiffe://p.org/a/*` in line 6 are equally specific "
            "and can match the same id",
        ),
    ]


def test_patterns_that_share_an_id_may_differ_in_specificity() -> None:
    inventory = _parse("""\
identities:
  - {id: "spiffe://p.org/agent/*", kind: agent, owner: wide}
  - {id: "spiffe://p.org/agent/re*", kind: agent, owner: narrow}
  - {id: "spiffe://p.org/agent/xy*", kind: agent, owner: elsewhere}
""")
    found = inventory.find(SpiffeId.parse("spiffe://p.org/agent/research"))
    assert found is not None
    assert found.owner == "narrow"


def test_the_number_of_patterns_is_bounded() -> None:
    lines = [f'  - {{id: "spiffe://p.org/{n:05}/*", kind: tool}}' for n in range(PATTERNS_MAX + 1)]
    text = "identities:\n" + "\n".join(lines[:-1]) + "\n"
    assert len(_parse(text).patterns) == PATTERNS_MAX
    assert _faults(text + lines[-1] + "\n") == [
        (PATTERNS_MAX + 2, 10, f"there are more than {PATTERNS_MAX} patterns")
    ]
