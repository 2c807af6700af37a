"""Views that answer a biologist's questions with a small table and a verdict per row.

They cover the champion of each model name, ``plate_drift`` every version, and exclude cells of the training split. The
queries are in ``sql/``, with what they share in ``sql/macros.sql``.
"""

from __future__ import annotations

from gradcamo_assets.tables.columns import View
from gradcamo_assets.tables.summaries import SITE_DIFFERENCES, WORST_CELLS
from gradcamo_assets.thresholds import THRESHOLDS

_T = THRESHOLDS
ONE_TREATMENT = "Whether each well of the plate has one treatment, so that neighbours show the treatment of the cell"
SWAP_THRESHOLD = (
    f"Least survives_swap of a plate: {_T.swap_one_treatment:g} if each well has one treatment, else {_T.swap:g}"
)

TRUSTED_DOSES = View.from_file(
    "trusted_doses",
    "One row per compound x dose x plate of the champion: do most of its profiles describe their cell?",
    {
        "verdict": "trusted: adjusted_low is above adjusted_threshold, and the plate survives the swap; not trusted: "
        "adjusted_high is below the threshold; undecided: the interval contains it; fails the swap: survives_swap is "
        f"below swap_threshold; not audited: fewer than {_T.fewest_audited} cells of the plate were tested; too few "
        f"wells: fewer than {_T.fewest_wells} with scores",
        "rule": "What decides: adjusted score and swap test, or the swap test alone if training optimised the maps",
        "adjusted_threshold": f"Threshold of the mean adjusted score: {_T.adjusted_one_treatment:g} if each well has "
        f"one treatment, else {_T.adjusted:g}",
        "survives_swap": "Fraction of the plate's audited cells whose class survives the swap of surroundings",
        "n_audited": "Number of audited cells of the plate, without those of split train",
        "swap_threshold": SWAP_THRESHOLD,
        "one_treatment_per_well": ONE_TREATMENT,
        "trained_for_score": "Whether training optimised the maps; false also if that is not known",
        "paper_verdict": f"For comparison, the rule of the paper: trusted if ci_low is above {_T.paper:g}, not trusted "
        "if ci_high is below; it decides nothing",
    },
)

WELLS_TO_DROP = View.from_file(
    "wells_to_drop",
    "One row per well whose profiles should not be used, with the reason",
    {
        "n_scored": "Number of cells with a score",
        "plate_adjusted": "Median of median_adjusted over the wells of the plate",
        "deviation": "Robust z score of median_adjusted against plate_adjusted; standard deviation at least 0.01",
        "reason": f"Why to drop the well: fewer than {_T.fewest_cells} scored cells, median_adjusted below "
        f"{_T.at_chance:g}, or deviation below -{_T.far_well:g}",
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
        "verdict": f"differs: a deviation is over {_T.far_plate:g}; by chance in 3% of cases after 8 plates, 0.4% "
        f"after 20; too few earlier plates: fewer than {_T.earlier_plates}",
        **{f"{name}_before": f"Median of {value} over the earlier plates" for value, name in _DRIFT_VALUES.items()},
        **{
            f"{name}_deviation": f"Robust z score of {value} against {name}_before; standard deviation at least 0.01"
            for value, name in _DRIFT_VALUES.items()
        },
    },
)

QUESTIONS = (TRUSTED_DOSES, WELLS_TO_DROP, SITE_EFFECT, MODEL_GAIN, CELLS_TO_LOOK_AT, PLATE_DRIFT)
