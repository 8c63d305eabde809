"""Call services of the mesh over mutual TLS, each side proved by its X509-SVID.

Service names are not in any DNS and X509-SVIDs carry no DNS name, so the transport does what a
mesh's client side does: look the name up in the service directory, connect there, and accept the
peer only if its certificate's one URI is the SPIFFE ID the directory names.
"""

import json
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import httpx2
from cryptography import x509

from authz_server.core.errors import AuthzError

_CALL_TIMEOUT_S = 15.0


class PeerRefusedError(AuthzError):
    """The service does not exist, or what answered is not it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a service's enforcement point listens, and the SPIFFE ID it must prove."""

    host: str
    port: int
    spiffe_id: str


@dataclass(frozen=True, slots=True)
class ServiceDirectory:
    """A file that maps service names to endpoints, shared by every workload of a mesh."""

    path: Path

    def publish(self, services: Mapping[str, Endpoint]) -> None:
        """Replace the content, in one step for every reader."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({name: asdict(end) for name, end in services.items()}))
        partial.replace(self.path)

    def find(self, name: str) -> Endpoint:
        """Return the endpoint of `name`. Raises `PeerRefusedError`."""
        services = json.loads(self.path.read_text())
        if name not in services:
            raise PeerRefusedError(f"no service is called `{name}`")
        return Endpoint(**services[name])

    def name_of(self, spiffe_id: str) -> str:
        """Return the name by which the workload `spiffe_id` is called.

        Raises `PeerRefusedError` unless it has exactly one.
        """
        services = json.loads(self.path.read_text())
        names = [name for name, end in services.items() if end["spiffe_id"] == spiffe_id]
        if len(names) != 1:
            raise PeerRefusedError(f"`{spiffe_id}` is not called by one name")
        return str(names[0])


class _TlsStream(Protocol):
    def get_extra_info(self, info: str) -> object: ...

    async def aclose(self) -> None: ...


class MeshTransport(httpx2.AsyncBaseTransport):
    """The transport of one workload, which proves itself with the SVID in `svid_directory`."""

    def __init__(self, svid_directory: Path, services: ServiceDirectory) -> None:
        self._services = services
        context = _tls_context(svid_directory)
        self._inner = httpx2.AsyncHTTPTransport(verify=context, trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send `request` to the endpoint of its host. Raises `PeerRefusedError`."""
        endpoint = self._services.find(request.url.host)

        async def on_event(event: str, info: Mapping[str, object]) -> None:
            # Before the first byte of the request, which carries the delegation, is written.
            if event == "connection.start_tls.complete":
                await _check_peer(info["return_value"], endpoint)  # type: ignore[arg-type]

        forwarded = httpx2.Request(
            request.method,
            request.url.copy_with(host=endpoint.host, port=endpoint.port),
            headers=request.headers,  # `Host` among them: still the service's own name
            stream=request.stream,
            extensions=request.extensions | {"sni_hostname": request.url.host, "trace": on_event},
        )
        return await self._inner.handle_async_request(forwarded)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


def mesh_http_client(
    svid_directory: Path, services: ServiceDirectory, headers: Mapping[str, str]
) -> httpx2.AsyncClient:
    """Return a client that sends `headers` (the delegation) with every request."""
    return httpx2.AsyncClient(
        transport=MeshTransport(svid_directory, services),
        headers=dict(headers),
        trust_env=False,
        timeout=_CALL_TIMEOUT_S,
    )


def _tls_context(svid_directory: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=svid_directory / "bundle.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # SECURITY: an SVID has no host name to compare; `_check_peer` compares the SPIFFE ID instead.
    context.check_hostname = False
    context.load_cert_chain(svid_directory / "svid.pem", svid_directory / "svid.key.pem")
    return context


async def _check_peer(stream: _TlsStream, endpoint: Endpoint) -> None:
    session = stream.get_extra_info("ssl_object")
    certificate = (
        session.getpeercert(binary_form=True) if isinstance(session, ssl.SSLObject) else None
    )
    if certificate is None or _uris(certificate) != [endpoint.spiffe_id]:
        await stream.aclose()
        raise PeerRefusedError(f"the peer has not proved that it is `{endpoint.spiffe_id}`")


def _uris(certificate: bytes) -> list[str]:
    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound):
        return []
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)
