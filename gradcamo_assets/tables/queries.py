"""Asking the QC database: read-only connections, one-statement queries, the ready-made tables.

How an answer is printed or written is in ``render``.
"""

from __future__ import annotations

import glob
import re
from contextlib import closing
from pathlib import Path

import duckdb
import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.storage import remove
from gradcamo_assets.tables.database import quoted
from gradcamo_assets.tables.questions import QUESTIONS
from gradcamo_assets.tables.schema import VIEWED_TABLES
from gradcamo_assets.tables.schema_scores import QC_GROUPS

QC_CHOICES = ("dose", "site", "dose,site", "well", "plate", "model", *(view.name for view in QUESTIONS))

_READING = {duckdb.StatementType.SELECT, duckdb.StatementType.MULTI}


def connect(database: Path) -> duckdb.DuckDBPyConnection:
    """A read-only connection that can read no other files than those of the lake's big tables. Close it when done.

    A process that still holds a connection to an earlier publication gets that one again.

    Raises:
        StoreError: where the file is missing or cannot be opened.
    """
    if not database.exists():
        raise StoreError("there is no QC database yet", "Run the pipeline, or `gradcamo demo`, first.", path=database)
    try:
        connection = _open(database)
        if connection.execute("SELECT current_setting('enable_external_access')").fetchall()[0][0]:
            lake = connection.execute("SELECT value FROM publication.record WHERE name = 'lake'").fetchall()[0][0]
            # DuckDB compares the folder once as the view's pattern spells it, once as the files are found.
            folders = (f"{folder}/{name}" for folder in (lake, glob.escape(lake)) for name in VIEWED_TABLES)
            allowed = ", ".join(map(quoted, folders))
            connection.execute(f"SET allowed_directories = [{allowed}]")
            connection.execute("SET enable_progress_bar = false")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET python_enable_replacements = false")
    except (duckdb.Error, LookupError) as error:
        raise StoreError(
            f"this is no QC database, or one that cannot be opened: {error}",
            "Delete it and publish again: it is made anew from the lake.",
            path=database,
        ) from error
    return connection


def _open(database: Path) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(database, read_only=True)
    except duckdb.Error as error:
        # A published file has no log of its own: one beside it is what a writing session left of an earlier file.
        log = database.with_name(f"{database.name}.wal")
        if "WAL" not in str(error) or not log.exists():
            raise
        remove(log)
        return duckdb.connect(database, read_only=True)


def run_sql(database: Path, sql: str, parameters: dict[str, object] | None = None) -> pl.DataFrame:
    """The answer to one reading statement; ``parameters`` fill its ``$name`` places.

    Raises:
        StoreError: for several statements, for one that is none of a reader's, and for DuckDB's own errors.
    """
    with closing(connect(database)) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or not _only_reads(connection, statements[0]):
                raise StoreError(
                    "only one reading statement is answered",
                    "Ask one SELECT, DESCRIBE, SHOW, SUMMARIZE, PIVOT or EXPLAIN; the lake is where rows change.",
                )
            frame = connection.sql(statements[0], params=parameters).pl()
        except (duckdb.Error, pl.exceptions.PolarsError) as error:
            remedy = "`SHOW TABLES` and `DESCRIBE scores` say what can be asked."
            if "No files found" in str(error):
                remedy = "Publish the QC database again: the lake has been moved, or its files have."
            raise StoreError(f"the query failed: {error}", remedy) from error
    # Sums of whole numbers; those beyond 64 bits stay as they are.
    whole = frame.select(pl.col(pl.Decimal(38, 0)).cast(pl.Int64, strict=False))
    return frame.with_columns(column for column in whole if column.null_count() == frame[column.name].null_count())


def _only_reads(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> bool:
    """Whether a statement is a reader's. What EXPLAIN ANALYZE is given is run, though it writes a file."""
    if statement.type == duckdb.StatementType.EXPLAIN:
        explained = re.sub(r"(?i)^\s*EXPLAIN\s+(ANALYZE\s+)?(\([^)]*\)\s*)?", "", statement.query)
        return [part.type for part in connection.extract_statements(explained)] == [duckdb.StatementType.SELECT]
    return statement.type in _READING


def qc_table(database: Path, by: str = "dose", champion_only: bool = True, plate: str | None = None) -> pl.DataFrame:
    """One of the ready-made tables, sorted for reading: the model's name and version say enough, without its run.

    Args:
        by: one of ``QC_CHOICES``; ``model`` puts all versions side by side, the last six are questions.
        champion_only: only the champion's rows; ``model`` always shows all.
        plate: only this plate; ``model`` is over all plates.

    Raises:
        StoreError: for another ``by``, or where the database cannot be read.
    """
    if by not in QC_CHOICES:
        raise StoreError(f"there is no QC table by {by!r}", f"Choose one of {', '.join(map(repr, QC_CHOICES))}.")
    if by == "model":
        if plate is not None:
            raise StoreError("the comparison of models is over all plates", "Leave the plate out, or ask model_gain.")
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
