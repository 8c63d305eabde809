"""CheckRequests as Envoy writes them, for requests that no Envoy would let through."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import grpc

from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz_server.core.errors import Reason
from tests.e2e.forge import Svid

METHOD = "/envoy.service.auth.v3.Authorization/Check"
ANSWER_TIMEOUT_S = 10.0


def check_request(
    svid: Svid | None,
    *,
    method: str = "GET",
    path: str = "/public/x",
    host: str = "tool.example",
    headers: Sequence[tuple[str, bytes]] = (),
    extensions: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> CheckRequest:
    """Return what Envoy sends with `encode_raw_headers`, `pack_as_bytes` and the certificate."""
    request = CheckRequest()
    attributes = request.attributes
    attributes.source.address.socket_address.address = "127.0.0.1"
    attributes.source.address.socket_address.port_value = 40000
    attributes.destination.address.socket_address.address = "127.0.0.1"
    attributes.destination.address.socket_address.port_value = 10443
    if svid is not None:
        attributes.source.certificate = quote(svid.certificate_pem.decode(), safe="")
    attributes.context_extensions.update(extensions or {})
    http = attributes.request.http
    http.id, http.protocol, http.scheme = "1", "HTTP/1.1", "https"
    http.method, http.path, http.host, http.raw_body = method, path, host, body
    http.size = len(body)
    pseudo = [(":authority", host), (":method", method), (":path", path), (":scheme", "https")]
    lines = [(name, value.encode("latin-1")) for name, value in pseudo]
    for name, value in [*lines, *headers]:
        http.header_map.headers.add(key=name.lower(), raw_value=value)
    return request


class PdpClient:
    """A gRPC client of the PDP, as an Envoy is one."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self._check = self._channel.unary_unary(
            METHOD,
            request_serializer=CheckRequest.SerializeToString,
            response_deserializer=CheckResponse.FromString,
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def outcome(self, request: CheckRequest) -> str:
        """Return `allow` or `deny REASON`; fail on an answer that Envoy could read two ways."""
        answer = self._check(request, timeout=ANSWER_TIMEOUT_S)
        reason = Reason(answer.dynamic_metadata.fields["reason"].string_value)
        if answer.status.code == 0:
            assert answer.WhichOneof("http_response") == "ok_response"
            assert reason is Reason.OK
            return "allow"
        assert answer.WhichOneof("http_response") == "denied_response"
        assert answer.denied_response.status.code in {401, 403}
        return f"deny {reason}"
