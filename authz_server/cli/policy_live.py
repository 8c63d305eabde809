"""`policy consistency --through`: the steps of scenarios as real requests to live Envoys."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from authz_server.core.errors import AuthzError, ConfigurationError, Fault
from authz_server.policy.consistency import Asker, Said, Scenario, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A step that the live Envoys answer otherwise than the bundles on disk."""

    step: Step
    offline: Said
    live: Said

    def __str__(self) -> str:
        step = self.step
        return (
            f"{step.file}:{step.line}: `{step.scenario}`: {step.bundle} is {self.live.verdict} "
            f"({self.live.reason or 'no reason shown'}) live, {self.offline.verdict} "
            f"({self.offline.reason}) on disk"
        )


class LiveAsker(Asker, Protocol):
    """Whoever can also tell beforehand that a step cannot be asked."""

    def faults(self, step: Step) -> Iterator[Fault]:
        """Yield why not."""


@dataclass(slots=True)
class Compared:
    """Asks live, and the bundles on disk beside it; the live answer is what counts."""

    live: LiveAsker
    offline: Asker
    differences: list[Difference] = field(default_factory=list)

    def check(self, scenarios: Iterable[Scenario]) -> None:
        """Raise `ConfigurationError` with every step that cannot be asked, before one is sent."""
        steps = (step for scenario in scenarios for step in scenario.steps)
        faults = [fault for step in steps for fault in self.live.faults(step)]
        if faults:
            raise ConfigurationError(faults)

    def ask(self, step: Step) -> Said:
        """Return the live answer, and keep where the other one differs."""
        offline, live = self.offline.ask(step), self.live.ask(step)
        if offline.verdict is not live.verdict:
            self.differences.append(Difference(step=step, offline=offline, live=live))
        return live


def through(targets: Path, offline: Asker) -> Compared:
    """Return who asks the live Envoys of the file `targets`, beside the bundles on disk.

    Raises `ConfigurationError`, and `AuthzError` where the client libraries are missing.
    """
    try:
        from authz_server.live.targets import load_targets
        from authz_server.live.through import LiveEnvoys
    except ModuleNotFoundError as error:
        raise AuthzError(
            f"`--through` needs `{error.name}`: run pip install 'authz-server[demo]'"
        ) from error
    return Compared(live=LiveEnvoys(load_targets(targets)), offline=offline)
