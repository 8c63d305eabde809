"""Shadow mode through real Envoys: what would be denied passes, is marked, and is on record."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from authz_server.cli import main
from authz_server.core.enforcement import OBSERVABLE
from authz_server.core.errors import Reason
from tests.e2e.attack_mesh import Mesh, running_mesh, set_modes
from tests.e2e.raw_http import Answer, NoAnswerError, exchange
from tests.e2e.test_casebook import SENT_BY_ENVOY, Site, running_site, through_envoy
from tests.harness import casebook

pytestmark = pytest.mark.xdist_group("shadow")

SPOOFED = "x-authz-mode: enforce\r\nx-authz-verdict: allow\r\nx-authz-decision-id: mine\r\n"


def ask(mesh: Mesh, target: str, listener: str = "tool", caller: str = "wide") -> Answer:
    request = f"GET {target} HTTP/1.1\r\nHost: tool.example\r\n{SPOOFED}\r\n"
    port = mesh.envoys["hardened"].ports[listener]
    return exchange(port, request.encode(), tls=mesh.tls(caller))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A hardened Envoy before a PDP whose one bundle is only observed."""
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as name,
        running_mesh(Path(name), profiles=["hardened"], modes={"default": "shadow"}) as running,
    ):
        yield running


@pytest.mark.parametrize(
    ("target", "listener", "verdict", "reason"),
    [
        ("/public/1", "tool", "allow", "OK"),
        ("/admin/1", "tool", "deny", "DENIED_BY_RULE"),
        ("/public/1", "strict", "deny", "DELEGATION_REQUIRED"),
    ],
)
def test_a_verdict_passes_and_says_what_it_would_have_been(
    mesh: Mesh, target: str, listener: str, verdict: str, reason: str
) -> None:
    before, hits = mesh.ledger.last(), len(mesh.workload.hits)
    answer = ask(mesh, target, listener)
    (record,) = mesh.ledger.since(before)
    assert answer.status == 200
    shown = {name: answer.headers[f"x-authz-{name}"] for name in ("mode", "verdict", "decision-id")}
    assert shown == {"mode": "shadow", "verdict": verdict, "decision-id": record.decision_id}
    document = record.document
    assert (document["verdict"], document["reason"]) == (verdict, reason)
    assert (document["mode"], document["bundle"]) == ("shadow", "default")
    (hit,) = mesh.workload.hits[hits:]
    # What a client says of itself does not reach the workload, nor does what is said to the client.
    assert hit.values("x-authz-decision-id") == (record.decision_id,)
    assert hit.values("x-authz-mode") == hit.values("x-authz-verdict") == ()


def test_a_connection_passes_too(mesh: Mesh) -> None:
    """There is nobody to tell on a raw connection; the record says it."""
    before, connections = mesh.ledger.last(), mesh.workload.connections
    assert ask(mesh, "/", "tcp", "narrow").status == 200
    (record,) = mesh.ledger.since(before)
    assert (record.outcome, record.document["mode"]) == ("deny NO_MATCHING_RULE", "shadow")
    assert mesh.workload.connections == connections + 1


def test_it_is_enforced_after_the_switch_and_passed_before(mesh: Mesh) -> None:
    """The switch is in the configuration, which a server reads when it starts."""
    hits = len(mesh.workload.hits)
    assert ask(mesh, "/admin/1").status == 200
    mesh.pdp.terminate()
    mesh.pdp.join()
    set_modes(mesh.directory, {"default": "enforce"})
    mesh.start_pdp()
    try:
        before = mesh.ledger.last()
        answer = ask(mesh, "/admin/1")
        assert (answer.status, answer.headers.get("x-authz-mode")) == (403, None)
        (record,) = mesh.ledger.since(before)
        assert (record.outcome, record.document["mode"]) == ("deny DENIED_BY_RULE", "enforce")
        with pytest.raises((NoAnswerError, OSError)):
            ask(mesh, "/", "tcp", "narrow")
        assert len(mesh.workload.hits) == hits + 1
    finally:
        mesh.pdp.terminate()
        mesh.pdp.join()
        set_modes(mesh.directory, {"default": "shadow"})
        mesh.start_pdp()


# --- the casebook, with one bundle observed and the others enforced -----------------------------

# A handshake each: of the cases that one route denies for one reason, one will do.
ONE_OF_EACH = {(case.spec["route"], case.expect["reason"]): case for case in SENT_BY_ENVOY}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        tempfile.TemporaryDirectory(prefix="authz-") as name,
        running_site(Path(name), {"data": "shadow"}) as running,
    ):
        yield running


def test_the_casebook_with_one_bundle_in_shadow(site: Site) -> None:
    """Through Envoy: what is judged by that bundle passes, all else comes out as the book says."""
    seen: set[tuple[str, str]] = set()
    for case in ONE_OF_EACH.values():
        before, hits = site.ledger.last(), len(site.workload.hits)
        answer = through_envoy(site, case)
        (record,) = site.ledger.since(before)
        document = record.document
        expected: tuple[str, str] = (case.expect["verdict"], case.expect["reason"])
        assert (document["verdict"], document["reason"]) == expected, case.name
        observed = document["bundle"] == "data" and Reason(expected[1]) in OBSERVABLE
        assert document["mode"] == ("shadow" if observed else "enforce"), case.name
        passes = observed or expected[0] == "allow"
        assert len(site.workload.hits) - hits == passes, case.name
        marks = answer.headers.get("x-authz-mode"), answer.headers.get("x-authz-verdict")
        if observed:
            assert marks == ("shadow", expected[0]), case.name
        else:
            assert marks == (None, "escalate" if expected[0] == "escalate" else None), case.name
        seen.add((str(document["mode"]), expected[0]))
    assert {("shadow", "deny"), ("shadow", "allow"), ("enforce", "escalate")} <= seen


def test_offline_check_says_what_the_policy_says_and_that_it_is_not_enforced(site: Site) -> None:
    (case,) = (case for case in casebook.cases() if case.name == "no rule allows it")
    arguments = ["check", "--binary", "--config", str(site.directory / "authz.yaml")]
    done = CliRunner().invoke(main.group, arguments, input=casebook.check_request(case, site.world))
    assert done.exit_code == 1, done.output
    document = json.loads(done.stdout)
    assert (document["verdict"], document["mode"]) == ("deny", "shadow")
