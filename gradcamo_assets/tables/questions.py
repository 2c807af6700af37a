"""Views that answer a biologist's questions with a small table and a verdict per row.

They cover the champion of each model name, ``plate_drift`` every version, and exclude cells of the training split.
"""

from __future__ import annotations

from gradcamo_assets.tables.columns import View
from gradcamo_assets.tables.summaries import SITE_DIFFERENCES, WORST_CELLS

_KEYS = "model_name, model_version, model_run, Metadata_Plate"
_DOSE = "Metadata_Compound, Metadata_Dose, Metadata_Dose_Unit"
_MODEL = "model_name, model_version, model_run"
_CHAMPION = f"JOIN champions USING ({_MODEL})"
_MODELS = f"LEFT JOIN models USING ({_MODEL})"

# 1.4826 scales a median absolute deviation to the standard deviation of a normal distribution. The lower limit of 0.01
# keeps small differences between nearly identical wells or plates from looking large.
_ROBUST_DEVIATION = "({value} - {middle}) / greatest(1.4826 * {spread}, 0.01)"


def _sign_test(up: str, down: str) -> str:
    """SQL for ``up`` or ``down`` if a sign test over wells is significant at 5% (normal approximation)."""
    return f"""CASE
            WHEN abs(wells_up - wells_down) - 1 < 1.96 * sqrt(wells_up + wells_down) THEN 'no clear difference'
            WHEN wells_up > wells_down THEN {up} ELSE {down} END"""


TRUSTED_DOSES = View(
    "trusted_doses",
    "One row per compound x dose x plate of the champion: do most of its profiles certainly describe their cell?",
    f"""
    WITH audited AS (SELECT {_KEYS}, avg(survives_swap::INTEGER) AS survives_swap FROM audit GROUP BY ALL)
    SELECT
        {_KEYS}, {_DOSE}, n_cells, n_wells,
        median_adjusted, on_target_fraction, ci_low, ci_high,
        CASE
            WHEN ci_low IS NULL THEN 'too few wells'
            WHEN ci_high < 0.5 THEN 'not trusted'
            WHEN ci_low <= 0.5 THEN 'undecided'
            WHEN survives_swap <= 0.5 THEN 'fails the swap'
            WHEN survives_swap IS NULL AND regulariser <> 'none' THEN 'trained for'
            ELSE 'trusted'
        END AS verdict
    FROM qc_by_dose {_CHAMPION} {_MODELS} LEFT JOIN audited USING ({_KEYS})
    """,
    {
        "verdict": "trusted: the interval is above 0.5; not trusted: below 0.5; undecided: it contains 0.5; fails the "
        "swap: it is above 0.5, but at least half of the plate's audited cells do not survive the swap; trained for: "
        "it is above 0.5, but training optimised the maps and no cell is audited"
    },
)

WELLS_TO_DROP = View(
    "wells_to_drop",
    "One row per well whose profiles should not be used, with the reason",
    f"""
    WITH compared AS (
        SELECT *, n_cells - null_cells AS n_scored, median(median_adjusted) OVER plate AS plate_adjusted,
            mad(median_adjusted) OVER plate AS spread
        FROM qc_by_well {_CHAMPION} WINDOW plate AS (PARTITION BY {_KEYS})
    ), judged AS (
        SELECT *,
            {_ROBUST_DEVIATION.format(value="median_adjusted", middle="plate_adjusted", spread="spread")}
                AS deviation,
            CASE
                WHEN n_scored < 5 THEN 'fewer than 5 cells with a score'
                WHEN median_adjusted < 0.05 THEN 'no better than chance'
                WHEN deviation < -4 THEN 'far below its plate'
            END AS reason
        FROM compared
    )
    SELECT
        {_KEYS}, Metadata_Well, {_DOSE}, n_scored,
        median_adjusted, plate_adjusted, deviation, reason
    FROM judged LEFT JOIN wells USING (Metadata_Plate, Metadata_Well) WHERE reason IS NOT NULL
    """,
    {
        "n_scored": "Number of cells with a score",
        "plate_adjusted": "Median of median_adjusted over the wells of the plate",
        "deviation": "Robust z score of median_adjusted against plate_adjusted; standard deviation at least 0.01",
        "reason": "Why to drop the well: fewer than 5 scored cells, median_adjusted below 0.05, or deviation below -4",
    },
)

SITE_EFFECT = View(
    "site_effect",
    "One row per site x plate of the champion: does it differ from the other sites of the same wells?",
    f"""
    SELECT {_KEYS}, Metadata_Site, n_cells, on_target_fraction, median_adjusted, difference, wells_up, wells_down,
        {_sign_test("'higher'", "'lower'")} AS verdict
    FROM aggregates.site_differences JOIN qc_by_site USING (model_run, Metadata_Plate, Metadata_Site) {_CHAMPION}
    """,
    {
        **{column.name: column.comment for column in SITE_DIFFERENCES.columns},
        "verdict": "higher, lower, or no clear difference: sign test over wells at 5%",
    },
)

PREVIOUS_CHAMPIONS = View(
    "aggregates.previous_champions",
    "One row per model name: its champion, and the previous champion",
    f"""
    WITH held AS (
        SELECT model_name, promoted_at, 1 AS later, to_run AS previous_run, to_version AS previous_version
        FROM lake.promotions WHERE alias = 'champion'
        UNION ALL SELECT model_name, promoted_at, 0, from_run, from_version FROM lake.promotions
        WHERE alias = 'champion'
    )
    SELECT DISTINCT ON (model_name) {_MODEL}, previous_run, previous_version
    FROM held JOIN champions USING (model_name) WHERE previous_run <> model_run
    ORDER BY model_name, held.promoted_at DESC, later DESC, previous_version DESC
    """,
    {"previous_run": "MLflow run of the previous champion", "previous_version": "Version of the previous champion"},
)

_HELPED_VERDICT = "if(regulariser <> 'none', 'helped, but trained for', 'helped')"
MODEL_GAIN = View(
    "model_gain",
    "One row per plate: is the champion better than its predecessor, on the cells that both scored?",
    f"""
    SELECT
        {_KEYS}, previous_version, n_cells, n_wells,
        hits_before / n_cells AS on_target_before, hits_now / n_cells AS on_target_now,
        adjusted_before / n_cells AS adjusted_before, adjusted_now / n_cells AS adjusted_now, wells_up, wells_down,
        {_sign_test(_HELPED_VERDICT, "'harmed'")} AS verdict
    FROM aggregates.gains JOIN aggregates.previous_champions USING (model_run, previous_run) {_MODELS}
    WHERE n_cells > 0 AND previous_run IN (SELECT model_run FROM models)
    """,
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

CELLS_TO_LOOK_AT = View(
    "cells_to_look_at",
    "Up to three rows per compound x dose x plate of the champion: the cells with the lowest adjusted scores",
    f"""
    SELECT {_KEYS}, {_DOSE}, place, Metadata_CellID, crop_index, looks_at, gradcamo, gradcamo_adjusted
    FROM aggregates.worst_cells JOIN champions USING (model_run)
    """,
    {column.name: column.comment for column in WORST_CELLS.columns},
)

# The values compared between plates, and the prefix of the columns of their comparison.
_DRIFT_VALUES = {"on_target_fraction": "on_target", "median_adjusted": "adjusted", "control_adjusted": "control"}


def _for_each_drift_value(template: str) -> str:
    return ", ".join(template.format(value=value, name=name) for value, name in _DRIFT_VALUES.items())


_EARLIER = _for_each_drift_value(
    "median({value}) OVER earlier AS {name}_before, mad({value}) OVER earlier AS {name}_spread"
)
_DEVIATIONS = _for_each_drift_value(
    _ROBUST_DEVIATION.format(value="{value}", middle="{name}_before", spread="{name}_spread") + " AS {name}_deviation"
)

PLATE_DRIFT = View(
    "plate_drift",
    "One row per plate x model version: does it resemble the plates ingested before it?",
    f"""
    WITH controls AS (
        SELECT {_KEYS}, median(median_adjusted) AS control_adjusted
        FROM qc_by_well JOIN wells USING (Metadata_Plate, Metadata_Well)
        WHERE Metadata_pert_type = 'negcon' GROUP BY ALL
    ), compared AS (
        SELECT *, count(*) OVER earlier AS earlier_plates, {_EARLIER}
        FROM qc_by_plate LEFT JOIN controls USING ({_KEYS}) LEFT JOIN plates USING (Metadata_Plate)
        WINDOW earlier AS (
            PARTITION BY model_run ORDER BY ingested_at, Metadata_Plate
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ), judged AS (SELECT *, {_DEVIATIONS} FROM compared)
    SELECT
        {_MODEL}, ingested_at, Metadata_Plate, earlier_plates,
        {_for_each_drift_value("{value}, {name}_before, {name}_deviation")},
        CASE
            WHEN earlier_plates < 8 THEN 'too few earlier plates'
            WHEN greatest({_for_each_drift_value("abs({name}_deviation)")}) > 4 THEN 'differs'
            ELSE 'as before'
        END AS verdict
    FROM judged
    """,
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
