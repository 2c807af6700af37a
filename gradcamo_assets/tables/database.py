"""Create and fill the tables and views of a QC database file.

The functions work on an open connection, within the caller's transaction. ``publish`` decides when and where a file is
written; ``refresh`` updates the summaries.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import polars as pl

from gradcamo_assets.errors import StoreError
from gradcamo_assets.provenance import digest
from gradcamo_assets.tables.aggregates import RESAMPLES
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.tables.read_only_files import ADDRESS_VARIABLE
from gradcamo_assets.tables.schema import COPIED_TABLES, INDEX_TABLES, VIEWED_TABLES
from gradcamo_assets.tables.summaries import AUDITED_SCORES, FIELD_STATES, GAINS, LABELS, SUMMARIES
from gradcamo_assets.tables.views import COLUMN_COMMENTS, MACROS, VIEWS

# Increase it when the values of a summary or the SQL of ``select_rows_sql`` change but no column does.
_SUMMARY_CODE = "5"

PUBLICATION_RECORD = Table(
    "record",
    "Source of this database",
    (
        Column("name", pl.String, "Name of the entry: lake, the folder that the views read", nullable=False),
        Column("value", pl.String, "Value of the entry", nullable=False),
    ),
)
PUBLICATION_FILES = Table(
    "files",
    "One row per lake file that the views of the schema lake read; vacuuming keeps these files",
    (
        Column("table_name", pl.String, "Lake table", nullable=False),
        Column("path", pl.String, "Path of the file", nullable=False),
        Column("rows", pl.Int64, "Number of rows in the file", nullable=False),
        Column("Metadata_Plate", pl.String, "Plate of the rows", nullable=False),
        Column("model_run", pl.String, "MLflow run of the rows; NULL: the table has no model_run"),
    ),
)

_SQL_TYPES = {
    pl.String: "VARCHAR",
    pl.Boolean: "BOOLEAN",
    pl.Int32: "INTEGER",
    pl.Int64: "BIGINT",
    pl.Float32: "FLOAT",
    pl.Float64: "DOUBLE",
}

_STORED_TABLES = {
    "publication": (PUBLICATION_RECORD, PUBLICATION_FILES),
    "lake": (*COPIED_TABLES.values(), *INDEX_TABLES.values()),
    "aggregates": (*SUMMARIES, GAINS, AUDITED_SCORES, FIELD_STATES, LABELS),
}


def schema_version() -> str:
    """The digest of all tables, views, columns, types and comments, and of how summaries are computed."""
    return digest([repr(_STORED_TABLES), repr(VIEWED_TABLES), repr(VIEWS), MACROS, RESAMPLES, _SUMMARY_CODE])


def sql_literal(text: str) -> str:
    """Quote text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def create_schema(connection: duckdb.DuckDBPyConnection, lake: str) -> None:
    """Create all tables, empty, and all views, with their comments, for a lake at this address."""
    for schema, tables in _STORED_TABLES.items():
        connection.execute(f"CREATE SCHEMA {schema}")
        for table in tables:
            columns = [f"{c.name} {_sql_type(c.dtype)}{'' if c.nullable else ' NOT NULL'}" for c in table.columns]
            connection.execute(f"CREATE TABLE {schema}.{table.name} ({', '.join(columns)})")
            comments = {column.name: column.comment for column in table.columns}
            _comment(connection, "TABLE", f"{schema}.{table.name}", table.comment, comments)
    for table in VIEWED_TABLES.values():
        rows = select_rows_sql(table, ())
        connection.execute(f"CREATE MACRO lake.files_of_{table.name}() AS TABLE {rows}")
        connection.execute(f"CREATE VIEW lake.{table.name} AS FROM lake.files_of_{table.name}()")
        comments = {column.name: column.comment for column in table.columns}
        _comment(connection, "VIEW", f"lake.{table.name}", table.comment, comments)
    connection.execute(MACROS)
    for view in VIEWS:
        connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")
        comments = {**COLUMN_COMMENTS, **view.columns}
        names = connection.table(view.name).columns
        _comment(connection, "VIEW", view.name, view.comment, {name: comments[name] for name in names})
    insert_rows(connection, "publication.record", pl.DataFrame({"name": ["lake"], "value": [lake]}))


def _sql_type(dtype: Any) -> str:
    """The SQL type of a column."""
    if isinstance(dtype, pl.List):
        return f"{_sql_type(dtype.inner)}[]"
    if isinstance(dtype, pl.Map):
        return f"MAP({_sql_type(dtype.key)}, {_sql_type(dtype.value)})"
    return "TIMESTAMP" if dtype == pl.Datetime else _SQL_TYPES[dtype]


def _comment(
    connection: duckdb.DuckDBPyConnection, kind: str, name: str, comment: str, columns: dict[str, str]
) -> None:
    connection.execute(f"COMMENT ON {kind} {name} IS {sql_literal(comment)}")
    for column, text in columns.items():
        connection.execute(f"COMMENT ON COLUMN {name}.{column} IS {sql_literal(text)}")


def set_view_files(connection: duckdb.DuckDBPyConnection, table: Table, files: pl.DataFrame) -> pl.DataFrame:
    """Make the view of a table read exactly these files, given as in ``Snapshot.files``.

    Returns:
        The partitions of the files that the view reads now or read before.
    """
    # A macro holds the file list, since replacing the view would lose the comments of its columns.
    with name_unreadable_table(table.name):
        rows = select_rows_sql(table, files["path"])
        connection.execute(f"CREATE OR REPLACE MACRO lake.files_of_{table.name}() AS TABLE {rows}")
    before = view_files(connection, table.name)
    connection.execute("DELETE FROM publication.files WHERE table_name = ?", [table.name])
    insert_rows(connection, "publication.files", files.with_columns(table_name=pl.lit(table.name)))
    return pl.concat([before.select(table.partition_columns), files.select(table.partition_columns)]).unique()


def view_files(connection: duckdb.DuckDBPyConnection, table: str) -> pl.DataFrame:
    """The files that the view of a table reads, as passed to ``set_view_files``."""
    return connection.sql("FROM publication.files WHERE table_name = ?", params=[table]).pl()


def select_rows_sql(table: Table, paths: Iterable[str]) -> str:
    """SQL that selects the rows of files of a table."""
    # DuckDB would interpret the paths as glob patterns.
    path_list = ", ".join(sql_literal(glob.escape(path)) for path in paths)
    if not path_list:
        return f"SELECT {', '.join(f'NULL::{_sql_type(c.dtype)} AS {c.name}' for c in table.columns)} WHERE false"
    hive_types = ", ".join(f"'{name}': {_sql_type(table.schema[name])}" for name in table.partition_columns)
    hive = f"hive_partitioning = true, hive_types = {{{hive_types}}}" if hive_types else "hive_partitioning = false"
    addresses = f"list_transform([{path_list}], lambda path: concat(getvariable('{ADDRESS_VARIABLE}'), path))"
    return f"SELECT {', '.join(table.schema)} FROM read_parquet({addresses}, {hive})"


@contextmanager
def name_unreadable_table(table: str) -> Iterator[None]:
    """Convert errors of reading lake files into a ``StoreError`` that names the table."""
    try:
        yield
    except (duckdb.Error, pl.exceptions.PolarsError, OSError) as error:
        raise StoreError(
            f"the lake files of table {table} cannot be read: {error}",
            "Materialise the partitions with damaged files again.",
        ) from error


def copy_files(connection: duckdb.DuckDBPyConnection, table: Table, files: pl.DataFrame) -> pl.DataFrame:
    """Replace the copy of a small table with the rows of these files.

    Returns:
        ``Metadata_Plate`` and ``model_run`` of the rows that differ from the previous copy, without columns that the
        table lacks.
    """
    copy = f"lake.{table.name}"
    keys = [column for column in ("Metadata_Plate", "model_run") if column in table.schema]
    with name_unreadable_table(table.name):
        connection.execute(f"CREATE TEMP TABLE fresh AS {select_rows_sql(table, files['path'])}")
    differing = f"(FROM fresh EXCEPT FROM {copy}) UNION ALL (FROM {copy} EXCEPT FROM fresh)"
    changed = connection.sql(f"SELECT DISTINCT {', '.join(keys) or 'NULL'} FROM ({differing})").pl()
    connection.execute(f"DELETE FROM {copy}")
    connection.execute(f"INSERT INTO {copy} FROM fresh")
    connection.execute("DROP TABLE fresh")
    return changed


def replace_rows(connection: duckdb.DuckDBPyConnection, table: Table, rows: pl.DataFrame) -> None:
    """Replace the copy of a table with these rows."""
    connection.execute(f"DELETE FROM lake.{table.name}")
    insert_rows(connection, f"lake.{table.name}", rows)


# DuckDB resolves ``keys`` and ``rows`` in the SQL below to the Python variables of these names.
def delete_rows(connection: duckdb.DuckDBPyConnection, table: str, keys: pl.DataFrame) -> None:
    """Delete the rows that match one of the keys."""
    conditions = " AND ".join(f"target.{name} = keys.{name}" for name in keys.columns)
    connection.execute(f"DELETE FROM {table} AS target USING keys WHERE {conditions}")


def insert_rows(connection: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame) -> None:
    """Insert rows, matching columns by name."""
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM rows")
