"""Views that answer a biologist's questions with a small table and a verdict per row.

They cover the champion of each model name, ``plate_drift`` every version, and exclude cells of the training split. The
queries are in ``sql/``, with what they share in ``sql/macros.sql``.
"""

from __future__ import annotations

from gradcamo_assets.tables.columns import View
from gradcamo_assets.tables.summaries import SITE_DIFFERENCES, WORST_CELLS

TRUSTED_DOSES = View.from_file(
    "trusted_doses",
    "One row per compound x dose x plate of the champion: do most of its profiles certainly describe their cell?",
    {
        "verdict": "trusted: the interval is above 0.5; not trusted: below 0.5; undecided: it contains 0.5; fails the "
        "swap: it is above 0.5, but at least half of the plate's audited cells do not survive the swap; trained for: "
        "it is above 0.5, but training optimised the maps and no cell is audited"
    },
)

WELLS_TO_DROP = View.from_file(
    "wells_to_drop",
    "One row per well whose profiles should not be used, with the reason",
    {
        "n_scored": "Number of cells with a score",
        "plate_adjusted": "Median of median_adjusted over the wells of the plate",
        "deviation": "Robust z score of median_adjusted against plate_adjusted; standard deviation at least 0.01",
        "reason": "Why to drop the well: fewer than 5 scored cells, median_adjusted below 0.05, or deviation below -4",
    },
)

SITE_EFFECT = View.from_file(
    "site_effect",
    "One row per site x plate of the champion: does it differ from the other sites of the same wells?",
    {
        **{column.name: column.comment for column in SITE_DIFFERENCES.columns},
        "verdict": "higher, lower, or no clear difference: sign test over wells at 5%",
    },
)

PREVIOUS_CHAMPIONS = View.from_file(
    "aggregates.previous_champions",
    "One row per model name: its champion, and the previous champion",
    {"previous_run": "MLflow run of the previous champion", "previous_version": "Version of the previous champion"},
)

MODEL_GAIN = View.from_file(
    "model_gain",
    "One row per plate: is the champion better than its predecessor, on the cells that both scored?",
    {
        "previous_version": "Version of the previous champion",
        "n_cells": "Number of cells with a score of both versions, made from the same masks and crops",
        "on_target_before": "Fraction of these cells on target, by the previous champion",
        "on_target_now": "Fraction of these cells on target, by the champion",
        "adjusted_before": "Mean adjusted score, by the previous champion",
        "adjusted_now": "Mean adjusted score, by the champion",
        "wells_up": "Number of wells whose mean adjusted score rose",
        "wells_down": "Number of wells whose mean adjusted score fell",
        "verdict": "helped, harmed, or no clear difference: sign test over wells at 5%; helped, but trained for: the "
        "champion's training optimised the maps, so that the gain is no evidence",
    },
)

CELLS_TO_LOOK_AT = View.from_file(
    "cells_to_look_at",
    "Up to three rows per compound x dose x plate of the champion: the cells with the lowest adjusted scores",
    {column.name: column.comment for column in WORST_CELLS.columns},
)

# The values compared between plates, and the prefix of the columns of their comparison.
_DRIFT_VALUES = {"on_target_fraction": "on_target", "median_adjusted": "adjusted", "control_adjusted": "control"}

PLATE_DRIFT = View.from_file(
    "plate_drift",
    "One row per plate x model version: does it resemble the plates ingested before it?",
    {
        "earlier_plates": "Number of plates ingested before it that the version scored",
        "control_adjusted": "Median of median_adjusted over the negative control wells",
        "verdict": "differs: a deviation is over 4; by chance in 3% of cases after 8 plates, 0.4% after 20",
        **{f"{name}_before": f"Median of {value} over the earlier plates" for value, name in _DRIFT_VALUES.items()},
        **{
            f"{name}_deviation": f"Robust z score of {value} against {name}_before; standard deviation at least 0.01"
            for value, name in _DRIFT_VALUES.items()
        },
    },
)

QUESTIONS = (TRUSTED_DOSES, WELLS_TO_DROP, SITE_EFFECT, MODEL_GAIN, CELLS_TO_LOOK_AT, PLATE_DRIFT)
