"""Numbers that must hold in every published QC database, whatever was scored."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import duckdb

from gradcamo_assets.errors import StoreError
from gradcamo_assets.tables.columns import Table
from gradcamo_assets.tables.database import quoted
from gradcamo_assets.tables.queries import connect
from gradcamo_assets.tables.schema import COPIED_TABLES, LAKE_TABLES, VIEWED_TABLES
from gradcamo_assets.tables.schema_scores import QC_GROUPS, QC_TABLES

# What is wrong, and from where the rows come that are.
_WRONG = {
    "scores whose gradcamo is outside 0 to 1": "scores WHERE NOT gradcamo BETWEEN 0 AND 1",
    "scores whose gradcamo exceeds gradcamo_max": "scores WHERE gradcamo > gradcamo_max + 1e-9",
    "scores whose three shares do not add to 1": (
        "scores WHERE abs(gradcamo + neighbour_share + background_share - 1) > 1e-5"
    ),
    "scores whose evidence does not add to the logit less its bias": (
        "scores WHERE abs(evidence_target + evidence_neighbour + evidence_background - (logit - logit_bias)) "
        "> 1e-3 * greatest(1, abs(logit - logit_bias))"
    ),
    "scores that are NULL without a reason, or have one and are not": (
        "scores WHERE (gradcamo IS NULL) <> (null_reason IS NOT NULL)"
    ),
    "scores of cells that are not kept": "scores SEMI JOIN flagged USING (Metadata_CellID, mask_version)",
    "cells whose Metadata_CellID is not <plate>/<well>/<site>/<label>": (
        "cells WHERE Metadata_CellID <> concat_ws('/', Metadata_Plate, Metadata_Well, Metadata_Site, label)"
    ),
}

# What is looked at, each for some plates: what joins tables would read those of all plates.
_ROWS = {"scores": "main.scores", "cells": "lake.cells", "crops": "lake.crops"} | {
    table.name: f"main.{table.name}" for table in QC_TABLES
}
_FLAGGED = """flagged AS (
    SELECT Metadata_CellID, mask_version FROM cells WHERE qc_flag IS NOT NULL
    UNION ALL SELECT Metadata_CellID, mask_version FROM crops WHERE qc_flag IS NOT NULL
)"""
# Embeddings are written together with scores, and are much to read.
_UNIQUE = (
    *COPIED_TABLES.values(),
    *(VIEWED_TABLES[name] for name in VIEWED_TABLES if name != "embeddings"),
    *QC_TABLES,
)


def violations(database: Path, plates: Collection[str] | None = None) -> list[str]:
    """What does not hold, one sentence each with how many rows; an empty list is what should come back.

    Args:
        plates: look at the rows of these plates, and of tables that know no plate; None: at all, which reads the lake.

    Raises:
        StoreError: where the database cannot be read.
    """
    here = "" if plates is None else f"WHERE Metadata_Plate IN ({', '.join(map(quoted, plates)) or 'NULL'})"
    parts = (f"{name} AS NOT MATERIALIZED (FROM {rows} {here})" for name, rows in _ROWS.items())
    narrowed = f"WITH {', '.join(parts)}, {_FLAGGED}"
    checks = {what: f"{narrowed} SELECT count(*) FROM {rows}" for what, rows in _WRONG.items()}
    for by in QC_GROUPS:
        checks[f"cells by which qc_by_{by} and scores differ"] = (
            f"{narrowed} SELECT abs((SELECT coalesce(sum(n_cells), 0) FROM qc_by_{by}) - count(*)) FROM scores "
            "WHERE split <> 'train'"
        )
    for table in _UNIQUE:
        columns = ", ".join(table.unique)
        rows = f"FROM {_schema(table)}.{table.name} {here if 'Metadata_Plate' in table.polars else ''}"
        checks[f"rows of {table.name} that share {columns} with another"] = (
            f"SELECT coalesce(sum(n), 0) FROM (SELECT count(*) AS n {rows} GROUP BY {columns} HAVING n > 1)"
        )
    with closing(connect(database)) as connection:
        try:
            counts = {what: connection.execute(sql).fetchall()[0][0] for what, sql in checks.items()}
        except duckdb.Error as error:
            raise StoreError(
                f"the QC database cannot be checked: {error}",
                "Make the partition anew whose file is damaged.",
                path=database,
            ) from error
    return [f"{count} {what}" for what, count in counts.items() if count]


def _schema(table: Table) -> str:
    return "lake" if table.name in LAKE_TABLES else "main"
