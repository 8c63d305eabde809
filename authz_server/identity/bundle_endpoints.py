"""Follow the bundle endpoints of other trust domains (SPIFFE Federation §5, §7).

Domain, address and profile are separate settings, each the operator's: nothing that an endpoint
says can change whose bundle it is taken for.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from authz_server.core.errors import InvalidValueError
from authz_server.core.trust import TrustBundle
from authz_server.identity.backoff import Backoff
from authz_server.identity.bundle_files import TRUST_BUNDLE_BYTES_MAX, trust_bundle
from authz_server.identity.bundle_request import BundleUnreachableError, fetch_bundle
from authz_server.identity.file_content import read_all
from authz_server.identity.live_bundles import Clock, LiveBundles
from authz_server.identity.spiffe_bundle import BundleDocument, parse_document
from authz_server.settings.model import BundleEndpoint

REFRESH_S: Final = 300.0  # SPIFFE Bundle §4.1.2: where there is no hint, about five minutes
_REFRESH_S_MIN: Final = 1.0  # whatever the hint: not more load than a human would notice
_REFRESH_S_MAX: Final = 3600.0  # a key taken back is out of service within the hour
_STOP_TIMEOUT_S: Final = 2.0


class BundleEndpoints:
    """Every configured endpoint, each followed in a thread of its own. Thread-safe.

    A bundle that could not be refreshed for `max_age_s` is dropped: nobody of its domain is
    known any more.
    """

    def __init__(
        self,
        endpoints: Sequence[BundleEndpoint],
        *,
        max_age_s: float,
        clock: Clock,
        changed: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        """Read the bundles to begin with. Raises `ConfigurationError`."""
        self._followers = [
            _Follower(
                endpoint,
                max_age=timedelta(seconds=max_age_s),
                clock=clock,
                changed=changed,
                report=report,
            )
            for endpoint in endpoints
        ]

    def start(self) -> None:
        """Begin to follow every endpoint."""
        for follower in self._followers:
            follower.start()

    def stop(self) -> None:
        """Stop, and wait for it a moment."""
        for follower in self._followers:
            follower.stop()

    @property
    def bundles(self) -> LiveBundles:
        """The bundles of all domains whose endpoint was heard recently enough."""
        found = [follower.bundle for follower in self._followers]
        known = {bundle.trust_domain: bundle for bundle in found if bundle is not None}
        return LiveBundles(bundles=MappingProxyType(known))


class _Follower:
    """Follows one endpoint."""

    def __init__(
        self,
        endpoint: BundleEndpoint,
        *,
        max_age: timedelta,
        clock: Clock,
        changed: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._endpoint = endpoint
        self._max_age = max_age
        self._clock = clock
        self._changed = changed
        self._report = report
        self._first = _bundle_to_begin_with(endpoint)
        self._document: BundleDocument | None = None
        self._heard_at: datetime | None = None
        self._fault = ""
        self._stopping = threading.Event()
        name = f"bundle {endpoint.trust_domain}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def bundle(self) -> TrustBundle | None:
        """The bundle, or None before the first and after `max_age` without a new one."""
        document, heard_at = self._document, self._heard_at
        if document is None or heard_at is None or self._clock() >= heard_at + self._max_age:
            return None
        return document.bundle

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                self._refresh()
            except (BundleUnreachableError, InvalidValueError) as error:
                self._failed(str(error))
                wait_s = self._no_later_than_end(backoff.next_s())
            # A defect must not end the thread: the domain's bundle would end with it, unexplained.
            except Exception as error:  # noqa: BLE001
                self._failed(f"internal error `{type(error).__name__}`")
                wait_s = self._no_later_than_end(backoff.next_s())
            else:
                backoff.reset()
                self._fault = ""
                wait_s = self._refresh_s()
            self._stopping.wait(wait_s)

    def _refresh(self) -> None:
        endpoint, known = self._endpoint, self._document
        data = fetch_bundle(endpoint, anchors=self._anchors())
        document = parse_document(data, endpoint.trust_domain)
        if known is not None and _sequence(document) < _sequence(known):
            # SECURITY: an older bundle may have a key that was taken back since.
            raise InvalidValueError("the endpoint serves an older bundle than before")
        self._document, self._heard_at = document, self._clock()
        self._changed()

    def _anchors(self) -> TrustBundle | None:
        """Return what proves the endpoint: its own domain's bundle, the newest known of it."""
        endpoint, document = self._endpoint, self._document
        if endpoint.endpoint_spiffe_id is None:
            return None
        is_its_own = endpoint.endpoint_spiffe_id.trust_domain == endpoint.trust_domain
        return document.bundle if document is not None and is_its_own else self._first

    def _failed(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            self._report(f"the bundle of `{self._endpoint.trust_domain}` is not renewed: {fault}")
        self._changed()  # it may have become too old

    def _refresh_s(self) -> float:
        hint = self._document.refresh_hint_s if self._document else None
        wanted = min(max(hint or REFRESH_S, _REFRESH_S_MIN), _REFRESH_S_MAX)
        return min(wanted, self._max_age.total_seconds() / 2)

    def _no_later_than_end(self, wait_s: float) -> float:
        if self._heard_at is None:
            return wait_s
        left_s = (self._heard_at + self._max_age - self._clock()).total_seconds()
        return min(wait_s, left_s) if left_s > 0 else wait_s


def _bundle_to_begin_with(endpoint: BundleEndpoint) -> TrustBundle | None:
    if endpoint.bundle is None or endpoint.endpoint_spiffe_id is None:
        return None
    files = read_all([endpoint.bundle], bytes_max=TRUST_BUNDLE_BYTES_MAX)
    return trust_bundle(endpoint.endpoint_spiffe_id.trust_domain, files)


def _sequence(document: BundleDocument) -> int:
    return document.sequence or 0
