"""What can happen in a story, as data. `play` performs each kind."""

from dataclasses import dataclass
from typing import Literal

from authz_server.demo.calls import Call
from authz_server.demo.grants import Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How one call must be answered, and whether the service behind the Envoy may see it.

    `reason` is a reason code, or the HTTP status when Envoy answers alone (`refused`).
    """

    verdict: Literal["allow", "deny", "escalate", "refused"]
    reason: str
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The workload at path `actor` does `call`, presenting `grant`."""

    title: str
    actor: str
    call: Call
    grant: Grant | None
    expect: Expected
    explain: bool = False
    name: str = ""  # for `Answer.to`


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """`actor` gives the research agent a task; that agent then makes `calls` by itself."""

    title: str
    actor: str
    calls: tuple[Call, ...]
    grant: Grant
    expect: Expected
    then: tuple[Expected, ...]
    explain: bool = False  # the last call


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`person` approves what the step named `to` escalated, with the command line."""

    title: str
    person: str
    to: str
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EditPolicy:
    """Rows are appended to a bundle's `policy.csv`, or what was appended is taken back."""

    title: str
    bundle: str
    append: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """The workload at path `workload` is revoked with the command line, or (`remove`) no more."""

    title: str
    workload: str
    action: Literal["add", "remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KillPdp:
    """The PDP is killed, as by a crash."""

    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPdp:
    """The PDP is started again."""

    title: str


Step = Ask | HandOver | Answer | EditPolicy | Revoke | KillPdp | StartPdp
