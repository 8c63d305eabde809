"""Subjects under a pseudonym: recognisable to who holds the key, to nobody else.

The keyed hash of one subject is always the same, so that a ledger can still be searched and counted
by person. SECURITY: it is a pseudonym, not anonymity (GDPR Art. 4(5)): whoever holds the key can
try names. Destroying the key turns every pseudonym made with it into noise.
"""

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from authz_server.core.decision import Decision
from authz_server.core.errors import LedgerError

PREFIX: Final = "hmac-sha256:"
KEY_BYTES_MIN: Final = 32  # the size of the hash; RFC 2104 §3
_KEY_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """The key under which one ledger keeps subjects."""

    _key: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the key in the file at `path`, all its bytes. Raises `LedgerError`."""
        try:
            key = path.read_bytes()
        except OSError as error:
            raise LedgerError(f"cannot read `{path}`: {error.strerror or error}") from error
        if not KEY_BYTES_MIN <= len(key) <= _KEY_BYTES_MAX:
            raise LedgerError(
                f"`{path}` must hold {KEY_BYTES_MIN} to {_KEY_BYTES_MAX} bytes; "
                "`openssl rand -out FILE 32` makes them"
            )
        return cls(key)

    def of(self, subject: str) -> str:
        """Return the pseudonym of `subject`."""
        text = subject.encode("utf-8", "surrogatepass")
        return PREFIX + hmac.new(self._key, text, hashlib.sha256).hexdigest()

    def applied(self, decision: Decision) -> Decision:
        """Return `decision` as it is recorded."""
        chain = decision.chain
        if chain is None:
            return decision
        return replace(decision, chain=replace(chain, subject=self.of(chain.subject)))
