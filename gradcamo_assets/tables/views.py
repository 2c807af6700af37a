"""Define the views of the QC database through which SQL users see the lake and the stored summaries.

Views of tables with ``model_run`` join ``aggregates.labels``, which hides runs that the registry no longer contains.
Queries for one run or plate read the files of that run or plate only. Queries that are the same for each table are made
here; all others are in ``sql/``.
"""

from __future__ import annotations

import polars as pl

from gradcamo_assets.tables.columns import MODEL, Table, View, read_sql
from gradcamo_assets.tables.questions import ONE_TREATMENT, PREVIOUS_CHAMPIONS, QUESTIONS, SWAP_THRESHOLD
from gradcamo_assets.tables.schema import COPIED_TABLES, VIEWED_TABLES, lake_table
from gradcamo_assets.tables.schema_scores import AUDIT, QC_TABLES, SCORES
from gradcamo_assets.thresholds import THRESHOLDS

# Comments of view columns for which the view has none: those of the source tables.
COLUMN_COMMENTS = {
    column.name: column.comment
    for table in (*COPIED_TABLES.values(), *VIEWED_TABLES.values(), *QC_TABLES, SCORES)
    for column in table.columns
}
_LABELS = [column.name for column in MODEL[:2]]


def _labelled_view(name: str, table: Table, source: str) -> View:
    """The view of a table with the current model names and versions of the registry."""
    columns = [f"labels.{column}" if column in _LABELS else f"source.{column}" for column in table.schema]
    sql = f"SELECT {', '.join(columns)} FROM {source} AS source JOIN aggregates.labels USING (model_run)"
    return View(name, table.comment, sql, {column.name: column.comment for column in table.columns})


def _public_view(name: str) -> View:
    """The public view of a lake table."""
    table = lake_table(name)
    if "model_run" in table.schema and name != "models":
        return _labelled_view(name, table, f"lake.{name}")
    return View(name, table.comment, f"FROM lake.{name}", {column.name: column.comment for column in table.columns})


def _comments(*tables: str) -> dict[str, str]:
    """The comments of the columns of lake tables; those of the last table win."""
    return {column.name: column.comment for table in tables for column in lake_table(table).columns}


FIELDS = View.from_file("fields", lake_table("fields").comment, _comments("masks", "fields"))
CELLS = View.from_file("cells", lake_table("cells").comment, _comments("crops", "cells"))

CHAMPIONS = View.from_file(
    "champions",
    "One row per model name: its champion by the last move of the alias",
    {"model_version": "Version of the champion", "promoted_at": "Time of promotion, UTC"},
)

CURRENT_SCORES = View.from_file("current_scores", "The scores of the champion of each model name", {})

PLATE_DESIGNS = View.from_file(
    "aggregates.plate_designs",
    "One row per plate x MLflow run: the layout of its treatments",
    {"one_treatment_per_well": ONE_TREATMENT},
)

_TRAINED_FOR = "Whether training optimised the maps, so that the scores alone are no evidence; NULL: unknown"

AUDITED_CELLS = View.from_file(
    "audited_cells",
    "One row per audited cell x model version: its scores and its response to changes of the image",
    {
        "trusted": "Whether the map looks at the cell and the class survives the swap of surroundings",
        "trust": "swap_margin, limited to 0 if the map looks elsewhere; trusted is trust > 0",
        "trained_for_score": _TRAINED_FOR,
    },
)

MODEL_COMPARISON = View.from_file(
    "model_comparison",
    "One row per model version: accuracy and scores on cells outside the training split",
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

STALE_SCORES = View.from_file(
    "stale_scores",
    "One row per plate x site whose current crops the champion has not scored, with the reason",
    {
        "model_version": "Version of the champion",
        "n_cells": "Number of kept cells of the plate x site; 0: only scores of former cells remain",
        "reason": "never scored by the champion, crops changed, or the reason from unscored",
    },
)

AUDIT_BY_PLATE = View.from_file(
    "audit_by_plate",
    "One row per plate x model version: do its predictions come from the cells? Cells of split train are left out",
    {
        "n_cells": "Number of audited cells",
        "score_effect_correlation": "Spearman correlation of gradcamo_adjusted and effect_target over audited cells",
        "trained_for_score": _TRAINED_FOR,
        "one_treatment_per_well": ONE_TREATMENT,
        "swap_threshold": SWAP_THRESHOLD,
        "verdict": "survives the swap: survives_swap is at least swap_threshold; fails the swap: it is below; not "
        f"audited: fewer than {THRESHOLDS.fewest_audited} cells were tested",
        "survives_swap": "Fraction of cells whose class survives the swap of surroundings",
        "trusted": "Fraction of cells whose map looks at the cell and whose class survives the swap",
        **{column.name: f"Median. {column.comment}" for column in AUDIT.columns if column.dtype == pl.Float64},
    },
)

# Functions that the views call.
MACROS = read_sql("macros")

# In creation order: each view follows those it reads.
VIEWS = (
    *(_public_view(name) for name in COPIED_TABLES),
    *(_public_view(name) for name in ("scores", "embeddings", "profiles", "umap")),
    FIELDS,
    CELLS,
    *(_labelled_view(table.name, table, f"aggregates.{table.name}") for table in QC_TABLES),
    _labelled_view("aggregates.labelled_audited_scores", SCORES, "aggregates.audited_scores"),
    CHAMPIONS,
    CURRENT_SCORES,
    AUDITED_CELLS,
    MODEL_COMPARISON,
    STALE_SCORES,
    PLATE_DESIGNS,
    AUDIT_BY_PLATE,
    PREVIOUS_CHAMPIONS,
    *QUESTIONS,
)
