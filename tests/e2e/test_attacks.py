"""Every attack of `tests/cases/attacks.yaml`, as bytes to a real Envoy, and past any Envoy."""

import json
from typing import cast

import pytest

from authz_server.core.paths import Target, canonical_host
from tests.e2e.attack_cases import Case, cases
from tests.e2e.attack_mesh import PROFILES, Mesh, Record
from tests.e2e.check_requests import PdpClient, check_request
from tests.e2e.forge import spiffe
from tests.e2e.raw_http import Answer, NoAnswerError, exchange
from tests.e2e.recorder import Hit

# Envoy waits ten seconds for the rest of a preface.
SLOW = {"method-10"}
TRIALS = [
    pytest.param(
        case,
        profile,
        caller,
        id=f"{case.id}-{profile}-{caller}",
        marks=[pytest.mark.deep] if case.id in SLOW and profile == "default" else [],
    )
    for case in cases()
    for profile in PROFILES
    for caller in case.callers
]
ALONE = [
    pytest.param(case, caller, id=f"{case.id}-{caller}")
    for case in cases()
    if case.alone is not None
    for caller in case.callers
]


# How a body is framed on its connection, which Envoy has undone, or refused, before it asks.
FRAMING = {
    *("body-04", "body-04b", "body-04c", "body-04d"),
    *("body-26b", "body-26c", "body-26d", "body-26e", "body-27", "body-27b"),
    *("body-28", "body-28b", "body-28d"),
}


def test_ids_are_unique() -> None:
    ids = [case.id for case in cases()]
    assert sorted(set(ids)) == sorted(ids)


def test_a_request_that_envoy_rejects_is_denied_by_the_pdp_too() -> None:
    """Only what no CheckRequest can express may rest on Envoy alone."""
    resting_on_envoy = {case.id for case in cases() if case.alone is None} - {
        case.id for case in cases() if "allow" in case.outcomes.values()
    }
    assert resting_on_envoy == {
        "method-08",  # the version is not judged
        "method-08b",
        "method-10b",
        "method-10c",
        "header-12",  # another name than the one that matters, and nothing at all
        "header-13",
        "header-15",  # the header is gone: nothing is left to deny but the lack of it
        "header-17",  # sizes below what the PDP admits
        "header-18",
        "body-16",  # sent as text; `check_request` sends bytes
        "body-16b",
        *FRAMING,
    }


@pytest.mark.parametrize(("case", "profile", "caller"), TRIALS)
def test_through_envoy(mesh: Mesh, case: Case, profile: str, caller: str) -> None:
    seq, hits = mesh.ledger.last(), len(mesh.workload.hits)
    tls = {"plain": None, "optional": mesh.tls_with(None, "nobody")}.get(
        case.listener, mesh.tls(caller)
    )
    token = mesh.forge.root(spiffe(f"agent/{caller}"))
    port = mesh.envoys[profile].ports[case.listener]

    try:
        answer = exchange(port, case.wire(token), tls=tls, to_method=case.method)
    except NoAnswerError:
        answer = None

    outcome = _outcome(mesh, answer, seq, mesh.workload.hits[hits:], case.method)
    assert outcome == case.outcomes[profile]
    if outcome == "allow":
        assert mesh.workload.hits[-1].target == (case.upstream or case.target)


def _outcome(mesh: Mesh, answer: Answer | None, seq: int, hits: list[Hit], method: str) -> str:
    """Name what happened, once answer, ledger and workload tell the same story."""
    records = mesh.ledger.since(seq)
    if not records:
        assert hits == [], "the workload was reached without a decision"
        return f"reject {answer.status}" if answer else "refuse"
    assert answer is not None, "the PDP was asked, and the caller got no answer"
    (record,) = records
    assert answer.headers["x-authz-decision-id"] == record.decision_id
    if record.outcome == "allow":
        assert answer.status == 200
        (hit,) = hits
        _assert_judged(record, hit)
        return "allow"
    assert hits == [], "the workload was reached in spite of a denial"
    assert answer.status in {401, 403}
    if method != "HEAD":
        problem = json.loads(answer.body)
        problem = problem["error"]["data"] if "jsonrpc" in problem else problem
        assert f"{problem['verdict']} {problem['reason']}" == record.outcome
    return record.outcome


def _assert_judged(record: Record, hit: Hit) -> None:
    """What was judged is what the workload got."""
    judged = cast("dict[str, str]", record.document["resource"])
    assert hit.values("x-authz-decision-id") == (record.decision_id,)
    assert canonical_host(hit.values("host")[0]) == judged["host"]
    assert Target.parse(hit.target).path == judged["path"]
    assert hit.values("upgrade") == ()


@pytest.mark.parametrize(("case", "caller"), ALONE)
def test_past_any_envoy(mesh: Mesh, pdp: PdpClient, case: Case, caller: str) -> None:
    has_certificate = case.listener not in {"plain", "optional"}
    request = check_request(
        mesh.svid(caller) if has_certificate else None,
        method=case.method,
        path=case.target,
        host=case.host or "",
        headers=[*case.fields(mesh.forge.root(spiffe(f"agent/{caller}")))],
        extensions=case.extensions,
        body=case.body.encode("latin-1"),
    )
    assert pdp.outcome(request) == f"deny {case.alone}"
