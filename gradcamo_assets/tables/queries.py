"""Query the QC database: read-only connections, single SQL statements, ready-made tables.

``output.render`` prints the results.
"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import duckdb
import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.local_copies import fetch_file
from gradcamo_assets.storage import remove
from gradcamo_assets.tables.answers import to_frame
from gradcamo_assets.tables.questions import QUESTIONS
from gradcamo_assets.tables.read_only_files import ADDRESS_VARIABLE, PROTOCOL, ReadOnlyFiles
from gradcamo_assets.tables.schema_scores import QC_GROUPS

QC_CHOICES = ("dose", "site", "dose,site", "well", "plate", "model", *(view.name for view in QUESTIONS))

# A single option list after EXPLAIN, without quotes and comments that could hide a second statement.
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?(\([\w\s,]*\)\s*)?", re.IGNORECASE)
_PIVOT = re.compile(r"\s*PIVOT(_WIDER)?\b", re.IGNORECASE)
# In this order: the local file system must work until external access is off, and the lock is last.
_SETTINGS = (
    ("memory_limit", "'50%'"),
    ("temp_directory", "''"),
    ("enable_progress_bar", "false"),
    ("python_enable_replacements", "false"),
    ("allowed_directories", f"['{PROTOCOL}://']"),
    ("enable_external_access", "false"),
    ("disabled_filesystems", "'LocalFileSystem'"),
    ("lock_configuration", "true"),
)


def connect(database: Path) -> duckdb.DuckDBPyConnection:
    """Open a connection that can read the published lake files, and no other file, and that cannot write.

    The caller closes it. A process that still holds a connection to an earlier publication gets that publication again.
    Queries use at most half of the memory and never spill to disk.

    Raises:
        StoreError: if the file is missing or cannot be opened.
    """
    try:
        fetch_file(database)
        exists = database.exists()
    except FileNotFoundError:
        exists = False
    if not exists:
        raise StoreError(
            "the QC database does not exist yet", "Run the pipeline or `gradcamo demo` first.", path=database
        )
    try:
        connection = _open(database)
        connection.execute(f"SET VARIABLE {ADDRESS_VARIABLE} = '{PROTOCOL}://'")
        if connection.execute("SELECT current_setting('enable_external_access')").fetchall()[0][0]:
            paths = connection.execute("SELECT path FROM publication.files").fetchall()
            connection.register_filesystem(ReadOnlyFiles(path for (path,) in paths))
            for name, value in _SETTINGS:
                connection.execute(f"SET {name} = {value}")
    except (duckdb.Error, LookupError) as error:
        raise StoreError(
            f"the file is not a QC database or cannot be opened: {error}",
            "Delete it and publish again: it is rebuilt from the lake.",
            path=database,
        ) from error
    return connection


def _open(database: Path) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(database, read_only=True)
    except duckdb.Error as error:
        # Published files have no write-ahead log. A log beside one was left by a session that wrote to an earlier file.
        log = database.with_name(f"{database.name}.wal")
        if "WAL" not in str(error) or not log.exists():
            raise
        remove(log)
        return duckdb.connect(database, read_only=True)


def run_sql(database: Path, sql: str, parameters: dict[str, object] | None = None) -> pl.DataFrame:
    """Run one read-only statement; ``parameters`` are the values of its ``$name`` placeholders.

    Returns:
        The answer, as ``answers.to_frame`` converts it.

    Raises:
        StoreError: for several statements, a statement that is not read-only, and DuckDB's own errors.
    """
    with closing(connect(database)) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or not _only_reads(connection, statements[0]):
                raise StoreError(
                    "expected a single read-only statement",
                    "Use one SELECT, DESCRIBE, SHOW, SUMMARIZE, PIVOT or EXPLAIN; rows are changed in the lake.",
                )
            return to_frame(connection.sql(statements[0], params=parameters))
        except (duckdb.Error, pl.exceptions.PolarsError) as error:
            remedy = "List tables with `SHOW TABLES` and columns with, for example, `DESCRIBE scores`."
            if "No files found" in str(error):
                remedy = "Publish the QC database again: the lake or its files were moved."
            elif isinstance(error, duckdb.PermissionException):
                remedy = "Queries read the published files of the lake, and no other file or address."
            elif isinstance(error, duckdb.OutOfMemoryException):
                remedy = "Ask for fewer columns or rows: a query may use half of the memory."
            raise StoreError(f"the query failed: {error}", remedy) from error


def _only_reads(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> bool:
    """Whether a statement is a SELECT, an EXPLAIN of one SELECT (ANALYZE runs it), or a PIVOT."""
    try:
        kind = statement.type
    except ValueError:  # A type that DuckDB's Python client does not know.
        return False
    if kind == duckdb.StatementType.EXPLAIN and (explain := _EXPLAIN.match(statement.query)):
        explained = connection.extract_statements(statement.query[explain.end() :])
        return [part.type for part in explained] == [duckdb.StatementType.SELECT]
    # COPY (PIVOT ...) and CREATE TABLE AS PIVOT are MULTI too.
    is_pivot = kind == duckdb.StatementType.MULTI and _PIVOT.match(statement.query) is not None
    return kind == duckdb.StatementType.SELECT or is_pivot


def qc_table(database: Path, by: str = "dose", champion_only: bool = True, plate: str | None = None) -> pl.DataFrame:
    """Read one of the ready-made tables, sorted, without the column ``model_run``.

    Args:
        by: one of ``QC_CHOICES``. ``model`` compares all versions; the last six are ``QUESTIONS``.
        champion_only: return the champion's rows only; ignored by ``model``, which returns all versions.
        plate: return the rows of this plate only; not possible with ``model``.

    Raises:
        StoreError: for an unknown ``by``, a plate with ``model``, or if the database cannot be read.
    """
    if by not in QC_CHOICES:
        raise StoreError(f"there is no QC table by {by!r}", f"Use one of {', '.join(map(repr, QC_CHOICES))}.")
    if by == "model":
        if plate is not None:
            raise StoreError("the comparison of models is over all plates", "Omit the plate, or use model_gain.")
        sql = "SELECT * EXCLUDE (model_run) FROM model_comparison ORDER BY model_name, model_version"
        return run_sql(database, sql)
    name, order = by, "ALL"
    if (group := by.replace(",", "_")) in QC_GROUPS:
        name = f"qc_by_{group}"
        keys = ["model_name", "model_version", "Metadata_Plate", *(column.name for column in QC_GROUPS[group])]
        order = ", ".join(keys)
    champions = "model_run IN (SELECT model_run FROM champions)"
    conditions = [champions] * champion_only + ["Metadata_Plate = $plate"] * (plate is not None)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    sql = f"SELECT * EXCLUDE (model_run) FROM {name} {where} ORDER BY {order}"
    return run_sql(database, sql, {"plate": plate} if plate else None)
