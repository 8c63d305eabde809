"""Typed reading of a token's claims: each reader returns a value of one shape or refuses.

Every refusal is a `RequestFault` with `MALFORMED_TOKEN` that names the claim and never its value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from authz_server.core import limits
from authz_server.core.errors import InvalidValueError, Reason, RequestFault
from authz_server.core.spiffe import SpiffeId
from authz_server.core.strict_json import JsonValue

TEXT_CHARS_MAX: Final = limits.RECORD_FIELD_CHARS_MAX  # so that a record never cuts an identifier
_TIME_MAX: Final = 253_402_300_799  # 9999-12-31T23:59:59Z, the last instant `datetime` knows
_HOPS_MAX: Final = 2**31 - 1
# RFC 6749 §3.3, which RFC 8693 §4.2 refers to: scope-token *( SP scope-token ).
_SCOPE = re.compile(r"[!#-\[\]-~]+(?: [!#-\[\]-~]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """When a token counts, in Unix seconds. `not_before` is the later of `iat` and `nbf`."""

    issued_at: int
    not_before: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Claims:
    """The members of one JSON object, read by name and type."""

    members: Mapping[str, JsonValue]

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def text(self, name: str) -> str:
        """Return a mandatory string: not empty, printable, at most 1024 characters."""
        value = self.members.get(name)
        if not isinstance(value, str) or not _is_text(value):
            raise _fault(name, "is not a printable string of 1 to 1024 characters")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a string as `text` does, or None when the claim is absent."""
        return self.text(name) if name in self.members else None

    def time(self, name: str) -> int:
        """Return a mandatory NumericDate in whole seconds (RFC 7519 §2), within year 9999."""
        return self._integer(name, _TIME_MAX)

    def optional_time(self, name: str) -> int | None:
        """Return a time as `time` does, or None when the claim is absent."""
        return self.time(name) if name in self.members else None

    def validity(self, lifetime_s_max: int) -> "Validity":
        """Return the period spelled by mandatory `iat` and `exp` and optional `nbf`.

        Raises `RequestFault`: `MALFORMED_TOKEN` when `exp` is not after `iat`,
        `LIFETIME_TOO_LONG` when it is more than `lifetime_s_max` after it.
        """
        issued_at, expires_at = self.time("iat"), self.time("exp")
        if expires_at <= issued_at:
            raise _fault("exp", "is not after `iat`")
        if expires_at - issued_at > lifetime_s_max:
            raise RequestFault(
                Reason.LIFETIME_TOO_LONG, f"token lives longer than {lifetime_s_max} s"
            )
        not_before = max(issued_at, self.optional_time("nbf") or 0)
        return Validity(issued_at=issued_at, not_before=not_before, expires_at=expires_at)

    def hops(self) -> int:
        """Return `dlg`, how many more hops are allowed; absent means none."""
        return self._integer("dlg", _HOPS_MAX) if "dlg" in self.members else 0

    def scope(self) -> frozenset[str]:
        """Return the mandatory `scope` (RFC 8693 §4.2), at least one and at most 128 items."""
        value = self.members.get("scope")
        if not isinstance(value, str) or not _SCOPE.fullmatch(value):
            raise _fault("scope", "is not a space-separated list of scope tokens")
        items = value.split(" ")
        if len(items) > limits.SCOPE_ITEMS_MAX:
            raise _fault("scope", "has more than 128 items")
        return frozenset(items)

    def spiffe_id(self, name: str) -> SpiffeId:
        """Return a mandatory SPIFFE ID of a workload."""
        try:
            return SpiffeId.parse(self.text(name))
        except InvalidValueError as error:
            raise _fault(name, "is not a SPIFFE ID") from error

    def child(self, name: str) -> "Claims":
        """Return a mandatory nested object."""
        value = self.members.get(name)
        if not isinstance(value, dict):
            raise _fault(name, "is not an object")
        return Claims(value)

    def audiences(self) -> frozenset[str]:
        """Return the mandatory `aud` as a list of 1 to 32 strings."""
        values = self.members.get("aud")
        if not isinstance(values, list) or not 0 < len(values) <= limits.AUDIENCES_MAX:
            raise _fault("aud", "is not a list of 1 to 32 strings")
        audiences = {value for value in values if isinstance(value, str) and _is_text(value)}
        if len(audiences) != len(values):
            raise _fault("aud", "repeats an audience, or has one that is not a printable string")
        return frozenset(audiences)

    def details(self) -> tuple[Mapping[str, object], ...] | None:
        """Return `authorization_details` (RFC 9396 §2), deeply immutable, or None when absent.

        An empty list is refused: it could be read as "nothing" and as "no restriction".
        """
        if "authorization_details" not in self.members:
            return None
        values = self.members["authorization_details"]
        if not isinstance(values, list) or not 0 < len(values) <= limits.AUTHORIZATION_DETAILS_MAX:
            raise _fault("authorization_details", "is not a list of 1 to 32 objects")
        for value in values:
            if not isinstance(value, dict):
                raise _fault("authorization_details", "has an entry that is not an object")
            Claims(value).text("type")
        return tuple(_frozen_object(value) for value in values if isinstance(value, dict))

    def _integer(self, name: str, maximum: int) -> int:
        value = self.members.get(name)
        # SECURITY: bool is an int in Python; `true` must not pass as the time 1.
        if type(value) is not int or not 0 <= value <= maximum:
            raise _fault(name, "is not a whole number in range")
        return value


def _is_text(value: str) -> bool:
    return 0 < len(value) <= TEXT_CHARS_MAX and value.isprintable()


def _frozen_object(value: dict[str, JsonValue]) -> Mapping[str, object]:
    return MappingProxyType({key: _frozen(member) for key, member in value.items()})


def _frozen(value: JsonValue) -> object:
    if isinstance(value, dict):
        return _frozen_object(value)
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value


def _fault(name: str, problem: str) -> RequestFault:
    return RequestFault(Reason.MALFORMED_TOKEN, f"claim `{name}` {problem}")
