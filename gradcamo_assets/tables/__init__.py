"""Store rows in the lake (Delta Lake), publish them as the QC database (DuckDB) and query it.

This package defines the tables and how rows are stored, published, aggregated and queried. Other packages compute the
values and pass them as polars frames.
"""

from gradcamo_assets.tables.aggregates import bootstrap_intervals
from gradcamo_assets.tables.columns import Column, Table
from gradcamo_assets.tables.invariants import find_violations
from gradcamo_assets.tables.lake import Lake, Snapshot
from gradcamo_assets.tables.output import format_table, render
from gradcamo_assets.tables.publish import (
    Publication,
    is_checked,
    is_published_from,
    mark_checked,
    needs_publication,
    publish,
    published_files,
)
from gradcamo_assets.tables.queries import connect, qc_table, run_sql
from gradcamo_assets.tables.schema import LAKE_TABLES, lake_table
from gradcamo_assets.tables.summaries import summarise

__all__ = [
    "LAKE_TABLES",
    "Column",
    "Lake",
    "Publication",
    "Snapshot",
    "Table",
    "bootstrap_intervals",
    "connect",
    "find_violations",
    "format_table",
    "is_checked",
    "is_published_from",
    "lake_table",
    "mark_checked",
    "needs_publication",
    "publish",
    "published_files",
    "qc_table",
    "render",
    "run_sql",
    "summarise",
]  # fmt: skip
