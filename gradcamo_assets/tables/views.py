"""The views of the QC database: what SQL users see of the lake and of the stored summaries.

A view on a table about models joins ``aggregates.labels``: runs that the registry no longer names are not shown. DuckDB
then reads no file of another run, and none of another plate where one is asked for.
"""

from __future__ import annotations

import polars as pl

from gradcamo_assets.tables.columns import MODEL, View
from gradcamo_assets.tables.questions import PREVIOUS_CHAMPIONS, QUESTIONS
from gradcamo_assets.tables.schema import COPIED_TABLES, VIEWED_TABLES, lake_table
from gradcamo_assets.tables.schema_scores import AUDIT, QC_TABLES, REGIONS, SCORES

# What a column of a view means where the view does not say it: what it means in the table it comes from.
COLUMN_COMMENTS = {
    column.name: column.comment
    for table in (*COPIED_TABLES.values(), *VIEWED_TABLES.values(), *QC_TABLES, SCORES)
    for column in table.columns
}
_LABELS = [column.name for column in MODEL[:2]]


def _shown(name: str, source: str, columns: tuple[str, ...]) -> str:
    """All columns, with the names and versions that the registry has today."""
    names = [f"labels.{column}" if column in _LABELS else f"{name}.{column}" for column in columns]
    return f"SELECT {', '.join(names)} FROM {source}.{name} JOIN aggregates.labels USING (model_run)"


def _view_of(name: str) -> View:
    """A lake table as users see it."""
    table = lake_table(name)
    columns = {column.name: column.comment for column in table.columns}
    labelled = "model_run" in columns and name != "models"
    return View(name, table.comment, _shown(name, "lake", tuple(columns)) if labelled else f"FROM lake.{name}", columns)


def _fields() -> View:
    table = lake_table("fields")
    flag = "coalesce(fields.qc_flag, mask_flag, verdict_flag, crop_flag) AS qc_flag"
    own = [name for name in table.polars if name not in ("qc_warning", "image_version")]
    names = [flag if name == "qc_flag" else f"fields.{name}" for name in own]
    return View(
        "fields",
        table.comment,
        # Masks of other pixels than today's say nothing of the field.
        f"""
        SELECT {", ".join(names)}, n_cells, foreground_share,
            nullif(concat_ws('; ', fields.qc_warning, verdict_warning), '') AS qc_warning
        FROM lake.fields LEFT JOIN aggregates.field_states ON {_same(table.unique, "fields", "field_states")}
            AND coalesce(field_states.image_version, '') IN ('', fields.image_version)
        """,
        {column.name: column.comment for column in (*lake_table("masks").columns, *table.columns)},
    )


def _cells() -> View:
    table = lake_table("cells")
    flag = "coalesce(cells.qc_flag, crops.qc_flag)"
    shown = {
        "qc_flag": f"if({flag} IS NULL, crops.crop_index, NULL) AS crop_index, {flag} AS qc_flag",
        "mask_version": f"cells.mask_version, if({flag} IS NULL, crops.crop_version, NULL) AS crop_version",
    }
    names = [shown.get(name, f"cells.{name}") for name in table.polars]
    keys = ("Metadata_Plate", "Metadata_Site", "Metadata_CellID", "mask_version")
    return View(
        "cells",
        table.comment,
        f"""
        SELECT {", ".join(names)}
        FROM lake.cells LEFT JOIN lake.crops ON {_same(keys, "cells", "crops")}
        """,
        {column.name: column.comment for column in (*lake_table("crops").columns, *table.columns)},
    )


def _same(names: tuple[str, ...], one: str, other: str) -> str:
    return " AND ".join(f"{one}.{name} = {other}.{name}" for name in names)


CHAMPIONS = View(
    "champions",
    "One row a model name: the version that the last move of the alias champion made champion",
    """
    SELECT model_name, to_version AS model_version, to_run AS model_run, last_move.promoted_at
    FROM (
        SELECT DISTINCT ON (model_name) * FROM lake.promotions WHERE alias = 'champion'
        ORDER BY model_name, promoted_at DESC, to_version DESC NULLS LAST
    ) AS last_move
    SEMI JOIN lake.models ON models.model_name = last_move.model_name AND models.model_run = to_run
        AND models.model_version = to_version
    """,
    {"model_version": "Version of the champion", "promoted_at": "Since when, UTC"},
)

CURRENT_SCORES = View(
    "current_scores",
    "The scores of the champion of each model name",
    f"{_shown('scores', 'lake', tuple(SCORES.polars))} WHERE is_champion",
)

_TRAINED_FOR = "Whether maps on the cell were rewarded in training, so that they alone are no evidence; NULL: not known"
_AUDITED = [name for name in AUDIT.polars if name not in SCORES.polars]

AUDITED_CELLS = View(
    "audited_cells",
    "One row an audited cell x model version: what the map says, and what the network answers when the cell is moved",
    f"""
    WITH scores AS ({_shown("audited_scores", "aggregates", tuple(SCORES.polars))})
    SELECT
        scores.*, {", ".join(_AUDITED)},
        coalesce(looks_at = 'target', false) AND survives_swap AS trusted,
        CASE WHEN looks_at = 'target' THEN swap_margin ELSE least(swap_margin, 0) END AS trust,
        regulariser <> 'none' AS trained_for_score
    FROM lake.audit JOIN scores USING (Metadata_Plate, Metadata_CellID, model_run)
    LEFT JOIN models ON {_same(("model_name", "model_version", "model_run"), "models", "scores")}
    """,
    {
        "trusted": "Whether the map looks at the cell and its class survives the swap of surroundings",
        "trust": "What trusted is the cut of, at 0: swap_margin, and never above 0 where the map looks elsewhere",
        "trained_for_score": _TRAINED_FOR,
    },
)

_SHARES = ", ".join(f"sum(looks_at_{region}) / nullif(sum(looked), 0) AS looks_at_{region}" for region in REGIONS)

MODEL_COMPARISON = View(
    "model_comparison",
    "One row a model version: accuracy and scores on cells that it was not trained on",
    f"""
    WITH judged AS (
        SELECT
            model_run, count(*) AS n_plates, sum(n_cells)::BIGINT AS n_cells, sum(null_cells)::BIGINT AS null_cells,
            sum(right_test) / nullif(sum(judged_test), 0) AS accuracy_test,
            sum(right_unseen) / nullif(sum(judged_unseen), 0) AS accuracy_unseen,
            sum(on_target) / nullif(sum(placed), 0) AS on_target_fraction, {_SHARES}
        FROM aggregates.totals GROUP BY ALL
    ), bins AS (
        -- Thousandths first: few of the values are anywhere near the middle.
        SELECT model_run, measure, floor(1000 * value) AS bin, sum(n) AS n FROM aggregates.score_values GROUP BY ALL
    ), ranked_bins AS (
        SELECT *, sum(n) OVER (PARTITION BY model_run, measure ORDER BY bin) AS up_to,
            sum(n) OVER (PARTITION BY model_run, measure) AS total
        FROM bins
    ), ranked AS (
        SELECT model_run, measure, value, total,
            up_to - bins.n + sum(found.n) OVER (PARTITION BY model_run, measure, bin ORDER BY value) AS up_to
        FROM aggregates.score_values AS found JOIN ranked_bins AS bins USING (model_run, measure)
        WHERE bin = floor(1000 * value) AND up_to >= (total + 1) // 2 AND up_to - bins.n <= total // 2
    ), middle AS (
        SELECT model_run, measure,
            (min(value) FILTER (up_to >= (total + 1) // 2) + min(value) FILTER (up_to >= total // 2 + 1)) / 2 AS value
        FROM ranked GROUP BY ALL
    ), medians AS (
        SELECT model_run, any_value(value) FILTER (measure = 'gradcamo') AS median_gradcamo,
            any_value(value) FILTER (measure = 'gradcamo_adjusted') AS median_adjusted
        FROM middle GROUP BY ALL
    ), audited AS (
        SELECT model_run, avg(trusted::INTEGER) AS trusted_fraction
        FROM audited_cells WHERE split <> 'train' GROUP BY ALL
    )
    SELECT
        model_name, model_version, model_run,
        (model_name, model_version) IN (SELECT (model_name, model_version) FROM champions) AS is_champion,
        architecture, layer, objective, swap, regulariser,
        coalesce(n_plates, 0) AS n_plates, coalesce(n_cells, 0) AS n_cells,
        accuracy_test, accuracy_unseen, median_gradcamo, median_adjusted, on_target_fraction,
        looks_at_target, looks_at_neighbour, looks_at_background, looks_at_none, coalesce(null_cells, 0) AS null_cells,
        trusted_fraction
    FROM models LEFT JOIN judged USING (model_run) LEFT JOIN medians USING (model_run)
    LEFT JOIN audited USING (model_run)
    """,
    {
        "is_champion": "Whether it is the champion now",
        "n_plates": "Plates it has scored",
        "accuracy_test": "Share of cells of split test whose class was predicted",
        "accuracy_unseen": "Share of cells of split unseen whose class was predicted",
        "median_gradcamo": "Median score, to 0.001",
        "median_adjusted": "Median adjusted score, to 0.001: 0 chance, 1 the best the map allows",
        "trusted_fraction": "Share of audited cells whose map looks at the cell and whose class survives the swap",
    },
)

STALE_SCORES = View(
    "stale_scores",
    "One row a plate x site whose kept cells the champion has not scored as they are now, and why",
    """
    SELECT
        crop_versions.Metadata_Plate, crop_versions.Metadata_Site, labels.model_name, labels.model_version,
        labels.model_run, crop_versions.n AS n_cells,
        coalesce(
            unscored.reason, if(score_versions.made_from IS NULL, 'never scored by the champion', 'crops changed')
        ) AS reason
    FROM lake.crop_versions JOIN aggregates.labels ON is_champion
    LEFT JOIN lake.score_versions USING (Metadata_Plate, Metadata_Site, model_run)
    LEFT JOIN lake.unscored USING (Metadata_Plate, Metadata_Site, model_run)
    WHERE score_versions.made_from IS DISTINCT FROM crop_versions.version
        AND (crop_versions.n > 0 OR score_versions.n > 0)
    """,
    {
        "model_version": "Version of the champion",
        "n_cells": "Kept cells of the plate x site; 0: it has none any more, but scores of some that it had",
        "reason": "never scored by the champion, crops changed, or the reason in unscored",
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
        WINDOW plate_model AS (PARTITION BY Metadata_Plate, model_run),
            same_score AS (PARTITION BY Metadata_Plate, model_run, gradcamo_adjusted),
            same_effect AS (PARTITION BY Metadata_Plate, model_run, effect_target)
    ), agreement AS (
        SELECT Metadata_Plate, model_run, corr(score_rank, effect_rank) AS score_effect_correlation
        FROM ranked GROUP BY ALL
    )
    SELECT
        Metadata_Plate, model_name, model_version, model_run, count(*) AS n_cells,
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
    FROM audited_cells LEFT JOIN agreement USING (Metadata_Plate, model_run)
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

# Each after those it reads.
VIEWS = (
    *(_view_of(name) for name in COPIED_TABLES),
    *(_view_of(name) for name in ("scores", "embeddings", "profiles", "umap")),
    _fields(),
    _cells(),
    *(View(table.name, table.comment, _shown(table.name, "aggregates", tuple(table.polars))) for table in QC_TABLES),
    CHAMPIONS,
    CURRENT_SCORES,
    AUDITED_CELLS,
    MODEL_COMPARISON,
    STALE_SCORES,
    AUDIT_BY_PLATE,
    PREVIOUS_CHAMPIONS,
    *QUESTIONS,
)
