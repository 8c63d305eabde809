"""Put the steps of consistency scenarios to live Envoys.

A step says some things that a request brings about, and some that are up to the route, the
inventory or the clock. The latter are compared with what TARGETS.yaml says of the route; a step
that counts on anything else is refused instead of asked as something else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from authz_server.core.attributes import AttributeMap, Protocol
from authz_server.core.errors import Fault, Reason
from authz_server.live.asking import LiveAsker
from authz_server.live.observed import LiveCallError, Observed
from authz_server.live.targets import Target, Targets
from authz_server.policy.consistency import Said, Step

# What a request says in every protocol; the decision point derives the rest from it.
_ALWAYS: Final = frozenset(
    {
        *("sub.id", "chain.actors", "chain.scope", "chain.purpose", "chain.mode"),
        *("act.protocol", "act.name", "act.read_only", "obj.type"),
    }
)
_BROUGHT_ABOUT: Final[Mapping[Protocol, frozenset[str]]] = {
    Protocol.HTTP: _ALWAYS | {"obj.path", "obj.segments", "obj.query", "obj.args"},
    Protocol.GRPC: _ALWAYS | {"obj.args"},
    Protocol.MCP: _ALWAYS | {"obj.tool", "obj.uri", "obj.args"},
    Protocol.A2A: _ALWAYS,
    Protocol.TCP: _ALWAYS,
}
# What our messages to A2A agents hold.
_MESSAGE: Final[AttributeMap] = {"role": "user", "part_kinds": ("text",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How the Envoy at `target` answered a step."""

    target: Target
    step: Step
    observed: Observed


@dataclass(frozen=True, slots=True)
class LiveEnvoys:
    """Asks the live Envoys of `targets`; an `Asker` of `policy.consistency`."""

    targets: Targets

    def ask(self, step: Step) -> Said:
        """Send `step` to every target of its bundle and protocol; return what they all say.

        Raises `LiveCallError` when there is no target, when a request says less than the step, when
        nobody answers, and when two ways to one bundle disagree.
        """
        answers = [self.ask_one(target, step) for target in self.ways(step)]
        first = answers[0]
        for other in answers[1:]:
            if other.observed.verdict is not first.observed.verdict:
                raise LiveCallError(
                    f"{_where(step)}: {first.target.name} says {_verdict(first)}, "
                    f"{other.target.name} says {_verdict(other)}"
                )
        return said(first)

    def ways(self, step: Step) -> tuple[Target, ...]:
        """Return the targets that a step is sent to. Raises `LiveCallError` as `faults` says."""
        faults = list(self.faults(step))
        if faults:
            raise LiveCallError("\n".join(map(str, faults)))
        return self._found(step)

    def faults(self, step: Step) -> Iterator[Fault]:
        """Yield why a step cannot be asked here; to be looked at before anything is sent."""
        parties = {step.attributes.caller.id, *step.attributes.chain.actors}
        for party in sorted(parties - self.targets.agents.keys()):
            yield _fault(step, f"`agents` of the targets has no SVID for `{party}`")
        found = self._found(step)
        if not found:
            protocol = step.attributes.act.protocol
            yield _fault(step, f"no target has the bundle `{step.bundle}` and `{protocol}`")
        for target in found:
            missing = ", ".join(sorted(_not_brought_about(target, step)))
            if missing:
                yield _fault(step, f"no request to {target.name} brings about {missing}")

    def _found(self, step: Step) -> tuple[Target, ...]:
        protocol = step.attributes.act.protocol
        return self.targets.ways(step.bundle, protocol, step.attributes.caller.id)

    def ask_one(self, target: Target, step: Step) -> Answered:
        """Send `step` to one of its `ways`. Raises `LiveCallError`."""
        observed = LiveAsker(self.targets).ask(target, step.attributes)
        return Answered(target=target, step=step, observed=observed)


def said(answered: Answered) -> Said:
    """Return an answer as the comparison takes it. Raises `LiveCallError` for none at all."""
    observed = answered.observed
    if observed.verdict is None:
        raise LiveCallError(
            f"{_where(answered.step)}: {answered.target.name} gave no decision: {observed.reason}"
        )
    return Said(
        verdict=observed.verdict,
        reason=Reason(observed.reason) if observed.reason in list(Reason) else None,
        decision_id=observed.decision_id,
    )


def _not_brought_about(target: Target, step: Step) -> Iterator[str]:
    obj, env = step.attributes.obj, step.attributes.env
    routed = {
        "obj.host": obj.host == target.host,
        "obj.path": obj.path == target.path,
        "obj.resource": obj.resource == target.resource,
        "obj.labels": dict(obj.labels) == target.labels,
        "obj.uri": obj.uri == f"tcp://{target.tunnel}",
        "obj.args": target.protocol is Protocol.A2A and obj.args.items() <= _MESSAGE.items(),
        "env.sni": env.sni == target.host and target.protocol is Protocol.TCP,
    }
    for name in step.given - _BROUGHT_ABOUT[target.protocol]:
        if not routed.get(name, False):
            yield name


def _fault(step: Step, message: str) -> Fault:
    return Fault(file=step.file, line=step.line, message=message)


def _where(step: Step) -> str:
    return f"{step.file}:{step.line}"


def _verdict(answered: Answered) -> str:
    return str(answered.observed.verdict or answered.observed.reason)
