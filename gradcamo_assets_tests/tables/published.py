"""Read and compare published databases."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from gradcamo_assets.tables import Lake, publish, run_sql
from gradcamo_assets.tables.queries import connect
from gradcamo_assets.tables.schema import COPIED_TABLES, INDEX_TABLES, VIEWED_TABLES


def count(database: Path) -> int:
    return run_sql(database, "SELECT count(*) FROM scores").item()


def contents(database: Path) -> dict[str, pl.DataFrame]:
    """The sorted rows of all public views and lake tables."""
    with closing(connect(database)) as connection:
        names = [name for (name,) in connection.execute("SHOW TABLES").fetchall()]
        names += [f"lake.{name}" for name in (*COPIED_TABLES, *INDEX_TABLES, *VIEWED_TABLES)]
        return {name: sort_rows(pl.DataFrame(connection.table(name).to_arrow_table())) for name in names}


def sort_rows(table: pl.DataFrame) -> pl.DataFrame:
    exact = [name for name, dtype in table.schema.items() if not dtype.is_nested() and not dtype.is_float()]
    return table.sort([*exact, *(name for name in table.columns if name.startswith("Metadata_"))])


def assert_equals_the_lake(lake: Lake, database: Path, fresh: Path) -> None:
    """Check that the database equals a newly built one, and its lake tables the lake."""
    publish(lake, fresh)
    incremental, rebuilt = contents(database), contents(fresh)
    assert set(incremental) == set(rebuilt)
    for name, table in incremental.items():
        assert_frame_equal(table, rebuilt[name], abs_tol=1e-12, rel_tol=1e-12)
        schema, _, lake_name = name.partition(".")
        if schema == "lake":
            assert_frame_equal(table, sort_rows(lake.read(lake_name)), check_exact=True)
