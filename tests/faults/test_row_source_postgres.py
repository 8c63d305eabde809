"""Policy rows in PostgreSQL: told of, polled for, and a database that dies, hangs or comes late."""

import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from authz_server.policy.manifest import RowSource
from authz_server.reload import row_table
from authz_server.reload.tables import PolicyTables
from authz_server.settings import Settings, load_settings
from tests.faults.test_reload_gate import write_cases
from tests.harness.policy_database import VARIABLE, PolicyDatabase, use_table
from tests.harness.reloading import PATIENCE_S, Observed, watching
from tests.pdp_site import RULES, PdpSite
from tests.postgres_server import PostgresServer, postgres_server

_ALL = [rule.split(", ")[1] for rule in RULES]
POLL_S = 0.1

# As in docs/reload.md.
TRIGGER = """\
CREATE FUNCTION casbin_rule_changed() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN PERFORM pg_notify('casbin_rule', ''); RETURN NULL; END$$;
CREATE TRIGGER casbin_rule_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON casbin_rule
  FOR EACH STATEMENT EXECUTE FUNCTION casbin_rule_changed();
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> PolicyDatabase:
    database = PolicyDatabase(server.create(f"policy_{secrets.token_hex(4)}"))
    database.replace(RULES)
    return database


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    site = PdpSite.create(tmp_path)
    write_cases(site.bundle)
    use_table(site)
    return site


@pytest.fixture
def settings(site: PdpSite) -> Settings:
    return load_settings(site.configuration)


def test_the_database_tells_of_a_change(settings: Settings, database: PolicyDatabase) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(TRIGGER))
    with watching(settings, environ=database.environ) as observed:  # never polls
        assert observed.rules == _ALL
        for rules in (RULES[:1], RULES, RULES[:2]):
            database.replace(rules)
            observed.wait_for_rules(*_ALL[: len(rules)])
        with database.engine.begin() as connection:
            connection.execute(text("TRUNCATE casbin_rule"))
        assert "the table holds no rule" in str(observed.wait_for_failure())
        assert observed.rules == _ALL[:2]


def test_what_nobody_tells_is_found_by_asking(settings: Settings, database: PolicyDatabase) -> None:
    with watching(settings, POLL_S, database.environ) as observed:
        first = observed.snapshot.revision
        database.set(3, v2="/elsewhere/*")
        observed.wait_until(lambda: observed.snapshot.revision != first)
        database.set(3, v2="/open/closed/*")
        observed.wait_until(lambda: observed.snapshot.revision == first)


def test_while_nothing_changes_no_row_travels(
    settings: Settings, database: PolicyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real = row_table.RowTable._read

    def counting(self: row_table.RowTable, connection: object) -> object:
        reads.append("read")
        return real(self, connection)  # type: ignore[arg-type]

    monkeypatch.setattr(row_table.RowTable, "_read", counting)
    observed = Observed(settings, database.environ)
    observed.reloader.refresh()
    before = len(reads)
    for _ in range(5):
        observed.reloader.refresh()
    assert len(reads) == before
    database.set(3, v2="/elsewhere/*")
    observed.reloader.refresh()
    assert len(reads) > before
    observed.reloader.close()


def test_a_killed_database_keeps_the_last_good_policy_and_heals(
    settings: Settings, database: PolicyDatabase, server: PostgresServer
) -> None:
    with watching(settings, POLL_S, database.environ) as observed:
        good = observed.snapshot
        server.kill()
        error = observed.wait_for_failure()
        (fault,) = error.faults
        assert fault.file == str(settings.bundles.dir / "default" / "bundle.yaml")
        assert "table `casbin_rule` cannot be read: " in fault.message
        assert observed.holder.current is good
        server.start()
        observed.wait_until(lambda: observed.holder.last_error is None)
        assert observed.snapshot.revision == good.revision
        database.replace(RULES[:1])
        observed.wait_for_rules(*_ALL[:1])


def test_a_database_that_hangs_is_cut_off_and_live_trust_does_not_wait(
    settings: Settings,
    database: PolicyDatabase,
    server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_table, "_ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setitem(row_table._CONNECTION, "connect_timeout", 2)
    observed = Observed(settings, database.environ)
    observed.reloader.refresh()
    good = observed.snapshot
    server.pause()
    try:
        asking = threading.Thread(target=observed.reloader.refresh)
        asking.start()
        observed.reloader.renew()
        assert asking.is_alive(), "renewed while the database was still asked"
        asking.join(PATIENCE_S)
        assert not asking.is_alive()
        assert observed.holder.last_error is not None
        assert observed.snapshot.revision == good.revision
    finally:
        server.resume()
    observed.reloader.refresh()
    assert observed.holder.last_error is None
    observed.reloader.close()


def test_a_database_that_comes_late_is_waited_for(
    settings: Settings, database: PolicyDatabase, server: PostgresServer
) -> None:
    server.kill()
    with watching(settings, POLL_S, database.environ) as observed:
        assert observed.holder.current is None
        assert observed.holder.last_error is not None
        server.start()
        observed.wait_for_rules(*_ALL)


def test_a_role_that_may_only_read_is_enough_and_its_password_is_never_shown(
    database: PolicyDatabase, server: PostgresServer, settings: Settings
) -> None:
    role = f"reader_{secrets.token_hex(4)}"
    with database.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 's3cret'"))
    url = database.url.replace("authz@", f"{role}:s3cret@")
    observed = Observed(settings, {VARIABLE: url})
    observed.reloader.refresh()
    assert "permission denied for table casbin_rule" in str(observed.holder.last_error)
    assert "s3cret" not in str(observed.holder.last_error)
    with database.engine.begin() as connection:
        connection.execute(text(f"GRANT SELECT ON casbin_rule TO {role}"))
    observed.reloader.refresh()
    assert observed.rules == _ALL
    observed.reloader.close()


def test_one_read_is_one_state_of_the_table(database: PolicyDatabase) -> None:
    """A writer replaces all rows by others, over and over; no read may find some of each."""
    old = [f"p, old-{number}, GET, /a/*, s, , allow" for number in range(2_000)]
    new = [f"p, new-{number}, GET, /b/*, s, , deny" for number in range(2_000)]
    database.replace(old)
    tables = PolicyTables(database.environ)
    source = RowSource(url_env=VARIABLE)
    done = threading.Event()

    def alternate() -> None:
        swap = text(
            "UPDATE casbin_rule SET v5 = CASE v5 WHEN 'allow' THEN 'deny' ELSE 'allow' END,"
            " v0 = CASE WHEN v0 LIKE 'old-%' THEN 'new-' ELSE 'old-' END || id"
        )
        while not done.is_set():
            with database.engine.begin() as connection:
                connection.execute(swap)

    writer = threading.Thread(target=alternate)
    writer.start()
    try:
        seen = set()
        for _ in range(30):
            table = tables.read(source, "bundle.yaml")
            effects = {row.values[5] for row in table.rows}
            assert len(table.rows) == len(new)
            assert len(effects) == 1
            seen |= effects
        assert seen == {"allow", "deny"}, "the writer was at work"
    finally:
        done.set()
        writer.join()
        tables.close()


def test_another_schema_and_another_name(
    database: PolicyDatabase, site: PdpSite, settings: Settings
) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA crm"))
        connection.execute(text('CREATE VIEW crm."Rules" AS SELECT * FROM casbin_rule'))
    manifest = site.bundle / "bundle.yaml"
    manifest.write_text(manifest.read_text().replace("casbin_rule", "crm.Rules"))
    observed = Observed(settings, database.environ)
    observed.reloader.refresh()
    assert observed.rules == _ALL
    # A view whose content changes without any commit: the digest is of what it shows now.
    with database.engine.begin() as connection:
        connection.execute(
            text(
                'CREATE OR REPLACE VIEW crm."Rules" AS SELECT * FROM casbin_rule'
                " WHERE id < 3 OR now() < '2000-01-01'"
            )
        )
    observed.reloader.refresh()
    assert observed.rules == _ALL[:2]
    observed.reloader.close()
