"""What stands in a QC database file: making its tables and views, and replacing the rows of changed lake files.

The functions work on an open connection and within the caller's transaction. When and where a file is published is the
business of ``publish``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import duckdb
import polars as pl

from gradcamo_assets.common.files import replaced_file
from gradcamo_assets.common.provenance import digest
from gradcamo_assets.warehouse.aggregates import NEEDED, RESAMPLES, aggregate
from gradcamo_assets.warehouse.columns import KEY_COLUMNS, Table
from gradcamo_assets.warehouse.lake import Key
from gradcamo_assets.warehouse.schema import DATABASE_TABLES, LAKE_TABLES
from gradcamo_assets.warehouse.schema_scores import QC_GROUPS, QC_TABLES
from gradcamo_assets.warehouse.views import COLUMN_COMMENTS, views

# Bump when an aggregate's values change and its columns do not.
_CODE = "2"


def schema_version() -> str:
    """A digest of every table, view, column, type and comment, and of how aggregates are made."""
    return digest([repr(DATABASE_TABLES), repr(views(Path("/"))), RESAMPLES, _CODE])


def quoted(text: str) -> str:
    """A SQL text literal."""
    return "'" + text.replace("'", "''") + "'"


def create(connection: duckdb.DuckDBPyConnection, lake: Path) -> None:
    """Make every table, empty, and every view, with their comments."""
    connection.execute("CREATE SCHEMA publication")
    for table in DATABASE_TABLES:
        types = connection.from_arrow(table.empty().to_arrow()).types
        columns = [
            f"{column.name} {sql_type}{'' if column.nullable else ' NOT NULL'}"
            for column, sql_type in zip(table.columns, types, strict=True)
        ]
        connection.execute(f"CREATE TABLE {table.name} ({', '.join(columns)})")
        _comment(connection, "TABLE", table.name, table.comment, {c.name: c.comment for c in table.columns})
    # The view on embeddings needs a file to read.
    empty = lake / "embeddings" / "none.parquet"
    if not empty.exists():
        with replaced_file(empty) as temporary:
            LAKE_TABLES["embeddings"].empty().write_parquet(temporary)
    for view in views(lake):
        connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")
        comments = {**COLUMN_COMMENTS, **view.columns}
        names = connection.table(view.name).columns
        _comment(connection, "VIEW", view.name, view.comment, {name: comments[name] for name in names})


def _comment(
    connection: duckdb.DuckDBPyConnection, kind: str, name: str, comment: str, columns: dict[str, str]
) -> None:
    connection.execute(f"COMMENT ON {kind} {name} IS {quoted(comment)}")
    for column, text in columns.items():
        connection.execute(f"COMMENT ON COLUMN {name}.{column} IS {quoted(text)}")


def replace_rows(
    connection: duckdb.DuckDBPyConnection, table: Table, changed: list[Key], present: list[Key], root: Path
) -> None:
    """Take out the rows of ``changed`` keys and read those of ``present`` ones (changed, less those that are gone)."""
    if table.keys:
        columns = {KEY_COLUMNS[name]: [getattr(key, name) for key in changed] for name in table.keys}
        _delete(connection, table.name, pl.DataFrame(columns))
    else:
        connection.execute(f"DELETE FROM {table.name}")
    if present:
        paths = [str(root / key.path) for key in present]
        # By name: a file written before a column was known has NULL in it.
        source = "SELECT * FROM read_parquet(?, hive_partitioning = false, union_by_name = true)"
        connection.execute(f"INSERT INTO {table.name} BY NAME {source}", [paths])


def refresh_aggregates(connection: duckdb.DuckDBPyConnection, changed: Iterable[Key]) -> None:
    """Make the stored aggregates of the plates x model versions anew whose scores are among the changed files."""
    groups = sorted({(key.plate, key.model_name, key.model_version) for key in changed if key.table == "scores"})
    wanted = pl.DataFrame(
        groups,
        schema={"Metadata_Plate": pl.String, "model_name": pl.String, "model_version": pl.Int32},
        orient="row",
    )
    for table in QC_TABLES:
        _delete(connection, table.name, wanted)
    for group in groups:
        where = "Metadata_Plate = ? AND model_name = ? AND model_version = ?"
        scores = connection.sql(f"SELECT {', '.join(NEEDED)} FROM scores WHERE {where}", params=list(group)).pl()
        for by in QC_GROUPS:
            _insert(connection, f"qc_by_{by}", aggregate(scores, by))


def recorded(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """What the database was published from: the signatures of lake files by their paths, and the facts by their names.

    Paths have a slash, names have none.
    """
    return dict(connection.execute("SELECT name, value FROM publication.record").fetchall())


def record(connection: duckdb.DuckDBPyConnection, values: dict[str, str]) -> None:
    """Replace what ``recorded`` gives back."""
    connection.execute("DELETE FROM publication.record")
    _insert(connection, "publication.record", pl.DataFrame({"name": list(values), "value": list(values.values())}))


# DuckDB finds the frames ``keys`` and ``rows`` by the names they have here.
def _delete(connection: duckdb.DuckDBPyConnection, table: str, keys: pl.DataFrame) -> None:
    same = " AND ".join(f"{table}.{name} = keys.{name}" for name in keys.columns)
    connection.execute(f"DELETE FROM {table} USING keys WHERE {same}")


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame) -> None:
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM rows")
