"""Trust that is taken back, and an agent that is gone: who is denied, with what, and when."""

import os
import signal

import pytest

from authz_server.agent.delegator import Delegator
from authz_server.core.delegation import CHAIN_HEADER, ROOT_HEADER
from authz_server.demo.spire import Entry
from authz_server.demo.workload_program import python_for
from authz_server.identity.own_svid import OwnSvid
from tests.e2e.waiting import until
from tests.spire.site import (
    AUDIENCE,
    CALLER,
    OTHER,
    PDP,
    Site,
    SitePlan,
    agent_svid,
    running_site,
)


def _chain(site: Site, signer: OwnSvid) -> dict[str, str]:
    """Return a delegation from `OTHER`, whose SVID is `signer`, to `CALLER`."""
    root = site.issuer.issue_root(
        subject="alice@example.org", actor=OTHER, scope=("x",), purpose=None, hops=1
    )
    link = Delegator(agent_svid(signer)).link(
        root, [], to=CALLER, audience=(AUDIENCE,), scope=("x",), hops=0
    )
    return {ROOT_HEADER: root, CHAIN_HEADER: link}


def test_a_key_that_is_taken_back_proves_nothing_after_one_update() -> None:
    """The old authority signed SVIDs that are valid for an hour yet."""
    with running_site(SitePlan(own_ids=(CALLER, OTHER))) as site:
        old, old_caller = site.svid(OTHER), site.svid(CALLER)
        chain = _chain(site, old)
        assert site.ask(headers=chain) == "allow"
        assert site.ask(headers=chain) == "allow", "from the cache of verified chains"

        authority = site.replace_authority()
        until(lambda: site.svid(OTHER) != old, "an SVID under the new authority")
        assert site.ask(headers=chain) == "allow", "both keys are in the bundle"
        assert site.ask(old_caller) == "allow"

        before = site.ledger.last()
        site.revoke_authority(authority)
        # The chain is in the cache of verified ones, and the Envoy of this site, too, had connected
        # with an SVID of the old authority.
        until(lambda: site.ask(headers=chain) == "deny UNKNOWN_KEY", "the denial")
        outcomes = [(str(r.document["revision"]), r.outcome) for r in site.ledger.since(before)]
        first = next(i for i, (_, outcome) in enumerate(outcomes) if outcome != "allow")
        update = outcomes[first][0]
        assert update not in {revision for revision, _ in outcomes[:first]}, (
            "one update, and at once"
        )
        assert {outcome for _, outcome in outcomes[first:]} == {"deny UNKNOWN_KEY"}
        assert site.events("listener_renewed")
        until(lambda: site.ask(old_caller) == "refuse", "the Envoy's update")
        assert site.ask(headers=_chain(site, site.svid(OTHER))) == "allow"
        assert site.ready() is True


def test_the_last_bundles_serve_while_the_agent_is_away_but_not_for_ever() -> None:
    with running_site(SitePlan(bundle_age_s=3)) as site:
        svid = site.svid()
        site.spire.kill_agent()
        until(lambda: bool(site.events("trust")), "the loss of contact")
        assert site.ask(svid) == "allow"

        until(lambda: site.ready() is not True, "not ready")
        assert any("too old" in reason for reason in site.ready() or [])  # type: ignore[union-attr]
        assert site.ask(svid) == "deny NOT_READY"
        assert site.ask(svid) == "deny NOT_READY"

        site.spire.restart_agent()
        until(lambda: site.ready() is True, "ready again")
        until(lambda: site.ask() == "allow", "an allow")


@pytest.mark.deep
def test_an_agent_that_restarts_disturbs_nobody() -> None:
    with running_site(SitePlan(svid_s=10, connection_age_s=2)) as site:
        for _ in range(2):
            site.spire.restart_agent()
            for _ in range(20):
                assert site.ask() == "allow"
        assert site.ready() is True


@pytest.mark.deep
def test_a_pdp_whose_registration_is_deleted_denies_within_seconds() -> None:
    with running_site(SitePlan()) as site:
        assert site.ask() == "allow"
        site.spire.unregister(site.entries[str(PDP)])

        until(lambda: site.ready() is not True, "not ready")
        assert site.ask() == "deny NOT_READY"

        python = python_for("pdp", site.directory / "programs")
        site.spire.register([Entry(spiffe_id=PDP, program=python)])
        until(lambda: site.ready() is True, "ready again")
        assert site.ask() == "allow"


@pytest.mark.deep
def test_a_caller_whose_registration_is_deleted_gets_no_new_svid() -> None:
    with running_site(SitePlan(svid_s=10)) as site:
        assert site.ask() == "allow"
        site.spire.unregister(site.entries[str(CALLER)])
        until(lambda: site.svids() == [], "no SVID")


@pytest.mark.deep
def test_an_agent_that_hangs_is_no_agent() -> None:
    """Its streams stay open and silent; the PDP's own SVID ends, and with it the bundles."""
    with running_site(SitePlan(svid_s=10, bundle_age_s=1)) as site:
        assert site.ask() == "allow"
        os.kill(site.spire.agent.pid, signal.SIGSTOP)
        try:
            until(lambda: site.ready() is not True, "not ready")
        finally:
            os.kill(site.spire.agent.pid, signal.SIGCONT)
        until(lambda: site.ready() is True, "ready again")
