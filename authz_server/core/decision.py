"""Verdicts and decisions: what `decide` returns, what the ledger keeps, what Envoy is told."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from authz_server.core.attributes import Protocol
from authz_server.core.enforcement import OBSERVABLE, Mode, applied_mode
from authz_server.core.errors import Reason


class Verdict(StrEnum):
    """The three answers. `strictest` orders them: deny over escalate over allow."""

    ALLOW = "allow"
    ESCALATE = "escalate"
    DENY = "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a policy bundle says of one set of attributes.

    `rules` are the ids of the rows that decided, in file order, for every verdict. `obligation` is
    the approver group of an escalation.
    """

    verdict: Verdict
    reason: Reason
    rules: tuple[str, ...] = ()
    obligation: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipalRecord:
    """Who called. `proxies` are those who vouched for it, nearest to us first."""

    spiffe_id: str
    trust_domain: str
    kind: str | None
    assurance: str  # mtls | proxied | bearer
    certificate_sha256: str | None = None
    proxies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HopRecord:
    """How one hop of the chain was proved: who handed what to whom, and until when."""

    delegator: str  # issuer of the root, SPIFFE ID of a link's signer
    delegate: str
    proof: str  # "issuer-key <kid>" | "x509-svid <sha256 of the certificate>"
    scope: tuple[str, ...]
    audience: tuple[str, ...]
    issued_at: int
    expires_at: int
    owner: str | None = None  # accountable owner of the delegate


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRecord:
    """On whose behalf and through whom."""

    subject: str
    subject_issuer: str
    actors: tuple[str, ...]
    txn: str
    assurance: str
    mode: str  # exercise | handoff
    token_sha256: tuple[str, ...]  # root first; hex
    scope: tuple[str, ...] = ()
    purpose: str | None = None
    hops: tuple[HopRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRecord:
    """What was attempted."""

    protocol: str
    name: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRecord:
    """What it was attempted on. Strings are bounded; no argument value is kept."""

    type: str
    host: str | None = None
    path: str | None = None
    tool: str | None = None
    uri: str | None = None
    resource: str | None = None
    audience: str | None = None
    args_sha256: str | None = None
    path_sha256: str | None = None  # of the raw path, when it was cut or not canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRecord:
    """Where it came from."""

    source_ip: str | None
    sni: str | None
    listener: str | None
    node: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRecord:
    """The human answer that turned an escalation into an allow."""

    id: str
    approver: str
    approved_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketRecord:
    """The `access_request` object an escalated caller is given (interface section 7)."""

    id: str
    status: str  # pending | approved | rejected | expired
    expires_at: datetime
    approver_group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """Where the request belongs in a distributed trace, as its client says; lower-case hex."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome for one request, with everything needed to explain it.

    INVARIANT: `verdict` is ALLOW exactly when `reason` is OK; `mode` is SHADOW only where the
    verdict was not enforced; every part that was established before a fault is present, every part
    after it is None.

    `fingerprint` is the hex SHA-256 an approval is bound to; only an escalation has one.
    `json_rpc_id` is the id to echo in a JSON-RPC denial, as raw JSON text. `missing_key_of` is the
    issuer that a token names a key of which is not known here; it is not recorded.
    """

    verdict: Verdict
    reason: Reason
    detail: str
    time: datetime
    revision: str
    rules: tuple[str, ...] = ()
    bundle: str | None = None
    mode: Mode = Mode.ENFORCE
    principal: PrincipalRecord | None = None
    chain: ChainRecord | None = None
    action: ActionRecord | None = None
    resource: ResourceRecord | None = None
    environment: EnvironmentRecord | None = None
    owner: str | None = None
    obligation: str | None = None
    fingerprint: str | None = None
    approval: ApprovalRecord | None = None
    ticket: TicketRecord | None = None
    protocol: Protocol = Protocol.HTTP
    json_rpc_id: str | None = None
    strip_delegation: bool = False
    trace: TraceRecord | None = None
    missing_key_of: str | None = None

    def __post_init__(self) -> None:
        # INVARIANT: an allow without OK, or OK without an allow, is a bug, not a decision.
        if (self.verdict is Verdict.ALLOW) != (self.reason is Reason.OK):
            raise ValueError(f"verdict {self.verdict} contradicts reason {self.reason}")
        # SECURITY: nor can what is always enforced be marked as merely observed.
        if applied_mode(self.mode, self.reason) is not self.mode:
            raise ValueError(f"mode {self.mode} contradicts reason {self.reason}")

    @property
    def passes(self) -> bool:
        """Whether the request passes: the one place that derives it from verdict, mode and reason.

        An allow passes; in shadow mode so does every verdict that was decided and can be recorded.
        """
        if self.verdict is Verdict.ALLOW:
            return True
        return self.mode is Mode.SHADOW and self.reason in OBSERVABLE

    @property
    def awaits_approval(self) -> bool:
        """Whether a person may be asked: an escalation that is enforced and of one exact action."""
        is_open = self.verdict is Verdict.ESCALATE and self.fingerprint is not None
        return is_open and self.mode is Mode.ENFORCE
