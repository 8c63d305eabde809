"""One record as an OCSF 1.8 API Activity event (class 6003), with the profile Security Control.

What OCSF has a place for goes there; what it has none for goes below `unmapped.authz`, under the
names of the decision document. Members without a value are left out.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from authz_server import __version__
from authz_server.core.decision import Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import Reason
from authz_server.ledger.document import (
    Document,
    action_name,
    number,
    resource_name,
    section,
    text,
    texts,
)
from authz_server.ledger.export_jsonl import Event, is_erased
from authz_server.ledger.query import StoredDecision

OCSF_VERSION: Final = "1.8.0"
CLASS_UID: Final = 6003
CATEGORY_UID: Final = 6  # Application Activity

_CREATE, _READ, _UPDATE, _DELETE, _OTHER = 1, 2, 3, 4, 99
_ACTIVITIES: Final = {
    "http GET": _READ,
    "http HEAD": _READ,
    "http OPTIONS": _READ,
    "http POST": _CREATE,
    "http PUT": _UPDATE,
    "http PATCH": _UPDATE,
    "http DELETE": _DELETE,
}
_ACTIVITY_NAMES: Final = {_CREATE: "Create", _READ: "Read", _UPDATE: "Update", _DELETE: "Delete"}

_INFORMATIONAL, _LOW, _MEDIUM = 1, 2, 3
_SUCCESS, _FAILURE = 1, 2
_ALLOWED, _DENIED, _OBSERVED = 1, 2, 3
_APPROVED, _DELAYED, _LOGGED, _UNAUTHORIZED, _ERROR = 8, 14, 17, 26, 27
_ALLOW_DISPOSITION, _BLOCKED = 1, 2

_UNAUTHENTICATED: Final = frozenset({Reason.NO_PRINCIPAL, Reason.MALFORMED_PRINCIPAL})
_BROKEN: Final = frozenset(
    {Reason.POLICY_ERROR, Reason.LEDGER_UNAVAILABLE, Reason.NOT_READY, Reason.INTERNAL_ERROR}
)
_MILLISECOND: Final = 1000


def ocsf_event(stored: StoredDecision) -> Event | None:
    """Return the event; None for an erased record, which has no actor, action or source left."""
    document = stored.document
    moment = _moment(document)
    if is_erased(stored) or moment is None:
        return None
    activity = _activity(document)
    return _present(
        {
            "class_uid": CLASS_UID,
            "class_name": "API Activity",
            "category_uid": CATEGORY_UID,
            "category_name": "Application Activity",
            "activity_id": activity,
            "activity_name": _ACTIVITY_NAMES.get(activity) or action_name(document) or "Other",
            "type_uid": CLASS_UID * 100 + activity,
            "time": moment,
            **_outcome(document),
            "metadata": _metadata(stored),
            "actor": _actor(document),
            "api": _api(document),
            "src_endpoint": _source(document),
            "dst_endpoint": _destination(document),
            "resources": _resources(document),
            "trace": _trace(document),
            "unmapped": {"authz": _rest(document)},
        }
    )


def _outcome(document: Document) -> dict[str, object]:
    """Return severity, status, and what the profile Security Control adds."""
    verdict, is_enforced = text(document, "verdict"), text(document, "mode") != Mode.SHADOW
    allowed = verdict == Verdict.ALLOW
    severities = {"allow": _INFORMATIONAL, "escalate": _LOW}
    action = _OBSERVED if not is_enforced else _ALLOWED if allowed else _DENIED
    return {
        "severity_id": severities.get(verdict or "", _MEDIUM),
        "status_id": _SUCCESS if allowed or not is_enforced else _FAILURE,
        "status_code": text(document, "reason"),
        "status_detail": text(document, "detail"),
        "action_id": action,
        "disposition_id": _disposition(document) if is_enforced else _LOGGED,
        "authorizations": _authorizations(document),
    }


def _disposition(document: Document) -> int:
    match text(document, "verdict"):
        case "allow":
            return _APPROVED if section(document, "approval") else _ALLOW_DISPOSITION
        case "escalate":
            return _DELAYED
    reason = text(document, "reason")
    if reason in _UNAUTHENTICATED:
        return _UNAUTHORIZED
    return _ERROR if reason in _BROKEN else _BLOCKED


def _authorizations(document: Document) -> list[dict[str, object]]:
    """Return one entry for each rule that decided, or one for the default where none did."""
    verdict, revision = text(document, "verdict") or "deny", text(document, "revision")
    bundle = text(document, "bundle")
    rules: tuple[str | None, ...] = texts(document, "rules") or (None,)
    return [
        {
            "decision": verdict,
            "policy": _present({"uid": rule, "name": bundle, "version": revision}),
        }
        for rule in rules
    ]


def _metadata(stored: StoredDecision) -> dict[str, object]:
    document = stored.document
    profiles = ["security_control"]
    if section(document, "trace"):
        profiles.append("trace")
    return _present(
        {
            "version": OCSF_VERSION,
            "product": {
                "name": "authz-server",
                "vendor_name": "authz-server",
                "version": __version__,
            },
            "profiles": profiles,
            "uid": stored.decision_id,
            "correlation_uid": text(section(document, "chain"), "txn"),
            "sequence": stored.seq,
            "log_name": stored.writer,
            "original_time": text(document, "time"),
        }
    )


def _actor(document: Document) -> dict[str, object]:
    """Return the program that called, and the person or program on whose behalf it did."""
    chain, principal = section(document, "chain"), section(document, "principal")
    actor: dict[str, object] = {
        "app_name": text(principal, "spiffe_id") or "unidentified",
        "app_uid": text(principal, "spiffe_id"),
    }
    if subject := text(chain, "subject"):
        actor["user"] = {"uid": subject, "name": subject}
        actor["idp"] = _present({"name": text(chain, "subject_issuer")})
    if actors := texts(chain, "actors"):
        actor["invoked_by"] = actors[0]
    return _present(actor)


def _api(document: Document) -> dict[str, object]:
    resource, action = section(document, "resource"), section(document, "action")
    service = text(resource, "resource") or text(resource, "host")
    return _present(
        {
            "operation": text(action, "name") or "unreadable",
            "service": {"name": service} if service else None,
            "request": {"uid": text(document, "decision_id")},
        }
    )


def _source(document: Document) -> dict[str, object]:
    environment, principal = section(document, "environment"), section(document, "principal")
    ip, name = text(environment, "source_ip"), text(principal, "spiffe_id")
    return _present({"ip": ip, "uid": name, "name": None if ip or name else "unknown"})


def _destination(document: Document) -> dict[str, object] | None:
    resource = section(document, "resource")
    host, service = text(resource, "host"), text(resource, "resource")
    return _present({"hostname": host, "svc_name": service}) or None


def _resources(document: Document) -> list[dict[str, object]] | None:
    resource = section(document, "resource")
    if not (name := resource_name(document)):
        return None
    return [_present({"name": name, "uid": text(resource, "uri"), "type": text(resource, "type")})]


def _trace(document: Document) -> dict[str, object] | None:
    trace_id = text(section(document, "trace"), "trace_id")
    return {"uid": trace_id} if trace_id else None


def _rest(document: Document) -> Mapping[str, object]:
    """Return what OCSF has no place for."""
    chain, principal = section(document, "chain"), section(document, "principal")
    resource = section(document, "resource")
    return _present(
        {
            "verdict": text(document, "verdict"),
            "mode": text(document, "mode"),
            "owner": text(document, "owner"),
            "assurance": text(principal, "assurance"),
            "kind": text(principal, "kind"),
            "args_sha256": text(resource, "args_sha256"),
            "chain": dict(chain) or None,
            "approval": dict(section(document, "approval")) or None,
            "access_request": dict(section(document, "access_request")) or None,
            "duration_us": number(document, "duration_us"),
            "span_id": text(section(document, "trace"), "span_id"),
        }
    )


def _activity(document: Document) -> int:
    action = section(document, "action")
    if action.get("read_only") is True:
        return _READ
    return _ACTIVITIES.get(action_name(document), _OTHER)


def _moment(document: Document) -> int | None:
    """Return the time in Unix milliseconds, as OCSF's `timestamp_t`."""
    try:
        moment = datetime.fromisoformat(text(document, "time") or "")
    except ValueError:
        return None
    return int(moment.timestamp() * _MILLISECOND)


def _present(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}
