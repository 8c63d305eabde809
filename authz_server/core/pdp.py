"""The decision: one pure function from request, snapshot and time to a `Decision`.

Two rules govern this module. Anything but an explicit allow is a denial; and every stage writes
down what it established before the next one runs, so that a denial names who asked for what as far
as that was proved. `decide` is the one place where a `RequestFault` becomes a decision.
"""

import contextlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from authz_server.core import delegation
from authz_server.core.arguments import Declaration
from authz_server.core.attributes import Attributes, EnvironmentAttributes, Protocol
from authz_server.core.chain import BoundChain, PresentedChain, VerifiedChain
from authz_server.core.decision import (
    ActionRecord,
    Decision,
    EnvironmentRecord,
    Evaluation,
    ResourceRecord,
    Verdict,
)
from authz_server.core.enforcement import Mode, applied_mode
from authz_server.core.errors import Reason, RequestFault, UnknownIssuerKey
from authz_server.core.fingerprint import fingerprint
from authz_server.core.parties import (
    Caller,
    chain_attributes,
    chain_parties,
    chain_record,
    identify_caller,
)
from authz_server.core.protocols import a2a, grpc, http, mcp, tcp
from authz_server.core.protocols.operation import Operation
from authz_server.core.records import attempted_resource, resource_record
from authz_server.core.request import AccessRequest, RouteContext
from authz_server.core.revocation import check_caller, check_chain
from authz_server.core.snapshot import Policy, Snapshot

_NOTHING_DECLARED: Declaration = {}
_NOTHING_EVALUATED = Evaluation(verdict=Verdict.DENY, reason=Reason.INTERNAL_ERROR)


def decide(request: AccessRequest, snapshot: Snapshot, now: datetime) -> Decision:
    """Decide one request. Never raises for anything the request contains.

    `now` is aware UTC and read once by the caller, so that every check of one decision sees the
    same time. The result is a function of the three arguments alone and can be replayed.
    An escalation carries a `fingerprint`; turning it into an allow is the ledger's business.
    """
    trace = _Trace(request=request, snapshot=snapshot, now=now)
    try:
        return _judge(trace)
    except RequestFault as fault:
        _note_attempt(trace)
        if trace.bundle_mode is Mode.SHADOW:
            fault = _enforced_anyway(trace) or fault
        decision = trace.decision(fault.reason, fault.detail)
        if isinstance(fault, UnknownIssuerKey):
            return replace(decision, missing_key_of=fault.issuer)
        return decision


@dataclass(slots=True, kw_only=True)
class _Trace:
    """What the stages of one decision have established so far. Lives for one call of `decide`."""

    request: AccessRequest
    snapshot: Snapshot
    now: datetime
    route: RouteContext | None = None
    caller: Caller | None = None
    operation: Operation | None = None
    resource: ResourceRecord | None = None
    verified: VerifiedChain | None = None  # proved, though perhaps not this caller's
    bound: BoundChain | None = None
    chain_was_tried: bool = False
    json_rpc_id: str | None = None  # of a request that is JSON-RPC and cannot be read further

    @property
    def bundle_mode(self) -> Mode:
        """The mode of the bundle that the route names; a route not read yet enforces."""
        if self.route is None or self._is_of_an_unread_client:
            return Mode.ENFORCE
        return self.snapshot.mode_of(self.route.bundle)

    @property
    def _is_of_an_unread_client(self) -> bool:
        """Whether a trusted proxy sent a request that cannot be read.

        SECURITY: it says there whose request it is. A revoked client would pass by spoiling it.
        """
        proxies, caller = self.snapshot.callers, self.caller
        return self.request.fault is not None and (
            caller is not None and proxies.trusts(caller.spiffe_id)
        )

    def decision(
        self,
        reason: Reason,
        detail: str,
        evaluation: Evaluation = _NOTHING_EVALUATED,
        approval_key: str | None = None,
    ) -> Decision:
        """Assemble the decision; without an evaluation it is a denial."""
        request, route, caller, operation = self.request, self.route, self.caller, self.operation
        return Decision(
            verdict=evaluation.verdict,
            reason=reason,
            detail=detail,
            time=self.now,
            revision=self.snapshot.revision,
            rules=evaluation.rules,
            bundle=route.bundle if route else None,
            mode=applied_mode(self.bundle_mode, reason),
            principal=caller.record if caller else None,
            chain=chain_record(self.verified, self.bound, self.snapshot.inventory),
            action=_action(request, route, operation),
            resource=self.resource,
            environment=EnvironmentRecord(
                source_ip=request.source_address,
                sni=request.sni,
                listener=request.listener,
                node=request.node,
            ),
            owner=caller.attributes.owner if caller else None,
            obligation=evaluation.obligation,
            fingerprint=approval_key,
            protocol=_protocol(request, route),
            json_rpc_id=operation.json_rpc_id if operation else self.json_rpc_id,
            strip_delegation=route.strip_delegation if route else False,
        )


def _judge(trace: _Trace) -> Decision:
    """Run every stage in order; a failing one raises `RequestFault`."""
    request, snapshot = trace.request, trace.snapshot
    if request.fault is not None:
        raise RequestFault(request.fault.reason, request.fault.detail)
    route = trace.route = RouteContext.of(request)
    _check_fresh(snapshot, trace.now)
    caller = trace.caller = identify_caller(request, snapshot, trace.now)
    operation = _read_operation(trace, route)
    # SECURITY: registration and revocation of the caller hold for every method of every protocol,
    # with or without a chain.
    caller.require_registered(snapshot)
    check_caller(caller.proof, snapshot.revocations)
    bound = _verify_chain(trace, caller, route)
    policy = snapshot.policies.get(route.bundle)
    if policy is None:
        raise RequestFault(Reason.UNKNOWN_BUNDLE, "route names a policy bundle that is not loaded")
    evaluation = policy.evaluate(_attributes(trace, caller, operation, bound, policy))
    if evaluation.verdict is not Verdict.ESCALATE:
        return trace.decision(evaluation.reason, evaluation.detail, evaluation)
    if not operation.arguments_seen:
        raise RequestFault(
            Reason.BODY_TRUNCATED, "an approval needs the body, which was not sent for the check"
        )
    key = _approval_key(trace, caller, operation, bound, route)
    return trace.decision(evaluation.reason, evaluation.detail, evaluation, key)


def _check_fresh(snapshot: Snapshot, now: datetime) -> None:
    # SECURITY: a key or an identity may have been taken back since its source was last heard.
    for what, good_until in (
        ("trust bundles", snapshot.trust.good_until),
        ("revocations", snapshot.revocations.good_until),
    ):
        if good_until is not None and now >= good_until:
            raise RequestFault(Reason.NOT_READY, f"the {what} are too old to decide by")


def _read_operation(trace: _Trace, route: RouteContext) -> Operation:
    policy = trace.snapshot.policies.get(route.bundle)
    declaration = _NOTHING_DECLARED if policy is None else policy.arguments
    operation = trace.operation = read_operation(trace.request, route, declaration)
    trace.resource = resource_record(operation.obj, route)
    return operation


def read_operation(
    request: AccessRequest, route: RouteContext, declaration: Declaration
) -> Operation:
    """Return what is being done, as the route's protocol reads it. Raises `RequestFault`.

    `declaration` is that of the route's policy bundle.
    """
    if request.http is None:
        return tcp.operation(request, route)
    match route.protocol:
        case Protocol.HTTP:
            return http.operation(request.http, route, declaration)
        case Protocol.GRPC:
            return grpc.operation(request.http, route)
        case Protocol.MCP:
            return mcp.operation(request.http, route, request.metadata, declaration)
        case Protocol.TCP:
            return tcp.tunnel(request.http, route)
        case Protocol.A2A:
            return a2a.operation(request.http, route, request.metadata, declaration)


def _verify_chain(trace: _Trace, caller: Caller, route: RouteContext) -> BoundChain | None:
    snapshot = trace.snapshot
    trace.chain_was_tried = True
    presented, beside = _presented(trace, caller)
    if presented is None:
        if snapshot.delegation.require or route.require_delegation:
            raise RequestFault(Reason.DELEGATION_REQUIRED, "this route requires a delegation chain")
        return None
    # Kept before it is bound: the record of a stolen chain must say whose it was.
    chain = trace.verified = _proved(presented, trace)
    check_chain(chain, snapshot.revocations)
    bound = delegation.bind(
        chain, caller=caller.spiffe_id, workload_id=route.workload_id, audience=route.audience
    )
    if beside is not None:
        access_token = _proved(beside, trace)
        check_chain(access_token, snapshot.revocations)
        delegation.check_beside(access_token, bound)
    trace.bound = bound
    return bound


def _presented(
    trace: _Trace, caller: Caller
) -> tuple[PresentedChain | None, PresentedChain | None]:
    """Return the chain and the access token beside it (`presented_with_access_token`)."""
    http_request, snapshot = trace.request.http, trace.snapshot
    if http_request is None:
        return None, None
    headers, policy = http_request.headers, snapshot.delegation
    # SECURITY: a bearer token that says who the caller is does not say for whom it acts too.
    if caller.proof.assurance != "bearer" and snapshot.trust.has_access_token_issuer:
        return delegation.presented_with_access_token(headers, policy)
    return delegation.presented_chain(headers, policy), None


def _proved(presented: PresentedChain, trace: _Trace) -> VerifiedChain:
    snapshot = trace.snapshot
    return snapshot.chains.verify(
        presented,
        trust=snapshot.trust,
        policy=snapshot.delegation,
        trust_domain=snapshot.trust_domain,
        now=trace.now,
    )


def _attributes(
    trace: _Trace,
    caller: Caller,
    operation: Operation,
    bound: BoundChain | None,
    policy: Policy,
) -> Attributes:
    request, now = trace.request, trace.now.astimezone(UTC)
    now_s = int(now.timestamp())
    actors, subject = chain_parties(bound, caller, trace.snapshot)
    return Attributes(
        caller=caller.attributes,
        actors=actors,
        subject=subject,
        chain=chain_attributes(bound, now_s),
        act=operation.act,
        obj=operation.obj,
        env=EnvironmentAttributes(
            now=now_s,
            hour_utc=now.hour,
            weekday=now.isoweekday(),
            source_ip=request.source_address,
            listener=request.listener,
            domain=policy.domain,
            bundle=policy.name,
            sni=request.sni,
        ),
    )


def _approval_key(
    trace: _Trace,
    caller: Caller,
    operation: Operation,
    bound: BoundChain | None,
    route: RouteContext,
) -> str:
    """Return what an approval of this request is bound to."""
    obj, principal = operation.obj, str(caller.spiffe_id)
    return fingerprint(
        subject=bound.authority.subject if bound else principal,
        actors=tuple(map(str, bound.actors)) if bound else (principal,),
        mode=bound.mode if bound else "none",
        action=(operation.act.protocol, operation.act.name),
        resource={
            "type": obj.type,
            "host": obj.host,
            "path": obj.path,
            "tool": obj.tool,
            "uri": obj.uri,
            "resource": obj.resource,
            "audience": route.audience,
            "workload_id": str(route.workload_id) if route.workload_id else None,
        },
        args_sha256=obj.args_sha256,
        bundle=route.bundle,
        txn=bound.authority.txn if bound and trace.snapshot.bind_txn else None,
    )


def _enforced_anyway(trace: _Trace) -> RequestFault | None:
    """Return the fault that holds in shadow mode too, although another stage failed before it.

    SECURITY: elsewhere the first fault denies. Where faults are only observed, a revoked agent
    would pass by spoiling its request ahead of the stage that finds it revoked.
    """
    try:
        _check_fresh(trace.snapshot, trace.now)
        if trace.caller is not None:
            check_caller(trace.caller.proof, trace.snapshot.revocations)
            if trace.route is not None and not trace.chain_was_tried:
                _verify_chain(trace, trace.caller, trace.route)
    except RequestFault as fault:
        return fault if applied_mode(Mode.SHADOW, fault.reason) is Mode.ENFORCE else None
    return None


def _note_attempt(trace: _Trace) -> None:
    """Record who attempted what, as far as it can be told, although a stage already failed."""
    request = trace.request
    if trace.caller is None:
        with contextlib.suppress(RequestFault):
            trace.caller = identify_caller(request, trace.snapshot, trace.now)
    if trace.operation is not None:
        return
    try:
        trace.route = trace.route or RouteContext.of(request)
        if request.fault is None:
            _read_operation(trace, trace.route)
            return
    except RequestFault as fault:
        trace.json_rpc_id = fault.json_rpc_id
    trace.resource = attempted_resource(request, trace.route)


def _protocol(request: AccessRequest, route: RouteContext | None) -> Protocol:
    """Return the protocol to answer in: the route's, or HTTP where CONNECT asks for a tunnel."""
    if request.http is None and request.fault is None:
        return Protocol.TCP
    if route is None or route.protocol is Protocol.TCP:
        return Protocol.HTTP
    return route.protocol


def _action(
    request: AccessRequest, route: RouteContext | None, operation: Operation | None
) -> ActionRecord:
    if operation is not None:
        act = operation.act
        return ActionRecord(protocol=act.protocol, name=act.name, read_only=act.read_only)
    if request.http is not None:
        protocol = route.protocol if route else Protocol.HTTP
        name = request.http.method if request.http.method in http.METHODS else "unsupported"
    else:
        protocol = _protocol(request, route)
        name = "connect" if protocol is Protocol.TCP else "unreadable"
    return ActionRecord(protocol=protocol, name=name, read_only=False)
