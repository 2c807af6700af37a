"""What the catalogue of the UI says about an asset beside its own words: who owns it, its columns, whence they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from gradcamo_assets.warehouse import LAKE_TABLES

_OWNERS = {
    **dict.fromkeys(("plates", "cells"), "team:imaging"),
    **dict.fromkeys(("models", "scores"), "team:machine-learning"),
    **dict.fromkeys(("profiles", "qc"), "team:screening"),
}
# The table of the lake whose rows an asset writes, where it is named otherwise.
_TABLES = {"plate_images": "fields", "trained_model": "models", "gradcamo_scores": "scores"}
# Where the columns that two tables share are taken from.
_SOURCES = {
    "cells": ("plate_images",),
    "embeddings": ("cells",),
    "gradcamo_scores": ("cells", "crops"),
    "audit": ("gradcamo_scores",),
    "profiles": ("embeddings", "cells"),
    "umap": ("embeddings", "cells"),
    "replicability": ("profiles",),
    "confounder_audit": ("profiles",),
}


def catalogued(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The asset with its group's owner, and the columns of its table as DuckDB's comments describe them."""
    schema: dict[str, Any] = {}
    if table := LAKE_TABLES.get(_table(spec.key.to_user_string())):
        columns = [
            dg.TableColumn(
                column.name,
                str(column.dtype).split("(")[0],
                column.comment,
                dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in table.columns
        ]
        schema = {"dagster/column_schema": dg.TableSchema(columns)}
    return spec.replace_attributes(owners=[_OWNERS[str(spec.group_name)]], metadata={**spec.metadata, **schema})


def column_lineage(asset: str) -> Mapping[str, dg.TableColumnLineage]:
    """Metadata for a materialization: the columns that an asset's table has from the assets before it."""
    columns: dict[str, list[dg.TableColumnDep]] = {}
    for source in _SOURCES[asset]:
        theirs = LAKE_TABLES[_table(source)].polars
        for name in LAKE_TABLES[_table(asset)].polars:
            if name in theirs and name not in columns and not name.startswith("qc_"):
                columns[name] = [dg.TableColumnDep(dg.AssetKey(source), name)]
    return {"dagster/column_lineage": dg.TableColumnLineage(columns)}


def _table(asset: str) -> str:
    return _TABLES.get(asset, asset)
