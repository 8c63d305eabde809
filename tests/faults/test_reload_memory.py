"""After a reload nothing of the old policy is left; a server that no longer looks says so."""

import asyncio
import gc
import io
import weakref
from http import HTTPStatus
from pathlib import Path

import pytest

from authz_server.app import PolicyServer
from authz_server.policy.bundle import PolicyBundle, load_bundle_files
from authz_server.servers.event_log import EventLog
from authz_server.settings import load_settings
from tests.harness.reloading import PATIENCE_S, Observed
from tests.pdp_site import RULES, PdpSite


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    return PdpSite.create(tmp_path)


def test_a_replaced_policy_is_freed_without_the_collector(site: PdpSite) -> None:
    """The collector rests during a load and is slow to come; 10,000 rules must not pile up."""
    observed = Observed(load_settings(site.configuration))
    observed.reloader.refresh()
    policy = observed.snapshot.policies["default"]
    assert isinstance(policy, PolicyBundle)
    alive = [weakref.ref(rule.matches) for rule in policy.rules]
    del policy
    gc.collect()
    gc.disable()
    try:
        observed.outcomes.clear()
        site.write_rules(RULES[:1])
        observed.reloader.refresh()
        assert observed.rules == ["open-read"]
        assert [reference() for reference in alive] == [None] * len(RULES)
    finally:
        gc.enable()


def test_what_a_load_was_made_of_is_freed_with_it(site: PdpSite) -> None:
    """Rows and terms in a cycle would all be visited in one piece, with every request waiting."""
    files = {path.name: path.read_bytes() for path in site.bundle.iterdir()}

    def left_behind(rules: int) -> int:
        rows = [f"p, rule-{number}, GET, /r/{number}, s, , allow" for number in range(rules)]
        gc.collect()
        gc.disable()
        try:
            load_bundle_files({**files, "policy.csv": "\n".join(rows).encode()})
            return gc.collect()
        finally:
            gc.enable()

    left_behind(1)  # what is made once
    assert left_behind(400) < 400


@pytest.mark.parametrize("content", [RULES[:1], ["p, broken"]])
def test_the_collector_works_again_after_every_load(site: PdpSite, content: list[str]) -> None:
    observed = Observed(load_settings(site.configuration))
    observed.reloader.refresh()
    site.write_rules(content)
    observed.reloader.refresh()
    assert gc.isenabled()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_watch_has_died_is_not_ready(
    site: PdpSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would decide by what it has for ever, and say that all is well."""

    async def run() -> None:
        server = PolicyServer(load_settings(site.configuration), log=EventLog.json(io.StringIO()))
        async with server:
            assert not server._readiness.why_not
            monkeypatch.setattr("authz_server.reload.watch.watched_directories", _fail)
            site.write_rules(RULES[:1])  # the watch looks, and falls over
            server._watcher._thread.join(PATIENCE_S)
            assert server._readiness.why_not == ("policy and trust on disk are no longer watched",)
            assert server._readiness.page().status == HTTPStatus.SERVICE_UNAVAILABLE

    asyncio.run(run())


def _fail(_: object) -> frozenset[object]:
    raise MemoryError
