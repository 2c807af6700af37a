"""What the catalogue of the UI says about an asset beside its own words: the columns of its table."""

from __future__ import annotations

import dagster as dg

from gradcamo_assets.tables import LAKE_TABLES

# The table of the lake whose rows an asset writes, where it is named otherwise.
_TABLES = {"plate_images": "fields", "trained_model": "models", "gradcamo_scores": "scores"}


def catalogued(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The asset with the columns of its table as DuckDB's comments describe them."""
    asset = spec.key.to_user_string()
    table = LAKE_TABLES.get(_TABLES.get(asset, asset))
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
