"""Check the invariants that every published QC database must satisfy."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import duckdb

from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables.columns import Table
from gradcamo_assets.tables.database import sql_literal
from gradcamo_assets.tables.queries import connect
from gradcamo_assets.tables.schema import COPIED_TABLES, LAKE_TABLES, VIEWED_TABLES
from gradcamo_assets.tables.schema_scores import QC_GROUPS, QC_TABLES

# Description of a violation, and the rows that violate.
_FORBIDDEN_ROWS = {
    "scores whose gradcamo is outside 0 to 1": "scores WHERE NOT gradcamo BETWEEN 0 AND 1",
    "scores whose gradcamo exceeds gradcamo_max": "scores WHERE gradcamo > gradcamo_max + 1e-9",
    "scores whose three shares do not add up to 1": (
        "scores WHERE abs(gradcamo + neighbour_share + background_share - 1) > 1e-5"
    ),
    "scores whose evidence does not add up to the logit minus its bias": (
        "scores WHERE abs(evidence_target + evidence_neighbour + evidence_background - (logit - logit_bias)) "
        "> 1e-3 * greatest(1, abs(logit - logit_bias))"
    ),
    "scores that are NULL without a reason, or not NULL with a reason": (
        "scores WHERE (gradcamo IS NULL) <> (null_reason IS NOT NULL)"
    ),
    "scores of cells that are not kept": "scores SEMI JOIN flagged USING (Metadata_CellID, mask_version)",
    "cells whose Metadata_CellID is not <plate>/<well>/<site>/<label>": (
        "cells WHERE Metadata_CellID <> concat_ws('/', Metadata_Plate, Metadata_Well, Metadata_Site, label)"
    ),
}

# Tables restricted to the plates to check. Views that join tables would read the rows of all plates.
_CHECKED_TABLES = {"scores": "main.scores", "cells": "lake.cells", "crops": "lake.crops"} | {
    table.name: f"main.{table.name}" for table in QC_TABLES
}
_FLAGGED = """flagged AS (
    SELECT Metadata_CellID, mask_version FROM cells WHERE qc_flag IS NOT NULL
    UNION ALL SELECT Metadata_CellID, mask_version FROM crops WHERE qc_flag IS NOT NULL
)"""
# Embeddings are left out: they are written together with scores and slow to read.
_TABLES_WITH_UNIQUE_ROWS = (
    *COPIED_TABLES.values(),
    *(VIEWED_TABLES[name] for name in VIEWED_TABLES if name != "embeddings"),
    *QC_TABLES,
)


def find_violations(database: Path, plates: Collection[str] | None = None) -> list[str]:
    """Describe every violated invariant, with the number of rows. The list is empty for a valid database.

    Args:
        plates: check the rows of these plates and of tables without plates; None: check all rows, which reads the whole
            lake.

    Raises:
        StoreError: if the database cannot be read.
    """
    of_plates = "" if plates is None else f"WHERE Metadata_Plate IN ({', '.join(map(sql_literal, plates)) or 'NULL'})"
    parts = (f"{name} AS NOT MATERIALIZED (FROM {rows} {of_plates})" for name, rows in _CHECKED_TABLES.items())
    restricted = f"WITH {', '.join(parts)}, {_FLAGGED}"
    checks = {problem: f"{restricted} SELECT count(*) FROM {rows}" for problem, rows in _FORBIDDEN_ROWS.items()}
    for by in QC_GROUPS:
        checks[f"cells of difference between qc_by_{by} and scores"] = (
            f"{restricted} SELECT abs((SELECT coalesce(sum(n_cells), 0) FROM qc_by_{by}) - count(*)) FROM scores "
            "WHERE split <> 'train'"
        )
    for table in _TABLES_WITH_UNIQUE_ROWS:
        columns = ", ".join(table.unique)
        rows = f"FROM {_schema(table)}.{table.name} {of_plates if 'Metadata_Plate' in table.schema else ''}"
        checks[f"rows of {table.name} that share {columns} with another"] = (
            f"SELECT coalesce(sum(n), 0) FROM (SELECT count(*) AS n {rows} GROUP BY {columns} HAVING n > 1)"
        )
    with closing(connect(database)) as connection:
        try:
            counts = {problem: connection.execute(sql).fetchall()[0][0] for problem, sql in checks.items()}
        except duckdb.Error as error:
            raise StoreError(
                f"the QC database cannot be checked: {error}",
                "Materialise the partition of the damaged file again.",
                path=database,
            ) from error
    return [f"{count} {problem}" for problem, count in counts.items() if count]


def _schema(table: Table) -> str:
    return "lake" if table.name in LAKE_TABLES else "main"
