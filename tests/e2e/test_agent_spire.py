"""The SDK and JWT-SVIDs on a real SPIRE: its SVIDs sign links, its tokens name callers."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from spiffe import WorkloadApiClient

from authz_server.agent import Delegation, Delegator, HandOff, Onward
from authz_server.agent.workload_api import WorkloadApiSvid
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.jwt_svid import verify_jwt_svid
from authz_server.core.trust import TrustBundle
from authz_server.identity.spiffe_bundle import parse_document
from tests.spire.site import AUDIENCE, CALLER, DOMAIN, OTHER, Site, SitePlan, running_site

pytestmark = pytest.mark.xdist_group("agent-spire")
SERVER = "spiffe://mesh.example/authz"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site whose test process is two agents. Read-only: tests share it."""
    with running_site(SitePlan(own_ids=(CALLER, OTHER))) as running:
        running.svid(OTHER)  # the agent has heard of both
        yield running


def test_a_link_signed_with_an_svid_of_the_workload_api(site: Site) -> None:
    socket = f"unix://{site.spire.plan.agent_socket}"
    root = site.issuer.issue_root(subject="alice", actor=CALLER, scope=["crm.read"], hops=1)
    what = HandOff(to=str(OTHER), audience=[AUDIENCE], scope=["crm.read"])
    with closing(WorkloadApiSvid(socket, spiffe_id=CALLER)) as source:
        assert source.svid().spiffe_id == CALLER
        handed = Onward(Delegator(source), what, delegation=Delegation(root=root)).delegation()
    assert handed is not None
    assert site.ask(site.svid(OTHER), handed.headers) == "allow"
    (record,) = site.ledger.since(site.ledger.last() - 1)
    assert record.document["chain"]["actors"] == [str(CALLER), str(OTHER)]  # type: ignore[index]
    # Who signed it may not use it.
    assert site.ask(site.svid(CALLER), handed.headers) == "deny LEAF_MISMATCH"


def test_a_jwt_svid_as_spire_makes_it(site: Site) -> None:
    with WorkloadApiClient(f"unix://{site.spire.plan.agent_socket}") as client:
        token = client.fetch_jwt_svid(audience={SERVER}, subject=None).token
    document = site.spire.command("bundle", "show", "-format", "spiffe")
    bundle = parse_document(document.encode(), DOMAIN).bundle

    def verify(audience: str, keys: TrustBundle) -> str:
        found = verify_jwt_svid(
            token,
            audiences=frozenset({audience}),
            bundles={DOMAIN: keys},
            now=datetime.now(UTC),
            skew_s=30,
        )
        return str(found.spiffe_id)

    assert verify(SERVER, bundle) in {str(CALLER), str(OTHER)}
    with pytest.raises(RequestFault) as caught:
        verify("another", bundle)
    assert caught.value.reason is Reason.WRONG_AUDIENCE
    revoked = TrustBundle(trust_domain=DOMAIN, authorities=bundle.authorities)
    with pytest.raises(RequestFault) as caught:
        verify(SERVER, revoked)
    assert caught.value.reason is Reason.UNKNOWN_KEY
