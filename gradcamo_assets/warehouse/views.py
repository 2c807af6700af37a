"""The views of the QC database: the champion's scores, model versions side by side, and what waits to be scored."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field
from pathlib import Path

from gradcamo_assets.warehouse.schema import LAKE_TABLES
from gradcamo_assets.warehouse.schema_scores import QC_TABLES, SCORES

# What a column of a view means where the view does not say it: what it means in the table it comes from.
COLUMN_COMMENTS = {
    column.name: column.comment for table in (*LAKE_TABLES.values(), *QC_TABLES, SCORES) for column in table.columns
}


@dataclass(frozen=True)
class View:
    """One view: its query, and a comment for every column that means something else than in ``COLUMN_COMMENTS``."""

    name: str
    comment: str
    sql: str
    columns: dict[str, str] = field(default_factory=dict)


CHAMPIONS = View(
    "champions",
    "One row a model name: the version that the last move of the alias champion made champion",
    """
    SELECT model_name, to_version AS model_version, promoted_at
    FROM (
        SELECT *, row_number() OVER (PARTITION BY model_name ORDER BY promoted_at DESC, rowid DESC) AS age
        FROM promotions WHERE alias = 'champion'
    )
    WHERE age = 1 AND to_version IS NOT NULL
    """,
    {"model_version": "Version of the champion", "promoted_at": "Since when, UTC"},
)

CURRENT_SCORES = View(
    "current_scores",
    "The scores of the champion of each model name",
    """
    SELECT scores.* FROM scores
    WHERE (model_name, model_version) IN (SELECT (model_name, model_version) FROM champions)
    """,
)

MODEL_COMPARISON = View(
    "model_comparison",
    "One row a model version: accuracy and scores on cells that it was not trained on",
    """
    WITH judged AS (
        SELECT
            model_name, model_version,
            count(DISTINCT Metadata_Plate) AS n_plates,
            count(*) AS n_cells,
            avg((predicted_class = true_class)::INTEGER) FILTER (split = 'test') AS accuracy_test,
            avg((predicted_class = true_class)::INTEGER) FILTER (split = 'unseen') AS accuracy_unseen,
            median(gradcamo) AS median_gradcamo,
            median(gradcamo_adjusted) AS median_adjusted,
            avg(on_target::INTEGER) FILTER (gradcamo IS NOT NULL) AS on_target_fraction,
            avg((looks_at = 'target')::INTEGER) FILTER (gradcamo IS NOT NULL) AS looks_at_target,
            avg((looks_at = 'neighbour')::INTEGER) FILTER (gradcamo IS NOT NULL) AS looks_at_neighbour,
            avg((looks_at = 'background')::INTEGER) FILTER (gradcamo IS NOT NULL) AS looks_at_background,
            avg((looks_at = 'none')::INTEGER) FILTER (gradcamo IS NOT NULL) AS looks_at_none,
            count(*) FILTER (gradcamo IS NULL) AS null_cells
        FROM scores WHERE split <> 'train' GROUP BY ALL
    )
    SELECT
        model_name, model_version,
        (model_name, model_version) IN (SELECT (model_name, model_version) FROM champions) AS is_champion,
        architecture,
        coalesce(n_plates, 0) AS n_plates, coalesce(n_cells, 0) AS n_cells,
        accuracy_test, accuracy_unseen, median_gradcamo, median_adjusted, on_target_fraction,
        looks_at_target, looks_at_neighbour, looks_at_background, looks_at_none, coalesce(null_cells, 0) AS null_cells
    FROM judged FULL JOIN models USING (model_name, model_version)
    """,
    {
        "is_champion": "Whether it is the champion now",
        "n_plates": "Plates it has scored",
        "accuracy_test": "Share of cells of split test whose class was predicted",
        "accuracy_unseen": "Share of cells of split unseen whose class was predicted",
    },
)

STALE_SCORES = View(
    "stale_scores",
    "One row a plate x site whose kept cells the champion has not scored as they are now, and why",
    # By field, since masks and crops are made, and replaced, field by field.
    """
    WITH kept AS (
        SELECT Metadata_Plate, Metadata_Site, Metadata_Well, mask_version, crop_version, count(*) AS n
        FROM cells WHERE qc_flag IS NULL AND crop_version IS NOT NULL GROUP BY ALL
    ), done AS (
        SELECT Metadata_Plate, Metadata_Site, Metadata_Well, model_name, model_version,
               mask_version, crop_version, count(*) AS n
        FROM current_scores GROUP BY ALL
    ), waiting AS (
        SELECT
            Metadata_Plate, Metadata_Site, Metadata_Well, model_name, model_version,
            kept.mask_version, kept.crop_version,
            any_value(kept.n) - coalesce(sum(done.n) FILTER (
                done.mask_version = kept.mask_version AND done.crop_version = kept.crop_version), 0) AS waits,
            count(done.n) AS seen,
            count(done.n) FILTER (done.mask_version = kept.mask_version) AS same_masks,
            count(done.n) FILTER (
                done.mask_version = kept.mask_version AND done.crop_version = kept.crop_version) AS same_crops
        FROM kept CROSS JOIN champions
        LEFT JOIN done USING (Metadata_Plate, Metadata_Site, Metadata_Well, model_name, model_version)
        GROUP BY ALL HAVING waits > 0
    )
    SELECT
        Metadata_Plate, Metadata_Site, model_name, model_version, sum(waits)::BIGINT AS n_cells,
        coalesce(
            any_value(unscored.reason),
            CASE
                WHEN bool_or(seen > 0 AND same_masks = 0) THEN 'masks changed'
                WHEN bool_or(seen > 0 AND same_crops = 0) THEN 'crops changed'
                ELSE 'never scored by the champion'
            END
        ) AS reason
    FROM waiting LEFT JOIN unscored USING (Metadata_Plate, Metadata_Site, model_name, model_version)
    GROUP BY ALL
    """,
    {
        "model_version": "Version of the champion",
        "n_cells": "Kept cells that wait",
        "reason": "never scored by the champion, masks changed, crops changed, or the reason in unscored",
    },
)


def views(lake: Path) -> tuple[View, ...]:
    """All views, each after those it reads. The lake's path becomes absolute: a relative one depends on the reader."""
    table = LAKE_TABLES["embeddings"]
    pattern = f"{glob.escape(str(lake.absolute()))}/{table.name}/**/*.parquet".replace("'", "''")
    sql = f"SELECT {', '.join(table.polars)} FROM read_parquet('{pattern}', hive_partitioning = false)"
    embeddings = View(table.name, table.comment, sql)
    return CHAMPIONS, CURRENT_SCORES, MODEL_COMPARISON, STALE_SCORES, embeddings
