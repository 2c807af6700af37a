"""Queries read the published lake files, reach nothing else, and change nothing, whatever statement is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import duckdb
import polars as pl
import pytest

from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables import connect, publish, run_sql
from gradcamo_assets_tests.tables import rows

# Statements of every type that DuckDB's parser returns, by its name of the type. {file} is a lake file that a view
# reads, {new} a path in the folder of a view, {database} the QC database.
REFUSED = {
    "ALTER": ("ALTER TABLE lake.models RENAME TO other", "COMMENT ON TABLE lake.models IS 'x'"),
    "ATTACH": ("ATTACH 'other.duckdb'", "ATTACH ':memory:' AS other", "ATTACH '{new}' AS other"),
    "CALL": ("CALL pragma_version()", "CHECKPOINT", "FORCE CHECKPOINT", "CALL enable_logging(storage_path = '{new}')"),
    "COPY": (
        "COPY scores TO '{new}'",
        "COPY (SELECT 1) TO '{file}'",
        "COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
        "COPY (SELECT 1) TO 'gradcamo-read-only://{file}'",
        "COPY (SELECT 1) TO 'gradcamo-read-only://{file}' (USE_TMP_FILE false)",
        "COPY (SELECT 1) TO 'gradcamo-read-only://{new}'",
        "COPY (SELECT 1 AS a, 2 AS b) TO '{folder}' (FORMAT parquet, PARTITION_BY (a), OVERWRITE true)",
        "COPY (SELECT 1 AS a, 2 AS b) TO 'gradcamo-read-only://{folder}' (PARTITION_BY (a), OVERWRITE true)",
        "COPY (SELECT 1) TO '{database}' (USE_TMP_FILE false)",
        "COPY lake.models FROM '{file}'",
    ),
    "CREATE": (
        "CREATE TABLE a (b INTEGER)",
        "CREATE TEMP TABLE a AS SELECT 1",
        "CREATE OR REPLACE VIEW scores AS SELECT 1",
        "CREATE MACRO a() AS 1",
        "CREATE SECRET (TYPE s3)",
        "CREATE SEQUENCE a",
        "CREATE TYPE a AS ENUM ('b')",
    ),
    "DELETE": ("DELETE FROM lake.models", "TRUNCATE lake.models"),
    "DETACH": ("DETACH qc",),
    "DROP": ("DROP TABLE lake.models", "DROP VIEW scores", "DEALLOCATE a"),
    "EXECUTE": ("EXECUTE a",),
    "EXPLAIN": (
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'gradcamo-read-only://{file}' (USE_TMP_FILE false)",
        "explain(analyze) COPY (SELECT 1) TO '{new}'",
        "/* what? */ EXPLAIN ANALYZE COPY (SELECT 1) TO '{new}'",
        "EXPLAIN ANALYZE\n-- what?\nCOPY (SELECT 1) TO '{new}'",
        "EXPLAIN ANALYZE DELETE FROM aggregates.totals",
        "EXPLAIN CREATE TABLE a (b INTEGER)",
    ),
    "EXPORT": ("EXPORT DATABASE '{folder}'",),
    "INSERT": ("INSERT INTO lake.models FROM lake.models",),
    "LOAD": ("INSTALL httpfs", "LOAD httpfs", "LOAD '{new}'"),
    "MERGE_INTO": ("MERGE INTO lake.models USING lake.models AS b ON false WHEN MATCHED THEN DELETE",),
    "MULTI": (
        "COPY (PIVOT lake.models ON model_name USING count(*)) TO '{new}'",
        "CREATE TABLE a AS PIVOT lake.models ON model_name USING count(*)",
    ),
    "PRAGMA": ("PRAGMA version", "IMPORT DATABASE '{folder}'", "COPY FROM DATABASE qc TO other"),
    "PREPARE": ("PREPARE a AS SELECT 1", "PREPARE a AS COPY (SELECT 1) TO '{new}'"),
    "SET": (
        "SET enable_external_access = true",
        "SET disabled_filesystems = ''",
        "SET memory_limit = '1TB'",
        "SET VARIABLE gradcamo_file_address = ''",
        "RESET lock_configuration",
        "USE lake",
    ),
    "TRANSACTION": ("BEGIN", "COMMIT"),
    "UPDATE": ("UPDATE lake.models SET model_name = 'a'",),
    "VACUUM": ("VACUUM", "ANALYZE"),
}
# Types that the parser returns for no text, and SELECT.
NEVER_PARSED = {
    "INVALID", "ANALYZE", "COPY_DATABASE", "CREATE_FUNC", "EXTENSION", "LOGICAL_PLAN", "RELATION", "VARIABLE_SET",
}  # fmt: skip

# Statements that are a SELECT (or none), but reach out, write or ask for what is not there.
FAILING = (
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{new}'",
    "EXPLAIN (FORMAT 'a)SELECT 1 --') COPY (SELECT 1) TO '{new}'",
    "UPDATE EXTENSIONS",
    "WITH a AS (INSERT INTO lake.models FROM lake.models RETURNING *) FROM a",
    "WITH a AS (DELETE FROM lake.models RETURNING *) FROM a",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '{other}'",
    "SELECT * FROM read_parquet('{other}')",
    "SELECT * FROM read_parquet('gradcamo-read-only://{other}')",
    "SELECT * FROM read_parquet('gradcamo-read-only://{folder}/../wells/*.parquet')",
    "SELECT * FROM read_parquet('https://example.org/a.parquet')",
    "SELECT * FROM read_parquet('s3://bucket/a.parquet')",
    "SELECT * FROM read_duckdb('{database}')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM parquet_metadata('{other}')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{new}''')",
    "SELECT * FROM enable_logging(storage = 'file', storage_path = '{folder}')",
    "SELECT * FROM force_checkpoint()",
    "SELECT getenv('HOME')",
    "SELECT * FROM nowhere",
    "SELECT * FROM python_frame",
    "SELEC",
    "-- nothing",
    "",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    publish(rows.filled(folder / "lake", plates=1, sites=1, versions=1), folder / "qc.duckdb")
    return folder


@pytest.fixture
def fill(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Fills the paths into a statement. Afterwards, every file of the home must be as it was."""
    monkeypatch.chdir(home)
    paths = {
        "database": home / "qc.duckdb",
        "folder": home / "lake" / "scores",
        "file": next((home / "lake" / "scores").rglob("*.parquet")),
        "new": home / "lake" / "scores" / "new.parquet",
        "other": next((home / "lake" / "wells").rglob("*.parquet")),
    }
    before = contents(home)
    yield lambda sql: sql.format(**paths)
    assert contents(home) == before


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_every_type_of_statement_is_tried() -> None:
    assert {*REFUSED, *NEVER_PARSED, "SELECT"} == set(duckdb.StatementType.__members__)


@pytest.mark.parametrize(("kind", "sql"), [(kind, sql) for kind, statements in REFUSED.items() for sql in statements])
def test_statements_other_than_select_are_refused(home: Path, fill: Callable[[str], str], kind: str, sql: str) -> None:
    assert [part.type.name for part in duckdb.extract_statements(fill(sql))] == [kind]
    with pytest.raises(StoreError, match="single read-only statement"):
        run_sql(home / "qc.duckdb", fill(sql))


@pytest.mark.parametrize("sql", FAILING)
def test_queries_reach_nothing_else(home: Path, fill: Callable[[str], str], sql: str) -> None:
    python_frame = pl.DataFrame({"a": [1]})
    with pytest.raises(StoreError):
        run_sql(home / "qc.duckdb", fill(sql))
    assert len(python_frame) == 1


@pytest.mark.parametrize("path", ["/etc/passwd", "{other}", "{folder}/../../qc.duckdb", "{folder}/*.parquet", "/etc/*"])
@pytest.mark.parametrize("function", ["read_blob", "read_text", "glob"])
def test_other_files_are_not_found(home: Path, fill: Callable[[str], str], function: str, path: str) -> None:
    assert run_sql(home / "qc.duckdb", fill(f"FROM {function}('gradcamo-read-only://{path}')")).is_empty()


def test_without_the_check_of_statements_nothing_can_be_changed_either(home: Path, fill: Callable[[str], str]) -> None:
    """The isolation must hold by itself. Harmless statements, such as ``BEGIN``, may succeed."""
    statements = [sql for kind, found in REFUSED.items() for sql in found if kind != "TRANSACTION"]
    must_fail = {sql for kind in ("COPY", "EXPORT", "ATTACH", "LOAD") for sql in REFUSED[kind]}
    with closing(connect(home / "qc.duckdb")) as connection:
        for sql in [*statements, *FAILING]:
            expected = pytest.raises(duckdb.Error) if sql in must_fail else suppress(duckdb.Error)
            with closing(connection.cursor()) as session, expected:
                session.execute(fill(sql))
                session.fetchall()


def test_the_isolation_cannot_be_switched_off(home: Path, fill: Callable[[str], str]) -> None:
    with closing(connect(home / "qc.duckdb")) as connection:
        settings = ("enable_external_access", "disabled_filesystems", "allowed_directories", "memory_limit")
        for name in settings:
            with pytest.raises(duckdb.Error, match="locked"):
                connection.execute(f"RESET {name}")
        # Views would then read from the disk themselves.
        connection.execute("RESET VARIABLE gradcamo_file_address")
        with pytest.raises(duckdb.Error, match="disabled"):
            connection.execute("FROM scores")
    with closing(connect(home / "qc.duckdb")) as connection:
        assert connection.execute("SELECT count(*) > 0 FROM scores").fetchone() == (True,)


def test_other_clients_read_the_views_from_the_disk(home: Path) -> None:
    found = run_sql(home / "qc.duckdb", "FROM scores ORDER BY ALL")
    with duckdb.connect(home / "qc.duckdb", read_only=True) as connection:
        assert connection.sql("FROM scores ORDER BY ALL").pl().equals(found)
