"""Counts are right, and nothing a request brings can become a label."""

from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import pytest
from prometheus_client.parser import text_string_to_metric_families

from authz_server.core.chain import DelegationPolicy
from authz_server.core.chain_cache import ChainCache
from authz_server.core.decision import ApprovalRecord, Decision, TicketRecord, Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import LedgerError, Reason
from authz_server.core.identities import Inventory
from authz_server.core.snapshot import Policy, Snapshot
from authz_server.core.spiffe import TrustDomain
from authz_server.core.trust import TrustMaterial
from authz_server.servers.metrics import Metrics

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
DENIAL = Decision(
    verdict=Verdict.DENY, reason=Reason.NO_MATCHING_RULE, detail="", time=NOW, revision="r1"
)


class Bundle:
    """A policy that has a name; never asked."""

    name, domain, revision = "tools", "application", "b1"

    def evaluate(self, attributes: object) -> object:
        raise AssertionError


def snapshot(*bundles: str, revision: str = "r1") -> Snapshot:
    policies: dict[str, Policy] = {name: Bundle() for name in bundles}  # type: ignore[misc]
    return Snapshot(
        revision=revision,
        trust_domain=TrustDomain("td.example"),
        trust=TrustMaterial(revision="t1", bundles={}, issuers={}),
        delegation=DelegationPolicy(require=True, delegator_trust_domains=frozenset()),
        inventory=Inventory.of(()),
        policies=MappingProxyType(policies),
        chains=ChainCache(),
    )


_ORDER = ("verdict", "reason", "bundle", "ticket", "revision", "outcome", "version", "domain")


def samples(metrics: Metrics, name: str, *more: str) -> dict[tuple[str, ...], float]:
    """Return label values -> value of every sample called `name`; labels not known are left out."""
    text = metrics.page().body.decode()
    return {
        tuple(
            sample.labels[label] for label in (*_ORDER, *more) if label in sample.labels
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_decisions_are_counted_by_verdict_reason_and_bundle() -> None:
    metrics = Metrics()
    metrics.serving(snapshot("tools"), NOW)
    for _ in range(3):
        metrics.checked(replace(DENIAL, bundle="tools"), 0.0002)
    metrics.checked(DENIAL, 0.02)
    assert samples(metrics, "authz_decisions_total") == {
        ("deny", "NO_MATCHING_RULE", "tools"): 3,
        ("deny", "NO_MATCHING_RULE", ""): 1,
    }
    assert samples(metrics, "authz_check_duration_seconds_count") == {(): 4}


def test_what_was_only_observed_is_counted_apart() -> None:
    """An alert on denials must not count those that nobody felt."""
    metrics = Metrics()
    modes = MappingProxyType({"tools": Mode.SHADOW})
    metrics.serving(replace(snapshot("tools", "data"), modes=modes), NOW)
    assert samples(metrics, "authz_bundle_shadow") == {("tools",): 1, ("data",): 0}
    observed = replace(DENIAL, bundle="tools", mode=Mode.SHADOW)
    escalated = replace(observed, verdict=Verdict.ESCALATE, reason=Reason.ESCALATED_BY_RULE)
    for decision in (observed, observed, escalated):
        metrics.checked(decision, 0.0002)
    metrics.checked(replace(DENIAL, bundle="tools", reason=Reason.REVOKED), 0.0002)
    assert samples(metrics, "authz_decisions_total", "mode") == {
        ("deny", "NO_MATCHING_RULE", "tools", "shadow"): 2,
        ("escalate", "ESCALATED_BY_RULE", "tools", "shadow"): 1,
        ("deny", "REVOKED", "tools", "enforce"): 1,
    }
    assert samples(metrics, "authz_escalations_total") == {}  # nobody was asked
    metrics.serving(snapshot("tools"), NOW)
    assert samples(metrics, "authz_bundle_shadow") == {("tools",): 0}


def test_bundles_that_do_not_exist_share_one_label_and_no_memory() -> None:
    metrics = Metrics()
    metrics.serving(snapshot("tools"), NOW)
    for number in range(1000):
        metrics.checked(replace(DENIAL, bundle=f"made-up-{number}"), 0.0002)
    assert samples(metrics, "authz_decisions_total") == {
        ("deny", "NO_MATCHING_RULE", "other"): 1000
    }
    assert metrics._children == {}


def test_a_bundle_that_is_removed_becomes_other() -> None:
    metrics = Metrics()
    metrics.serving(snapshot("tools"), NOW)
    metrics.checked(replace(DENIAL, bundle="tools"), 0.0002)
    metrics.serving(snapshot("data"), NOW)
    metrics.checked(replace(DENIAL, bundle="tools"), 0.0002)
    assert samples(metrics, "authz_decisions_total") == {
        ("deny", "NO_MATCHING_RULE", "tools"): 1,
        ("deny", "NO_MATCHING_RULE", "other"): 1,
    }


def test_escalations_are_counted_by_what_became_of_them() -> None:
    escalation = replace(DENIAL, verdict=Verdict.ESCALATE, reason=Reason.ESCALATED_BY_RULE)
    ticket = TicketRecord(id="a", status="pending", expires_at=NOW, approver_group="g")
    approval = ApprovalRecord(id="a", approver="bob", approved_at=NOW)
    metrics = Metrics()
    metrics.checked(escalation, 0.001)
    metrics.checked(replace(escalation, ticket=ticket), 0.001)
    allowed = replace(DENIAL, verdict=Verdict.ALLOW, reason=Reason.OK, approval=approval)
    metrics.checked(allowed, 0.001)
    metrics.checked(DENIAL, 0.001)
    assert samples(metrics, "authz_escalations_total") == {
        ("none",): 1,
        ("pending",): 1,
        ("consumed",): 1,
    }


def test_the_ledger_is_counted_by_transaction() -> None:
    metrics = Metrics()
    metrics.committed(64, 0.001, None)
    metrics.committed(3, 0.25, LedgerError("disk is full"))
    assert samples(metrics, "authz_ledger_batch_records_sum") == {(): 64}
    assert samples(metrics, "authz_ledger_commit_duration_seconds_count") == {(): 2}
    assert samples(metrics, "authz_ledger_failures_total") == {(): 1}


def test_a_refused_reload_shows_until_the_next_good_one() -> None:
    metrics = Metrics()
    metrics.serving(snapshot("tools", revision="r1"), NOW)
    metrics.reload_failed()
    assert samples(metrics, "authz_reload_failed") == {(): 1}
    assert samples(metrics, "authz_snapshot_info") == {("r1",): 1}
    metrics.serving(snapshot("tools", "data", revision="r2"), NOW)
    assert samples(metrics, "authz_reload_failed") == {(): 0}
    assert samples(metrics, "authz_snapshot_info") == {("r2",): 1}, "one revision serves"
    assert len(samples(metrics, "authz_bundle_info")) == 2
    assert samples(metrics, "authz_reloads_total") == {("loaded",): 2, ("refused",): 1}
    loaded_at = samples(metrics, "authz_last_successful_reload_timestamp_seconds")
    assert loaded_at == {(): NOW.timestamp()}


@pytest.mark.parametrize("name", ["authz_build_info", "process_cpu_seconds_total", "python_info"])
def test_the_usual_metrics_are_there(name: str) -> None:
    assert samples(Metrics(), name)


def test_a_gauge_is_read_when_it_is_asked_for() -> None:
    metrics, value = Metrics(), 1.0
    metrics.gauge("authz_ready", "Ready.", lambda: value)
    value = 0.0
    assert samples(metrics, "authz_ready") == {(): 0}
