"""What stands in a QC database file: its tables and views, and the lists of the lake's files that they read.

The functions work on an open connection and within the caller's transaction. When and where a file is published is the
business of ``publish``; the summaries are in ``refresh``.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.provenance import digest
from gradcamo_assets.tables.aggregates import RESAMPLES
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.tables.schema import COPIED_TABLES, INDEX_TABLES, VIEWED_TABLES
from gradcamo_assets.tables.summaries import AUDITED_SCORES, FIELD_STATES, GAINS, LABELS, SUMMARIES
from gradcamo_assets.tables.views import COLUMN_COMMENTS, VIEWS

# Bump when a summary's values change and its columns do not.
_CODE = "3"

RECORD = Table(
    "record",
    "What this database was published from",
    (
        Column("name", pl.String, "What is told: lake, the folder that its views read", nullable=False),
        Column("value", pl.String, "Its value", nullable=False),
    ),
)
FILES = Table(
    "files",
    "One row a file that the views of the schema lake read; they are kept until the next publication",
    (
        Column("table_name", pl.String, "Table of the lake", nullable=False),
        Column("path", pl.String, "Path of the file", nullable=False),
        Column("rows", pl.Int64, "Rows in it", nullable=False),
        Column("Metadata_Plate", pl.String, "Plate that its rows are of", nullable=False),
        Column("model_run", pl.String, "MLflow run that its rows are of; NULL: the table knows none"),
    ),
)

_SQL = {
    pl.String: "VARCHAR",
    pl.Boolean: "BOOLEAN",
    pl.Int32: "INTEGER",
    pl.Int64: "BIGINT",
    pl.Float32: "FLOAT",
    pl.Float64: "DOUBLE",
}

_STORED = {
    "publication": (RECORD, FILES),
    "lake": (*COPIED_TABLES.values(), *INDEX_TABLES.values()),
    "aggregates": (*SUMMARIES, GAINS, AUDITED_SCORES, FIELD_STATES, LABELS),
}


def schema_version() -> str:
    """A digest of every table, view, column, type and comment, and of how summaries are made."""
    return digest([repr(_STORED), repr(VIEWED_TABLES), repr(VIEWS), RESAMPLES, _CODE])


def quoted(text: str) -> str:
    """A SQL text literal."""
    return "'" + text.replace("'", "''") + "'"


def create(connection: duckdb.DuckDBPyConnection, lake: Path) -> None:
    """Make every table, empty, and every view, with their comments."""
    for schema, tables in _STORED.items():
        connection.execute(f"CREATE SCHEMA {schema}")
        for table in tables:
            columns = [f"{c.name} {_sql(c.dtype)}{'' if c.nullable else ' NOT NULL'}" for c in table.columns]
            connection.execute(f"CREATE TABLE {schema}.{table.name} ({', '.join(columns)})")
            comments = {column.name: column.comment for column in table.columns}
            _comment(connection, "TABLE", f"{schema}.{table.name}", table.comment, comments)
    for table in VIEWED_TABLES.values():
        rows = rows_of(table, ())
        connection.execute(f"CREATE MACRO lake.files_of_{table.name}() AS TABLE {rows}")
        connection.execute(f"CREATE VIEW lake.{table.name} AS FROM lake.files_of_{table.name}()")
        comments = {column.name: column.comment for column in table.columns}
        _comment(connection, "VIEW", f"lake.{table.name}", table.comment, comments)
    for view in VIEWS:
        connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")
        comments = {**COLUMN_COMMENTS, **view.columns}
        names = connection.table(view.name).columns
        _comment(connection, "VIEW", view.name, view.comment, {name: comments[name] for name in names})
    insert(connection, "publication.record", pl.DataFrame({"name": ["lake"], "value": [str(lake)]}))


def _sql(dtype: Any) -> str:
    """The SQL type of a column."""
    if isinstance(dtype, pl.List):
        return f"{_sql(dtype.inner)}[]"
    if isinstance(dtype, pl.Map):
        return f"MAP({_sql(dtype.key)}, {_sql(dtype.value)})"
    return "TIMESTAMP" if dtype == pl.Datetime else _SQL[dtype]


def _comment(
    connection: duckdb.DuckDBPyConnection, kind: str, name: str, comment: str, columns: dict[str, str]
) -> None:
    connection.execute(f"COMMENT ON {kind} {name} IS {quoted(comment)}")
    for column, text in columns.items():
        connection.execute(f"COMMENT ON COLUMN {name}.{column} IS {quoted(text)}")


def show_files(connection: duckdb.DuckDBPyConnection, table: Table, files: pl.DataFrame) -> pl.DataFrame:
    """Let the view of a table read these files, as in ``Snapshot.files``, and no others.

    Returns:
        All partitions of the files that it reads now, or read before.
    """
    # A macro, since a view made anew would need the comments of all its columns again.
    with reading(table.name):
        rows = rows_of(table, files["path"])
        connection.execute(f"CREATE OR REPLACE MACRO lake.files_of_{table.name}() AS TABLE {rows}")
    before = files_of(connection, table.name)
    connection.execute("DELETE FROM publication.files WHERE table_name = ?", [table.name])
    insert(connection, "publication.files", files.with_columns(table_name=pl.lit(table.name)))
    return pl.concat([before.select(table.partitions), files.select(table.partitions)]).unique()


def files_of(connection: duckdb.DuckDBPyConnection, table: str) -> pl.DataFrame:
    """What ``show_files`` was given last."""
    return connection.sql("FROM publication.files WHERE table_name = ?", params=[table]).pl()


def rows_of(table: Table, paths: Iterable[str]) -> str:
    """A query for the rows of some files of a table."""
    # DuckDB takes a path for a pattern.
    listed = ", ".join(quoted(glob.escape(path)) for path in paths)
    if not listed:
        return f"SELECT {', '.join(f'NULL::{_sql(c.dtype)} AS {c.name}' for c in table.columns)} WHERE false"
    found = ", ".join(f"'{name}': {_sql(table.polars[name])}" for name in table.partitions)
    hive = f"hive_partitioning = true, hive_types = {{{found}}}" if found else "hive_partitioning = false"
    return f"SELECT {', '.join(table.polars)} FROM read_parquet([{listed}], {hive})"


@contextmanager
def reading(table: str) -> Iterator[None]:
    """Tell which table's files could not be read."""
    try:
        yield
    except (duckdb.Error, pl.exceptions.PolarsError, OSError) as error:
        raise StoreError(
            f"the lake's files of {table} cannot be read: {error}",
            "Make the partitions anew whose files are damaged.",
        ) from error


def copy(connection: duckdb.DuckDBPyConnection, table: Table, files: pl.DataFrame) -> pl.DataFrame:
    """Replace the copy of a small table by the rows of these files.

    Returns:
        ``Metadata_Plate`` and ``model_run``, of those that the table has, of rows that differ from what stood there.
    """
    there = f"lake.{table.name}"
    keys = [column for column in ("Metadata_Plate", "model_run") if column in table.polars]
    with reading(table.name):
        connection.execute(f"CREATE TEMP TABLE fresh AS {rows_of(table, files['path'])}")
    differing = f"(FROM fresh EXCEPT FROM {there}) UNION ALL (FROM {there} EXCEPT FROM fresh)"
    changed = connection.sql(f"SELECT DISTINCT {', '.join(keys) or 'NULL'} FROM ({differing})").pl()
    connection.execute(f"DELETE FROM {there}")
    connection.execute(f"INSERT INTO {there} FROM fresh")
    connection.execute("DROP TABLE fresh")
    return changed


def replace(connection: duckdb.DuckDBPyConnection, table: Table, rows: pl.DataFrame) -> None:
    """Replace the copy of a table by these rows."""
    connection.execute(f"DELETE FROM lake.{table.name}")
    insert(connection, f"lake.{table.name}", rows)


# DuckDB finds the frames ``keys`` and ``rows`` by the names they have here.
def delete(connection: duckdb.DuckDBPyConnection, table: str, keys: pl.DataFrame) -> None:
    """Take out the rows that have one of the keys."""
    same = " AND ".join(f"target.{name} = keys.{name}" for name in keys.columns)
    connection.execute(f"DELETE FROM {table} AS target USING keys WHERE {same}")


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame) -> None:
    """Add rows, column by name."""
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM rows")
