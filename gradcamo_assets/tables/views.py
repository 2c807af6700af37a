"""Define the views of the QC database through which SQL users see the lake and the stored summaries.

Views of tables with ``model_run`` join ``aggregates.labels``, which hides runs that the registry no longer contains.
Queries for one run or plate read the files of that run or plate only.
"""

from __future__ import annotations

import polars as pl

from gradcamo_assets.tables.columns import MODEL, View
from gradcamo_assets.tables.questions import PREVIOUS_CHAMPIONS, QUESTIONS
from gradcamo_assets.tables.schema import COPIED_TABLES, VIEWED_TABLES, lake_table
from gradcamo_assets.tables.schema_scores import AUDIT, QC_TABLES, REGIONS, SCORES

# Comments of view columns for which the view has none: those of the source tables.
COLUMN_COMMENTS = {
    column.name: column.comment
    for table in (*COPIED_TABLES.values(), *VIEWED_TABLES.values(), *QC_TABLES, SCORES)
    for column in table.columns
}
_LABELS = [column.name for column in MODEL[:2]]


def _select_labelled(name: str, source: str, columns: tuple[str, ...]) -> str:
    """SQL that selects these columns of a table, with the current model names and versions of the registry."""
    names = [f"labels.{column}" if column in _LABELS else f"{name}.{column}" for column in columns]
    return f"SELECT {', '.join(names)} FROM {source}.{name} JOIN aggregates.labels USING (model_run)"


def _public_view(name: str) -> View:
    """The public view of a lake table."""
    table = lake_table(name)
    columns = {column.name: column.comment for column in table.columns}
    labelled = "model_run" in columns and name != "models"
    return View(
        name,
        table.comment,
        _select_labelled(name, "lake", tuple(columns)) if labelled else f"FROM lake.{name}",
        columns,
    )


def _fields_view() -> View:
    table = lake_table("fields")
    flag = "coalesce(fields.qc_flag, mask_flag, verdict_flag, crop_flag) AS qc_flag"
    shown = [name for name in table.schema if name not in ("qc_warning", "image_version")]
    names = [flag if name == "qc_flag" else f"fields.{name}" for name in shown]
    return View(
        "fields",
        table.comment,
        # Ignore the states of fields whose masks were made from other pixels than the current ones.
        f"""
        SELECT {", ".join(names)}, n_cells, foreground_share,
            nullif(concat_ws('; ', fields.qc_warning, verdict_warning), '') AS qc_warning
        FROM lake.fields LEFT JOIN aggregates.field_states ON {_columns_equal(table.unique, "fields", "field_states")}
            AND coalesce(field_states.image_version, '') IN ('', fields.image_version)
        """,
        {column.name: column.comment for column in (*lake_table("masks").columns, *table.columns)},
    )


def _cells_view() -> View:
    table = lake_table("cells")
    flag = "coalesce(cells.qc_flag, crops.qc_flag)"
    replacements = {
        "qc_flag": f"if({flag} IS NULL, crops.crop_index, NULL) AS crop_index, {flag} AS qc_flag",
        "mask_version": f"cells.mask_version, if({flag} IS NULL, crops.crop_version, NULL) AS crop_version",
    }
    names = [replacements.get(name, f"cells.{name}") for name in table.schema]
    keys = ("Metadata_Plate", "Metadata_Site", "Metadata_CellID", "mask_version")
    return View(
        "cells",
        table.comment,
        f"""
        SELECT {", ".join(names)}
        FROM lake.cells LEFT JOIN lake.crops ON {_columns_equal(keys, "cells", "crops")}
        """,
        {column.name: column.comment for column in (*lake_table("crops").columns, *table.columns)},
    )


def _columns_equal(names: tuple[str, ...], one: str, other: str) -> str:
    return " AND ".join(f"{one}.{name} = {other}.{name}" for name in names)


CHAMPIONS = View(
    "champions",
    "One row per model name: its champion by the last move of the alias",
    """
    SELECT model_name, to_version AS model_version, to_run AS model_run, last_move.promoted_at
    FROM (
        SELECT DISTINCT ON (model_name) * FROM lake.promotions WHERE alias = 'champion'
        ORDER BY model_name, promoted_at DESC, to_version DESC NULLS LAST
    ) AS last_move
    SEMI JOIN lake.models ON models.model_name = last_move.model_name AND models.model_run = to_run
        AND models.model_version = to_version
    """,
    {"model_version": "Version of the champion", "promoted_at": "Time of promotion, UTC"},
)

CURRENT_SCORES = View(
    "current_scores",
    "The scores of the champion of each model name",
    f"{_select_labelled('scores', 'lake', tuple(SCORES.schema))} WHERE is_champion",
)

_TRAINED_FOR = "Whether training optimised the maps, so that the scores alone are no evidence; NULL: unknown"
_AUDITED = [name for name in AUDIT.schema if name not in SCORES.schema]

AUDITED_CELLS = View(
    "audited_cells",
    "One row per audited cell x model version: its scores and its response to changes of the image",
    f"""
    WITH scores AS ({_select_labelled("audited_scores", "aggregates", tuple(SCORES.schema))})
    SELECT
        scores.*, {", ".join(_AUDITED)},
        coalesce(looks_at = 'target', false) AND survives_swap AS trusted,
        CASE WHEN looks_at = 'target' THEN swap_margin ELSE least(swap_margin, 0) END AS trust,
        regulariser <> 'none' AS trained_for_score
    FROM lake.audit JOIN scores USING (Metadata_Plate, Metadata_CellID, model_run)
    LEFT JOIN models ON {_columns_equal(("model_name", "model_version", "model_run"), "models", "scores")}
    """,
    {
        "trusted": "Whether the map looks at the cell and the class survives the swap of surroundings",
        "trust": "swap_margin, limited to 0 if the map looks elsewhere; trusted is trust > 0",
        "trained_for_score": _TRAINED_FOR,
    },
)

_SHARES = ", ".join(f"sum(looks_at_{region}) / nullif(sum(looked), 0) AS looks_at_{region}" for region in REGIONS)

MODEL_COMPARISON = View(
    "model_comparison",
    "One row per model version: accuracy and scores on cells outside the training split",
    f"""
    WITH judged AS (
        SELECT
            model_run, count(*) AS n_plates, sum(n_cells)::BIGINT AS n_cells, sum(null_cells)::BIGINT AS null_cells,
            sum(right_test) / nullif(sum(judged_test), 0) AS accuracy_test,
            sum(right_unseen) / nullif(sum(judged_unseen), 0) AS accuracy_unseen,
            sum(on_target) / nullif(sum(placed), 0) AS on_target_fraction, {_SHARES}
        FROM aggregates.totals GROUP BY ALL
    ), bins AS (
        -- Find the bin of width 0.001 that contains the median first: few values are left to sort.
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
        "is_champion": "Whether it is the current champion",
        "n_plates": "Number of plates it scored",
        "accuracy_test": "Accuracy on cells of split test",
        "accuracy_unseen": "Accuracy on cells of split unseen",
        "median_gradcamo": "Median score, to 0.001",
        "median_adjusted": "Median adjusted score, to 0.001; 0: chance, 1: the highest possible",
        "trusted_fraction": "Fraction of audited cells whose map looks at the cell and whose class survives the swap",
    },
)

STALE_SCORES = View(
    "stale_scores",
    "One row per plate x site whose current crops the champion has not scored, with the reason",
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
        "n_cells": "Number of kept cells of the plate x site; 0: only scores of former cells remain",
        "reason": "never scored by the champion, crops changed, or the reason from unscored",
    },
)

AUDIT_BY_PLATE = View(
    "audit_by_plate",
    "One row per plate x model version: summary of the audit",
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
        "n_cells": "Number of audited cells",
        "score_effect_correlation": "Spearman correlation of gradcamo_adjusted and effect_target over audited cells",
        "trained_for_score": _TRAINED_FOR,
        "survives_swap": "Fraction of cells whose class survives the swap of surroundings",
        "trusted": "Fraction of cells whose map looks at the cell and whose class survives the swap",
        **{column.name: f"Median. {column.comment}" for column in AUDIT.columns if column.dtype == pl.Float64},
    },
)

# In creation order: each view follows those it reads.
VIEWS = (
    *(_public_view(name) for name in COPIED_TABLES),
    *(_public_view(name) for name in ("scores", "embeddings", "profiles", "umap")),
    _fields_view(),
    _cells_view(),
    *(
        View(table.name, table.comment, _select_labelled(table.name, "aggregates", tuple(table.schema)))
        for table in QC_TABLES
    ),
    CHAMPIONS,
    CURRENT_SCORES,
    AUDITED_CELLS,
    MODEL_COMPARISON,
    STALE_SCORES,
    AUDIT_BY_PLATE,
    PREVIOUS_CHAMPIONS,
    *QUESTIONS,
)
