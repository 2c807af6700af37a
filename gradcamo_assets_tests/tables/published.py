"""What a published database holds, for the tests of its publication."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
from polars.testing import assert_frame_equal

from gradcamo_assets.tables import Lake, publish, run_sql
from gradcamo_assets.tables.schema import COPIED_TABLES, INDEX_TABLES, VIEWED_TABLES


def count(database: Path) -> int:
    return run_sql(database, "SELECT count(*) FROM scores").item()


def contents(database: Path) -> dict[str, pl.DataFrame]:
    """Every view that users see, and every table of the lake, their rows in the order of what names them."""
    with duckdb.connect(database, read_only=True) as connection:
        names = [name for (name,) in connection.execute("SHOW TABLES").fetchall()]
        names += [f"lake.{name}" for name in (*COPIED_TABLES, *INDEX_TABLES, *VIEWED_TABLES)]
        return {name: in_order(pl.DataFrame(connection.table(name).to_arrow_table())) for name in names}


def in_order(table: pl.DataFrame) -> pl.DataFrame:
    exact = [name for name, dtype in table.schema.items() if not dtype.is_nested() and not dtype.is_float()]
    return table.sort([*exact, *(name for name in table.columns if name.startswith("Metadata_"))])


def assert_equals_the_lake(lake: Lake, database: Path, fresh: Path) -> None:
    """What was published step by step equals a new database, and its tables what the lake holds."""
    publish(lake, fresh)
    found, anew = contents(database), contents(fresh)
    assert set(found) == set(anew)
    for name, table in found.items():
        assert_frame_equal(table, anew[name], abs_tol=1e-12, rel_tol=1e-12)
        schema, _, lake_name = name.partition(".")
        if schema == "lake":
            assert_frame_equal(table, in_order(lake.read(lake_name)), check_exact=True)
