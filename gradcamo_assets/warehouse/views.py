"""The views of the QC database: the champion's scores, model versions side by side, and what waits to be scored."""

from __future__ import annotations

import glob
from pathlib import Path

import polars as pl

from gradcamo_assets.warehouse.columns import View
from gradcamo_assets.warehouse.questions import QUESTIONS
from gradcamo_assets.warehouse.schema import LAKE_TABLES
from gradcamo_assets.warehouse.schema_scores import AUDIT, QC_TABLES, SCORES

# What a column of a view means where the view does not say it: what it means in the table it comes from.
COLUMN_COMMENTS = {
    column.name: column.comment for table in (*LAKE_TABLES.values(), *QC_TABLES, SCORES) for column in table.columns
}


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

_TRAINED_FOR = "Whether maps on the cell were rewarded in training, so that they alone are no evidence; NULL: not known"
_AUDITED = [name for name in AUDIT.polars if name not in SCORES.polars]

AUDITED_CELLS = View(
    "audited_cells",
    "One row an audited cell x model version: what the map says, and what the network answers when the cell is moved",
    f"""
    SELECT
        scores.*, {", ".join(_AUDITED)},
        coalesce(looks_at = 'target', false) AND survives_swap AS trusted,
        CASE WHEN looks_at = 'target' THEN swap_margin ELSE least(swap_margin, 0) END AS trust,
        regulariser <> 'none' AS trained_for_score
    FROM audit JOIN scores USING (Metadata_Plate, Metadata_CellID, model_name, model_version)
    LEFT JOIN models USING (model_name, model_version)
    """,
    {
        "trusted": "Whether the map looks at the cell and its class survives the swap of surroundings",
        "trust": "What trusted is the cut of, at 0: swap_margin, and never above 0 where the map looks elsewhere",
        "trained_for_score": _TRAINED_FOR,
    },
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
    ), audited AS (
        SELECT model_name, model_version, avg(trusted::INTEGER) AS trusted_fraction
        FROM audited_cells WHERE split <> 'train' GROUP BY ALL
    )
    SELECT
        model_name, model_version,
        (model_name, model_version) IN (SELECT (model_name, model_version) FROM champions) AS is_champion,
        architecture, layer, objective, swap, regulariser,
        coalesce(n_plates, 0) AS n_plates, coalesce(n_cells, 0) AS n_cells,
        accuracy_test, accuracy_unseen, median_gradcamo, median_adjusted, on_target_fraction,
        looks_at_target, looks_at_neighbour, looks_at_background, looks_at_none, coalesce(null_cells, 0) AS null_cells,
        trusted_fraction
    FROM judged FULL JOIN models USING (model_name, model_version)
    LEFT JOIN audited USING (model_name, model_version)
    """,
    {
        "is_champion": "Whether it is the champion now",
        "n_plates": "Plates it has scored",
        "accuracy_test": "Share of cells of split test whose class was predicted",
        "accuracy_unseen": "Share of cells of split unseen whose class was predicted",
        "trusted_fraction": "Share of audited cells whose map looks at the cell and whose class survives the swap",
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


AUDIT_BY_PLATE = View(
    "audit_by_plate",
    "One row a plate x model version: whether what the maps say is borne out when image and weights are changed",
    """
    WITH ranked AS (
        SELECT *,
            rank() OVER (plate_model ORDER BY gradcamo_adjusted) + count(*) OVER (same_score) / 2 AS score_rank,
            rank() OVER (plate_model ORDER BY effect_target) + count(*) OVER (same_effect) / 2 AS effect_rank
        FROM audited_cells
        WHERE gradcamo_adjusted IS NOT NULL AND effect_target IS NOT NULL
        WINDOW plate_model AS (PARTITION BY Metadata_Plate, model_name, model_version),
            same_score AS (PARTITION BY Metadata_Plate, model_name, model_version, gradcamo_adjusted),
            same_effect AS (PARTITION BY Metadata_Plate, model_name, model_version, effect_target)
    ), agreement AS (
        SELECT Metadata_Plate, model_name, model_version, corr(score_rank, effect_rank) AS score_effect_correlation
        FROM ranked GROUP BY ALL
    )
    SELECT
        Metadata_Plate, model_name, model_version, count(*) AS n_cells,
        median(logit_drop_target) AS logit_drop_target,
        median(logit_drop_neighbour) AS logit_drop_neighbour,
        median(logit_drop_background) AS logit_drop_background,
        median(effect_target) AS effect_target,
        any_value(score_effect_correlation) AS score_effect_correlation,
        median(deletion_auc) AS deletion_auc, median(insertion_auc) AS insertion_auc,
        median(randomised_adjusted) AS randomised_adjusted, median(randomised_chance) AS randomised_chance,
        median(probability_drop_swapped_surroundings) AS probability_drop_swapped_surroundings,
        median(probability_drop_swapped_target) AS probability_drop_swapped_target,
        median(probability_drop_background_only) AS probability_drop_background_only,
        avg(survives_swap::INTEGER) AS survives_swap, avg(trusted::INTEGER) AS trusted,
        any_value(trained_for_score) AS trained_for_score
    FROM audited_cells LEFT JOIN agreement USING (Metadata_Plate, model_name, model_version)
    GROUP BY ALL
    """,
    {
        "n_cells": "Cells in the sample",
        "score_effect_correlation": "Spearman's correlation of gradcamo_adjusted and effect_target over the sample",
        "trained_for_score": _TRAINED_FOR,
        "survives_swap": "Share of cells whose class survives the swap of surroundings",
        "trusted": "Share of cells whose map looks at the cell and whose class survives the swap",
        **{column.name: f"Median. {column.comment}" for column in AUDIT.columns if column.dtype == pl.Float64},
    },
)


def views(lake: Path) -> tuple[View, ...]:
    """All views, each after those it reads. The lake's path becomes absolute: a relative one depends on the reader."""
    table = LAKE_TABLES["embeddings"]
    pattern = f"{glob.escape(str(lake.absolute()))}/{table.name}/**/*.parquet".replace("'", "''")
    sql = f"SELECT {', '.join(table.polars)} FROM read_parquet('{pattern}', hive_partitioning = false)"
    embeddings = View(table.name, table.comment, sql)
    first = CHAMPIONS, CURRENT_SCORES, AUDITED_CELLS, MODEL_COMPARISON
    return *first, STALE_SCORES, AUDIT_BY_PLATE, embeddings, *QUESTIONS
