"""What a published database holds, for the tests of its publication."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from gradcamo_assets.warehouse import Lake, connect, publish, run_sql
from gradcamo_assets.warehouse.schema import COPIED_TABLES
from gradcamo_assets.warehouse.schema_scores import QC_TABLES


def count(database: Path) -> int:
    return run_sql(database, "SELECT count(*) FROM scores").item()


STORED = (*COPIED_TABLES, *(table.name for table in QC_TABLES))


def contents(database: Path) -> dict[str, pl.DataFrame]:
    names = (*STORED, "stale_scores", "model_comparison", "current_scores")
    with connect(database) as connection:
        return {name: pl.DataFrame(connection.table(name).to_arrow_table()) for name in names}


def assert_equals_the_lake(lake: Lake, database: Path, fresh: Path) -> None:
    """What was published step by step equals a new database, and its tables the lake's files."""
    publish(lake, fresh)
    anew = contents(fresh)
    for name, table in contents(database).items():
        assert_frame_equal(table, anew[name], abs_tol=1e-12, rel_tol=1e-12, check_row_order=False)
        if name in COPIED_TABLES:
            order = list(COPIED_TABLES[name].unique)
            assert_frame_equal(table.sort(order), lake.read(name).sort(order), check_exact=True)
