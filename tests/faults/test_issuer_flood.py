"""A flood of invented key ids: the issuer is asked once a minute, and no call waits for it."""

import threading
import time
from pathlib import Path

import pytest

from authz_server.agent.issuer import DevelopmentIssuer
from tests.pdp_site import ASSISTANT, ISSUER, SUBJECT, TRUST_DOMAIN, PdpSite
from tests.server_process import running
from tests.unit.test_issuer_feed import serving

REQUESTS = 2_000
CALLERS = 4


def test_an_unknown_key_denies_at_once_and_asks_the_issuer_once(tmp_path: Path) -> None:
    with serving(b"") as endpoint:
        issuers = [{"issuer": ISSUER, "jwks_url": endpoint.url}]
        site = PdpSite.create(tmp_path / "site", delegation={"issuers": issuers})
        endpoint.document = site.issuer.jwks().encode()
        with running(site) as server:
            assert server.reason(site.check_request("/open/a")) == "OK"
            assert endpoint.requests == 1
            # From now on the issuer hangs: whoever waited for it would wait with it.
            endpoint.gate.clear()
            stranger = DevelopmentIssuer.create(
                issuer=ISSUER, trust_domain=TRUST_DOMAIN, kid="invented"
            )
            reasons: list[str] = []
            requests = [
                site.check_request(
                    "/open/a",
                    headers={
                        "txn-token": stranger.issue_root(
                            subject=SUBJECT, actor=ASSISTANT, scope=("data.read",)
                        )
                    },
                    svid=site.assistant,
                )
                for _ in range(20)
            ]

            def flood() -> None:
                asked = (requests[number % 20] for number in range(REQUESTS // CALLERS))
                reasons.extend(map(server.reason, asked))

            callers = [threading.Thread(target=flood) for _ in range(CALLERS)]
            started = time.monotonic()
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            print(f"{REQUESTS} calls in {time.monotonic() - started:.1f} s")
            assert reasons == ["UNKNOWN_KEY"] * REQUESTS
            assert endpoint.requests == 1, "one request was enough for the first minute"
            assert server.reason(site.check_request("/open/a")) == "OK", "known keys still serve"


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_the_key_that_arrives_later_heals_the_chain_within_a_minute(tmp_path: Path) -> None:
    """A denial is not remembered: the same bytes pass once their key is known."""
    with serving(b"") as endpoint:
        issuers = [{"issuer": ISSUER, "jwks_url": endpoint.url}]
        site = PdpSite.create(tmp_path / "site", delegation={"issuers": issuers})
        endpoint.document = b'{"keys": []}'
        with running(site) as server:
            request = site.check_request("/open/a")
            assert server.reason(request) == "UNKNOWN_KEY"
            endpoint.document = site.issuer.jwks().encode()
            deadline = time.monotonic() + 90
            while server.reason(request) != "OK":
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert endpoint.requests == 2
