"""Policy tests: `cases.yaml`, one request and the expected evaluation each.

A case names only what matters to it; the rest is filled in as the server would (`request_records`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from authz_server.core.attributes import SCHEMA, Attributes, PartyAttributes, Role
from authz_server.core.decision import Evaluation, Verdict
from authz_server.core.errors import ConfigurationError, Fault, Reason
from authz_server.core.snapshot import Policy
from authz_server.core.yaml_document import YamlDocument, YamlValue
from authz_server.policy.manifest import Manifest
from authz_server.policy.request_records import (
    Given,
    RecordReader,
    YamlPath,
    action_of,
    chain_of,
    environment_of,
    object_of,
    party_of,
)
from authz_server.policy.source import FaultLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a case expects; None where it does not care."""

    verdict: Verdict
    reason: Reason | None = None
    rules: tuple[str, ...] | None = None
    obligation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One policy test."""

    name: str
    file: str
    line: int
    attributes: Attributes
    expect: Expectation


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFailure:
    """A case that came out otherwise; `differences` holds expected and actual by field."""

    case: Case
    actual: Evaluation
    differences: Mapping[str, tuple[object, object]]

    def __str__(self) -> str:
        lines = [f"case `{self.case.name}` (line {self.case.line})"]
        for name, (expected, actual) in self.differences.items():
            lines += [f"  - {name}: {_shown(expected)}", f"  + {name}: {_shown(actual)}"]
        return "\n".join(lines)

    def fault(self) -> Fault:
        """Return what an operator is told in one line: which case, where it stands, what differs.

        No column: the expectation may be right and the rule wrong.
        """
        found = "; ".join(
            f"{name} is {_shown(actual)}, expected {_shown(expected)}"
            for name, (expected, actual) in self.differences.items()
        )
        message = f"case `{self.case.name}` fails: {found}"
        return Fault(file=self.case.file, line=self.case.line, message=message)


def run_cases(policy: Policy, cases: Iterable[Case]) -> tuple[CaseFailure, ...]:
    """Return the cases that `policy` does not answer as expected."""
    failures = []
    for case in cases:
        actual = policy.evaluate(case.attributes)
        if differences := _differences(case.expect, actual):
            failures.append(CaseFailure(case=case, actual=actual, differences=differences))
    return tuple(failures)


def untested_rules(policy: Policy, cases: Iterable[Case], ids: Iterable[str]) -> tuple[str, ...]:
    """Return those of `ids` that decide none of the cases."""
    seen = {rule for case in cases for rule in policy.evaluate(case.attributes).rules}
    return tuple(rule for rule in ids if rule not in seen)


def _differences(expect: Expectation, actual: Evaluation) -> dict[str, tuple[object, object]]:
    pairs = {
        "verdict": (expect.verdict, actual.verdict),
        "reason": (expect.reason, actual.reason),
        "rules": (expect.rules, actual.rules),
        "obligation": (expect.obligation, actual.obligation),
    }
    return {
        name: (expected, found)
        for name, (expected, found) in pairs.items()
        if expected is not None and expected != found
    }


def _shown(value: object) -> str:
    return ", ".join(value) or "(none)" if isinstance(value, tuple) else str(value)


# --- reading ------------------------------------------------------------------------------------

_CASE_KEYS: Final = ("name", "request", "expect")
_REQUEST_KEYS: Final = (*SCHEMA, "actors", "subject")
_EXPECT_KEYS: Final = ("verdict", "reason", "rules", "obligation")


def load_cases(data: bytes, *, file: str, manifest: Manifest, log: FaultLog) -> tuple[Case, ...]:
    """Return the cases in `data`; every fault goes to `log`."""
    try:
        document = YamlDocument.parse(data, file=file)
    except ConfigurationError as error:
        for fault in error.faults:
            log.add(fault)
        return ()
    return _CaseReader(RecordReader(document, log), manifest).read()


def load_request(data: bytes, *, file: str, manifest: Manifest, log: FaultLog) -> Attributes:
    """Return the attributes of one request, written as the `request` of a case.

    JSON is YAML, so it may be either. Meaningless when `log` holds faults.
    """
    try:
        document = YamlDocument.parse(data, file=file)
    except ConfigurationError as error:
        for fault in error.faults:
            log.add(fault)
        document = YamlDocument.parse(b"{}", file=file)
    return _CaseReader(RecordReader(document, log), manifest).request()


class _CaseReader:
    """Reads one document."""

    def __init__(self, records: RecordReader, manifest: Manifest) -> None:
        self._records = records
        self._document = records.document
        self._manifest = manifest
        self._names: set[str] = set()

    def read(self) -> tuple[Case, ...]:
        cases = self._document.value
        if not isinstance(cases, list):
            self._records.fault((), "expected a list of cases")
            return ()
        return tuple(self._case(case, (index,)) for index, case in enumerate(cases))

    def request(self) -> Attributes:
        return self._attributes(self._document.value, ())

    def _case(self, value: YamlValue, path: YamlPath) -> Case:
        values = self._records.mapping(value, path, _CASE_KEYS)
        name = values.get("name")
        if not isinstance(name, str) or not name or name in self._names:
            self._records.fault((*path, "name"), "a case has a `name` of its own")
            name = ""
        self._names.add(name)
        return Case(
            name=name,
            file=self._document.file,
            line=self._document.fault(path, "").line,
            attributes=self._attributes(values.get("request", {}), (*path, "request")),
            expect=self._expectation(values.get("expect"), (*path, "expect")),
        )

    def _expectation(self, value: YamlValue, path: YamlPath) -> Expectation:
        values = self._records.mapping(value, path, _EXPECT_KEYS)
        verdict, reason = values.get("verdict"), values.get("reason")
        if verdict not in list(Verdict):
            self._records.fault((*path, "verdict"), "`verdict` is one of allow, escalate, deny")
            verdict = Verdict.DENY
        if reason is not None and reason not in list(Reason):
            self._records.fault((*path, "reason"), "unknown reason code")
            reason = None
        rules = values.get("rules")
        return Expectation(
            verdict=Verdict(str(verdict)),
            reason=None if reason is None else Reason(str(reason)),
            rules=None if rules is None else self._records.texts(rules, (*path, "rules")),
            obligation=self._optional_text(values, path, "obligation"),
        )

    def _optional_text(
        self, values: Mapping[str, YamlValue], path: YamlPath, key: str
    ) -> str | None:
        value = values.get(key)
        if value is not None and not isinstance(value, str):
            self._records.fault((*path, key), f"`{key}` is text")
            return None
        return value

    def _attributes(self, value: YamlValue, path: YamlPath) -> Attributes:
        values = self._records.mapping(value, path, _REQUEST_KEYS)
        actors = values.get("actors", [])
        if not isinstance(actors, list):
            self._records.fault((*path, "actors"), "expected a list of parties")
            actors = []
        subject = values.get("subject")
        act = action_of(self._given("act", values, path))
        return Attributes(
            caller=self._party(values.get("sub"), (*path, "sub"), Role.CALLER),
            actors=tuple(
                self._party(actor, (*path, "actors", index), Role.ACTOR)
                for index, actor in enumerate(actors)
            ),
            subject=None
            if subject is None
            else self._party(subject, (*path, "subject"), Role.SUBJECT),
            chain=chain_of(
                None if values.get("chain") is None else self._given("chain", values, path)
            ),
            act=act,
            obj=object_of(self._given("obj", values, path), act),
            env=environment_of(
                self._given("env", values, path),
                domain=self._manifest.domain,
                bundle=self._manifest.name,
            ),
        )

    def _given(self, token: str, values: Mapping[str, YamlValue], path: YamlPath) -> Given:
        return self._records.record(token, values.get(token, {}), (*path, token))

    def _party(self, value: YamlValue, path: YamlPath, role: Role) -> PartyAttributes:
        return party_of(self._records.record("sub", {} if value is None else value, path), role)
