"""Perform a story in a running mesh, and compare what came with what had to come.

Three witnesses have to agree about each call: what the agent was told, what reached the service
behind the Envoy (its journal), and what the ledger holds of the decision.
"""

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from authz_server.core.errors import AuthzError
from authz_server.demo.calls import Call, Outcome
from authz_server.demo.cast import RESEARCH_SERVICE
from authz_server.demo.grants import Wallet
from authz_server.demo.mesh import Mesh
from authz_server.demo.plan import Service
from authz_server.demo.processes import child_environment
from authz_server.demo.services.journal import UPKEEP, Visit
from authz_server.demo.steps import (
    Answer,
    Ask,
    EditPolicy,
    Expected,
    HandOver,
    KillPdp,
    Revoke,
    StartPdp,
    Step,
)
from authz_server.ledger.query import LedgerReader, LookupFault

_RELOAD_TIMEOUT_S: Final = 15.0
_POLL_S: Final = 0.05
_COMMAND_TIMEOUT_S: Final = 30.0
_DECISION_ID: Final = "x-authz-decision-id"
_ANSWERS: Final = {0: "accepted", 1: "refused"}  # by exit status of `approvals approve`


class StoryError(AuthzError):
    """The story cannot go on: a part of the mesh did not do what it must."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the outcome: what had to come, and what came.

    `reached` tells whether the service saw the request; None where no service is involved.
    `recorded` tells whether the ledger agrees; None without a decision. `explain` asks for the
    decision's provenance to be shown at the end.
    """

    title: str
    actor: str
    action: str
    expected: str
    actual: str
    expected_reached: bool | None = None
    reached: bool | None = None
    recorded: bool | None = None
    decision_id: str | None = None
    detail: str | None = None
    explain: bool = False

    @property
    def as_expected(self) -> bool:
        """Whether everything came out as it had to."""
        return (
            self.expected == self.actual
            and self.expected_reached == self.reached
            and self.recorded is not False
        )

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON values."""
        return asdict(self) | {"as_expected": self.as_expected}


class Performance:
    """One playing of a story."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._wallet = Wallet(mesh)
        self._tickets: dict[str, str] = {}
        self._policies: dict[str, str] = {}  # as they were before the first edit

    async def play(self, step: Step) -> AsyncIterator[Result]:
        """Perform one step. Raises `StoryError`, and what the agents' calls raise."""
        match step:
            case Ask():
                yield await self._ask(step)
            case HandOver():
                for result in await self._hand_over(step):
                    yield result
            case Answer():
                yield self._answer(step)
            case EditPolicy():
                yield self._edit(step)
            case Revoke():
                yield self._revoke(step)
            case KillPdp():
                self._mesh.kill_pdp()
                yield _done(step.title, "operator", "kill -9 the PDP")
            case StartPdp():
                self._mesh.start_pdp()
                self._mesh.await_pdp()
                yield _done(step.title, "operator", "start the PDP")

    async def _ask(self, step: Ask) -> Result:
        witnesses = self._watch()
        agent = self._mesh.agent(step.actor)
        outcome = await agent.perform(step.call, self._wallet.headers(step.grant))
        if step.name and outcome.ticket:
            self._tickets[step.name] = outcome.ticket
        made = _Made(actor=step.actor, call=step.call, expect=step.expect, outcome=outcome)
        return self._result(step.title, made, [made], witnesses, explain=step.explain)

    async def _hand_over(self, step: HandOver) -> list[Result]:
        witnesses = self._watch()
        task = Call(
            host=RESEARCH_SERVICE.host,
            path="/tasks",
            body={"calls": [call.to_json() for call in step.calls]},
        )
        agent = self._mesh.agent(step.actor)
        handed = await agent.perform(task, self._wallet.headers(step.grant))
        made = [_Made(actor=step.actor, call=task, expect=step.expect, outcome=handed)]
        made += [
            _Made(actor=RESEARCH_SERVICE.workload, call=call, expect=expect, outcome=outcome)
            for call, expect, outcome in zip(
                step.calls, step.then, _outcomes(handed, len(step.calls)), strict=True
            )
        ]
        titles = [step.title] + [""] * len(step.calls)
        return [
            self._result(title, one, made, witnesses, explain=step.explain and one is made[-1])
            for title, one in zip(titles, made, strict=True)
        ]

    def _answer(self, step: Answer) -> Result:
        """Answer an escalation as a person would: with the command line."""
        ticket = self._tickets.get(step.to)
        if ticket is None:
            raise StoryError(f"step `{step.to}` gave no approval to answer")
        done = self._command("approvals", "approve", ticket, "--as", step.person)
        if done.returncode not in _ANSWERS:
            raise StoryError(f"`approvals approve` failed: {done.stderr or done.stdout}")
        return Result(
            title=step.title,
            actor=step.person,
            action="approvals approve",
            expected="accepted" if step.accepted else "refused",
            actual=_ANSWERS[done.returncode],
            detail=done.stderr.strip() or None,
        )

    def _revoke(self, step: Revoke) -> Result:
        """Pull the kill switch as a person would, and wait until the PDP says that it knows."""
        spiffe_id = str(self._mesh.plan.spiffe_id(step.workload))
        done = self._command(
            "revocations", step.action, "--spiffe-id", spiffe_id, "--output", "json"
        )
        if done.returncode != 0:
            raise StoryError(f"`revocations {step.action}` failed: {done.stderr or done.stdout}")
        wanted = json.loads(done.stdout.splitlines()[0])["revision"]
        deadline = time.monotonic() + _RELOAD_TIMEOUT_S
        while self._readiness()["revocations"]["revision"] != wanted:
            if time.monotonic() > deadline:
                raise StoryError("the PDP did not take up the revocation")
            time.sleep(_POLL_S)
        return _done(step.title, "operator", f"revocations {step.action} --spiffe-id")

    def _command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command line on the PDP's configuration."""
        return subprocess.run(
            [
                *(sys.executable, "-m", "authz_server", *arguments),
                *("--config", self._mesh.layout.configuration),
            ],
            capture_output=True,
            text=True,
            env=child_environment(),
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )

    def _edit(self, step: EditPolicy) -> Result:
        """Change a bundle on disk and wait until the PDP serves the change."""
        path = self._mesh.layout.bundles / step.bundle / "policy.csv"
        original = self._policies.setdefault(step.bundle, path.read_text())
        before = self._serving(step.bundle)
        # In one step for every reader, as a ConfigMap changes.
        partial = self._mesh.layout.pdp / "policy.partial"
        partial.write_text(original + "".join(f"{row}\n" for row in step.append))
        partial.replace(path)
        deadline = time.monotonic() + _RELOAD_TIMEOUT_S
        while self._serving(step.bundle) == before:
            faults = self._readiness()["reload_faults"]
            if faults or time.monotonic() > deadline:
                raise StoryError("\n".join(["the PDP did not take up the change", *faults]))
            time.sleep(_POLL_S)
        action = f"append to {step.bundle}/policy.csv" if step.append else "restore policy.csv"
        return _done(step.title, "operator", action)

    def _serving(self, bundle: str) -> str:
        """Return the revision of the bundle that the PDP serves."""
        return str(self._readiness()["bundles"][bundle]["revision"])

    def _readiness(self) -> Any:
        status, page = self._mesh.pdp_page("/readyz")
        if status == 0:
            raise StoryError("the PDP does not answer")
        return json.loads(page)

    # --- witnesses -----------------------------------------------------------------------------

    def _watch(self) -> dict[str, int]:
        """Return how many requests each service has seen so far."""
        return {service.name: len(self._acts(service)) for service in self._mesh.plan.services}

    def _acts(self, service: Service) -> list[Visit]:
        """Return the requests that reached `service` and act."""
        visits = self._mesh.visits(service.name)
        return [visit for visit in visits if visit.header("mcp-method") not in UPKEEP]

    def _result(
        self, title: str, made: "_Made", step: list["_Made"], seen: dict[str, int], *, explain: bool
    ) -> Result:
        """Hear the witnesses about one call of a step that made several."""
        outcome, expect = made.outcome, made.expect
        service = next(s for s in self._mesh.plan.services if s.host == made.call.host)
        others = {other.outcome.decision_id for other in step if other is not made} - {None}
        arrived = self._acts(service)[seen[service.name] :]
        return Result(
            title=title,
            actor=made.actor.rpartition("/")[2],
            action=str(made.call),
            expected=f"{expect.verdict} {expect.reason}",
            actual=f"{outcome.verdict} {outcome.reason}",
            expected_reached=expect.reached,
            reached=any(visit.header(_DECISION_ID) not in others for visit in arrived),
            recorded=self._recorded(outcome),
            decision_id=outcome.decision_id,
            explain=explain,
        )

    def _recorded(self, outcome: Outcome) -> bool | None:
        """Tell whether the ledger holds the decision as the agent was told it."""
        if outcome.decision_id is None:
            return None
        reader = LedgerReader.open(self._mesh.ledger)
        try:
            document = reader.find(outcome.decision_id).document
        except LookupFault:
            return False
        return (document["verdict"], document["reason"]) == (outcome.verdict, outcome.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """One call that was made, and how it was answered."""

    actor: str
    call: Call
    expect: Expected
    outcome: Outcome


def _outcomes(handed: Outcome, count: int) -> list[Outcome]:
    """Return what the research agent reports of the calls it made."""
    answer = handed.answer
    reported = answer.get("outcomes") if isinstance(answer, dict) else None
    if not isinstance(reported, list) or len(reported) != count:
        raise StoryError(f"the research agent did not do its task: {handed}")
    return [Outcome(**outcome) for outcome in reported]


def _done(title: str, actor: str, action: str) -> Result:
    """Return the result of a step that either succeeds or ends the story."""
    return Result(title=title, actor=actor, action=action, expected="done", actual="done")
