"""`authz-server ledger`: what an administrator does to the ledger itself."""

from datetime import UTC, datetime
from pathlib import Path

import click

from authz_server.cli.ledger_source import ledger_options, ledger_source
from authz_server.cli.listing_group import ListingGroup
from authz_server.cli.terminal import examples
from authz_server.core.errors import LedgerError
from authz_server.ledger.database import Access, Store, is_shared
from authz_server.ledger.erasure import ErasureOrder, erase
from authz_server.ledger.migrate import migrate
from authz_server.ledger.seal import SigningKey


@click.group(cls=ListingGroup, epilog=examples("ledger migrate --config authz.yaml"))
def group() -> None:
    """Prepare a shared ledger, or erase a person from a ledger."""


@group.command("migrate", epilog=examples("ledger migrate --config authz.yaml"))
@ledger_options
def migrate_command(config_path: Path | None, ledger_url: str | None) -> None:
    """Create a shared ledger in PostgreSQL, or bring it to this version's schema.

    Does nothing to one that is current. A SQLite ledger needs no preparation.
    """
    source = ledger_source(config_path, ledger_url)
    if not is_shared(source.url):
        raise LedgerError("only a ledger on PostgreSQL is migrated; a SQLite file makes itself")
    click.echo(f"ledger is at revision {migrate(source.url)}")


@group.command(
    "erase",
    epilog=examples(
        "ledger erase --config authz.yaml --subject alice@example.org "
        "--by bob@example.org --reason 'request 4711'"
    ),
)
@ledger_options
@click.option("--subject", required=True, help="Whose records; as recorded, or by name.")
@click.option("--by", required=True, metavar="WHO", help="Who orders it; kept in the ledger.")
@click.option("--reason", required=True, help="Why; kept in the ledger. Name no person here.")
@click.option(
    "--key",
    "key_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Key that signs the statement of it, instead of the configuration's.",
)
def erase_command(
    config_path: Path | None,
    ledger_url: str | None,
    key_path: Path | None,
    subject: str,
    **order: str,
) -> None:
    """Erase what is recorded on behalf of one person; the chain still verifies.

    Their records lose all content but verdict, reason, rules, caller and time. A signed statement
    says which, on whose order and why. Records that still wait in an outbox are not reached.
    """
    source = ledger_source(config_path, ledger_url)
    paths = [key_path] if key_path else list(source.key_paths)
    if not paths:
        raise click.UsageError("name the key that signs: --key FILE")
    # As it is, and as it may be recorded: under a pseudonym, or from before there were any.
    spellings = {subject, source.recorded_subject(subject) or subject}
    ordered = ErasureOrder(subjects=tuple(spellings), **order)
    store = Store.open(source.url, Access.WRITE)
    count = erase(store, SigningKey.load(paths[0]), ordered, now=datetime.now(UTC))
    click.echo(f"erased {count} records")
