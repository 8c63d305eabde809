"""Whether a decision is enforced: the mode of a policy bundle, and what it makes of a verdict.

A bundle in shadow mode is asked and its answer recorded, and the request passes: so a policy is
tried on traffic that nothing enforces yet. Two rules hold whatever the mode. What cannot be decided
or recorded does not pass, or shadow mode would let through what nobody can be told of. And what an
operator took back stays denied: a revocation is an order about one identity, not a policy on trial.
"""

from enum import StrEnum
from typing import Final

from authz_server.core.errors import Reason


class Mode(StrEnum):
    """How the verdicts of a policy bundle are applied (`bundles.mode`)."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


# SECURITY: listed one by one, so that a new reason is enforced until somebody decides otherwise.
OBSERVABLE: Final = frozenset(
    {
        Reason.OK,
        Reason.NO_PRINCIPAL,
        Reason.MALFORMED_PRINCIPAL,
        Reason.UNKNOWN_TRUST_DOMAIN,
        Reason.UNREGISTERED_IDENTITY,
        Reason.MALFORMED_REQUEST,
        Reason.NON_CANONICAL_PATH,
        Reason.BODY_TRUNCATED,
        Reason.MALFORMED_BODY,
        Reason.UNSUPPORTED_METHOD,
        Reason.HEADER_BODY_MISMATCH,
        Reason.DELEGATION_REQUIRED,
        Reason.DUPLICATE_HEADER,
        Reason.OVERSIZE,
        Reason.MALFORMED_TOKEN,
        Reason.BAD_HEADER,
        Reason.UNKNOWN_ISSUER,
        Reason.UNKNOWN_KEY,
        Reason.BAD_SIGNATURE,
        Reason.EXPIRED,
        Reason.NOT_YET_VALID,
        Reason.LIFETIME_TOO_LONG,
        Reason.WRONG_AUDIENCE,
        Reason.CHAIN_BROKEN,
        Reason.CHAIN_TOO_DEEP,
        Reason.CHAIN_CYCLE,
        Reason.SCOPE_WIDENED,
        Reason.LEAF_MISMATCH,
        Reason.NO_MATCHING_RULE,
        Reason.DENIED_BY_RULE,
        Reason.ESCALATED_BY_RULE,
        Reason.POLICY_ERROR,
    }
)


def applied_mode(mode: Mode, reason: Reason) -> Mode:
    """Return the mode that a decision with `reason` has under a bundle in `mode`.

    It is the one its record shows: `shadow` says that the verdict was not enforced.
    """
    return mode if reason in OBSERVABLE else Mode.ENFORCE
