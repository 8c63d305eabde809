"""Revocation: a handle that was taken back denies, whatever the rest of the request proves."""

from enum import StrEnum

from authz_server.core.callers import ProvedCaller
from authz_server.core.chain import VerifiedChain
from authz_server.core.errors import Reason, RequestFault
from authz_server.core.snapshot import Revocations


class RevocationKind(StrEnum):
    """What can be taken back. The values name the sets of `Revocations`, and are public."""

    TXN = "txn"  # a transaction: every token of it
    JTI = "jti"  # one token
    SPIFFE_ID = "spiffe_id"  # a workload, in whatever part it plays
    SUBJECT = "subject"  # whoever is acted for
    KID = "kid"  # an issuer's key, or an X509-SVID by the SHA-256 of its certificate


def check_caller(caller: ProvedCaller, revocations: Revocations) -> None:
    """Raise `RequestFault` (`REVOKED`) when the caller, or what proves who it is, is revoked."""
    if str(caller.spiffe_id) in revocations.spiffe_id:
        raise RequestFault(Reason.REVOKED, "the caller's identity is revoked")
    if not revocations.spiffe_id.isdisjoint(map(str, caller.proxies)):
        raise RequestFault(Reason.REVOKED, "a proxy that vouches for the caller is revoked")
    if caller.jti in revocations.jti or caller.kid in revocations.kid:
        raise RequestFault(Reason.REVOKED, "the caller's token is revoked")
    if caller.certificate_sha256 in revocations.kid:
        raise RequestFault(Reason.REVOKED, "the caller's certificate is revoked")


def check_chain(chain: VerifiedChain, revocations: Revocations) -> None:
    """Raise `RequestFault` (`REVOKED`) for any revoked handle of any part of the chain.

    Covers transaction, token ids, every delegator and delegate, the informational prior actors,
    the subject (be it a person or a workload), the issuer's key and the signers' certificates.
    """
    for grant in chain.grants:
        if (
            grant.txn in revocations.txn
            or grant.jti in revocations.jti
            or grant.subject in revocations.subject
            or grant.subject in revocations.spiffe_id
            or grant.kid in revocations.kid
            or grant.certificate_sha256 in revocations.kid
            or str(grant.delegate) in revocations.spiffe_id
            or grant.delegator in revocations.spiffe_id
        ):
            raise RequestFault(Reason.REVOKED, "a part of the delegation chain is revoked")
    if not revocations.spiffe_id.isdisjoint(chain.prior_actors):
        raise RequestFault(Reason.REVOKED, "an earlier actor of the root grant is revoked")
