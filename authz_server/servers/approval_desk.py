"""The approvals that this server offers to people, put together from the settings."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from authz_server.core.errors import ConfigurationError, Fault
from authz_server.core.spiffe import TrustDomain
from authz_server.identity.own_svid import SvidSource
from authz_server.ledger.approvals import Approvals
from authz_server.ledger.printable import printable
from authz_server.servers.admin_http import TlsSource
from authz_server.servers.admin_tls import AdminTls
from authz_server.servers.approvals_http import ApprovalsApi
from authz_server.servers.approvals_openapi import openapi_document
from authz_server.servers.approver import ApproverProof, IssuerFile
from authz_server.servers.check_service import Clock, SnapshotSource
from authz_server.servers.event_log import EventLog
from authz_server.servers.metrics import Metrics
from authz_server.servers.webhooks import Receiver, Webhooks
from authz_server.settings import Settings

_FAILING: Final = "approval_webhook_failing"


def approvals_api(
    settings: Settings, *, snapshots: SnapshotSource, clock: Clock, log: EventLog
) -> ApprovalsApi | None:
    """Return the HTTP API; None without a ledger. Raises `ConfigurationError`, `LedgerError`."""
    if settings.ledger.mode == "off":
        return None
    given = settings.approvals
    issuers = [
        IssuerFile(
            issuer=one.issuer,
            jwks_file=one.jwks_file,
            audiences=frozenset(one.audiences),
            algorithms=one.algorithms,
            name_claim=one.name_claim,
            max_lifetime_s=one.max_lifetime_s,
        )
        for one in given.issuers
    ]
    return ApprovalsApi(
        Approvals.at(settings.ledger.url, groups=given.groups, two_persons=given.two_persons),
        proof=ApproverProof(issuers, snapshots),
        clock=clock,
        document=openapi_document(),
        answered=lambda request, approver: log.info(
            "approval_answered",
            approval=request.id,
            status=request.status.value,
            approver=printable(approver),
        ),
    )


def admin_tls(
    settings: Settings, *, svid: SvidSource | None, snapshots: SnapshotSource
) -> TlsSource | None:
    """Return the TLS of the HTTP port, or None where it speaks plainly."""
    if not settings.listen.http_tls:
        return None
    if svid is None:
        message = "`listen.http_tls` needs an X509-SVID"
        raise ConfigurationError([Fault(file=str(settings.listen.http), message=message)])
    trust_domain: TrustDomain = settings.trust_domain
    return AdminTls(svid, snapshots, trust_domain).context


def start_webhooks(
    settings: Settings, *, metrics: Metrics, log: EventLog, parts: ExitStack
) -> None:
    """Begin to tell the receivers of the settings; `parts` ends it. Raises `ConfigurationError`."""
    receivers = [
        Receiver(url=one.url, secret_file=one.secret_file) for one in settings.approvals.webhooks
    ]
    if not receivers or settings.ledger.mode == "off":
        return
    watch = _WebhookWatch(metrics=metrics, log=log)
    webhooks = Webhooks(settings.ledger.url, receivers, watch.attempted)
    webhooks.start()
    parts.callback(webhooks.stop)


class _WebhookWatch:
    """Counts attempts, and logs when they begin and cease to fail."""

    def __init__(self, *, metrics: Metrics, log: EventLog) -> None:
        self._log = log
        self._failing = False
        self._counts = {"sent": 0, "failed": 0}
        metrics.count("authz_webhooks_sent", "Messages that a receiver took.", self._reader("sent"))
        metrics.count(
            "authz_webhook_failures", "Attempts that no receiver took.", self._reader("failed")
        )

    def attempted(self, failure: str | None) -> None:
        """Take note of one attempt. Called from the sender's thread."""
        self._counts["sent" if failure is None else "failed"] += 1
        if failure is not None and not self._failing:
            self._log.warning(_FAILING, why=failure)
        elif failure is None and self._failing:
            self._log.info("recovered", job="approval_webhook")
        self._failing = failure is not None

    def _reader(self, name: str) -> Callable[[], int]:
        return lambda: self._counts[name]
