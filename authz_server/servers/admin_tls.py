"""TLS of the HTTP port: this server's own X509-SVID, and a client certificate if there is one.

A probe and a scraper need no certificate. Whoever presents one is held to it: it must lead to an
authority of this server's own trust domain, or the handshake fails.
"""

import os
import ssl
import threading
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from authz_server.core.snapshot import Snapshot
from authz_server.core.spiffe import TrustDomain
from authz_server.identity.own_svid import OwnSvid, SvidSource
from authz_server.servers.check_service import SnapshotSource

_MINIMUM: Final = ssl.TLSVersion.TLSv1_3  # every client in use has it; no sessions by id in it

_Material = tuple[OwnSvid, str]


class AdminTls:
    """Makes the TLS context of the next handshake from what serves now. Used from any thread."""

    def __init__(
        self, svid: SvidSource, snapshots: SnapshotSource, trust_domain: TrustDomain
    ) -> None:
        self._svid = svid
        self._snapshots = snapshots
        self._trust_domain = trust_domain
        self._lock = threading.Lock()
        self._made: tuple[_Material, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return the context, made anew when SVID or trust bundle changed; None without either."""
        svid, snapshot = self._svid.svid, self._snapshots.current
        pool = _pool(snapshot, self._trust_domain)
        if svid is None or not pool:
            return None
        with self._lock:
            material = (svid, pool)
            if self._made is None or self._made[0] != material:
                self._made = (material, _context(svid, pool))
            return self._made[1]


def _pool(snapshot: Snapshot | None, trust_domain: TrustDomain) -> str:
    # SECURITY: one trust domain alone. TLS cannot tell the authorities in a pool apart, and one of
    # another domain must not vouch for a person of this one.
    bundle = snapshot.trust.bundles.get(trust_domain) if snapshot is not None else None
    authorities = bundle.authorities if bundle is not None else ()
    return "".join(authority.public_bytes(Encoding.PEM).decode() for authority in authorities)


def _context(svid: OwnSvid, pool: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _MINIMUM
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=pool)
    # A session that is resumed would be as good as a certificate that was taken back since.
    context.num_tickets = 0
    # `ssl` reads keys from files alone: this one never touches a disk.
    descriptor = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, svid.chain_pem + b"\n" + svid.key_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
