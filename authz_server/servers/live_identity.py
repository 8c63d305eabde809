"""Everything about identity that changes while the server runs, put together from the settings.

The sources of trust bundles, which become part of every snapshot, and the listener's own SVID.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.snapshot import Snapshot
from authz_server.identity.bundle_endpoints import BundleEndpoints
from authz_server.identity.issuer_feed import IssuerFeed
from authz_server.identity.live_bundles import BundleSource, Clock, LiveTrust
from authz_server.identity.own_svid import SvidFiles, SvidSource
from authz_server.identity.workload_api import WorkloadApi
from authz_server.reload.live_input import LiveInput
from authz_server.servers.admission import Admission, NotAdmittedError, PeerProperties
from authz_server.servers.check_service import SnapshotSource
from authz_server.servers.guarded_calls import Admit
from authz_server.servers.listener_tls import ListenerTls
from authz_server.settings import Settings

# A pod and its node's agent may start together; beyond this a restart is the better answer.
FIRST_UPDATE_TIMEOUT_S: Final = 30.0
FIRST_KEYS_TIMEOUT_S: Final = 5.0  # as long as one step of a request for them may take


class LiveIdentity:
    """The live sources that `settings` names; none when all of identity is in files.

    `changed` is called after each change of a bundle or an SVID, `report` with what an operator
    should know; both from threads of the sources. `refused` is told of each call of a client
    that is not admitted.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        changed: Callable[[], None],
        report: Callable[[str], None],
        refused: Callable[[str], None],
    ) -> None:
        """Read what the settings name. Raises `ConfigurationError`."""
        self._tls = settings.tls
        self._clock = clock
        self._report = report
        self._refused = refused
        self._api: WorkloadApi | None = None
        sources: list[BundleSource] = []
        self._endpoints: BundleEndpoints | None = None
        bundles = settings.identity.trust_bundles
        if bundles.endpoints:
            self._endpoints = BundleEndpoints(
                bundles.endpoints,
                max_age_s=bundles.max_age_s,
                clock=clock,
                changed=changed,
                report=report,
            )
            sources.append(self._endpoints)
        if "workload_api" in {bundles.source, self._tls.mode}:
            assert bundles.socket is not None, "a configuration without it is refused"
            self._api = WorkloadApi(
                str(bundles.socket),
                max_age_s=bundles.max_age_s,
                clock=clock,
                changed=changed,
                report=report,
            )
            if bundles.source == "workload_api":
                sources.append(self._api)
        self.issuers = IssuerFeed(
            settings.delegation.issuers, clock=clock, changed=changed, report=report
        )
        trust = (LiveTrust(sources),) if sources else ()
        self.inputs: tuple[LiveInput, ...] = (*trust, self.issuers)
        self._svid = self._svid_source()

    @property
    def svid(self) -> SvidSource | None:
        """Where this server's own SVID is found; None while `tls.mode` is `plaintext`."""
        return self._svid

    def start(self) -> None:
        """Begin to follow every source."""
        for source in (self._api, self._endpoints, self.issuers):
            if source is not None:
                source.start()

    def stop(self) -> None:
        """Stop following; what was learnt stays."""
        for source in (self._api, self._endpoints, self.issuers):
            if source is not None:
                source.stop()

    def wait_for_first(self) -> None:
        """Return once issuers were asked and the Workload API has told everything once.

        An issuer that does not answer holds up nobody's start: its grants are denied.

        Raises `ConfigurationError` when it has not after `FIRST_UPDATE_TIMEOUT_S`. Blocks.
        """
        self.issuers.wait_for_first(FIRST_KEYS_TIMEOUT_S)
        api = self._api
        if api is not None and not api.wait_until_complete(FIRST_UPDATE_TIMEOUT_S):
            message = f"the Workload API gives no SVID and no bundles: {api.fault}"
            raise ConfigurationError([Fault(file=api.socket, message=message)])

    def listener_tls(self, snapshots: SnapshotSource) -> tuple[ListenerTls, Admit] | None:
        """Return what the gRPC listener needs for mutual TLS, or None for plaintext."""
        if self._svid is None:
            return None
        allowed = self._tls.allowed_clients
        admission = Admission(allowed, max_connection_age_s=self._tls.max_connection_age_s)

        def admit(peer: PeerProperties) -> None:
            try:
                admission.check(peer, snapshots.current, self._clock())
            except NotAdmittedError as error:
                self._refused(str(error))
                raise

        return ListenerTls(self._svid, snapshots, allowed), admit

    def why_not(self, snapshot: Snapshot | None) -> str | None:
        """Return why the trust material is too old to decide by, or None while it is not."""
        if snapshot is None or not is_stale(snapshot, self._clock()):
            return None
        fault = self._api.fault if self._api is not None else ""
        return "trust bundles are too old" + (f": {fault}" if fault else "")

    def _svid_source(self) -> SvidSource | None:
        tls = self._tls
        if tls.mode == "workload_api":
            return self._api
        if tls.mode == "files":
            assert tls.certificate is not None, "a configuration without it is refused"
            assert tls.private_key is not None, "a configuration without it is refused"
            return SvidFiles(tls.certificate, tls.private_key, report=self._report)
        return None


def is_stale(snapshot: Snapshot, now: datetime) -> bool:
    """Tell whether `snapshot` is denied by for the age of its trust bundles."""
    good_until = snapshot.trust.good_until
    return good_until is not None and now >= good_until
