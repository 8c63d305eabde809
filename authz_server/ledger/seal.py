"""Signed statements on a chain: how far it reached, and what was removed from it on purpose.

A chain alone cannot show that its end was cut off or that it was written anew from some record on,
because whoever can write the database can also compute hashes. A statement is signed with a key
that the database does not hold. There are three kinds:

- `checkpoint`: record `last` exists and has this hash. Made at intervals and at the end of a
  process; kept in the ledger and, so that it cannot be deleted with the ledger, sent elsewhere.
- `retention`: records `first` to `last` may be gone; `last` had this hash.
- `erasure`: the content of the records `seqs` may be gone. Their hashes stay.

A statement is a compact JWS (RFC 7515 §7.1) with Ed25519 (RFC 8037), so that other tools verify it.
"""

import base64
import binascii
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, Self, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from authz_server.core.errors import AuthzError, LedgerError
from authz_server.core.record import format_time
from authz_server.ledger.chain import HASH_BYTES

_TYPE: Final = "authz-ledger-statement+jws"
# The longest statement is an erasure of `ERASED_RECORDS_MAX` scattered records.
_STATEMENT_CHARS_MAX: Final = 64 * 1024
ERASED_RECORDS_MAX: Final = 1_000  # in one statement; a larger erasure makes several

_T = TypeVar("_T")


class SealFault(AuthzError):
    """A statement is malformed, or not signed by a key that counts."""


class StatementKind(StrEnum):
    """What a statement says; see the module."""

    CHECKPOINT = "checkpoint"
    RETENTION = "retention"
    ERASURE = "erasure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What is signed. `hash` is that of record `last`; an erasure has `seqs` instead."""

    kind: StatementKind
    writer: str
    first: int
    last: int
    time: datetime
    hash: bytes | None = None
    seqs: tuple[int, ...] = ()
    by: str | None = None
    reason: str | None = None

    def payload(self) -> bytes:
        """Return the canonical JSON (RFC 8785) of the statement; members without value left out."""
        members = {
            "kind": self.kind.value,
            "writer": self.writer,
            "first": self.first,
            "last": self.last,
            "time": format_time(self.time),
            "hash": self.hash.hex() if self.hash else None,
            "seqs": list(self.seqs) or None,
            "by": self.by,
            "reason": self.reason,
        }
        present = {name: value for name, value in members.items() if value is not None}
        return _canonical(present)

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Return the statement that `payload` spells. Raises `SealFault`."""
        try:
            members = json.loads(payload)
            statement = cls(
                kind=StatementKind(members["kind"]),
                writer=_of(members, "writer", str),
                first=_of(members, "first", int),
                last=_of(members, "last", int),
                time=datetime.fromisoformat(members["time"]),
                hash=bytes.fromhex(members["hash"]) if "hash" in members else None,
                seqs=tuple(members.get("seqs", ())),
                by=members.get("by"),
                reason=members.get("reason"),
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SealFault("statement is malformed") from error
        if statement.kind is not StatementKind.ERASURE and len(statement.hash or b"") != HASH_BYTES:
            raise SealFault("statement names no hash")
        return statement


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key of one server. Keep it where those who may write the ledger cannot read it."""

    _private: Ed25519PrivateKey

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the Ed25519 key in the PEM file at `path` (PKCS #8). Raises `LedgerError`."""
        try:
            private = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise LedgerError(f"cannot read `{path}`: {error.strerror or error}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise LedgerError(f"`{path}` is no unencrypted private key in PEM") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise LedgerError(f"`{path}` must hold an Ed25519 key; `openssl genpkey` makes one")
        return cls(private)

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Return the key at `path`, made (mode 0600) if there is none. Raises `LedgerError`."""
        if os.path.lexists(path):
            return cls.load(path)
        new = cls(Ed25519PrivateKey.generate())
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
                file.write(new._pem())
                file.flush()
                # In one step: of two servers that share the file and start together one makes the
                # key, and neither reads half of one. A link does not replace what is there.
                os.link(file.name, path)
        except FileExistsError:
            return cls.load(path)
        except OSError as error:
            raise LedgerError(f"cannot create `{path}`: {error.strerror or error}") from error
        return new

    @property
    def public(self) -> Ed25519PublicKey:
        """The half that verifies."""
        return self._private.public_key()

    def public_pem(self) -> bytes:
        """Return the public key in PEM: what an auditor needs."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, statement: Statement) -> str:
        """Return `statement` as a compact JWS."""
        header = _canonical({"alg": "EdDSA", "kid": key_id(self.public), "typ": _TYPE})
        signed = f"{_base64url(header)}.{_base64url(statement.payload())}"
        return f"{signed}.{_base64url(self._private.sign(signed.encode()))}"

    def _pem(self) -> bytes:
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, slots=True)
class SealKeys:
    """The public keys whose statements count, by key id."""

    keys: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)

    @classmethod
    def of(cls, keys: Iterable[Ed25519PublicKey]) -> Self:
        """Return the set of `keys`."""
        return cls({key_id(key): key for key in keys})

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Self:
        """Return the keys in PEM files, public or private. Raises `LedgerError`."""
        return cls.of(_public_key(path) for path in paths)

    def verify(self, text: str) -> Statement:
        """Return the statement in the compact JWS `text`. Raises `SealFault`."""
        if len(text) > _STATEMENT_CHARS_MAX:
            raise SealFault("statement is too long")
        parts = text.split(".")
        if len(parts) != 3:
            raise SealFault("statement is no compact JWS")
        try:
            header, payload, signature = (_decode_base64url(part) for part in parts)
        except (ValueError, binascii.Error) as error:
            raise SealFault("statement is not base64url") from error
        for identifier, key in self.keys.items():
            # SECURITY: the header is compared with the only one we write, never interpreted, so
            # that no other algorithm, type or key can be asked for (RFC 8725 §3.1, §3.11).
            if header == _canonical({"alg": "EdDSA", "kid": identifier, "typ": _TYPE}):
                _check_signature(key, signature, text[: -len(parts[2]) - 1].encode())
                return Statement.parse(payload)
        raise SealFault("statement is signed by a key that is not known here")


def key_file_beside(file: Path) -> Path:
    """Return where the signing key of the ledger or outbox `file` is unless configured."""
    return file.with_name(file.name + ".key")


def key_id(key: Ed25519PublicKey) -> str:
    """Return the JWK thumbprint of `key` (RFC 7638, RFC 8037 appendix A.3)."""
    raw = _base64url(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    thumbprint = hashlib.sha256(_canonical({"crv": "Ed25519", "kty": "OKP", "x": raw}))
    return _base64url(thumbprint.digest())


def _check_signature(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> None:
    try:
        key.verify(signature, signed)
    except InvalidSignature as error:
        raise SealFault("signature of a statement is wrong") from error


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        text = path.read_bytes()
        if b"PRIVATE KEY" in text:
            return SigningKey.load(path).public
        key = load_pem_public_key(text)
    except OSError as error:
        raise LedgerError(f"cannot read `{path}`: {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise LedgerError(f"`{path}` is no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise LedgerError(f"`{path}` must hold an Ed25519 key")
    return key


def _of(members: Mapping[str, object], name: str, kind: type[_T]) -> _T:
    value = members[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(name)
    return value


def _canonical(members: Mapping[str, object]) -> bytes:
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode_base64url(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
