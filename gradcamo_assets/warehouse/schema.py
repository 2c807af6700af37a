"""The tables of the lake and of the QC database, as data. What a column means is written once, in ``schema_*``."""

from __future__ import annotations

import polars as pl

from gradcamo_assets.common.errors import StoreError
from gradcamo_assets.warehouse.columns import Column, Table
from gradcamo_assets.warehouse.schema_models import (
    CONFOUNDER_AUDIT,
    EMBEDDINGS,
    MODELS,
    PROFILES,
    PROMOTIONS,
    REPLICABILITY,
    UMAP,
    UNSCORED,
)
from gradcamo_assets.warehouse.schema_plates import CELLS, FIELDS, PLATES, WELLS
from gradcamo_assets.warehouse.schema_scores import QC_TABLES, SCORES

LAKE_TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        PLATES, WELLS, FIELDS, CELLS, MODELS, SCORES, PROMOTIONS, UNSCORED,
        EMBEDDINGS, PROFILES, UMAP, REPLICABILITY, CONFOUNDER_AUDIT,
    )
}  # fmt: skip

# Embeddings are as large as everything else together: the database reads them where they are.
COPIED_TABLES: dict[str, Table] = {name: table for name, table in LAKE_TABLES.items() if name != "embeddings"}

BOOKKEEPING = (
    Table(
        "publication.files",
        "One row a lake file that this database holds; a file that differs from its row is published next",
        (
            Column("path", pl.String, "Path within the lake", nullable=False),
            Column("signature", pl.String, "Inode, size and modification time when it was read", nullable=False),
        ),
    ),
    Table(
        "publication.facts",
        "What this database was published from",
        (
            Column("name", pl.String, "Name of the fact", nullable=False),
            Column("value", pl.String, "Its value", nullable=False),
        ),
    ),
)

DATABASE_TABLES: tuple[Table, ...] = (*COPIED_TABLES.values(), *QC_TABLES, *BOOKKEEPING)


def lake_table(name: str) -> Table:
    """The description of one lake table.

    Raises:
        StoreError: where there is no such table.
    """
    if name not in LAKE_TABLES:
        raise StoreError(f"there is no table {name!r}", f"The tables are {', '.join(LAKE_TABLES)}.")
    return LAKE_TABLES[name]
