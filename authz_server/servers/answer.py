"""The way out: the one function that builds every `CheckResponse`.

Envoy lets a request pass on status code 0, which is also what an empty message says, and sends a
client whatever status a denial names. So nothing here is left to a default, and the finished
message is compared with the decision (`Decision.passes`) before it leaves.

A verdict of a bundle in shadow mode passes, and the answer says so: `x-authz-verdict` and
`x-authz-mode: shadow` among the headers of the response, `mode` in the metadata.

What a denied client sees, by protocol (observed on Envoy 1.40):

- HTTP: 403, or 401 without a usable principal, with an RFC 9457 problem document.
- MCP: the same status with a JSON-RPC error whose `data` is that document. The official client
  raises it as its `MCPError`.
- A2A: as MCP where the request is JSON-RPC, as HTTP where it is of the HTTP binding. The official
  client raises its `A2AClientError` for the status; the document is in the response of its cause.
- gRPC: Envoy answers HTTP 200 with trailers only. It makes `grpc-status` of the HTTP status, and
  `grpc-message` of the body; the document travels as `google.rpc.ErrorInfo` in
  `grpc-status-details-bin`. A gRPC client on a route of another protocol is denied with the same
  status and the whole body as its message.
- TCP: the connection is closed.
"""

import base64
import json
from typing import Final

from google.protobuf import any_pb2, struct_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from authz_server._pb.envoy.config.core.v3.base_pb2 import HeaderValueOption
from authz_server._pb.envoy.service.auth.v3.external_auth_pb2 import (
    CheckResponse,
    DeniedHttpResponse,
    OkHttpResponse,
)
from authz_server.core import limits
from authz_server.core.attributes import Protocol
from authz_server.core.decision import Decision, Verdict
from authz_server.core.enforcement import Mode
from authz_server.core.errors import Reason
from authz_server.servers.problem import Problem, http_status, is_authenticated, problem

DECISION_ID_HEADER: Final = "x-authz-decision-id"
VERDICT_HEADER: Final = "x-authz-verdict"
MODE_HEADER: Final = "x-authz-mode"
ERROR_DOMAIN: Final = "authz-server"  # of `google.rpc.ErrorInfo`

_OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_DELEGATION_HEADERS: Final = ("txn-token", "delegation-chain")
_METADATA_ITEMS_MAX: Final = 32  # rules or actors in one access log line; the record has them all
_JSON_RPC_ID_CHARS_MAX: Final = 4096  # the body with it stays below DENIED_BODY_BYTES_MAX

# RFC 9110 §15.5.2 wants a challenge with every 401. No registered scheme stands for a client
# certificate. It must not be `Bearer`: that sends an MCP client to look for an OAuth server.
_CHALLENGE: Final = 'Mutual-TLS realm="spiffe"'


def check_response(decision: Decision, *, decision_id: str) -> bytes:
    """Return the serialised `CheckResponse` that tells Envoy and its client of `decision`.

    Never empty, and never status 0 for a decision that does not pass. Raises `AssertionError` if
    the message built would say otherwise; whoever catches that answers with a decision of reason
    `INTERNAL_ERROR`, for which this function cannot fail.
    """
    try:
        response = _build(decision, decision_id)
        _check_agreement(decision, response)
        return response.SerializeToString()
    except Exception:
        if decision.reason is not Reason.INTERNAL_ERROR:
            raise
        return LAST_RESORT


def _build(decision: Decision, decision_id: str) -> CheckResponse:
    response = CheckResponse()
    if decision.passes:
        response.status.SetInParent()  # code 0, said explicitly
        if decision.protocol is not Protocol.TCP:
            _fill_ok(response.ok_response, decision, decision_id)
    else:
        response.status.code = _grpc_code(decision)
        if decision.protocol is not Protocol.TCP:
            _fill_denied(response.denied_response, decision, decision_id)
    _fill_metadata(response.dynamic_metadata, decision, decision_id)
    return response


def _check_agreement(decision: Decision, response: CheckResponse) -> None:
    """Raise `AssertionError` unless `response` lets pass what passes, and refuses all else."""
    passes = decision.passes
    agrees = passes == (response.status.code == code_pb2.OK)
    form = response.WhichOneof("http_response")
    if decision.protocol is Protocol.TCP:
        agrees = agrees and form is None
    elif passes:
        agrees = agrees and form == "ok_response"
    else:
        status = response.denied_response.status.code
        agrees = agrees and form == "denied_response" and status in {401, 403}
    if not agrees:
        raise AssertionError("the answer contradicts its verdict")


def _fill_ok(ok: OkHttpResponse, decision: Decision, decision_id: str) -> None:
    # SECURITY: overwritten, because a client may send this header and an upstream may answer with
    # it; the other headers of ours are not for the upstream and are taken off.
    _add_header(ok.headers.add(), DECISION_ID_HEADER, decision_id)
    _add_header(ok.response_headers_to_add.add(), DECISION_ID_HEADER, decision_id)
    ok.headers_to_remove.extend((VERDICT_HEADER, MODE_HEADER))
    if decision.mode is Mode.SHADOW:
        _add_header(ok.response_headers_to_add.add(), VERDICT_HEADER, decision.verdict.value)
        _add_header(ok.response_headers_to_add.add(), MODE_HEADER, decision.mode.value)
    if decision.strip_delegation:
        ok.headers_to_remove.extend(_DELEGATION_HEADERS)


def _fill_denied(denied: DeniedHttpResponse, decision: Decision, decision_id: str) -> None:
    document = problem(decision, decision_id)
    status = http_status(decision)
    denied.status.code = status  # type: ignore[assignment]  # proto3 enums are open integers
    headers = {DECISION_ID_HEADER: decision_id}
    if decision.verdict is Verdict.ESCALATE:
        headers[VERDICT_HEADER] = decision.verdict.value
    if decision.protocol is Protocol.GRPC:
        denied.body = str(document["detail"])
        headers["grpc-status-details-bin"] = _grpc_details(decision, document)
    elif decision.protocol is Protocol.MCP or decision.json_rpc_id is not None:
        headers["content-type"] = "application/json"
        denied.body = _json_rpc_error(decision.json_rpc_id, document)
    else:
        headers["content-type"] = "application/problem+json"
        denied.body = _compact(document)
    if status == 401 and decision.protocol is not Protocol.GRPC:
        headers["www-authenticate"] = _CHALLENGE
    for name, value in headers.items():
        _add_header(denied.headers.add(), name, value)


def _add_header(option: HeaderValueOption, name: str, value: str) -> None:
    option.append_action = _OVERWRITE
    option.header.key = name
    option.header.value = value


def _grpc_code(decision: Decision) -> int:
    code = code_pb2.PERMISSION_DENIED if is_authenticated(decision) else code_pb2.UNAUTHENTICATED
    return int(code)


def _json_rpc_error(identifier: str | None, document: Problem) -> str:
    return _compact(
        {
            "jsonrpc": "2.0",
            "id": _json_rpc_id(identifier),
            # JSON-RPC 2.0 §5.1 leaves codes outside -32768..-32000 to the application.
            "error": {
                "code": document["status"],
                "message": document["detail"],
                "data": document,
            },
        }
    )


def _json_rpc_id(text: str | None) -> str | int | None:
    """Return the id to echo. SECURITY: decoded, so that no text can become part of the answer."""
    if text is None or len(text) > _JSON_RPC_ID_CHARS_MAX:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _grpc_details(decision: Decision, document: Problem) -> str:
    """Return `grpc-status-details-bin`: the document as `ErrorInfo`, nested members by path."""
    info = error_details_pb2.ErrorInfo(reason=decision.reason.value, domain=ERROR_DOMAIN)
    for name, value in document.items():
        members = value.items() if isinstance(value, dict) else ()
        info.metadata.update({f"{name}.{key}": str(member) for key, member in members})
        if not members:
            info.metadata[name] = str(value)
    detail = any_pb2.Any()
    detail.Pack(info, deterministic=True)
    status = status_pb2.Status(
        code=_grpc_code(decision), message=str(document["detail"]), details=[detail]
    )
    # gRPC over HTTP/2, "Binary-Encoded Metadata": base64, without padding on the way out.
    return base64.b64encode(status.SerializeToString()).decode("ascii").rstrip("=")


def _fill_metadata(metadata: struct_pb2.Struct, decision: Decision, decision_id: str) -> None:
    fields, chain = metadata.fields, decision.chain
    fields["decision_id"].string_value = decision_id
    fields["verdict"].string_value = decision.verdict.value
    fields["reason"].string_value = decision.reason.value
    fields["mode"].string_value = decision.mode.value
    fields["revision"].string_value = _bounded(decision.revision)
    _set_text(fields["bundle"], decision.bundle)
    _set_text(fields["subject"], chain.subject if chain else None)
    _set_list(fields["actors"].list_value, chain.actors if chain else ())
    _set_list(fields["rules"].list_value, decision.rules)


def _set_text(value: struct_pb2.Value, text: str | None) -> None:
    if text is None:
        value.null_value = struct_pb2.NULL_VALUE
    else:
        value.string_value = _bounded(text)


def _set_list(target: struct_pb2.ListValue, items: tuple[str, ...]) -> None:
    target.SetInParent()  # an empty list, not a missing value
    for item in items[:_METADATA_ITEMS_MAX]:
        target.values.add().string_value = _bounded(item)


def _bounded(text: str) -> str:
    text = text[: limits.RECORD_FIELD_CHARS_MAX]
    # A lone surrogate has no UTF-8 form, and protobuf would raise.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _compact(document: dict[str, object]) -> str:
    body = json.dumps(document, separators=(",", ":"))
    if len(body) > limits.DENIED_BODY_BYTES_MAX:
        raise AssertionError("the body of a denial is over its limit")
    return body


def _last_resort() -> bytes:
    """Return the answer that needs nothing of a decision."""
    response = CheckResponse()
    response.status.code = code_pb2.PERMISSION_DENIED
    response.denied_response.status.code = 403  # type: ignore[assignment]
    return response.SerializeToString()


LAST_RESORT: Final = _last_resort()
