"""Following a ledger: each new record once, as soon as it can be read.

By the number of the record and not by its time: a record of a shared ledger may arrive minutes
after its time, when its server could ship it again.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

from authz_server.ledger.query import DecisionFilter, LedgerReader, StoredDecision

POLL_S: Final = 0.5  # a person watching does not notice; a read of the chain ends costs 0.2 ms


def follow(
    reader: LedgerReader,
    wanted: DecisionFilter,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[StoredDecision]:
    """Yield every record that matches and is written from now on; never ends by itself.

    Records of one server come in its order. Raises `LedgerError`.
    """
    seen = dict(reader.ends())
    while True:
        for writer, through in reader.ends().items():
            after = seen.get(writer, 0)
            if through > after:
                yield from reader.between(wanted, writer=writer, after=after, through=through)
                seen[writer] = through
        pause(POLL_S)
