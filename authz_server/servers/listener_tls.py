"""Mutual TLS of the gRPC listener, with certificates that change while it listens.

gRPC asks for the certificates anew at every handshake, so a new SVID and a new bundle serve from
the next connection on, and no call on an open connection is touched.
"""

from collections.abc import Iterator, Sequence

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import SpiffeIdPattern, TrustDomain
from authz_server.identity.own_svid import OwnSvid, SvidSource
from authz_server.servers.addresses import ListenError
from authz_server.servers.check_service import SnapshotSource


class ListenerTls:
    """Makes the listeners' credentials from what serves now.

    The pool that clients are validated against holds the authorities of those trust domains alone
    whose Envoys may call. SECURITY: TLS cannot tell the domains in it apart; `Admission` does.
    """

    def __init__(
        self,
        svid: SvidSource,
        snapshots: SnapshotSource,
        allowed: Sequence[SpiffeIdPattern],
    ) -> None:
        self._svid = svid
        self._snapshots = snapshots
        self._domains = frozenset(pattern.trust_domain for pattern in allowed)

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of one listener. Raises `ListenError` while there are none."""
        served = material = self.material()
        if material is None:
            raise ListenError("the listener has no SVID yet, or no authority to know Envoys by")

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            """Return new certificates, or None for "as before". A thread of gRPC calls it."""
            nonlocal served
            material = self.material()
            if material is None or material == served:
                return None
            served = material
            return _configuration(material)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(material),
            renewed,  # type: ignore[arg-type] # the stubs lack None, which the documentation has
            require_client_authentication=True,
        )

    def material(self) -> tuple[OwnSvid, bytes] | None:
        """Return SVID and pool (PEM) for the next handshake, or None where one is missing.

        A pool that was taken back altogether is missing too: the last one stays, connections are
        made, and each call on them is denied by `Admission`, with words.
        """
        svid, snapshot = self._svid.svid, self._snapshots.current
        if svid is None or snapshot is None:
            return None
        pool = _pool(snapshot, self._domains)
        return (svid, pool) if pool else None

    def authorities(self) -> frozenset[bytes]:
        """Return the authorities of the present pool, each as PEM; none while it is empty."""
        snapshot = self._snapshots.current
        return frozenset(_authorities(snapshot, self._domains)) if snapshot else frozenset()


def _configuration(material: tuple[OwnSvid, bytes]) -> grpc.ServerCertificateConfiguration:
    svid, pool = material
    return grpc.ssl_server_certificate_configuration([(svid.key_pem, svid.chain_pem)], pool)


def _pool(snapshot: Snapshot, domains: frozenset[TrustDomain]) -> bytes:
    return b"".join(sorted(_authorities(snapshot, domains)))


def _authorities(snapshot: Snapshot, domains: frozenset[TrustDomain]) -> Iterator[bytes]:
    for domain in domains & snapshot.trust.bundles.keys():
        for authority in snapshot.trust.bundles[domain].authorities:
            yield authority.public_bytes(Encoding.PEM)
