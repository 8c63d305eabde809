"""Every record leaves in every form, whole, in order, and valid by the form's own rules."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli import decisions, main
from authz_server.core.decision import (
    ActionRecord,
    ApprovalRecord,
    Decision,
    TicketRecord,
    TraceRecord,
)
from authz_server.core.enforcement import Mode
from authz_server.core.errors import Reason
from authz_server.core.record import decision_json
from authz_server.ledger import query
from authz_server.ledger.export_cloudevents import cloud_event
from authz_server.ledger.export_jsonl import line_of
from authz_server.ledger.export_ocsf import ocsf_event
from authz_server.ledger.follow import follow
from authz_server.ledger.query import ERASED, DecisionFilter, LedgerReader, StoredDecision
from authz_server.ledger.store import Ledger
from tests.ledger_samples import ALICE, NOON, RESEARCHER, TTL_S, allow, at, deny, escalation, record

TRACE = TraceRecord(trace_id="4b" * 16, span_id="0f" * 8)
APPROVED = ApprovalRecord(id="a" * 16, approver="bob@example.org", approved_at=NOON)

# OCSF 1.8, API Activity (6003): the attributes it requires, and their types, as published.
REQUIRED = {
    "activity_id": int,
    "category_uid": int,
    "class_uid": int,
    "type_uid": int,
    "time": int,
    "severity_id": int,
    "metadata": dict,
    "actor": dict,
    "api": dict,
    "src_endpoint": dict,
}
# Of the objects: what each requires, and the "at least one of" constraints.
REQUIRED_IN = {
    ("metadata",): {"version", "product"},
    ("metadata", "product"): set(),
    ("api",): {"operation"},
    ("api", "service"): set(),
    ("trace",): {"uid"},
}
ONE_OF_IN = {
    ("metadata", "product"): {"name", "uid"},
    ("actor",): {"process", "user", "invoked_by", "session", "app_name", "app_uid"},
    ("actor", "user"): {"account", "name", "uid"},
    ("src_endpoint",): {"ip", "uid", "name", "hostname", "svc_name", "instance_uid"},
    ("dst_endpoint",): {"ip", "uid", "name", "hostname", "svc_name", "instance_uid"},
    ("api", "service"): {"name", "uid"},
}
# The closed value sets of what the class and the profile Security Control add.
VALUES = {
    "activity_id": {0, 1, 2, 3, 4, 99},
    "severity_id": {0, 1, 2, 3, 4, 5, 6, 99},
    "status_id": {0, 1, 2, 99},
    "action_id": {0, 1, 2, 3, 4, 99},
    "disposition_id": {*range(28), 99},
}


def stored(decision: Decision, decision_id: str = "d-1") -> StoredDecision:
    document = decision_json(decision, decision_id=decision_id, duration_us=57)
    return StoredDecision(seq=7, decision_id=decision_id, document=document, writer="w" * 16)


def erased() -> StoredDecision:
    return StoredDecision(
        seq=8, decision_id="gone", document={"decision_id": "gone", "detail": ERASED}, writer="w"
    )


BARE = deny(
    Reason.NO_PRINCIPAL, principal=None, chain=None, action=None, resource=None, environment=None,
    rules=(), bundle=None, owner=None,
)  # fmt: skip
SAMPLES = {
    "allow": allow(trace=TRACE),
    "approved": allow(approval=APPROVED),
    "deny": deny(),
    "bare": BARE,
    "broken": deny(Reason.INTERNAL_ERROR),
    "escalate": replace(
        escalation(),
        ticket=TicketRecord(id="t", status="pending", expires_at=NOON, approver_group="g"),
    ),
    "shadow": deny(mode=Mode.SHADOW),
    "read": allow(action=ActionRecord(protocol="http", name="GET", read_only=True)),
    "delete": allow(action=ActionRecord(protocol="http", name="DELETE", read_only=False)),
}


def within(event: Mapping[str, object], path: Sequence[str]) -> Mapping[str, object] | None:
    value: object = event
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    assert isinstance(value, Mapping), path
    return value


@pytest.mark.parametrize("name", SAMPLES)
def test_ocsf_has_every_required_attribute(name: str) -> None:
    event = ocsf_event(stored(SAMPLES[name]))
    assert event is not None
    for attribute, kind in REQUIRED.items():
        assert type(event[attribute]) is kind, attribute
    assert (event["class_uid"], event["category_uid"]) == (6003, 6)
    activity = event["activity_id"]
    assert isinstance(activity, int)
    assert event["type_uid"] == 600300 + activity
    assert event["time"] == int(NOON.timestamp() * 1000)
    for attribute, values in VALUES.items():
        assert event[attribute] in values, attribute
    for path, names in REQUIRED_IN.items():
        if (found := within(event, path)) is not None:
            assert names <= found.keys(), path
    for path, names in ONE_OF_IN.items():
        if (found := within(event, path)) is not None:
            assert not names.isdisjoint(found), path
    metadata = event["metadata"]
    assert isinstance(metadata, Mapping)
    assert metadata["version"] == "1.8.0"
    assert "security_control" in metadata["profiles"]
    assert "null" not in re.sub(r'"unmapped".*', "", line_of(event))


@pytest.mark.parametrize(
    ("name", "activity", "action", "disposition"),
    [
        ("allow", 99, 1, 1),
        ("approved", 99, 1, 8),
        ("deny", 99, 2, 2),
        ("bare", 99, 2, 26),
        ("broken", 99, 2, 27),
        ("escalate", 99, 2, 14),
        ("shadow", 99, 3, 17),
        ("read", 2, 1, 1),
        ("delete", 4, 1, 1),
    ],
)
def test_ocsf_says_what_became_of_it(
    name: str, activity: int, action: int, disposition: int
) -> None:
    event = ocsf_event(stored(SAMPLES[name]))
    assert event is not None
    found = (event["activity_id"], event["action_id"], event["disposition_id"])
    assert found == (activity, action, disposition)
    # What became of the action, not of the verdict: a denial that was not enforced let it pass.
    passed = SAMPLES[name].passes
    assert event["status_id"] == (1 if passed else 2)


def test_ocsf_names_the_parties_and_the_rule() -> None:
    event = ocsf_event(stored(SAMPLES["allow"]))
    assert event is not None
    actor, metadata, rest = event["actor"], event["metadata"], event["unmapped"]
    assert isinstance(actor, Mapping)
    assert isinstance(metadata, Mapping)
    assert isinstance(rest, Mapping)
    assert actor["user"]["uid"] == ALICE
    assert actor["app_uid"] == RESEARCHER
    assert metadata["correlation_uid"] == "txn-1"
    assert metadata["sequence"] == 7
    assert event["trace"] == {"uid": TRACE.trace_id}
    assert event["authorizations"] == [
        {"decision": "allow", "policy": {"uid": "support-read", "name": "tools", "version": "r1"}}
    ]
    assert len(rest["authz"]["chain"]["hops"]) == 2


@pytest.mark.parametrize("name", SAMPLES)
def test_cloudevents_have_the_required_attributes(name: str) -> None:
    record_ = stored(SAMPLES[name])
    event = cloud_event(record_)
    assert event is not None
    for attribute in ("id", "source", "specversion", "type"):  # CloudEvents 1.0 §Required
        assert isinstance(event[attribute], str)
        assert event[attribute]
    assert event["specversion"] == "1.0"
    assert all(re.fullmatch("[a-z0-9]+", attribute) for attribute in event)
    assert event["data"] == record_.document
    if SAMPLES[name].trace:
        assert event["traceparent"] == f"00-{TRACE.trace_id}-{TRACE.span_id}-00"


def test_an_erased_record_is_left_out_where_it_can_say_nothing() -> None:
    assert ocsf_event(erased()) is None
    assert cloud_event(erased()) is None


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/authz.db"
    ledger = Ledger.open(url, approval_ttl_s=TTL_S)
    ledger.commit(
        [
            record(allow(time=at(0)), "one"),
            record(deny(time=at(1)), "two"),
            record(replace(allow(time=at(2)), detail="esc\x1b[2J\u2028\x7f"), "three"),
        ]
    )
    ledger.close()
    return url


@pytest.mark.parametrize("form", ["jsonl", "ocsf", "cloudevents"])
def test_exports_oldest_first_one_ascii_object_a_line(
    url: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_PAGE_ROWS", 2)
    arguments = ["decisions", "export", "--ledger", url, "--format", form]
    result = CliRunner().invoke(main.group, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert result.stdout.replace("\n", "").isprintable()
    assert result.stdout.isascii()
    key = {"jsonl": "decision_id", "cloudevents": "id"}.get(form)
    if key:
        assert [json.loads(line)[key] for line in lines] == ["one", "two", "three"]


def test_filters_and_writes_a_file_whole(url: str, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    arguments = ["decisions", "export", "--ledger", url, "--verdict", "deny"]
    result = CliRunner().invoke(main.group, [*arguments, "--output-file", str(target)])
    assert result.exit_code == 0
    assert [json.loads(line)["decision_id"] for line in target.read_text().splitlines()] == ["two"]
    assert "exported 1 records" in result.stderr
    assert target.stat().st_mode & 0o777 == 0o600, "it names people"
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_cannot_be_written_is_one_line(url: str, tmp_path: Path) -> None:
    arguments = ["decisions", "export", "--ledger", url]
    target = str(tmp_path / "absent" / "out")
    result = CliRunner().invoke(main.group, [*arguments, "--output-file", target])
    assert result.exit_code == 2
    assert "cannot write" in result.stderr


def test_following_yields_each_new_record_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_PAGE_ROWS", 2)
    ledger = Ledger.open(url, approval_ttl_s=TTL_S)
    rounds = iter(
        [
            [record(allow(time=at(-900)), "late-1"), record(deny(), "denied")],
            [],
            [record(allow(time=at(n)), f"late-{n}") for n in range(2, 7)],
        ]
    )

    class _Over(Exception):
        pass

    def pause(_seconds: float) -> None:
        batch = next(rounds, None)
        if batch is None:
            raise _Over
        if batch:
            ledger.commit(batch)

    found: list[StoredDecision] = []
    wanted = DecisionFilter(rule="support-read")
    with pytest.raises(_Over):
        found.extend(follow(LedgerReader.open(url), wanted, pause=pause))
    ledger.close()
    assert [one.decision_id for one in found] == [
        "late-1",
        "denied",
        *(f"late-{n}" for n in range(2, 7)),
    ]


def test_list_follow_prints_what_comes_until_it_is_interrupted(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.open(url, approval_ttl_s=TTL_S)
    batches = iter([[record(replace(allow(), detail="x\x1b[2J"), "new-1")], [record(deny())], None])

    def pause(_seconds: float) -> None:
        batch = next(batches)
        if batch is None:
            raise KeyboardInterrupt
        ledger.commit(batch)

    monkeypatch.setattr(decisions, "follow", partial(follow, pause=pause))
    arguments = ["decisions", "list", "--follow", "--verdict", "allow", "--ledger", url]
    result = CliRunner().invoke(main.group, arguments)
    ledger.close()
    assert result.exit_code == main.EXIT_INTERRUPTED
    (line,) = result.stdout.splitlines()
    assert line.startswith("new-1")
    assert line.isprintable()
