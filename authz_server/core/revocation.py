"""Revocation: a handle that was taken back denies, whatever the rest of the request proves."""

from authz_server.core.chain import VerifiedChain
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.snapshot import Revocations
from authz_server.core.spiffe import SpiffeId


def check_caller(caller: SpiffeId, revocations: Revocations) -> None:
    """Raise `RequestFault` (`REVOKED`) when the caller's identity is revoked."""
    if str(caller) in revocations.spiffe_id:
        raise RequestFault(Reason.REVOKED, "the caller's identity is revoked")


def check_chain(chain: VerifiedChain, revocations: Revocations) -> None:
    """Raise `RequestFault` (`REVOKED`) for any revoked handle of any part of the chain.

    Covers transaction, token ids, every delegator and delegate, the informational prior actors,
    the subject and the issuer's key.
    """
    for grant in chain.grants:
        if (
            grant.txn in revocations.txn
            or grant.jti in revocations.jti
            or grant.subject in revocations.subject
            or grant.kid in revocations.kid
            or str(grant.delegate) in revocations.spiffe_id
            or grant.delegator in revocations.spiffe_id
        ):
            raise RequestFault(Reason.REVOKED, "a part of the delegation chain is revoked")
    if not revocations.spiffe_id.isdisjoint(chain.prior_actors):
        raise RequestFault(Reason.REVOKED, "an earlier actor of the root grant is revoked")
