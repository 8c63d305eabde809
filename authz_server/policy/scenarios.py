"""Consistency scenarios: the YAML file, read strictly, every fault at its line and column.

A step names a bundle, an action and an object. Who acts for whom is said once for the scenario, and
fills in the caller, the actors, the subject and the chain of every step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from authz_server.core.attributes import Attributes, Kind, PartyAttributes, Role
from authz_server.core.decision import Verdict
from authz_server.core.errors import ConfigurationError, InvalidValueError
from authz_server.core.identities import Identity, Inventory
from authz_server.core.spiffe import SpiffeId
from authz_server.core.suggestion import did_you_mean
from authz_server.core.yaml_document import YamlDocument, YamlValue
from authz_server.policy.consistency import Scenario, Step
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

SCENARIO_BYTES_MAX: Final = 1024 * 1024  # some thousand scenarios
SCENARIOS_MAX: Final = 1000  # a live run sends a request for each of their steps
STEPS_MAX: Final = 100

SAME: Final = "same"
_KEYS: Final = ("name", "task", "subject", "agent", "parties", "chain", "steps", "expect")
_STEP_KEYS: Final = ("bundle", "sub", "chain", "act", "obj", "env")
# What follows from `agent` and `subject` and cannot be said otherwise.
_CHAIN_FOLLOWS: Final = ("present", "subject", "depth", "leaf")
_PARTY_FOLLOWS: Final = ("id", "role", "trust_domain", "path", "assurance")
_CALLER_FOLLOWS: Final = ("role", "trust_domain", "path")
_ENV_FOLLOWS: Final = ("domain", "bundle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What scenarios are read against.

    `domains` are the enforcement domains by bundle: no other bundle can be asked. Parties that a
    scenario does not describe are as `inventory` has them. A workload that neither knows is taken
    for an agent; unless `admit_unregistered`, its steps are marked (`Step.unregistered`).
    """

    domains: Mapping[str, str]
    inventory: Inventory = field(default_factory=lambda: Inventory.of(()))
    admit_unregistered: bool = True


def load_scenarios(
    data: bytes, *, file: str, surroundings: Surroundings, log: FaultLog
) -> tuple[Scenario, ...]:
    """Return the scenarios in `data`, a list of them or one alone; every fault goes to `log`.

    Meaningless when `log` holds faults.
    """
    try:
        document = YamlDocument.parse(data, file=file)
    except ConfigurationError as error:
        for fault in error.faults:
            log.add(fault)
        return ()
    return _ScenarioReader(RecordReader(document, log), surroundings).read()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cast:
    """Who takes part in a scenario, and the chain they have unless a step says otherwise."""

    agent: str
    subject: str | None
    parties: Mapping[str, Given]
    chain: Given | None


class _ScenarioReader:
    """Reads one document."""

    def __init__(self, records: RecordReader, surroundings: Surroundings) -> None:
        self._records = records
        self._document = records.document
        self._around = surroundings
        self._names: set[str] = set()

    def read(self) -> tuple[Scenario, ...]:
        found = self._document.value
        if isinstance(found, dict):
            return (self._scenario(found, ()),)
        if not isinstance(found, list) or not found:
            self._records.fault((), "expected a list of scenarios")
            return ()
        if len(found) > SCENARIOS_MAX:
            self._records.fault((SCENARIOS_MAX,), f"more than {SCENARIOS_MAX} scenarios")
            return ()
        return tuple(self._scenario(value, (index,)) for index, value in enumerate(found))

    def _scenario(self, value: YamlValue, path: YamlPath) -> Scenario:
        values = self._records.mapping(value, path, _KEYS)
        name = self._text(values, path, "name")
        if name in self._names:
            self._records.fault((*path, "name"), "a scenario has a `name` of its own")
        self._names.add(name)
        steps = self._steps(values, path, name, self._cast(values, path))
        return Scenario(
            name=name,
            task=self._text(values, path, "task"),
            file=self._document.file,
            line=self._line(path),
            steps=steps,
            expect=self._expectation(values, path, steps),
        )

    def _text(self, values: Mapping[str, YamlValue], path: YamlPath, key: str) -> str:
        value = values.get(key)
        if not isinstance(value, str) or not value:
            where = (*path, key) if key in values else path
            self._records.fault(where, f"`{key}` is required, and is text")
            return ""
        return value

    def _line(self, path: YamlPath) -> int:
        return self._document.fault(path, "").line

    # --- who ------------------------------------------------------------------------------------

    def _cast(self, values: Mapping[str, YamlValue], path: YamlPath) -> _Cast:
        agent = self._text(values, path, "agent")
        if agent:
            self._check_workload(agent, (*path, "agent"))
        subject = None if values.get("subject") is None else self._text(values, path, "subject")
        return _Cast(
            agent=agent,
            subject=subject,
            parties=self._parties(values.get("parties", {}), (*path, "parties")),
            chain=self._chain(values, path, subject, {}),
        )

    def _check_workload(self, text: str, path: YamlPath) -> None:
        try:
            SpiffeId.parse(text)
        except InvalidValueError as error:
            self._records.fault(path, f"`{path[-1]}` is not a SPIFFE ID: {error}")

    def _parties(self, value: YamlValue, path: YamlPath) -> Mapping[str, Given]:
        if not isinstance(value, dict):
            self._records.fault(path, "expected a mapping of ids to attributes")
            return {}
        return {
            name: self._records.record("sub", given, (*path, name), without=_PARTY_FOLLOWS)
            for name, given in value.items()
        }

    def _chain(
        self,
        values: Mapping[str, YamlValue],
        path: YamlPath,
        subject: str | None,
        above: Given | None,
    ) -> Given | None:
        """Return what is given of the chain here over what is given `above`; None for no chain."""
        if "chain" not in values:
            return above if subject is not None else None
        if values["chain"] is None:
            return None
        here = (*path, "chain")
        given = self._records.record("chain", values["chain"], here, without=_CHAIN_FOLLOWS)
        if subject is None:
            self._records.fault(here, "a chain needs a `subject` of the scenario")
        for actor in given.get("actors", ()):
            self._check_workload(actor, (*here, "actors"))
        return (above or {}) | given

    # --- what -----------------------------------------------------------------------------------

    def _steps(
        self, values: Mapping[str, YamlValue], path: YamlPath, scenario: str, cast: _Cast
    ) -> tuple[Step, ...]:
        steps = values.get("steps")
        here = (*path, "steps") if "steps" in values else path
        if not isinstance(steps, list) or not 0 < len(steps) <= STEPS_MAX:
            self._records.fault(here, f"`steps` is required, a list of 1 to {STEPS_MAX}")
            return ()
        found = (self._step(step, (*here, i), scenario, cast) for i, step in enumerate(steps))
        return tuple(step for step in found if step is not None)

    def _step(self, value: YamlValue, path: YamlPath, scenario: str, cast: _Cast) -> Step | None:
        values = self._records.mapping(value, path, _STEP_KEYS)
        bundle = self._text(values, path, "bundle")
        for key in ("act", "obj"):
            if key not in values:
                self._records.fault(path, f"a step says what is done: `{key}` is required")
        if bundle not in self._around.domains:
            if bundle:
                hint = did_you_mean(bundle, self._around.domains)
                self._records.fault((*path, "bundle"), f"no bundle is called `{bundle}`{hint}")
            return None
        records = {
            token: self._record(token, values, path, without)
            for token, without in (
                ("sub", _CALLER_FOLLOWS), ("act", ()), ("obj", ()), ("env", _ENV_FOLLOWS),
            )
        }  # fmt: skip
        chain = self._chain(values, path, cast.subject, cast.chain)
        attributes = self._attributes(records, chain, cast, bundle)
        named = ((token, given) for token, given in (*records.items(), ("chain", chain or {})))
        return Step(
            scenario=scenario,
            file=self._document.file,
            line=self._line(path),
            bundle=bundle,
            attributes=attributes,
            given=frozenset(f"{token}.{name}" for token, given in named for name in given),
            unregistered=self._is_unregistered(attributes, cast),
        )

    def _record(
        self, token: str, values: Mapping[str, YamlValue], path: YamlPath, without: Sequence[str]
    ) -> Given:
        return self._records.record(token, values.get(token, {}), (*path, token), without=without)

    def _attributes(
        self, records: Mapping[str, Given], chain: Given | None, cast: _Cast, bundle: str
    ) -> Attributes:
        sub = records["sub"]
        caller_id = str(sub.get("id", cast.agent))
        actors = self._actors(chain, cast.agent, caller_id)
        if chain is not None:
            chain = {**chain, "subject": cast.subject, "actors": actors}
        act = action_of(records["act"])
        return Attributes(
            caller=replace(
                self._party(caller_id, cast, Role.CALLER, assurance="mtls"),
                **{name: value for name, value in sub.items() if name != "id"},
            ),
            actors=tuple(self._party(actor, cast, Role.ACTOR) for actor in actors),
            subject=self._party(cast.subject, cast, Role.SUBJECT)
            if chain is not None and cast.subject is not None
            else None,
            chain=chain_of(chain),
            act=act,
            obj=object_of(records["obj"], act),
            env=environment_of(records["env"], domain=self._around.domains[bundle], bundle=bundle),
        )

    def _actors(self, chain: Given | None, agent: str, caller: str) -> tuple[str, ...]:
        if chain is None:
            return ()
        through = (agent,) if caller == agent else (agent, caller)
        actors: tuple[str, ...] = chain.get("actors", through)
        return actors

    def _party(
        self, name: str, cast: _Cast, role: Role, *, assurance: str | None = None
    ) -> PartyAttributes:
        """Return a party as the scenario describes it, over what the inventory says."""
        identity = self._registered(name)
        kind = Kind.AGENT if name.startswith("spiffe:") else Kind.HUMAN
        given: Given = {"id": name, "kind": kind.value}
        if assurance is not None:
            given["assurance"] = assurance
        if identity is not None:
            given |= {
                "kind": identity.kind.value,
                "labels": MappingProxyType(dict(identity.labels)),
            }
            given |= {"owner": identity.owner, "purpose": identity.purpose}
        return party_of(given | cast.parties.get(name, {}), role)

    def _registered(self, name: str) -> Identity | None:
        try:
            return self._around.inventory.find(SpiffeId.parse(name))
        except InvalidValueError:
            return self._around.inventory.find_subject(name)

    def _is_unregistered(self, attributes: Attributes, cast: _Cast) -> bool:
        """Tell whether a server would not know the caller or an actor; a subject need not be."""
        if self._around.admit_unregistered:
            return False
        workloads = (attributes.caller.id, *(actor.id for actor in attributes.actors))
        return any(not (name in cast.parties or self._registered(name)) for name in workloads)

    # --- expected -------------------------------------------------------------------------------

    def _expectation(
        self, values: Mapping[str, YamlValue], path: YamlPath, steps: Sequence[Step]
    ) -> Mapping[str, Verdict] | None:
        bundles = tuple(dict.fromkeys(step.bundle for step in steps))
        here = (*path, "expect") if "expect" in values else path
        value = values.get("expect")
        if value == SAME:
            if len(bundles) == 1:
                message = "`same` compares bundles; the steps name one alone"
                self._records.fault(here, message)
            return None
        if not isinstance(value, dict):
            message = "`expect` is required: `same`, or the verdict of each bundle"
            self._records.fault(here, message)
            return None
        given = self._records.mapping(value, here, bundles)
        for bundle in bundles:
            if value.get(bundle) not in list(Verdict):
                message = f"`{bundle}` needs a verdict: allow, escalate or deny"
                self._records.fault((*here, bundle), message)
        return {name: Verdict(str(v)) for name, v in given.items() if v in list(Verdict)}
