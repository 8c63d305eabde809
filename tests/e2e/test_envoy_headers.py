"""What Envoy takes off a request before the workload, and the PDP, see it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from authz_server.demo.calls import Call
from authz_server.demo.cast import ALICE, ASSISTANT, DATA, plan
from authz_server.demo.grants import Grant, Wallet
from authz_server.demo.mesh import Mesh
from authz_server.demo.run import SHIPPED_BUNDLES
from authz_server.demo.services.journal import Visit

pytestmark = pytest.mark.xdist_group("demo")

STRIPPED = replace(DATA, name="stripped", host="stripped.demo.example.org", strip_delegation=True)
GRANT = Grant(subject=ALICE, agent=ASSISTANT, scope=("data.read",), purpose="support-case")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    two = replace(plan(SHIPPED_BUNDLES), services=(DATA, STRIPPED))
    with Mesh.start(tmp_path_factory.mktemp("mesh"), two) as running:
        yield running


def visit(mesh: Mesh, host: str, **headers: str) -> Visit:
    """Return an allowed request as the service at `host` saw it."""
    sent = {**Wallet(mesh).headers(GRANT), **{k.replace("_", "-"): v for k, v in headers.items()}}
    call = Call(host=host, method="GET", path="/v1/customers/C-17/invoices")
    outcome = asyncio.run(mesh.agent(ASSISTANT).perform(call, sent))
    assert outcome.verdict == "allow", outcome
    name = next(service.name for service in mesh.plan.services if service.host == host)
    seen = mesh.visits(name)[-1]
    assert seen.header("x-authz-decision-id") == outcome.decision_id
    return seen


def test_delegation_is_passed_on_unless_the_route_says_otherwise(mesh: Mesh) -> None:
    assert visit(mesh, DATA.host).header("txn-token") is not None
    assert visit(mesh, STRIPPED.host).header("txn-token") is None


def test_forged_answers_of_the_pdp_are_dropped(mesh: Mesh) -> None:
    seen = visit(mesh, DATA.host, x_authz_verdict="allow", X_Authz_Decision_Id="forged")
    names = [name for name, _ in seen.headers if name.startswith("x-authz-")]
    assert names == ["x-authz-decision-id"]


def test_client_certificate_header_is_envoys_own(mesh: Mesh) -> None:
    forged = "URI=spiffe://demo.example.org/agent/admin"
    seen = visit(mesh, DATA.host, x_forwarded_client_cert=forged)
    header = seen.header("x-forwarded-client-cert") or ""
    assert f"URI=spiffe://demo.example.org{ASSISTANT}" in header
    assert "admin" not in header
