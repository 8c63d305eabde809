"""A request of a scenario over plain HTTP, by httpx."""

from collections.abc import Mapping
from urllib.parse import quote

import httpx

from authz_server.agent.answers import answer_in_response
from authz_server.core.attributes import ActionAttributes, ObjectAttributes
from authz_server.live.observed import (
    DECISION_ID,
    TIMEOUT_S,
    LiveCallError,
    Observed,
    allowed,
    refused,
)
from authz_server.live.targets import Identity, Target
from authz_server.live.tls import spiffe_context
from authz_server.settings.addresses import UnixAddress

_BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})


def ask_http(
    target: Target,
    identity: Identity,
    delegation: Mapping[str, str],
    act: ActionAttributes,
    obj: ObjectAttributes,
) -> Observed:
    """Send method, path and query, and the arguments as JSON body. Raises `LiveCallError`."""
    body = dict(obj.args) if obj.args and act.name not in _BODILESS else None
    with http_client(target, identity, delegation) as client:
        try:
            response = client.request(
                act.name,
                quote(obj.path or target.path, safe="/:@!$&'()*+,;=~-._%"),
                params={name: str(value) for name, value in obj.query.items()} or None,
                json=body,
            )
        except httpx.TransportError as error:
            raise LiveCallError(f"{target.name} does not answer: {error}") from error
    return observed_http(response)


def http_client(target: Target, identity: Identity, delegation: Mapping[str, str]) -> httpx.Client:
    """Return a client of the target that presents `delegation` with every request."""
    return httpx.Client(
        transport=_transport(target, identity),
        base_url=base_url(target),
        headers={"host": target.host, **delegation},
        timeout=TIMEOUT_S,
        trust_env=False,
    )


def observed_http(response: httpx.Response) -> Observed:
    """Return what a response, read to its end, says."""
    answer = answer_in_response(response)
    if answer is not None:
        return refused(answer)
    decision_id = response.headers.get(DECISION_ID)
    if decision_id is None:
        return Observed(verdict=None, reason=f"HTTP {response.status_code}")
    return allowed(decision_id)


def base_url(target: Target) -> str:
    """Return what stands before a path; the name in it counts only for a socket."""
    scheme = "http" if target.peer is None else "https"
    if isinstance(target.address, UnixAddress):
        return f"{scheme}://{target.host}"
    return f"{scheme}://{target.address}"


def _transport(target: Target, identity: Identity) -> httpx.HTTPTransport:
    socket = str(target.address.path) if isinstance(target.address, UnixAddress) else None
    if target.peer is None:
        return httpx.HTTPTransport(uds=socket, trust_env=False)
    context = spiffe_context(identity, target.peer)
    return httpx.HTTPTransport(verify=context, uds=socket, trust_env=False)
