"""Policy rows in a SQLite table: read whole, noticed when they change, refused when malformed."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from authz_server.settings import Settings, load_settings
from tests.faults.test_reload_gate import write_cases
from tests.harness.policy_database import PolicyDatabase, use_table
from tests.harness.reloading import Observed, watching
from tests.pdp_site import RULES, PdpSite
from tests.server_process import ServerProcess, running, serve_to_the_end

_ALL = [rule.split(", ")[1] for rule in RULES]
POLL_S = 0.1


@pytest.fixture
def site(tmp_path: Path) -> PdpSite:
    directory = tmp_path / "site"
    directory.mkdir()
    site = PdpSite.create(directory)
    write_cases(site.bundle)
    use_table(site)
    return site


@pytest.fixture
def database(tmp_path: Path) -> PolicyDatabase:
    database = PolicyDatabase(f"sqlite:///{tmp_path}/policy.db")
    database.replace(RULES)
    return database


@pytest.fixture
def settings(site: PdpSite) -> Settings:
    return load_settings(site.configuration)


def test_rows_of_a_table_decide_as_rows_of_a_file_do(
    settings: Settings, database: PolicyDatabase, site: PdpSite
) -> None:
    with_table = Observed(settings, database.environ)
    with_table.reloader.refresh()
    assert with_table.rules == _ALL
    table_policy = with_table.snapshot.policies["default"]
    manifest = site.bundle / "bundle.yaml"
    manifest.write_text(manifest.read_text().partition("rows:")[0])
    site.write_rules(RULES)
    with_file = Observed(settings)
    with_file.reloader.refresh()
    file_policy = with_file.snapshot.policies["default"]
    assert [rule.id for rule in file_policy.rules] == [  # type: ignore[attr-defined]
        rule.id
        for rule in table_policy.rules  # type: ignore[attr-defined]
    ]
    assert table_policy.revision != file_policy.revision
    with_table.reloader.close()


def test_a_count_and_the_highest_id_would_miss_an_edit(
    settings: Settings, database: PolicyDatabase
) -> None:
    """What a cheap poll asks stays the same while an allow turns into a deny."""
    cheap = text("SELECT count(*), max(id) FROM casbin_rule")
    with database.engine.connect() as connection:
        before = connection.execute(cheap).one()
    with watching(settings, POLL_S, database.environ) as observed:
        first = observed.snapshot.revision
        database.set(3, v2="/elsewhere/*")
        with database.engine.connect() as connection:
            assert connection.execute(cheap).one() == before
        observed.wait_until(lambda: observed.snapshot.revision != first)
        # And back again: the revision names the content, not the time.
        database.set(3, v2="/open/closed/*")
        observed.wait_until(lambda: observed.snapshot.revision == first)


@pytest.mark.parametrize(
    "change",
    [
        lambda database: database.replace(RULES[:2]),
        lambda database: database.set(1, v0="other-id"),
        lambda database: database.replace([*RULES[1:], RULES[0]]),
    ],
)
def test_every_change_is_noticed(
    settings: Settings, database: PolicyDatabase, change: Callable[[PolicyDatabase], None]
) -> None:
    write_cases_without_rules(settings)
    with watching(settings, POLL_S, database.environ) as observed:
        first = observed.snapshot.revision
        change(database)
        observed.wait_until(lambda: observed.snapshot.revision != first)


def write_cases_without_rules(settings: Settings) -> None:
    """Leave out which rule decides."""
    cases = settings.bundles.dir / "default" / "cases.yaml"
    cases.write_text(cases.read_text().partition("    rules:")[0])


def test_a_file_put_in_the_place_of_the_database_is_read(
    settings: Settings, database: PolicyDatabase, tmp_path: Path
) -> None:
    """The open connection would go on reading the old one."""
    other = PolicyDatabase(f"sqlite:///{tmp_path}/next.db")
    other.replace(RULES[:1])
    with watching(settings, POLL_S, database.environ) as observed:
        (tmp_path / "next.db").rename(tmp_path / "policy.db")
        observed.wait_for_rules("open-read")


def test_an_uncommitted_change_is_not_seen(settings: Settings, database: PolicyDatabase) -> None:
    observed = Observed(settings, database.environ)
    observed.reloader.refresh()
    writer = sqlite3.connect(str(database.engine.url.database), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM casbin_rule WHERE id > 1")
    observed.reloader.refresh()
    assert observed.rules == _ALL
    writer.execute("COMMIT")
    writer.close()
    observed.reloader.refresh()
    assert observed.rules == _ALL[:1]
    observed.reloader.close()


def test_more_columns_than_casbin_has_are_read(tmp_path: Path, site: PdpSite) -> None:
    database = PolicyDatabase(f"sqlite:///{tmp_path}/wide.db", values=12)
    database.replace(RULES)
    model = site.bundle / "model.conf"
    model.write_text(
        model.read_text()
        .replace("obligation, eft", "obligation, eft, kind, rule")
        .replace("p.scope in r.chain.scope", "p.scope in r.chain.scope && eval(p.rule)")
    )
    for number in (1, 2, 3):
        with database.engine.begin() as connection:
            statement = text("UPDATE casbin_rule SET v6 = 'x', v7 = :rule WHERE id = :id")
            connection.execute(statement, {"rule": 'r.act.name == "GET"', "id": number})
    observed = Observed(load_settings(site.configuration), database.environ)
    observed.reloader.refresh()
    assert observed.rules == _ALL
    observed.reloader.close()


def test_nothing_is_ever_written(settings: Settings, database: PolicyDatabase) -> None:
    path = Path(str(database.engine.url.database))
    before = path.read_bytes()
    observed = Observed(settings, database.environ)
    observed.reloader.refresh()
    (table,) = observed.reloader._tables._tables.values()
    with table.engine.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        connection.execute(text("DELETE FROM casbin_rule"))
    observed.reloader.close()
    assert path.read_bytes() == before
    assert sorted(one.name for one in path.parent.iterdir()) == ["policy.db", "site"]


# --- what is refused -------------------------------------------------------------------------


def _sql(*statements: str) -> Callable[[PolicyDatabase], None]:
    def run(database: PolicyDatabase) -> None:
        with database.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    return run


_VIEWED = (
    "ALTER TABLE casbin_rule RENAME TO rules",
    "CREATE VIEW casbin_rule AS SELECT {} FROM rules",
)

MALFORMED: dict[str, tuple[Callable[[PolicyDatabase], None], str]] = {
    "unknown effect": (
        lambda database: database.set(3, v5="dney"),
        "casbin_rule:3:46: error: unknown effect `dney`; write allow, deny or escalate; "
        "did you mean `deny`?",
    ),
    "a hole": (
        lambda database: database.set(2, v1=None),
        "casbin_rule:2:15: error: v1 is NULL, a later one is not",
    ),
    "too few": (
        lambda database: database.set(1, v5=None),
        "casbin_rule:1:1: error: 5 fields after `p`, the model says 6 "
        "(id, act, path, scope, obligation, eft)",
    ),
    "unknown type": (
        lambda database: database.set(1, ptype="p2"),
        "casbin_rule:1:1: error: unknown row type `p2`, expected `p`; the model defines no roles",
    ),
    "no type": (
        lambda database: database.set(1, ptype=None),
        "casbin_rule:1:1: error: unknown row type ``, expected `p`; the model defines no roles",
    ),
    "control character": (
        lambda database: database.set(1, v1="GET\0"),
        "casbin_rule:1:18: error: control character '\\x00'",
    ),
    "twice": (
        lambda database: database.set(2, v0="open-read"),
        "casbin_rule:2:4: error: id `open-read` is given twice, first at casbin_rule:1",
    ),
    "empty": (lambda database: database.replace([]), "casbin_rule: error: the table holds no rule"),
    "gone": (_sql("DROP TABLE casbin_rule"), "casbin_rule: error: there is no such table"),
    "bytes": (
        _sql("UPDATE casbin_rule SET v0 = x'00ff' WHERE id = 2"),
        "casbin_rule:2: error: a value that is not text",
    ),
    "a column that says what counts": (
        _sql("ALTER TABLE casbin_rule ADD COLUMN is_deleted INTEGER DEFAULT 0"),
        "casbin_rule: error: column `is_deleted` has no meaning here; "
        "make a view of id, ptype, v0, ...",
    ),
    "no id": (
        _sql(_VIEWED[0], _VIEWED[1].format("ptype, v0")),
        "casbin_rule: error: has no column `id`",
    ),
    "a gap": (
        _sql(_VIEWED[0], _VIEWED[1].format("id, ptype, v0, v2")),
        "casbin_rule: error: has no column `v1`",
    ),
    "an id twice": (
        _sql(
            _VIEWED[0],
            "CREATE VIEW casbin_rule AS SELECT * FROM rules UNION ALL SELECT * FROM rules",
        ),
        "casbin_rule: error: ids are unique whole numbers from 1; found `1`",
    ),
    "an id that is text": (
        _sql(_VIEWED[0], _VIEWED[1].format("'a' || id AS id, ptype, v0")),
        "casbin_rule: error: ids are unique whole numbers from 1; found `a1`",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_table_keeps_the_last_good_policy(
    settings: Settings, database: PolicyDatabase, name: str
) -> None:
    damage, message = MALFORMED[name]
    observed = Observed(settings, database.environ)
    observed.reloader.refresh()
    good = observed.snapshot
    damage(database)
    observed.reloader.refresh()
    observed.reloader.refresh()
    assert observed.holder.current is good
    error = observed.holder.last_error
    assert error is not None
    assert [str(fault).partition("\n")[0] for fault in error.faults] == [message]
    assert len(observed.outcomes) == 2, "told once"
    observed.reloader.close()


def test_a_failed_case_keeps_rows_out_too(settings: Settings, database: PolicyDatabase) -> None:
    with watching(settings, POLL_S, database.environ) as observed:
        good = observed.snapshot
        database.replace(RULES[1:])
        assert "cases.yaml:1" in str(observed.wait_for_failure())
        assert observed.holder.current is good
        database.replace(RULES)
        observed.wait_until(lambda: observed.holder.last_error is None)


def test_rows_in_files_and_in_a_table_are_too_many(
    settings: Settings, database: PolicyDatabase, site: PdpSite
) -> None:
    site.write_rules(RULES)
    (site.bundle / "roles.csv").write_text("g, a, b\n")
    observed = Observed(settings, database.environ)
    observed.reloader.refresh()
    assert observed.holder.last_error is not None
    message = "the rows of this bundle come from a table; remove the file"
    assert [fault.message for fault in observed.holder.last_error.faults] == [message] * 2
    observed.reloader.close()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "environment variable `POLICY_ROWS_URL` is not set"),
        ({"POLICY_ROWS_URL": "s3cret"}, "the variable does not hold a database URL"),
        ({"POLICY_ROWS_URL": "mysql://u:s3cret@h/d"}, "a database of kind `mysql` is not"),
        ({"POLICY_ROWS_URL": "sqlite:///s3cret.db"}, "write `sqlite:////absolute/path.db`"),
        ({"POLICY_ROWS_URL": "sqlite:////nowhere/policy.db"}, "No such file or directory"),
    ],
)
def test_a_database_that_cannot_be_found_is_a_fault_of_its_bundle(
    settings: Settings, site: PdpSite, environ: dict[str, str], message: str
) -> None:
    observed = Observed(settings, environ)
    observed.reloader.refresh()
    assert observed.holder.current is None
    assert observed.holder.last_error is not None
    (fault,) = observed.holder.last_error.faults
    assert fault.file == str(site.bundle / "bundle.yaml")
    assert message in fault.message
    assert "s3cret" not in str(fault)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{url_env: AUTHZ_LEDGER__URL}", "`rows.url_env` is a name like POLICY_ROWS_URL"),
        ("{url_env: HOME}", "`rows.url_env` is a name like POLICY_ROWS_URL"),
        ("{table: casbin_rule}", "`rows.url_env` is a name like POLICY_ROWS_URL"),
        ("{url_env: POLICY_ROWS_URL, table: 'a; drop'}", "`rows.table` is the name of a table"),
        ("{url_env: POLICY_ROWS_URL, table: a.b.c}", "`rows.table` is the name of a table"),
        ("{url_env: POLICY_ROWS_URL, channel: 'a\"b'}", "`rows.channel` is the name of a channel"),
        ("{url_env: POLICY_ROWS_URL, url: x}", "unknown key `url`; did you mean `url_env`?"),
        ("postgresql://u:p@h/d", "`rows` is a mapping of url_env, table, channel"),
    ],
)
def test_a_bundle_names_a_variable_for_rows_and_nothing_else(
    settings: Settings, site: PdpSite, rows: str, message: str
) -> None:
    manifest = site.bundle / "bundle.yaml"
    manifest.write_text(manifest.read_text().partition("rows:")[0] + f"rows: {rows}\n")
    observed = Observed(settings, {"POLICY_ROWS_URL": "sqlite:////nowhere"})
    observed.reloader.refresh()
    assert observed.holder.last_error is not None
    assert message in [fault.message for fault in observed.holder.last_error.faults]


# --- the server ------------------------------------------------------------------------------


def test_a_server_without_its_database_says_so_and_goes_on(
    site: PdpSite, database: PolicyDatabase, tmp_path: Path
) -> None:
    data = site.check_request("/open/1")
    with running(site, environ=database.environ) as server:
        (tmp_path / "policy.db").rename(tmp_path / "away.db")
        server.signal_reload_until(lambda: server.metric("authz_reload_failed") == 1)
        status, detail = server.readyz()
        assert status == 200
        assert detail["reload_faults"] == [
            f"{site.bundle}/bundle.yaml: error: table `casbin_rule` cannot be read: "
            f"[Errno 2] No such file or directory: '{tmp_path}/policy.db'"
        ]
        assert server.reason(data) == "OK"
        (tmp_path / "away.db").rename(tmp_path / "policy.db")
        server.signal_reload_until(lambda: server.metric("authz_reload_failed") == 0)


def test_a_server_that_starts_without_its_database(
    site: PdpSite, database: PolicyDatabase, tmp_path: Path
) -> None:
    (tmp_path / "policy.db").rename(tmp_path / "away.db")
    data = site.check_request("/open/1")
    server = ServerProcess(site, "--wait-for-policy", begun="not_ready", environ=database.environ)
    try:
        assert server.reason(data) == "NOT_READY"
        (tmp_path / "away.db").rename(tmp_path / "policy.db")
        server.signal_reload_until(lambda: server.readyz()[0] == 200)
        assert server.reason(data) == "OK"
    finally:
        server.end()
    (tmp_path / "policy.db").unlink()
    refused = serve_to_the_end(site.configuration, environ=database.environ)
    assert refused.returncode == 2
    assert "table `casbin_rule` cannot be read" in refused.stderr
