"""Who may call the PDP: the Envoys that the configuration names, each proved by its X509-SVID.

TLS proves at the handshake that a client's certificate has a path to one of the authorities in
the listener's pool. Each call is then held against the snapshot that serves now: the path must lead
to the bundle of the client's own trust domain, and its id must be one that may call. So a key that
is taken back ends calls on connections that are open already.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from authz_server.core.errors import InvalidValueError, RequestFault
from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import SpiffeId, SpiffeIdPattern
from authz_server.core.svid import verify_peer

# What gRPC says about the peer of a call: PEM of the leaf, and of what came with it.
_LEAF: Final = "x509_pem_cert"
_REST: Final = "x509_pem_cert_chain"
PROOFS_MAX: Final = 4096  # Envoys, each with an old and a new SVID; some 4 KiB each
# gRPC ends a connection up to a tenth later than asked, and lets its last calls finish.
_LINGER: Final = 1.1
_MARGIN: Final = timedelta(seconds=30)

PeerProperties = Mapping[str, Iterable[bytes]]


class NotAdmittedError(Exception):
    """This client may not call. The message is for it and for the log; it quotes no certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proof:
    client: SpiffeId
    not_after: datetime


class Admission:
    """Decides, for each call, whether its client is one of the configured Envoys.

    Used from the event loop alone.
    """

    def __init__(self, allowed: Sequence[SpiffeIdPattern], *, max_connection_age_s: float) -> None:
        self._allowed = allowed
        self._outlives = timedelta(seconds=_LINGER * max_connection_age_s) + _MARGIN
        self._proofs: dict[tuple[bytes, ...], _Proof] = {}
        self._revision = ""

    def check(self, peer: PeerProperties, snapshot: Snapshot | None, now: datetime) -> SpiffeId:
        """Return the id of the client with the properties `peer`.

        Raises `NotAdmittedError`. An SVID may end while its connection lasts, which
        `max_connection_age` bounds; beyond that it came from a resumed session and is refused.
        """
        if snapshot is None:
            raise NotAdmittedError("no trust bundle is loaded yet")
        if snapshot.trust.revision != self._revision:
            self._proofs.clear()
            self._revision = snapshot.trust.revision
        key = (*peer.get(_LEAF, ()), *peer.get(_REST, ()))
        proof = self._proofs.get(key)
        if proof is None:
            proof = _prove(key, snapshot, now)
            if len(self._proofs) >= PROOFS_MAX:
                self._proofs.clear()
            self._proofs[key] = proof
        if now > proof.not_after + self._outlives:
            raise NotAdmittedError("the client's SVID has ended")
        if not any(pattern.matches(proof.client) for pattern in self._allowed):
            raise NotAdmittedError(f"`{proof.client}` is not among `tls.allowed_clients`")
        if str(proof.client) in snapshot.revocations.spiffe_id:
            raise NotAdmittedError(f"`{proof.client}` is revoked")
        return proof.client


def _prove(key: tuple[bytes, ...], snapshot: Snapshot, now: datetime) -> _Proof:
    try:
        leaf, *others = x509.load_pem_x509_certificates(b"\n".join(key))
        at = min(now, leaf.not_valid_after_utc)
        rest = [certificate for certificate in others if certificate != leaf]
        client = verify_peer(leaf, rest, bundles=snapshot.trust.bundles, at=at)
    except RequestFault as fault:
        raise NotAdmittedError("the client's SVID has no path to its trust bundle") from fault
    except InvalidValueError as error:
        raise NotAdmittedError(f"the client is not proved: {error}") from error
    except ValueError as error:
        raise NotAdmittedError("the client presented no certificate") from error
    return _Proof(client=client, not_after=leaf.not_valid_after_utc)
