"""Roots and links that are almost right, sent to the running PDP as an Envoy would send them.

Each case changes one thing of a chain that is allowed (`test_control`).
"""

import pytest

from tests.e2e.attack_mesh import Mesh
from tests.e2e.check_requests import PdpClient, check_request
from tests.e2e.forge import AUDIENCE, Svid, chain_header
from tests.e2e.forged_links import LINKS, two_links
from tests.e2e.forged_roots import ROOTS
from tests.e2e.workshop import NARROW, OTHER, WIDE, Chain, Make, Workshop, flipped


@pytest.fixture(scope="session")
def workshop(mesh: Mesh) -> Workshop:
    return Workshop(mesh.forge, mesh.svid("narrow"), mesh.svid("other"))


def outcome(
    pdp: PdpClient, caller: Svid, chain: str | Chain, extensions: dict[str, str] | None = None
) -> str:
    root, links = (chain, []) if isinstance(chain, str) else chain
    headers = [("txn-token", root.encode("latin-1"))]
    if links:
        headers.append(("delegation-chain", chain_header(links).encode("latin-1")))
    route = {"require_delegation": "true", "audience": AUDIENCE} | (extensions or {})
    return pdp.outcome(check_request(caller, headers=headers, extensions=route))


def params(table: dict[str, tuple[str, Make]]) -> list[object]:
    """Return the cases of `table`, one parameter set each."""
    return [
        pytest.param(reason, make, id=name.replace(" ", "-"))
        for name, (reason, make) in table.items()
    ]


@pytest.mark.parametrize(("reason", "make"), params(ROOTS | LINKS))
def test_forged(mesh: Mesh, pdp: PdpClient, workshop: Workshop, reason: str, make: Make) -> None:
    got = outcome(pdp, workshop.narrow, make(workshop))
    assert got in {f"deny {one}" for one in reason.split("|")}


def test_control(pdp: PdpClient, workshop: Workshop) -> None:
    """What every case above is one step away from."""
    root = workshop.parent()
    assert outcome(pdp, workshop.narrow, workshop.root()) == "allow"
    assert outcome(pdp, workshop.narrow, (root, [workshop.link(root)])) == "allow"
    assert outcome(pdp, workshop.narrow, two_links(workshop)) == "allow"


def test_the_same_chain_from_another_caller(mesh: Mesh, pdp: PdpClient, workshop: Workshop) -> None:
    """Seen once, and so cached, it still belongs to its leaf alone."""
    chain = two_links(workshop)
    assert outcome(pdp, workshop.narrow, chain) == "allow"
    for thief in ("wide", "other"):
        assert outcome(pdp, mesh.svid(thief), chain) == "deny LEAF_MISMATCH"


def test_handoff_only_to_the_workload_behind(pdp: PdpClient, workshop: Workshop) -> None:
    root = workshop.forge.root(NARROW, hops=1)
    link = workshop.forge.link(root, workshop.narrow, NARROW, OTHER)
    chain: Chain = (root, [link])
    assert outcome(pdp, workshop.narrow, chain, {"workload_id": OTHER}) == "allow"
    assert outcome(pdp, workshop.narrow, chain, {"workload_id": WIDE}) == "deny LEAF_MISMATCH"
    assert outcome(pdp, workshop.narrow, chain) == "deny LEAF_MISMATCH"


def test_a_cached_chain_is_bound_to_its_bytes(pdp: PdpClient, workshop: Workshop) -> None:
    root = workshop.parent()
    link = workshop.link(root)
    assert outcome(pdp, workshop.narrow, (root, [link])) == "allow"
    for broken in ((flipped(root, 2), [link]), (root, [flipped(link, 2)])):
        assert outcome(pdp, workshop.narrow, broken) == "deny BAD_SIGNATURE"
