"""SVIDs that live for seconds, rotated under load: no request may notice."""

import http.client
import threading
import time
from collections import Counter

import pytest
from cryptography import x509

from authz_server.app import utc_now
from authz_server.identity.workload_api import WorkloadApi
from tests.e2e.waiting import until
from tests.spire.site import ENVOY_PORT, HOST, Site, SitePlan, outcome, running_site

_LOADERS = 2
_REQUESTS_A_CONNECTION = 25


class _Load:
    """Sends requests until told to stop, each connection with the newest SVID there is.

    Each loader waits `pause_s` after an answer: requests have to meet every rotation, not the limit
    of a machine that runs other tests beside this one for two minutes.
    """

    def __init__(self, site: Site, *, pause_s: float) -> None:
        self._pause_s = pause_s
        self.outcomes: Counter[str] = Counter()
        self.serials: set[int] = set()  # of the certificates that the Envoy presented
        self._site = site
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(_LOADERS)]
        self._api = WorkloadApi(
            f"unix://{site.spire.plan.agent_socket}",
            max_age_s=60,
            clock=utc_now,
            changed=lambda: None,
            report=lambda _what: None,
        )

    def __enter__(self) -> "_Load":
        self._api.start()
        assert self._api.wait_until_complete(30)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._api.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            svid = self._api.svid
            assert svid is not None
            connection = http.client.HTTPSConnection(
                self._site.host, ENVOY_PORT, context=self._site.context(svid), timeout=15
            )
            try:
                self._use(connection)
            except (OSError, http.client.HTTPException) as error:
                self.outcomes[repr(error)] += 1
            finally:
                connection.close()

    def _use(self, connection: http.client.HTTPSConnection) -> None:
        connection.connect()
        der = connection.sock.getpeercert(binary_form=True)
        assert isinstance(der, bytes)
        self.serials.add(x509.load_der_x509_certificate(der).serial_number)
        for _ in range(_REQUESTS_A_CONNECTION):
            connection.request("GET", "/x", headers={"Host": HOST})
            response = connection.getresponse()
            self.outcomes[outcome(response.status, response.read())] += 1
            if self._pause_s:
                self._stopping.wait(self._pause_s)


def _rotate_under_load(*, svid_s: int, seconds: float, pause_s: float) -> tuple[_Load, Site]:
    plan = SitePlan(svid_s=svid_s, connection_age_s=3)
    with running_site(plan) as site, _Load(site, pause_s=pause_s) as load:
        end = time.monotonic() + seconds
        until(lambda: len(load.serials) >= 3, "a third SVID")
        while time.monotonic() < end:
            assert set(load.outcomes) <= {"allow"}, load.outcomes
            time.sleep(0.1)
        return load, site


def test_rotation_every_second_fails_no_request() -> None:
    """Both ends of both connections change their SVID: caller, Envoy twice, PDP."""
    load, _ = _rotate_under_load(svid_s=10, seconds=12, pause_s=0.01)
    assert set(load.outcomes) == {"allow"}, load.outcomes
    assert load.outcomes["allow"] > 100
    assert len(load.serials) > 5


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seconds", "pause_s"), [(120, 0.02), pytest.param(600, 0, marks=pytest.mark.deep)]
)
def test_rotation_every_five_seconds(seconds: int, pause_s: float) -> None:
    load, _ = _rotate_under_load(svid_s=20, seconds=seconds, pause_s=pause_s)
    print(f"\n{load.outcomes['allow']} requests, {len(load.serials)} SVIDs seen, 0 failed")
    assert set(load.outcomes) == {"allow"}, load.outcomes
    assert len(load.serials) > seconds / 10
