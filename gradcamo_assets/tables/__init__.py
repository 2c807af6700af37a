"""The warehouse: the lake (Delta Lake), the DuckDB schema, its publication, and asking it.

Here belongs what tables there are, how rows are stored, published, aggregated and queried. How the numbers in them are
computed does not: rows come in as polars frames.
"""

from gradcamo_assets.tables.aggregates import bootstrap_intervals
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.tables.invariants import violations
from gradcamo_assets.tables.lake import Lake, Snapshot
from gradcamo_assets.tables.output import as_table, render
from gradcamo_assets.tables.publish import (
    Publication,
    checked,
    needs_publication,
    publish,
    published_files,
    published_for,
)
from gradcamo_assets.tables.queries import connect, qc_table, run_sql
from gradcamo_assets.tables.schema import LAKE_TABLES, lake_table
from gradcamo_assets.tables.summaries import summarise

__all__ = [
    "LAKE_TABLES", "Column", "Lake", "Publication", "Snapshot", "Table", "as_table", "bootstrap_intervals",
    "checked", "connect", "lake_table", "needs_publication", "publish", "published_files", "published_for", "qc_table",
    "render", "run_sql", "summarise", "violations",
]  # fmt: skip
