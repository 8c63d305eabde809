"""A request of a scenario as a gRPC call, by grpcio."""

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError

from authz_server.agent.answers import answer_in_error
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
from authz_server.live.tls import connect


def ask_grpc(
    target: Target,
    identity: Identity,
    delegation: Mapping[str, str],
    act: ActionAttributes,
    obj: ObjectAttributes,
) -> Observed:
    """Call the method with the arguments as its message. Raises `LiveCallError`.

    Whether a method streams makes no difference to the request; the first answer is all that is
    waited for.
    """
    message = request_message(target, act.name, dict(obj.args))
    with mesh_channel(target, identity) as channel:
        method: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{act.name}")
        call = method(message, metadata=tuple(delegation.items()), timeout=TIMEOUT_S)
        try:
            next(iter(call), None)
        except grpc.RpcError as error:
            return _observed(call, error, target)
        finally:
            call.cancel()
        return _observed(call, None, target)


def mesh_channel(target: Target, identity: Identity) -> grpc.Channel:
    """Return a channel to the target, which has to prove its SPIFFE ID and name its `host`.

    Raises `LiveCallError` when it does not.
    """
    address = str(target.address).replace("unix://", "unix:")
    authority = (("grpc.default_authority", target.host),)
    if target.peer is None:
        return grpc.insecure_channel(address, options=authority)
    credentials = grpc.ssl_channel_credentials(
        identity.trust_bundle.read_bytes(),
        identity.private_key.read_bytes(),
        identity.certificate.read_bytes(),
    )
    # SECURITY: gRPC compares DNS names alone, and any workload of the trust domain that was given
    # this one would do. The SPIFFE ID is compared in a handshake of our own before.
    try:
        connect(target, identity).close()
    except OSError as error:
        raise LiveCallError(f"{target.name} does not answer: {error}") from error
    name = (("grpc.ssl_target_name_override", target.host),)
    return grpc.secure_channel(address, credentials, options=authority + name)


def request_message(target: Target, method: str, arguments: dict[str, Any]) -> bytes:
    """Return the message of `method` that holds `arguments`. Raises `LiveCallError`.

    The types are in `descriptors`, a `FileDescriptorSet` (`protoc --descriptor_set_out`).
    """
    if not arguments:
        return b""
    if target.descriptors is None:
        raise LiveCallError(f"{target.name} needs `descriptors` for a message with arguments")
    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(target.descriptors.read_bytes())
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        service, _, name = method.partition("/")
        found = pool.FindServiceByName(service).FindMethodByName(name)
        message = message_factory.GetMessageClass(found.input_type)()
        return json_format.ParseDict(arguments, message).SerializeToString()
    except (OSError, DecodeError, KeyError, TypeError, json_format.Error) as error:
        raise LiveCallError(f"{target.name}: no message for `{method}`: {error}") from error


def _observed(call: Any, error: grpc.RpcError | None, target: Target) -> Observed:
    if error is not None:
        answer = answer_in_error(error)
        if answer is not None:
            return refused(answer)
    metadata = [*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())]
    decision_id = next((str(value) for key, value in metadata if key == DECISION_ID), None)
    if decision_id is not None:
        return allowed(decision_id)
    if error is None:
        return Observed(verdict=None, reason="answered without a decision")
    if call.code() is grpc.StatusCode.UNAVAILABLE and not metadata:
        raise LiveCallError(f"{target.name} does not answer: {call.details()}") from error
    return Observed(verdict=None, reason=f"gRPC {call.code().name}")
