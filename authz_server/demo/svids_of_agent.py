"""Take SVIDs from a SPIRE agent: once, or again and again into files."""

import threading
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import WorkloadApiClient, X509Svid
from spiffe.errors import PySpiffeError

from authz_server.agent.svid import Svid
from authz_server.core.errors import AuthzError
from authz_server.core.spiffe import SpiffeId
from authz_server.demo.identities import write_identity
from authz_server.identity.workload_api import WorkloadApi

_FETCH_TIMEOUT_S = 5.0
_FIRST_TIMEOUT_S = 30.0
_MAX_AGE_S = 3600.0


def fetch_identities(agent: Path, spiffe_id: SpiffeId) -> tuple[Svid, bytes] | None:
    """Return this process's SVID for `spiffe_id` and its domain's authorities as PEM, or None."""
    try:
        with WorkloadApiClient(f"unix://{agent}") as client:
            context = client.fetch_x509_context(timeout=_FETCH_TIMEOUT_S)
    except PySpiffeError:
        return None
    for svid in context.x509_svids:
        if str(svid.spiffe_id) == str(spiffe_id):
            bundle = context.x509_bundle_set.get_bundle_for_trust_domain(
                svid.spiffe_id.trust_domain
            )
            authorities = bundle.x509_authorities if bundle else set()
            return _svid(svid), _pem(authorities)
    return None


def keep_identity(agent: Path, directory: Path) -> None:
    """Keep this process's SVID and bundle in `directory`, for as long as the process runs.

    Returns once they are there for the first time. Raises `AuthzError` when they never come.
    """
    writing = threading.Lock()
    api = WorkloadApi(
        f"unix://{agent}",
        max_age_s=_MAX_AGE_S,
        clock=lambda: datetime.now(UTC),
        changed=lambda: _write(api, directory, writing),
        report=lambda _what: None,
    )
    api.start()
    if not api.wait_until_complete(_FIRST_TIMEOUT_S):
        raise AuthzError(f"the agent at `{agent}` gives no SVID: {api.fault}")


def _write(api: WorkloadApi, directory: Path, writing: threading.Lock) -> None:
    svid = api.svid
    if svid is None:
        return
    bundle = api.bundles.bundles[svid.spiffe_id.trust_domain]
    with writing:
        own = Svid.parse(svid.chain_pem, svid.key_pem)
        write_identity(own, _pem(bundle.authorities), directory)


def _svid(svid: X509Svid) -> Svid:
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Svid.parse(_pem(tuple(svid.cert_chain)), key)


def _pem(authorities: "set[x509.Certificate] | tuple[x509.Certificate, ...]") -> bytes:
    return b"".join(authority.public_bytes(Encoding.PEM) for authority in authorities)
