"""The PDP's listener with an identity of its own: mutual TLS, for the configured Envoys alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from authz_server.demo.authority import TrustDomainAuthority
from authz_server.identity.own_svid import OwnSvid
from tests.e2e.check_requests import METHOD, check_request
from tests.spire.site import (
    CALLER,
    DOMAIN,
    ENVOY,
    OTHER,
    Site,
    SitePlan,
    running_site,
    workload,
)

pytestmark = pytest.mark.xdist_group("spire-listener")
ANOTHER_ENVOY = workload("/envoy/another")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site whose test process is an Envoy too, and two agents. Read-only: tests share it."""
    with running_site(SitePlan(own_ids=(CALLER, OTHER, ANOTHER_ENVOY))) as running:
        yield running


def _code(ask: Callable[[], object]) -> grpc.StatusCode:
    try:
        ask()
    except grpc.RpcError as error:
        return cast("grpc.StatusCode", cast("Any", error).code())
    return grpc.StatusCode.OK


def _check(site: Site, svid: OwnSvid | None) -> grpc.StatusCode:
    request = check_request(None).SerializeToString()
    with site.pdp_channel(svid) as channel:
        check: Callable[..., bytes] = channel.unary_unary(METHOD)
        return _code(lambda: check(request, timeout=10))


def test_envoy_and_pdp_prove_themselves_to_each_other(site: Site) -> None:
    assert site.ask(site.svid(CALLER)) == "allow"
    (record,) = site.ledger.since(site.ledger.last() - 1)
    assert record.document["principal"]["spiffe_id"] == str(CALLER)  # type: ignore[index]


def test_another_envoy_that_is_configured_may_ask(site: Site) -> None:
    assert _check(site, site.svid(ANOTHER_ENVOY)) is grpc.StatusCode.OK


def test_a_foreign_svid_of_the_same_trust_domain_is_refused(site: Site) -> None:
    before = site.ledger.last()
    assert _check(site, site.svid(OTHER)) is grpc.StatusCode.PERMISSION_DENIED
    assert site.ledger.last() == before, "a stranger wrote to the ledger"
    refused = [str(event["fault"]) for event in site.events("client_refused")]
    assert refused == [f"`{OTHER}` is not among `tls.allowed_clients`"]


def test_health_and_reflection_are_behind_the_same_door(site: Site) -> None:
    def asks(svid: OwnSvid) -> list[grpc.StatusCode]:
        question: Any = reflection_pb2.ServerReflectionRequest(list_services="")
        state: Any = health_pb2.HealthCheckRequest()
        with site.pdp_channel(svid) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            return [
                _code(lambda: health.Check(state, timeout=10)),
                _code(lambda: next(health.Watch(state, timeout=10))),
                _code(lambda: next(reflection.ServerReflectionInfo(iter([question]), timeout=10))),
            ]

    assert asks(site.svid(OTHER)) == [grpc.StatusCode.PERMISSION_DENIED] * 3
    assert asks(site.svid(ANOTHER_ENVOY)) == [grpc.StatusCode.OK] * 3


def test_an_envoy_id_under_another_authority_gets_no_connection(site: Site) -> None:
    """The id alone is nothing: here is one that SPIRE did not sign."""
    forged = TrustDomainAuthority.create(DOMAIN).issue_svid(ENVOY)
    svid = OwnSvid.from_pem(forged.cert_chain_pem, forged.key_pem)
    assert _check(site, svid) is grpc.StatusCode.UNAVAILABLE


def test_plaintext_is_refused(site: Site) -> None:
    assert _check(site, None) is grpc.StatusCode.UNAVAILABLE


def test_an_envoy_that_is_not_configured_reaches_nothing() -> None:
    with running_site(SitePlan(envoy_id=workload("/proxy/recorder"))) as site:
        assert site.ask() == "reject 503"
        assert site.tool.hits == []
        assert site.ledger.last() == 0


def test_an_envoy_asks_no_other_pdp_than_the_one_it_expects() -> None:
    """Whoever has an SVID of the trust domain could otherwise pose as the PDP."""
    with running_site(SitePlan(envoy_expects=workload("/pdp-of-another-cell"))) as site:
        assert site.ask() == "reject 503"
        assert site.tool.hits == []


def test_the_configuration_names_no_key_material(site: Site) -> None:
    written = "".join(
        path.read_text()
        for path in Path(site.directory).glob("*")
        if path.suffix in {".yaml", ".json", ".log"}
    )
    assert "PRIVATE KEY" not in written
    assert "BEGIN CERTIFICATE" not in written
