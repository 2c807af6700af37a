"""The views of the QC database: the champion's scores, model versions side by side, and what waits to be scored."""

from __future__ import annotations

import glob
from pathlib import Path

from gradcamo_assets.warehouse.columns import View
from gradcamo_assets.warehouse.schema import LAKE_TABLES

_NAME = "Registered model name"
_SCORES = {column.name: column.comment for column in LAKE_TABLES["scores"].columns}

CHAMPIONS = View(
    "champions",
    "One row a model name: the version that the last move of the alias champion made champion",
    {
        "model_name": _NAME,
        "model_version": "Version of the champion",
        "promoted_at": "Since when, UTC",
    },
    """
    SELECT model_name, to_version AS model_version, promoted_at
    FROM (
        SELECT *, row_number() OVER (PARTITION BY model_name ORDER BY promoted_at DESC, rowid DESC) AS age
        FROM promotions WHERE alias = 'champion'
    )
    WHERE age = 1 AND to_version IS NOT NULL
    """,
)

CURRENT_SCORES = View(
    "current_scores",
    "The scores of the champion of each model name",
    _SCORES,
    """
    SELECT scores.* FROM scores
    WHERE (model_name, model_version) IN (SELECT (model_name, model_version) FROM champions)
    """,
)

MODEL_COMPARISON = View(
    "model_comparison",
    "One row a model version: accuracy and scores on cells that it was not trained on",
    {
        "model_name": _NAME,
        "model_version": "Registered model version",
        "is_champion": "Whether it is the champion now",
        "architecture": "Encoder, by its name in the registry",
        "n_plates": "Plates it has scored",
        "n_cells": "Cells scored, those of split train left out",
        "accuracy_test": "Share of cells of split test whose class was predicted",
        "accuracy_unseen": "Share of cells of split unseen whose class was predicted",
        "median_gradcamo": "Median score",
        "median_adjusted": "Median adjusted score: 0 chance, 1 the best the map allows",
        "on_target_fraction": "Share of cells whose score exceeds the threshold",
        "looks_at_target": "Share of cells whose map looks at the cell itself",
        "looks_at_neighbour": "Share of cells whose map looks at other cells",
        "looks_at_background": "Share of cells whose map looks at the background",
        "looks_at_none": "Share of cells whose map looks at no region beyond chance",
        "null_cells": "Cells of n_cells without a score; they are in no mean",
    },
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
)

STALE_SCORES = View(
    "stale_scores",
    "One row a plate x site whose kept cells the champion has not scored as they are now, and why",
    {
        "Metadata_Plate": "Plate name",
        "Metadata_Site": "Field of view within the well, from 1",
        "model_name": _NAME,
        "model_version": "Version of the champion",
        "n_cells": "Kept cells that wait",
        "reason": "never scored by the champion, masks changed, crops changed, or the reason in unscored",
    },
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
            kept.Metadata_Plate, kept.Metadata_Site, champions.model_name, champions.model_version,
            kept.n - coalesce(sum(done.n) FILTER (
                done.mask_version = kept.mask_version AND done.crop_version = kept.crop_version), 0) AS waits,
            count(done.n) AS seen,
            count(done.n) FILTER (done.mask_version = kept.mask_version) AS same_masks,
            count(done.n) FILTER (
                done.mask_version = kept.mask_version AND done.crop_version = kept.crop_version) AS same_crops
        FROM kept CROSS JOIN champions LEFT JOIN done
            ON done.Metadata_Plate = kept.Metadata_Plate AND done.Metadata_Site = kept.Metadata_Site
            AND done.Metadata_Well = kept.Metadata_Well
            AND done.model_name = champions.model_name AND done.model_version = champions.model_version
        GROUP BY kept.Metadata_Plate, kept.Metadata_Site, kept.Metadata_Well, kept.mask_version, kept.crop_version,
                 kept.n, champions.model_name, champions.model_version
        HAVING waits > 0
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
    GROUP BY Metadata_Plate, Metadata_Site, model_name, model_version
    """,
)

EMPTY_EMBEDDINGS = "none.parquet"


def embeddings_view(lake: Path) -> View:
    """The embeddings where they lie in the lake; the path is absolute, since a relative one depends on the reader."""
    table = LAKE_TABLES["embeddings"]
    pattern = f"{glob.escape(str(lake.absolute()))}/{table.name}/**/*.parquet".replace("'", "''")
    columns = ", ".join(table.names)
    return View(
        table.name,
        table.comment,
        {column.name: column.comment for column in table.columns},
        f"SELECT {columns} FROM read_parquet('{pattern}', hive_partitioning = false)",
    )


def views(lake: Path) -> tuple[View, ...]:
    """All views, each after those it reads."""
    return CHAMPIONS, CURRENT_SCORES, MODEL_COMPARISON, STALE_SCORES, embeddings_view(lake)
