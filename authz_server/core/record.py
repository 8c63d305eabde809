"""The decision as a JSON document: what `check` prints, the ledger keeps and exports carry.

INVARIANT: no token, secret, body or argument value reaches this document, because a `Decision`
holds none; digests only.
"""

from datetime import UTC, datetime

from authz_server.core.decision import (
    ActionRecord,
    ApprovalRecord,
    ChainRecord,
    Decision,
    EnvironmentRecord,
    HopRecord,
    PrincipalRecord,
    ResourceRecord,
    TicketRecord,
    TraceRecord,
)

Document = dict[str, object]


def decision_json(decision: Decision, *, decision_id: str, duration_us: int) -> Document:
    """Return the decision document of interface section 7: JSON types only, stable member order.

    `duration_us` is the time from the first byte parsed to the decision, without the ledger.
    Members that were never established (a fault came first) are null.
    """
    environment = decision.environment
    return {
        "decision_id": decision_id,
        "time": format_time(decision.time),
        "verdict": decision.verdict.value,
        "reason": decision.reason.value,
        "detail": decision.detail,
        "rules": list(decision.rules),
        "bundle": decision.bundle,
        "revision": decision.revision,
        "mode": decision.mode,
        "principal": _principal(decision.principal),
        "chain": _chain(decision.chain),
        "action": _action(decision.action),
        "resource": _resource(decision.resource),
        "environment": _environment(environment),
        "owner": decision.owner,
        "approval": _approval(decision.approval),
        "access_request": ticket_json(decision.ticket),
        "trace": _trace(decision.trace),
        "duration_us": duration_us,
        "pep": {
            "listener": environment.listener if environment else None,
            "node": environment.node if environment else None,
        },
    }


def format_time(moment: datetime) -> str:
    """Return `moment` as RFC 3339 in UTC with microseconds, so that texts sort as times do."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def ticket_json(ticket: TicketRecord | None) -> Document | None:
    """Return the `access_request` member that an escalated caller is given."""
    if ticket is None:
        return None
    return {
        "id": ticket.id,
        "status": ticket.status,
        "expires_at": format_time(ticket.expires_at),
        "approver_group": ticket.approver_group,
    }


def _principal(principal: PrincipalRecord | None) -> Document | None:
    if principal is None:
        return None
    return {
        "spiffe_id": principal.spiffe_id,
        "trust_domain": principal.trust_domain,
        "kind": principal.kind,
        "assurance": principal.assurance,
        "certificate_sha256": principal.certificate_sha256,
        "proxies": list(principal.proxies),
    }


def _chain(chain: ChainRecord | None) -> Document | None:
    if chain is None:
        return None
    return {
        "subject": chain.subject,
        "subject_issuer": chain.subject_issuer,
        "actors": list(chain.actors),
        "txn": chain.txn,
        "assurance": chain.assurance,
        "mode": chain.mode,
        "token_sha256": list(chain.token_sha256),
        "scope": list(chain.scope),
        "purpose": chain.purpose,
        "hops": [_hop(hop) for hop in chain.hops],
    }


def _hop(hop: HopRecord) -> Document:
    return {
        "delegator": hop.delegator,
        "delegate": hop.delegate,
        "owner": hop.owner,
        "proof": hop.proof,
        "scope": list(hop.scope),
        "audience": list(hop.audience),
        "issued_at": hop.issued_at,
        "expires_at": hop.expires_at,
    }


def _action(action: ActionRecord | None) -> Document | None:
    if action is None:
        return None
    return {"protocol": action.protocol, "name": action.name, "read_only": action.read_only}


def _resource(resource: ResourceRecord | None) -> Document | None:
    if resource is None:
        return None
    return {
        "type": resource.type,
        "host": resource.host,
        "path": resource.path,
        "path_sha256": resource.path_sha256,
        "tool": resource.tool,
        "uri": resource.uri,
        "resource": resource.resource,
        "audience": resource.audience,
        "args_sha256": resource.args_sha256,
    }


def _environment(environment: EnvironmentRecord | None) -> Document | None:
    if environment is None:
        return None
    return {"source_ip": environment.source_ip, "sni": environment.sni}


def _approval(approval: ApprovalRecord | None) -> Document | None:
    if approval is None:
        return None
    return {
        "id": approval.id,
        "approver": approval.approver,
        "approved_at": format_time(approval.approved_at),
    }


def _trace(trace: TraceRecord | None) -> Document | None:
    if trace is None:
        return None
    return {"trace_id": trace.trace_id, "span_id": trace.span_id}
