"""Add the columns of an asset's table to its page in the Dagster UI."""

from __future__ import annotations

import dagster as dg

from gradcamo_assets.tables import LAKE_TABLES

# Assets whose lake table has another name.
_TABLE_OF_ASSET = {"plate_images": "fields", "trained_model": "models", "gradcamo_scores": "scores"}


def add_column_schema(spec: dg.AssetSpec) -> dg.AssetSpec:
    """Return the asset with the names, types and comments of its table's columns as metadata."""
    asset = spec.key.to_user_string()
    table = LAKE_TABLES.get(_TABLE_OF_ASSET.get(asset, asset))
    if table is None:
        return spec
    columns = [
        dg.TableColumn(
            column.name,
            str(column.dtype).split("(")[0],
            column.comment,
            dg.TableColumnConstraints(nullable=column.nullable),
        )
        for column in table.columns
    ]
    return spec.merge_attributes(metadata={"dagster/column_schema": dg.TableSchema(columns)})
