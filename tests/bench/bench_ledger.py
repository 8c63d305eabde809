"""What recording costs: print figures, never fail on one. Run it as a script.

Rows are those of a tool call with a chain of two hops. Each figure is the least of several rounds,
in microseconds of CPU a record, because the machine is shared. The alternatives below do what
`Ledger.commit` does through a thicker layer; they are why it uses the driver.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import insert, select, update

from authz_server.ledger.chain import START, Link
from authz_server.ledger.query import DecisionFilter
from authz_server.ledger.record import Record, Row, decision_row, term_rows
from authz_server.ledger.schema import chains, decision_terms, decisions
from authz_server.ledger.store import Ledger
from tests.ledger_samples import NOON, TTL_S, allow, chain

ROUNDS: Final = 7
RECORDS: Final = 2560
WRITER: Final = "00" * 8

Commit = Callable[[list[Record]], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the output."""

    name: str
    synchronous: str
    make: Callable[[Ledger], Commit]


def records(first: int) -> list[Record]:
    """Return records as a busy server writes them: many subjects, few agents, ids by time."""
    return [
        Record(
            decision_id=f"{first + number:032x}",
            decision=allow(
                time=NOON + timedelta(microseconds=first + number),
                chain=chain(subject=f"person{number % 100}@example.org", txn=f"txn{number // 7}"),
            ),
            duration_us=57,
        )
        for number in range(RECORDS)
    ]


def rows_only(_: Ledger) -> Commit:
    """Build the rows and write nothing."""

    def commit(batch: list[Record]) -> None:
        numbered(batch, START)

    return commit


def numbered(batch: list[Record], link: Link) -> tuple[list[Row], list[Row], Link]:
    """Return rows and terms of a batch that follows `link`, and the new end."""
    rows: list[Row] = []
    terms: list[Row] = []
    for one in batch:
        row, link = decision_row(WRITER, link, bytes(16), one, one.decision)
        rows.append(row)
        terms.extend(term_rows(link, WRITER, one.decision))
    return rows, terms, link


def core(ledger: Ledger) -> Commit:
    """Write with SQLAlchemy Core expressions."""
    names = [column.name for column in decisions.c]
    term_names = [column.name for column in decision_terms.c]
    connection = ledger._writer.connection if ledger._writer else None
    assert connection is not None

    def commit(batch: list[Record]) -> None:
        with connection.begin():
            end = connection.execute(select(chains.c.seq, chains.c.hash)).one()
            rows, terms, link = numbered(batch, Link(*end))
            connection.execute(
                insert(decisions), [dict(zip(names, row, strict=True)) for row in rows]
            )
            connection.execute(
                insert(decision_terms), [dict(zip(term_names, term, strict=True)) for term in terms]
            )
            connection.execute(update(chains).values(seq=link.seq, hash=link.hash))

    return commit


def sql_text(ledger: Ledger) -> Commit:
    """Write compiled text through `exec_driver_sql`."""
    connection = ledger._writer.connection if ledger._writer else None
    assert connection is not None
    text = ledger._statements

    def commit(batch: list[Record]) -> None:
        with connection.begin():
            _, *end = connection.exec_driver_sql(text.end).one()
            rows, terms, link = numbered(batch, Link(*end))
            connection.exec_driver_sql(text.insert_decision, rows)
            connection.exec_driver_sql(text.insert_term, terms)
            connection.exec_driver_sql(text.move_end, tuple(link))

    return commit


def driver(ledger: Ledger) -> Commit:
    """Write as the ledger does."""
    return ledger.commit


CASES: Final = (
    Case("rows and canonical JSON, not written", "NORMAL", rows_only),
    Case("Core", "NORMAL", core),
    Case("exec_driver_sql", "NORMAL", sql_text),
    Case("Ledger.commit (driver)", "NORMAL", driver),
    Case("Ledger.commit (driver)", "FULL", driver),
)


def rounds(case: Case, batch_records: int) -> Iterator[tuple[float, float]]:
    """Yield CPU and wall microseconds a record of each round."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/authz.db"
        with closing(
            Ledger.open(url, approval_ttl_s=TTL_S, synchronous=case.synchronous)
        ) as ledger:
            commit = case.make(ledger)
            for number in range(ROUNDS):
                batch = records(number * RECORDS)
                gc.collect()
                cpu, wall = time.process_time(), time.perf_counter()
                for start in range(0, RECORDS, batch_records):
                    commit(batch[start : start + batch_records])
                yield (
                    (time.process_time() - cpu) / RECORDS * 1e6,
                    (time.perf_counter() - wall) / RECORDS * 1e6,
                )


def reading() -> Iterator[tuple[str, float, int]]:
    """Yield what a listing costs a row, in a ledger of some ten thousand records."""
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(
            Ledger.open(f"sqlite:///{Path(directory)}/authz.db", approval_ttl_s=TTL_S)
        ) as ledger,
    ):
        for number in range(4):
            ledger.commit(records(number * RECORDS))
        for name, wanted in (
            ("all", DecisionFilter()),
            ("one subject", DecisionFilter(subject="person7@example.org")),
        ):
            started = time.process_time()
            count = sum(1 for _ in ledger.list(wanted))
            yield name, (time.process_time() - started) / count * 1e6, count


def main() -> None:
    print(
        f"{'µs a record, least of ' + str(ROUNDS):<40}{'sync':>8}{'batch':>7}{'CPU':>8}{'wall':>8}"
    )
    for case in CASES:
        for batch_records in (1, 8, 64):
            figures = list(rounds(case, batch_records))
            cpu, wall = (min(column) for column in zip(*figures, strict=True))
            print(f"{case.name:<40}{case.synchronous:>8}{batch_records:>7}{cpu:>8.1f}{wall:>8.1f}")
    for name, cpu, count in reading():
        print(f"list {name}: {cpu:.1f} µs CPU a record of {count}")


if __name__ == "__main__":
    main()
