"""A bundle whose rows are in a table, and that table as Casbin's adapters lay it out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    insert,
    update,
)
from sqlalchemy.pool import NullPool

from tests.pdp_site import PdpSite

VARIABLE: Final = "POLICY_ROWS_URL"
COLUMNS: Final = ("ptype", "v0", "v1", "v2", "v3", "v4", "v5")


class PolicyDatabase:
    """Writes `casbin_rule` as another program would: in its own transactions."""

    def __init__(self, url: str, *, values: int = 6, name: str = "casbin_rule") -> None:
        self.url = url
        self.engine: Engine = create_engine(
            url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool
        )
        columns = [Column(f"v{number}", String(255)) for number in range(values)]
        metadata = MetaData()
        self.table = Table(
            name,
            metadata,
            Column("id", Integer, primary_key=True),
            Column("ptype", String(255)),
            *columns,
        )
        metadata.create_all(self.engine)

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which a server finds it."""
        return {VARIABLE: self.url}

    def replace(self, rules: Sequence[str]) -> None:
        """Have the table hold the rows that these lines of CSV say, ids from 1."""
        with self.engine.begin() as connection:
            connection.execute(delete(self.table))
            for number, rule in enumerate(rules, start=1):
                connection.execute(insert(self.table).values(id=number, **_columns(rule)))

    def set(self, row_id: int, **values: str | None) -> None:
        """Change one row in place: neither the number of rows nor the highest id tells."""
        with self.engine.begin() as connection:
            connection.execute(update(self.table).where(self.table.c.id == row_id).values(**values))


def _columns(rule: str) -> dict[str, str]:
    return dict(zip(COLUMNS, (field.strip() for field in rule.split(",")), strict=False))


def use_table(site: PdpSite, *, table: str = "casbin_rule") -> Path:
    """Have the bundle of `site` take its rows from a table; return its `bundle.yaml`."""
    (site.bundle / "policy.csv").unlink()
    manifest = site.bundle / "bundle.yaml"
    text = manifest.read_text() + f"rows: {{url_env: {VARIABLE}, table: {table}}}\n"
    manifest.write_text(text)
    return manifest
