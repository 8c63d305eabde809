"""Decisions as `decide` makes them, for every test that records one."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

from authz_server.core.decision import (
    ActionRecord,
    ChainRecord,
    Decision,
    EnvironmentRecord,
    HopRecord,
    PrincipalRecord,
    ResourceRecord,
    Verdict,
)
from authz_server.core.errors import Reason
from authz_server.ledger.record import Record

NOON = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=UTC)
TTL_S = 900

ISSUER = "https://sts.prod.example.org"
ASSISTANT = "spiffe://prod.example.org/agent/assistant"
RESEARCHER = "spiffe://prod.example.org/agent/research-1"
ALICE = "alice@example.org"
BOB = "bob@example.org"
GROUPS = {"finance-oncall": (BOB, "carol@example.org", ALICE)}

_ids = count(1)


def at(seconds: float) -> datetime:
    """Return the moment `seconds` after noon."""
    return NOON + timedelta(seconds=seconds)


def chain(*actors: str, subject: str = ALICE, txn: str = "txn-1") -> ChainRecord:
    actors = actors or (ASSISTANT, RESEARCHER)
    delegators = (ISSUER, *actors)
    return ChainRecord(
        subject=subject,
        subject_issuer=ISSUER,
        actors=actors,
        txn=txn,
        assurance="hop_signed",
        mode="exercise",
        token_sha256=("aa" * 32, "bb" * 32),
        scope=("crm:read",),
        purpose="support case 4711",
        hops=tuple(
            HopRecord(
                delegator=delegator,
                delegate=delegate,
                proof="issuer-key k1" if delegator == ISSUER else f"x509-svid {'ab' * 32}",
                scope=("crm:read",),
                audience=("spiffe://prod.example.org",),
                issued_at=int(NOON.timestamp()),
                expires_at=int(NOON.timestamp()) + 300,
                owner=f"owner of {delegate.rpartition('/')[2]}",
            )
            for delegator, delegate in zip(delegators, actors, strict=False)
        ),
    )


def allow(**changes: object) -> Decision:
    """Return an allowed tool call of the research agent for alice."""
    decision = Decision(
        verdict=Verdict.ALLOW,
        reason=Reason.OK,
        detail="allowed by rule",
        time=NOON,
        revision="r1",
        rules=("support-read",),
        bundle="tools",
        principal=PrincipalRecord(
            spiffe_id=RESEARCHER,
            trust_domain="prod.example.org",
            kind="agent",
            assurance="mtls",
            certificate_sha256="cd" * 32,
        ),
        chain=chain(),
        action=ActionRecord(protocol="mcp", name="tools/call", read_only=False),
        resource=ResourceRecord(
            type="mcp_tool",
            host="crm.prod.example.org",
            path="/mcp",
            tool="lookup_customer",
            resource="crm",
            args_sha256="ef" * 32,
        ),
        environment=EnvironmentRecord(
            source_ip="10.0.0.1", sni=None, listener="127.0.0.1:10000", node="envoy-1"
        ),
        owner="team-research",
    )
    return replace(decision, **changes)  # type: ignore[arg-type]


def deny(reason: Reason = Reason.DENIED_BY_RULE, **changes: object) -> Decision:
    return allow(verdict=Verdict.DENY, reason=reason, detail="denied", **changes)


def escalation(fingerprint: str | None = "f" * 64, **changes: object) -> Decision:
    return allow(
        **{
            "verdict": Verdict.ESCALATE,
            "reason": Reason.ESCALATED_BY_RULE,
            "detail": "needs approval",
            "rules": ("export-needs-approval",),
            "obligation": "finance-oncall",
            "fingerprint": fingerprint,
        }
        | changes
    )


def record(decision: Decision, decision_id: str | None = None) -> Record:
    """Return a record under `decision_id`, or under an id of its own."""
    return Record(
        decision_id=decision_id or f"decision-{next(_ids):08d}",
        decision=decision,
        duration_us=57,
    )
