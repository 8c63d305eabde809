"""Two SPIREs that federate: how a partner's workloads become known, and how they stop being it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from cryptography import x509

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from authz_server.demo.spire import Entry, Spire, SpirePlan
from authz_server.demo.workload_program import own_program
from authz_server.identity.own_svid import OwnSvid
from tests.e2e.check_requests import METHOD, check_request
from tests.e2e.forge import Svid
from tests.e2e.waiting import until
from tests.spire.programs import spire_or_skip
from tests.spire.site import (
    CALLER,
    PARTNER,
    Site,
    SitePlan,
    own_loopback,
    running_site,
    workload,
)

GUEST = workload("/agent/guest", PARTNER)
ANOTHER_ENVOY = workload("/envoy/another")


@dataclass(slots=True)
class _Partner:
    """The partner's SPIRE: planned before it runs, started within a site's processes."""

    host: str = field(default_factory=own_loopback)
    spire: Spire | None = None

    @property
    def running(self) -> Spire:
        assert self.spire is not None
        return self.spire

    def plan(self, site: Site) -> SpirePlan:
        return SpirePlan(
            trust_domain=PARTNER,
            directory=site.directory / "partner",
            sockets=site.directory,
            host=self.host,
            server_port=8081,
            bundle_port=8443,
        )

    def start(self, site: Site) -> None:
        """Start server and agent, with the test as one of its workloads."""
        self.spire = Spire(self.plan(site), spire_or_skip(), site.group)
        self.spire.start_server()
        self.spire.register([Entry(spiffe_id=GUEST, program=own_program())])
        self.spire.start_agent()
        bundle = self.spire.command("bundle", "show", "-format", "spiffe")
        (site.directory / "partner.json").write_text(bundle)

    def introduce(self, site: Site) -> None:
        """Give our SPIRE the partner's bundle, as an operator does once."""
        self.start(site)
        path = site.directory / "partner.json"
        options = ("-format", "spiffe", "-id", PARTNER.uri, "-path", path)
        site.spire.command("bundle", "set", *options)

    def guest(self, site: Site) -> OwnSvid:
        return site.svid(GUEST, self.running.plan.agent_socket)


def _judged(site: Site, caller: OwnSvid) -> str:
    """Return the PDP's verdict on a request that an Envoy of ours has from `caller`."""
    leaf = x509.load_pem_x509_certificates(caller.chain_pem)[0]
    key: Any = None
    request = check_request(Svid(leaf, key)).SerializeToString()
    with site.pdp_channel(site.svid(ANOTHER_ENVOY)) as channel:
        check: Callable[..., bytes] = channel.unary_unary(METHOD)
        answer = CheckResponse.FromString(check(request, timeout=10))
    reason = answer.dynamic_metadata.fields["reason"].string_value
    return "allow" if answer.status.code == grpc.StatusCode.OK.value[0] else f"deny {reason}"


def test_a_federated_domain_is_known_while_spire_federates_with_it() -> None:
    partner = _Partner()
    plan = SitePlan(federates_with=(PARTNER,))
    with running_site(plan, introduce=partner.introduce) as site:
        guest = partner.guest(site)
        assert site.ask(guest) == "allow", "through Envoy, which has both bundles by SDS"
        assert site.ask() == "allow"

        site.spire.command("bundle", "delete", "-id", PARTNER.uri, "-mode", "dissociate")

        until(lambda: site.ask(guest) == "refuse", "the bundle is gone from Envoy and PDP")
        assert site.ask() == "allow"
        assert site.ready() is True


@pytest.mark.deep
def test_the_pdp_follows_the_bundle_endpoint_of_a_partner() -> None:
    partner = _Partner()
    endpoint: dict[str, object] = {
        "trust_domain": str(PARTNER),
        "url": f"https://{partner.host}:8443",
        "profile": "https_spiffe",
        "endpoint_spiffe_id": f"{PARTNER.uri}/spire/server",
        "bundle": "partner.json",
    }
    plan = SitePlan(own_ids=(CALLER, ANOTHER_ENVOY), endpoints=[endpoint], bundle_age_s=4)
    with running_site(plan, introduce=partner.start) as site:
        guest = partner.guest(site)
        until(lambda: _judged(site, guest) == "allow", "the partner's bundle")

        partner.running.kill_server()
        until(lambda: _judged(site, guest) == "deny UNKNOWN_TRUST_DOMAIN", "the end of its age")
        assert _judged(site, site.svid(CALLER)) == "allow", "it is the partner's alone"
        said = [str(event["what"]) for event in site.events("trust")]
        assert any(f"`{PARTNER}` is not renewed" in line for line in said)
