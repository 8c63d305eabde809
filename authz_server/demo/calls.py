"""What an agent does and what came of it, as values that cross process boundaries as JSON."""

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One thing an agent does: a tool call (`tool` set) or an HTTP request (`method` and `path`).

    `host` is the name of the service in the mesh. `body` is the JSON body of an HTTP request, or
    the arguments of a tool.
    """

    host: str
    tool: str | None = None
    method: str = "POST"
    path: str = "/"
    body: dict[str, object] | None = None

    def to_json(self) -> dict[str, object]:
        """Return the call as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """Return what is done and where, short: `GET /v1/invoices at data`."""
        where = self.host.partition(".")[0]
        if self.tool is None:
            return f"{self.method} {self.path} at {where}"
        arguments = ", ".join(f"{key}={value}" for key, value in (self.body or {}).items())
        return f"{self.tool}({arguments}) at {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the mesh answered one call.

    `verdict` is the PDP's, or `refused` when Envoy answered without asking it. `reason` is then
    the HTTP status. `ticket` is the id of the approval an escalation waits for. `answer` is what
    the service itself said.
    """

    verdict: Literal["allow", "deny", "escalate", "refused"]
    reason: str
    decision_id: str | None = None
    ticket: str | None = None
    answer: object = None

    def to_json(self) -> dict[str, object]:
        """Return the outcome as JSON values."""
        return asdict(self)
