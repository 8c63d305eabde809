"""The hash chain: what each record commits to, and so what cannot be changed unseen.

Every ledger file has one writer id and one chain, numbered from 1 without gaps. For record n

    leaf(n) = SHA-256( salt(n) || {"columns":[…],"record":{…}} )
    hash(n) = SHA-256( {"leaf":…,"prev":hash(n-1),"seq":n,"writer":…} )

where both documents are canonical JSON (RFC 8785): a value cannot move into its neighbour, because
each is quoted. The columns, by which records are found, are committed to with the record. The 16
random bytes of salt have a fixed place and length. They make the leaf of an erased record tell
nothing: without them, whoever knows the rest of a record could try subjects until the leaf fits.

A bare chain shows an edit, a deletion, a swap and a gap. It cannot show that its end was cut off,
or that everything after some record was written anew; `seal` does.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Final, NamedTuple

SALT_BYTES: Final = 16  # more than anyone can try
HASH_BYTES: Final = 32

# What the first record of every chain follows.
GENESIS: Final = bytes(HASH_BYTES)

# For texts, integers and nulls this is RFC 8785 byte for byte; see `record._CANONICAL`.
_COLUMNS: Final = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False, allow_nan=False
)

ColumnValues = Sequence[str | int | None]


class Link(NamedTuple):
    """The end of a chain: number and hash of its last record; 0 and `GENESIS` before the first."""

    seq: int
    hash: bytes


START: Final = Link(0, GENESIS)


def leaf_of(salt: bytes, columns: ColumnValues, record: str) -> bytes:
    """Return what one record commits to. `record` is its canonical JSON, `columns` in their order.

    INVARIANT: `columns` are texts, integers below 2**53 and nulls.
    """
    committed = f'{{"columns":{_COLUMNS.encode(columns)},"record":{record}}}'
    return hashlib.sha256(salt + committed.encode()).digest()


def hash_of(writer: str, seq: int, previous: bytes, leaf: bytes) -> bytes:
    """Return the hash of record `seq`, which follows the one whose hash is `previous`.

    `writer` is a writer id: lower-case hex, so that nothing in it needs an escape.
    """
    link = f'{{"leaf":"{leaf.hex()}","prev":"{previous.hex()}","seq":{seq},"writer":"{writer}"}}'
    return hashlib.sha256(link.encode()).digest()
