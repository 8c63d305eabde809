"""Play one scenario file through every Envoy of a mesh, and hear the witnesses about each call.

Four have to agree: the policy bundles evaluated here, what the caller was told, what reached the
workload behind the Envoy (its journal), and what the ledger holds of the decision.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from authz_server.core.attributes import Protocol
from authz_server.core.decision import Verdict
from authz_server.core.errors import ConfigurationError
from authz_server.demo.mesh import Mesh
from authz_server.demo.plan import MeshPlan
from authz_server.demo.services.journal import UPKEEP
from authz_server.demo.targets_file import write_targets
from authz_server.identity.file_content import FileContent
from authz_server.identity.inventory_file import INVENTORY_BYTES_MAX, parse_inventory
from authz_server.ledger.query import DecisionFilter, LedgerReader
from authz_server.live.targets import Target, load_targets
from authz_server.live.through import Answered, LiveEnvoys, said
from authz_server.policy.bundle import load_bundles
from authz_server.policy.consistency import CompiledBundles, Outcome, Said, Scenario, Step, play
from authz_server.policy.scenarios import SCENARIO_BYTES_MAX, Surroundings, load_scenarios
from authz_server.policy.source import FaultLog

SCENARIOS: Final = Path(__file__).with_name("everywhere.yaml")
# A record may wait in an outbox before it is in the shared ledger.
_RECORDED_WITHIN_S: Final = 10.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One call: what had to come, and what came.

    `expected` is what the policy bundle says, evaluated here. `reached` tells whether the workload
    saw the request, `recorded` whether the ledger holds the decision as the caller was told it.
    """

    scenario: str
    target: str
    bundle: str
    domain: str
    action: str
    expected: str
    actual: str
    reason: str
    reached: bool
    recorded: bool
    decision_id: str | None

    @property
    def as_expected(self) -> bool:
        """Whether everything came out as it had to."""
        let_through = self.expected == Verdict.ALLOW
        return self.expected == self.actual and self.reached == let_through and self.recorded

    def to_json(self) -> dict[str, object]:
        """Return the row as JSON values."""
        return asdict(self) | {"as_expected": self.as_expected}


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One scenario: what the bundles say here, what the Envoys said, and every call."""

    scenario: Scenario
    offline: Outcome
    live: Outcome
    rows: tuple[Row, ...]

    @property
    def as_expected(self) -> bool:
        """Whether every bundle said what the scenario expects, here and live, and was obeyed."""
        calls = all(row.as_expected for row in self.rows)
        return calls and self.offline.agrees and self.live.agrees

    def to_json(self) -> dict[str, object]:
        """Return the scenario as JSON values."""
        return {
            "scenario": self.scenario.name,
            "task": self.scenario.task,
            "as_expected": self.as_expected,
            "offline_agrees": self.offline.agrees,
            "live_agrees": self.live.agrees,
            "calls": [row.to_json() for row in self.rows],
        }


def play_everywhere(
    mesh: Mesh, scenarios: Path, tell: Callable[[Played], None] = lambda _: None
) -> list[Played]:
    """Play every scenario of the file; `tell` is told of each as it is done.

    Steps to a database that the mesh was started without are left out. Raises `ConfigurationError`
    for a faulty file, and `AuthzError` when a call cannot be made.
    """
    targets = load_targets(write_targets(mesh))
    policies = load_bundles(mesh.layout.bundles)
    found = _load(mesh, scenarios, {name: policy.domain for name, policy in policies.items()})
    offline = CompiledBundles(policies)
    played = []
    envoys = LiveEnvoys(targets)
    scenarios_here = list(_without_absent(found, mesh.plan))
    faults = [f for one in scenarios_here for step in one.steps for f in envoys.faults(step)]
    if faults:
        raise ConfigurationError(faults)
    for scenario in scenarios_here:
        witnesses = _Witnesses(mesh, envoys, offline)
        one = Played(
            scenario=scenario,
            offline=play(scenario, offline),
            live=play(scenario, witnesses),
            rows=tuple(witnesses.rows),
        )
        tell(one)
        played.append(one)
    return played


def _load(mesh: Mesh, path: Path, domains: Mapping[str, str]) -> tuple[Scenario, ...]:
    inventory = FileContent.read(mesh.layout.pdp / "identities.yaml", bytes_max=INVENTORY_BYTES_MAX)
    log = FaultLog()
    found = load_scenarios(
        FileContent.read(path, bytes_max=SCENARIO_BYTES_MAX).data,
        file=str(path),
        surroundings=Surroundings(
            domains=domains, inventory=parse_inventory(inventory), admit_unregistered=False
        ),
        log=log,
    )
    if log.faults:
        raise ConfigurationError(log.errors())
    return found


def _without_absent(scenarios: Iterable[Scenario], plan: MeshPlan) -> Iterator[Scenario]:
    if any(service.protocol is Protocol.TCP for service in plan.services):
        yield from scenarios
        return
    for scenario in scenarios:
        left = tuple(s for s in scenario.steps if s.attributes.act.protocol != Protocol.TCP)
        yield replace(scenario, steps=left)


class _Witnesses:
    """An `Asker` that sends each step through Envoy and looks what came of it."""

    def __init__(self, mesh: Mesh, envoys: LiveEnvoys, offline: CompiledBundles) -> None:
        self._mesh = mesh
        self._envoys = envoys
        self._offline = offline
        self.rows: list[Row] = []

    def ask(self, step: Step) -> Said:
        """Ask every target that the step is for, one after the other."""
        answers = []
        for target in self._envoys.ways(step):
            before = self._arrived(target, step)
            answered = self._envoys.ask_one(target, step)
            self.rows.append(self._row(answered, self._arrived(target, step) > before))
            # No answer is no access; the row says which of the two it was.
            silent = answered.observed.verdict is None
            answers.append(Said(verdict=Verdict.DENY, reason=None) if silent else said(answered))
        # The strictest: a way around another is no way in.
        return min(answers, key=lambda answer: answer.verdict is Verdict.ALLOW)

    def _row(self, answered: Answered, reached: bool) -> Row:
        step, observed = answered.step, answered.observed
        return Row(
            scenario=step.scenario,
            target=answered.target.name,
            bundle=step.bundle,
            domain=step.attributes.env.domain,
            action=_action(step),
            expected=str(self._offline.ask(step).verdict),
            actual=str(observed.verdict or "none"),
            reason=observed.reason,
            reached=reached,
            recorded=self._recorded(answered),
            decision_id=observed.decision_id,
        )

    def _arrived(self, target: Target, step: Step) -> int:
        service = next(s for s in self._mesh.plan.services if s.host == target.host)
        if service.protocol is Protocol.TCP:
            return self._mesh.connections(service.name)
        upkeep = UPKEEP - {step.attributes.act.name}
        visits = self._mesh.visits(service.name)
        return sum(visit.header("mcp-method") not in upkeep for visit in visits)

    def _recorded(self, answered: Answered) -> bool:
        """Tell whether the ledger holds what the caller was told, waiting for a shared one."""
        if answered.observed.verdict is None:
            return False
        deadline = time.monotonic() + _RECORDED_WITHIN_S
        while not (found := self._is_recorded(answered)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return found

    def _is_recorded(self, answered: Answered) -> bool:
        observed = answered.observed
        reader = LedgerReader.open(self._mesh.ledger)
        if observed.decision_id is None:  # a raw connection: the newest record has to be its own
            newest = reader.list(DecisionFilter(bundle=answered.step.bundle, limit=1))
            return any(one.document["verdict"] == observed.verdict for one in newest)
        stored = reader.get(observed.decision_id)
        told = (observed.verdict, observed.reason)
        return stored is not None and told == (
            stored.document["verdict"],
            stored.document["reason"],
        )


def _action(step: Step) -> str:
    obj, name = step.attributes.obj, step.attributes.act.name
    what = obj.tool or obj.path or obj.uri
    return f"{name} {what}" if what else name
