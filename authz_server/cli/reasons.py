"""Each reason code in words for a person who investigates a decision."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from authz_server.core.errors import Reason

# Complete: a test holds the keys equal to `Reason`. Lower case without a full stop, like details.
SENTENCES: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        Reason.OK: "the policy allows it",
        Reason.NO_PRINCIPAL: "the caller showed no certificate, so nobody is known to be asking",
        Reason.MALFORMED_PRINCIPAL: "the caller's certificate does not carry exactly one SPIFFE ID",
        Reason.UNKNOWN_TRUST_DOMAIN: "the caller belongs to a trust domain nobody here vouches for",
        Reason.UNREGISTERED_IDENTITY: "a party is not in the identity inventory",
        Reason.MALFORMED_REQUEST: "the request, or its route's settings, cannot be read",
        Reason.NON_CANONICAL_PATH: "the path is spelled so that two readers could read it twice",
        Reason.BODY_TRUNCATED: "the policy needs the body, and not all of it was there to check",
        Reason.MALFORMED_BODY: "the body is not what its protocol prescribes",
        Reason.UNSUPPORTED_METHOD: "the method is not one this route serves",
        Reason.HEADER_BODY_MISMATCH: "the headers announce another call than the body makes",
        Reason.DELEGATION_REQUIRED: "the route needs a delegation chain and none was presented",
        Reason.DUPLICATE_HEADER: "a header that must be unique was sent more than once",
        Reason.OVERSIZE: "a part of the request is over its limit",
        Reason.MALFORMED_TOKEN: "a token of the delegation chain cannot be read",
        Reason.BAD_HEADER: "a token's header asks for something that is not accepted",
        Reason.UNKNOWN_ISSUER: "the chain begins at an issuer that is not configured",
        Reason.UNKNOWN_KEY: "a token is signed with a key its issuer is not known to have",
        Reason.BAD_SIGNATURE: "a signature of the delegation chain is false",
        Reason.EXPIRED: "a part of the delegation chain has expired",
        Reason.NOT_YET_VALID: "a part of the delegation chain is not valid yet",
        Reason.LIFETIME_TOO_LONG: "a token of the chain lives longer than is admitted",
        Reason.WRONG_AUDIENCE: "the chain was made for another service",
        Reason.CHAIN_BROKEN: "the links do not follow one another: one is missing or out of place",
        Reason.CHAIN_TOO_DEEP: "the chain has more hops than was granted or is admitted",
        Reason.CHAIN_CYCLE: "an agent occurs twice in the chain",
        Reason.SCOPE_WIDENED: "a link hands on more than its delegator was given",
        Reason.LEAF_MISMATCH: "the caller is not the one the chain was handed to",
        Reason.REVOKED: "a party, key or transaction of the request was revoked",
        Reason.UNKNOWN_BUNDLE: "the route names a policy bundle that is not loaded",
        Reason.NO_MATCHING_RULE: "no rule of the policy allows it",
        Reason.DENIED_BY_RULE: "a rule of the policy forbids it",
        Reason.ESCALATED_BY_RULE: "a rule of the policy asks for a person's approval first",
        Reason.APPROVAL_EXPIRED: "it was approved, but the approval expired before this attempt",
        Reason.POLICY_ERROR: "a rule could not be evaluated, so nothing was allowed",
        Reason.LEDGER_UNAVAILABLE: "the decision could not be recorded, so nothing was allowed",
        Reason.NOT_READY: "the server had no valid policy to decide by",
        Reason.INTERNAL_ERROR: "the server failed while deciding, so nothing was allowed",
    }
)


def in_words(code: str | None) -> str:
    """Return the sentence for a reason code, or the code itself if a later version wrote it."""
    try:
        return SENTENCES[Reason(code)] if code else "no reason was recorded"
    except ValueError:
        return str(code)
