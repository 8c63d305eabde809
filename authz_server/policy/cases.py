"""Policy tests: `cases.yaml`, one request and the expected evaluation each.

A case names only what matters to it. The rest is filled in as the server would: trust domain and
path of a SPIFFE ID, depth and leaf of a chain's actors, segments of a path, hour and weekday of
`now` (2026-01-01T00:00:00Z unless given).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from authz_server.core.attributes import (
    SCHEMA,
    ActionAttributes,
    Attributes,
    AttributeSpec,
    AttributeType,
    ChainAttributes,
    EnvironmentAttributes,
    ObjectAttributes,
    PartyAttributes,
    Protocol,
    Role,
)
from authz_server.core.decision import Evaluation, Verdict
from authz_server.core.errors import ConfigurationError, Fault, InvalidValueError, Reason
from authz_server.core.snapshot import Policy
from authz_server.core.spiffe import SpiffeId
from authz_server.core.suggestion import did_you_mean
from authz_server.core.yaml_document import YamlDocument, YamlValue
from authz_server.policy.manifest import Manifest
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
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_TYPES: Final[Mapping[str, str]] = {
    Protocol.HTTP: "http",
    Protocol.GRPC: "grpc",
    Protocol.MCP: "mcp_tool",
    Protocol.A2A: "a2a_agent",
    Protocol.TCP: "tcp",
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOW_S: Final = 1_767_225_600  # 2026-01-01T00:00:00Z, a Thursday
_NOW_MAX_S: Final = 253_402_300_799  # 9999-12-31T23:59:59Z
_SCALARS: Final = {
    AttributeType.STRING: (str,),
    AttributeType.BOOL: (bool,),
    AttributeType.INT: (int,),
}
YamlPath = tuple[str | int, ...]


def load_cases(data: bytes, *, file: str, manifest: Manifest, log: FaultLog) -> tuple[Case, ...]:
    """Return the cases in `data`; every fault goes to `log`."""
    try:
        document = YamlDocument.parse(data, file=file)
    except ConfigurationError as error:
        for fault in error.faults:
            log.add(fault)
        return ()
    return _Reader(document, manifest, log).read()


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
    return _Reader(document, manifest, log).request()


class _Reader:
    """Reads one document."""

    def __init__(self, document: YamlDocument, manifest: Manifest, log: FaultLog) -> None:
        self._document = document
        self._manifest = manifest
        self._log = log
        self._names: set[str] = set()

    def read(self) -> tuple[Case, ...]:
        cases = self._document.value
        if not isinstance(cases, list):
            self._fault((), "expected a list of cases")
            return ()
        return tuple(self._case(case, (index,)) for index, case in enumerate(cases))

    def request(self) -> Attributes:
        return self._attributes(self._document.value, ())

    def _fault(self, path: YamlPath, message: str) -> None:
        self._log.add(self._document.fault(path, message))

    def _mapping(
        self, value: YamlValue, path: YamlPath, known: Sequence[str]
    ) -> dict[str, YamlValue]:
        if not isinstance(value, dict):
            self._fault(path, f"expected a mapping of {', '.join(known)}")
            return {}
        for key in value:
            if key not in known:
                message = f"unknown key `{key}`{did_you_mean(key, known)}"
                self._log.add(self._document.key_fault((*path, key), message))
        return {key: part for key, part in value.items() if key in known}

    def _case(self, value: YamlValue, path: YamlPath) -> Case:
        values = self._mapping(value, path, _CASE_KEYS)
        name = values.get("name")
        if not isinstance(name, str) or not name or name in self._names:
            self._fault((*path, "name"), "a case has a `name` of its own")
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
        values = self._mapping(value, path, _EXPECT_KEYS)
        verdict, reason = values.get("verdict"), values.get("reason")
        if verdict not in list(Verdict):
            self._fault((*path, "verdict"), "`verdict` is one of allow, escalate, deny")
            verdict = Verdict.DENY
        if reason is not None and reason not in list(Reason):
            self._fault((*path, "reason"), "unknown reason code")
            reason = None
        rules = values.get("rules")
        return Expectation(
            verdict=Verdict(str(verdict)),
            reason=None if reason is None else Reason(str(reason)),
            rules=None if rules is None else self._texts(rules, (*path, "rules")),
            obligation=self._optional_text(values, path, "obligation"),
        )

    def _optional_text(
        self, values: Mapping[str, YamlValue], path: YamlPath, key: str
    ) -> str | None:
        value = values.get(key)
        if value is not None and not isinstance(value, str):
            self._fault((*path, key), f"`{key}` is text")
            return None
        return value

    def _texts(self, value: YamlValue, path: YamlPath) -> tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(map(str, value))
        self._fault(path, "expected a list of texts")
        return ()

    # --- attributes -----------------------------------------------------------------------------

    def _attributes(self, value: YamlValue, path: YamlPath) -> Attributes:
        values = self._mapping(value, path, _REQUEST_KEYS)
        actors = values.get("actors", [])
        if not isinstance(actors, list):
            self._fault((*path, "actors"), "expected a list of parties")
            actors = []
        subject = values.get("subject")
        act = self._act(self._record("act", values, path))
        return Attributes(
            caller=self._party(values.get("sub"), (*path, "sub"), Role.CALLER),
            actors=tuple(
                self._party(actor, (*path, "actors", index), Role.ACTOR)
                for index, actor in enumerate(actors)
            ),
            subject=None
            if subject is None
            else self._party(subject, (*path, "subject"), Role.SUBJECT),
            chain=self._chain(values, path),
            act=act,
            obj=self._obj(self._record("obj", values, path), act),
            env=self._env(self._record("env", values, path)),
        )

    def _record(
        self, token: str, values: Mapping[str, YamlValue], path: YamlPath
    ) -> dict[str, Any]:
        return self._typed(token, values.get(token, {}), (*path, token))

    def _typed(self, token: str, value: YamlValue, path: YamlPath) -> dict[str, Any]:
        """Return the attributes given for one record, each of the type the schema says."""
        schema = SCHEMA[token]
        given = self._mapping(value, path, tuple(schema))
        typed = {
            name: self._value(schema[name], part, (*path, name))
            for name, part in given.items()
            if part is not None
        }
        return {name: value for name, value in typed.items() if value is not None}

    def _value(self, spec: AttributeSpec, value: YamlValue, path: YamlPath) -> object:
        """Return one attribute's value; None for one that is at fault."""
        kind = spec.type
        if kind in {AttributeType.SET, AttributeType.LIST}:
            texts = self._texts(value, path)
            return frozenset(texts) if kind is AttributeType.SET else texts
        if kind is AttributeType.MAP:
            if not isinstance(value, dict) or any(
                isinstance(part, list | dict) for part in value.values()
            ):
                self._fault(path, "expected a mapping of names to single values")
                return {}
            return dict(value)
        if type(value) not in _SCALARS[kind]:
            self._fault(path, f"expected {kind.value}")
            return None
        if spec.choices and value not in spec.choices:
            hint = did_you_mean(str(value), spec.choices)
            self._fault(path, f"expected one of {', '.join(sorted(spec.choices))}{hint}")
            return None
        return value

    def _party(self, value: YamlValue, path: YamlPath, role: Role) -> PartyAttributes:
        given = self._typed("sub", {} if value is None else value, path)
        try:
            spiffe_id = SpiffeId.parse(str(given.setdefault("id", "")))
        except InvalidValueError:
            pass  # a human's name, or none that matters: it has neither trust domain nor path
        else:
            given.setdefault("trust_domain", spiffe_id.trust_domain.name)
            given.setdefault("path", spiffe_id.path)
        return PartyAttributes(**{"kind": None, "role": role.value, **given})

    def _chain(self, values: Mapping[str, YamlValue], path: YamlPath) -> ChainAttributes:
        if values.get("chain") is None:
            return ChainAttributes(present=False)
        given = self._record("chain", values, path)
        actors = given.get("actors", ())
        defaults = {
            "present": True,
            "assurance": "hop_signed",
            "mode": "exercise",
            "depth": len(actors),
            "leaf": actors[-1] if actors else None,
        }
        return ChainAttributes(**{**defaults, **given})

    def _act(self, given: dict[str, Any]) -> ActionAttributes:
        given.setdefault("protocol", Protocol.HTTP.value)
        given.setdefault("name", "GET")
        http = given["protocol"] == Protocol.HTTP
        given.setdefault("read_only", http and given["name"] in _SAFE_METHODS)
        return ActionAttributes(**given)

    def _obj(self, given: dict[str, Any], act: ActionAttributes) -> ObjectAttributes:
        given.setdefault("type", _TYPES.get(act.protocol, "http"))
        path = given.get("path")
        if path is not None:
            given.setdefault("segments", tuple(path[1:].split("/")) if len(path) > 1 else ())
        return ObjectAttributes(**given)

    def _env(self, given: dict[str, Any]) -> EnvironmentAttributes:
        # Beyond what a datetime holds only the seconds themselves are of use.
        now = _EPOCH + timedelta(seconds=min(max(given.get("now", _NOW_S), 0), _NOW_MAX_S))
        defaults = {
            "now": int(now.timestamp()),
            "hour_utc": now.hour,
            "weekday": now.isoweekday(),
            "source_ip": None,
            "listener": None,
            "domain": self._manifest.domain,
            "bundle": self._manifest.name,
            "sni": None,
        }
        return EnvironmentAttributes(**{**defaults, **given})
