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
from gradcamo_assets.warehouse.aggregates import INPUTS, RESAMPLES, aggregate
from gradcamo_assets.warehouse.columns import KEY_COLUMNS, Table
from gradcamo_assets.warehouse.lake import Key, Lake
from gradcamo_assets.warehouse.schema import DATABASE_TABLES, LAKE_TABLES
from gradcamo_assets.warehouse.schema_scores import QC_GROUPS, QC_TABLES
from gradcamo_assets.warehouse.views import EMPTY_EMBEDDINGS, views

# Bump when an aggregate's values change and its columns do not.
_CODE = "1"

Group = tuple[str, str, int]


def schema_version() -> str:
    """A digest of every table, key, column, type and comment, and of how aggregates are made."""
    tables = [
        [t.name, t.comment, t.keys, [[c.name, c.sql_type, c.comment] for c in t.columns]] for t in DATABASE_TABLES
    ]
    return digest([tables, [[view.name, view.sql] for view in views(Path("/"))], RESAMPLES, _CODE])


def quoted(text: str) -> str:
    """A SQL text literal."""
    return "'" + text.replace("'", "''") + "'"


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Make every table, empty, with its comments."""
    connection.execute("CREATE SCHEMA publication")
    for table in DATABASE_TABLES:
        columns = ", ".join(f"{c.name} {c.sql_type}{'' if c.nullable else ' NOT NULL'}" for c in table.columns)
        connection.execute(f"CREATE TABLE {table.name} ({columns})")
        _comment(connection, "TABLE", table.name, table.comment, {c.name: c.comment for c in table.columns})


def create_views(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Make every view, with its comments. The one on embeddings needs a file to read, so an empty one is made."""
    empty = lake.root / "embeddings" / EMPTY_EMBEDDINGS
    if not empty.exists():
        with replaced_file(empty) as temporary:
            LAKE_TABLES["embeddings"].empty().write_parquet(temporary)
    for view in views(lake.root):
        connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")
        _comment(connection, "VIEW", view.name, view.comment, view.columns)


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
        keys = pl.DataFrame(
            {KEY_COLUMNS[name]: [getattr(key, name) for key in changed] for name in table.keys},
            schema_overrides={KEY_COLUMNS[name]: table.polars[KEY_COLUMNS[name]] for name in table.keys},
        )
        _delete(connection, table.name, keys)
    else:
        connection.execute(f"DELETE FROM {table.name}")
    if present:
        columns = ", ".join(table.names)
        connection.execute(
            f"INSERT INTO {table.name} SELECT {columns} FROM read_parquet(?, hive_partitioning = false)",
            [[str(root / key.path) for key in present]],
        )


def refresh_aggregates(connection: duckdb.DuckDBPyConnection, groups: Iterable[Group]) -> None:
    """Make the stored aggregates of some plates x model versions anew."""
    columns = ["Metadata_Plate", "model_name", "model_version"]
    wanted = pl.DataFrame(
        sorted(groups), schema=dict(zip(columns, (pl.String, pl.String, pl.Int32), strict=True)), orient="row"
    )
    for table in QC_TABLES:
        _delete(connection, table.name, wanted)
    for group in wanted.iter_rows():
        scores = connection.sql(
            f"SELECT {', '.join(INPUTS)} FROM scores WHERE Metadata_Plate = ? AND model_name = ? AND model_version = ?",
            params=list(group),
        ).to_arrow_table()
        for by in QC_GROUPS:
            _insert(connection, f"qc_by_{by}", aggregate(pl.DataFrame(scores), by))


def recorded_files(connection: duckdb.DuckDBPyConnection) -> dict[Key, str]:
    """Signature of every lake file that the database holds."""
    rows = connection.execute("SELECT path, signature FROM publication.files").fetchall()
    return {key: signature for path, signature in rows if (key := Key.of_path(path))}


def record_files(connection: duckdb.DuckDBPyConnection, files: dict[str, str]) -> None:
    """Replace the record of the lake files (path within the lake: signature) that the database holds."""
    connection.execute("DELETE FROM publication.files")
    rows = {"path": list(files), "signature": list(files.values())}
    _insert(connection, "publication.files", pl.DataFrame(rows, schema={"path": pl.String, "signature": pl.String}))


def facts(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """What the database was published from."""
    return dict(connection.execute("SELECT name, value FROM publication.facts").fetchall())


def record_facts(connection: duckdb.DuckDBPyConnection, values: dict[str, str]) -> None:
    """Replace the facts."""
    connection.execute("DELETE FROM publication.facts")
    _insert(connection, "publication.facts", pl.DataFrame(list(values.items()), schema=["name", "value"], orient="row"))


def groups_of(changed: Iterable[Key]) -> set[Group]:
    """Plates x model versions whose aggregates a change of these keys touches."""
    return {
        (key.plate, key.model_name, key.model_version)
        for key in changed
        if key.table == "scores" and key.plate and key.model_name and key.model_version is not None
    }


def _delete(connection: duckdb.DuckDBPyConnection, table: str, keys: pl.DataFrame) -> None:
    connection.register("touched_keys", keys.to_arrow())
    same = " AND ".join(f"{table}.{name} = touched_keys.{name}" for name in keys.columns)
    connection.execute(f"DELETE FROM {table} USING touched_keys WHERE {same}")
    connection.unregister("touched_keys")


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame) -> None:
    connection.register("new_rows", rows.to_arrow())
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM new_rows")
    connection.unregister("new_rows")
