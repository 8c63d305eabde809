"""The error tree and the closed list of reason codes.

A `RequestFault` is the request's own doing and becomes a recorded denial in `pdp.decide`, the one
place that catches it. A `ConfigurationError` is the operator's and carries every `Fault` at once,
each with file, line and column.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a decision came out as it did. Public: clients, dashboards and tests match on it."""

    OK = "OK"
    NO_PRINCIPAL = "NO_PRINCIPAL"
    MALFORMED_PRINCIPAL = "MALFORMED_PRINCIPAL"
    UNKNOWN_TRUST_DOMAIN = "UNKNOWN_TRUST_DOMAIN"
    UNREGISTERED_IDENTITY = "UNREGISTERED_IDENTITY"
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    NON_CANONICAL_PATH = "NON_CANONICAL_PATH"
    BODY_TRUNCATED = "BODY_TRUNCATED"
    MALFORMED_BODY = "MALFORMED_BODY"
    UNSUPPORTED_METHOD = "UNSUPPORTED_METHOD"
    HEADER_BODY_MISMATCH = "HEADER_BODY_MISMATCH"
    DELEGATION_REQUIRED = "DELEGATION_REQUIRED"
    DUPLICATE_HEADER = "DUPLICATE_HEADER"
    OVERSIZE = "OVERSIZE"
    MALFORMED_TOKEN = "MALFORMED_TOKEN"  # noqa: S105
    BAD_HEADER = "BAD_HEADER"
    UNKNOWN_ISSUER = "UNKNOWN_ISSUER"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    EXPIRED = "EXPIRED"
    NOT_YET_VALID = "NOT_YET_VALID"
    LIFETIME_TOO_LONG = "LIFETIME_TOO_LONG"
    WRONG_AUDIENCE = "WRONG_AUDIENCE"
    CHAIN_BROKEN = "CHAIN_BROKEN"
    CHAIN_TOO_DEEP = "CHAIN_TOO_DEEP"
    CHAIN_CYCLE = "CHAIN_CYCLE"
    SCOPE_WIDENED = "SCOPE_WIDENED"
    LEAF_MISMATCH = "LEAF_MISMATCH"
    REVOKED = "REVOKED"
    UNKNOWN_BUNDLE = "UNKNOWN_BUNDLE"
    NO_MATCHING_RULE = "NO_MATCHING_RULE"
    DENIED_BY_RULE = "DENIED_BY_RULE"
    ESCALATED_BY_RULE = "ESCALATED_BY_RULE"
    APPROVAL_EXPIRED = "APPROVAL_EXPIRED"
    POLICY_ERROR = "POLICY_ERROR"
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"
    NOT_READY = "NOT_READY"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class AuthzError(Exception):
    """Root of every error this package raises on purpose."""


class RequestFault(AuthzError):
    """The request is at fault; it is denied with `reason`.

    `detail` is one lower-case sentence without a full stop. It is shown to the caller and stored,
    so it never quotes a token, a body, an argument value or another party. `json_rpc_id` is set
    where the request is JSON-RPC: the id to echo, as JSON text, `null` if it was not read.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.json_rpc_id: str | None = None


class UnknownIssuerKey(RequestFault):
    """A root grant names a key that its issuer, which is configured, is not known to have."""

    def __init__(self, issuer: str) -> None:
        super().__init__(Reason.UNKNOWN_KEY, "root grant is signed with a key not known")
        self.issuer = issuer


class InvalidValueError(AuthzError, ValueError):
    """A text is not the value it claims to be. Raised by the `parse` methods of core types."""


class LedgerError(AuthzError):
    """The ledger cannot be read or written now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing an operator must repair. `line` and `column` count from 1; 0: the whole file."""

    file: str
    message: str
    line: int = 0
    column: int = 0
    source: str = ""  # the faulty line itself, for the caret; empty when there is none
    severity: str = "error"  # error | warning

    def __str__(self) -> str:
        """Return `file:line:column: severity: message`, with a caret under the column if known."""
        where = self.file
        if self.line:
            where += f":{self.line}"
            if self.column:
                where += f":{self.column}"
        head = f"{where}: {self.severity}: {self.message}"
        if not (self.source and self.column):
            return head
        pad = "".join("\t" if char == "\t" else " " for char in self.source[: self.column - 1])
        return f"{head}\n    {self.source}\n    {pad}^"


class ConfigurationError(AuthzError):
    """Configuration, bundle, inventory or key file cannot be used. Holds every fault found.

    `warnings` are what was found beside them and would not have stopped anything.
    """

    def __init__(self, faults: Iterable[Fault], warnings: Iterable[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(str(fault) for fault in self.faults))
