"""Compute the summaries of scores per plate and MLflow run that the QC database stores.

With them, queries about a whole screen need not read the rows of cells. ``refresh`` updates the plates x runs that
changed. This module does not depend on the database.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from gradcamo_assets.tables import columns as c
from gradcamo_assets.tables.aggregates import KEYS, aggregate, count_cells, evaluated_cells
from gradcamo_assets.tables.columns import DOSE_NAMES, Column, Table
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.tables.schema_scores import QC_GROUPS, QC_TABLES, REGIONS, SCORES

# The columns of ``scores`` that ``summarise`` needs, and those that ``compare_runs`` needs.
SUMMARY_COLUMNS = (
    *("model_run", "Metadata_Plate", "Metadata_Well", "Metadata_Site", *DOSE_NAMES, "Metadata_CellID"),
    *("mask_version", "crop_version", "true_class", "predicted_class", "split"),
    *("gradcamo", "gradcamo_adjusted", "on_target", "looks_at"),
)

COMPARISON_COLUMNS = (
    *("model_run", "Metadata_Plate", "Metadata_Well", "Metadata_CellID", "mask_version", "crop_version"),
    *("split", "gradcamo_adjusted", "on_target"),
)

# Scores per plate up to which score_values keeps exact values; above, it rounds them to three digits.
_MAX_EXACT_SCORES = 2000

_KEYS = (c.MODEL[2], c.PLATE)


def _count(name: str, comment: str) -> Column:
    return Column(name, pl.Int64, comment, nullable=False)


TOTALS = Table(
    "totals",
    "One row per plate x MLflow run: numbers of cells, without those of split train",
    (
        *_KEYS,
        _count("n_cells", "Number of cells"),
        _count("null_cells", "Number of the n_cells without a score"),
        *(
            column
            for split in ("test", "unseen")
            for column in (
                _count(f"judged_{split}", f"Number of cells of split {split} with a known class"),
                _count(f"right_{split}", f"Number of the judged_{split} cells whose class was predicted"),
            )
        ),
        _count("placed", "Number of cells with a score and a known on_target"),
        _count("on_target", "Number of the placed cells that are on target"),
        _count("looked", "Number of cells with a score and a known looks_at"),
        *(_count(f"looks_at_{region}", f"Number of the looked cells with looks_at {region}") for region in REGIONS),
    ),
)

SCORE_VALUES = Table(
    "score_values",
    "One row per value of a measure x plate x MLflow run: its frequency, without cells of split train",
    (
        *_KEYS,
        Column("measure", pl.String, "gradcamo or gradcamo_adjusted", nullable=False),
        Column(
            "value",
            pl.Float64,
            f"Value; to 0.001 if the plate has over {_MAX_EXACT_SCORES} scores",
            nullable=False,
        ),
        _count("n", "Number of cells with this value"),
    ),
)

SITE_DIFFERENCES = Table(
    "site_differences",
    "One row per site x plate x MLflow run: its cells compared with those at the other sites of the same wells",
    (
        *_KEYS,
        c.SITE,
        Column(
            "difference",
            pl.Float64,
            "Mean adjusted score of a well at this site minus that at its other sites, median over wells",
        ),
        _count("wells_up", "Number of wells whose cells score higher at this site"),
        _count("wells_down", "Number of wells whose cells score lower at this site"),
    ),
)

WORST_CELLS = Table(
    "worst_cells",
    "Up to three rows per compound x dose x plate x MLflow run: the cells with the lowest adjusted scores",
    (
        *_KEYS,
        *c.DOSE,
        Column("place", pl.Int64, "Rank by adjusted score within the compound x dose; 1 is the lowest", nullable=False),
        c.CELL_ID,
        *c.MADE_FROM,
        Column("crop_index", pl.Int32, "Index of the cell's crop in the crop array; NULL: the crop no longer exists"),
        *(column for column in SCORES.columns if column.name in ("looks_at", "gradcamo", "gradcamo_adjusted")),
    ),
)

GAINS = Table(
    "gains",
    "One row per plate x MLflow run x previous run: the cells that both scored, from the same masks and crops",
    (
        *_KEYS,
        Column("previous_run", pl.String, "MLflow run to compare with", nullable=False),
        _count("n_cells", "Number of cells with an adjusted score of both runs"),
        _count("n_wells", "Number of their wells"),
        _count("hits_before", "Number of these cells on target, by the previous run"),
        _count("hits_now", "Number of these cells on target, by the run"),
        Column("adjusted_before", pl.Float64, "Sum of their adjusted scores, by the previous run"),
        Column("adjusted_now", pl.Float64, "Sum of their adjusted scores, by the run"),
        _count("wells_up", "Number of wells whose mean adjusted score rose"),
        _count("wells_down", "Number of wells whose mean adjusted score fell"),
    ),
)


_MASKS = {column.name: column for column in lake_table("masks").columns}
FIELD_STATES = Table(
    "field_states",
    "One row per field with masks: results of the stages after ingestion",
    (
        *(_MASKS[name] for name in ("Metadata_Plate", "Metadata_Well", "Metadata_Site", "image_version", "n_cells")),
        _MASKS["foreground_share"],
        Column("mask_flag", pl.String, "Why the field has no masks; NULL: it has masks"),
        Column("verdict_flag", pl.String, "Why all cells of the field are excluded; NULL: they are used"),
        Column("verdict_warning", pl.String, "What to check in a field that is used"),
        Column("crop_flag", pl.String, "Why the field has no crops; NULL: it has crops"),
    ),
)
# The lake tables that FIELD_STATES is made from, with its column names and theirs.
FIELD_STATE_SOURCES = {
    "masks": {"image_version": "image_version", "n_cells": "n_cells", "foreground_share": "foreground_share"}
    | {"mask_flag": "qc_flag"},
    "field_verdicts": {"verdict_flag": "qc_flag", "verdict_warning": "qc_warning"},
    "field_crops": {"crop_flag": "qc_flag"},
}


def _without_labels(table: Table, **changes: str) -> Table:
    columns = tuple(column for column in table.columns if column not in c.MODEL[:2])
    return replace(table, columns=columns, **changes)  # type: ignore[arg-type]


AUDITED_SCORES = _without_labels(
    SCORES, name="audited_scores", comment="One row per audited cell x MLflow run: its scores"
)

LABELS = Table(
    "labels",
    "One row per MLflow run that the registry names: the version it is shown as",
    (
        c.MODEL[2],
        *c.MODEL[:2],
        Column("is_champion", pl.Boolean, "Whether it is the champion of its model name", nullable=False),
    ),
)

# Computed from the scores of one plate x run.
SUMMARIES = (TOTALS, SCORE_VALUES, SITE_DIFFERENCES, WORST_CELLS, *map(_without_labels, QC_TABLES))


def summarise(scores: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Compute the rows of all ``SUMMARIES``, by table name, without ``crop_index``.

    Args:
        scores: rows of ``scores`` of whole plates x runs, with at least the columns ``SUMMARY_COLUMNS``.
    """
    cells = evaluated_cells(scores)
    counts = count_cells(cells)
    return {
        "totals": counts.group_by(KEYS).agg(pl.col(column.name).sum() for column in TOTALS.columns[2:]),
        "score_values": pl.concat(_score_values(cells, name) for name in ("gradcamo", "gradcamo_adjusted")),
        "site_differences": _site_differences(counts),
        "worst_cells": _worst_cells(cells),
        **{f"qc_by_{by}": aggregate(cells, counts, by) for by in QC_GROUPS},
    }


def _score_values(cells: pl.DataFrame, measure: str) -> pl.DataFrame:
    value = pl.col("value")
    values = cells.select(*KEYS, measure=pl.lit(measure), value=measure).drop_nulls("value")
    values = values.with_columns(pl.when(pl.len().over(KEYS) > _MAX_EXACT_SCORES).then(value.round(3)).otherwise(value))
    return values.group_by(*KEYS, "measure", "value").agg(n=pl.len()).sort(*KEYS, "value")


def _site_differences(counts: pl.DataFrame) -> pl.DataFrame:
    well = [*KEYS, "Metadata_Well"]
    n, total, difference = pl.col("n_adjusted"), pl.col("sum_adjusted"), pl.col("difference")
    fields = counts.group_by(*well, "Metadata_Site", maintain_order=True).agg(n.sum(), total.sum()).filter(n > 0)
    others = (total.sum().over(well) - total) / (n.sum().over(well) - n)
    paired = fields.with_columns(difference=pl.when(pl.len().over(well) > 1).then(total / n - others))
    return paired.group_by(*KEYS, "Metadata_Site").agg(
        difference.median(), wells_up=(difference > 0).sum(), wells_down=(difference < 0).sum()
    )


def _worst_cells(cells: pl.DataFrame) -> pl.DataFrame:
    treated, score = [*KEYS, *DOSE_NAMES], pl.col("gradcamo_adjusted")
    low = cells.filter(score.is_not_null()).filter(score.rank("min").over(treated) <= 3)
    low = low.sort("gradcamo_adjusted", "Metadata_CellID").with_columns(
        place=pl.int_range(1, pl.len() + 1).over(treated)
    )
    return low.filter(pl.col("place") <= 3).select(name for name in WORST_CELLS.schema if name != "crop_index")


def compare_runs(scores: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Compute the rows of ``GAINS`` in both directions, so that a rollback needs no computation.

    Args:
        scores: rows of ``scores`` of both runs of each pair, with at least the columns ``COMPARISON_COLUMNS``.
        pairs: ``Metadata_Plate``, ``model_run``, ``previous_run``.
    """
    score, gain = pl.col("gradcamo_adjusted"), pl.col("gain")
    cells = scores.filter(pl.col("split") != "train", score.is_not_null()).with_columns(
        pl.col("on_target").cast(pl.Int64)
    )
    made_from = [column.name for column in c.MADE_FROM]
    compared = ["Metadata_CellID", *made_from, "on_target", "gradcamo_adjusted"]
    before = cells.select(*compared, previous_run="model_run")
    both = pairs.join(cells.select(*KEYS, "Metadata_Well", *compared), on=["Metadata_Plate", "model_run"])
    both = both.join(before, on=["Metadata_CellID", "previous_run"], suffix="_before")
    both = both.filter(pl.col(name) == pl.col(f"{name}_before") for name in made_from)
    wells = both.group_by(*pairs.columns, "Metadata_Well").agg(
        n_cells=pl.len().cast(pl.Int64),
        hits_now=pl.col("on_target").sum(),
        hits_before=pl.col("on_target_before").sum(),
        adjusted_now=score.sum(),
        adjusted_before=pl.col("gradcamo_adjusted_before").sum(),
        gain=(score - pl.col("gradcamo_adjusted_before")).sum(),
    )
    sums = [name for name in wells.columns if name.startswith(("n_", "hits_", "adjusted_"))]
    gains = wells.group_by(pairs.columns).agg(
        *(pl.col(name).sum() for name in sums), n_wells=pl.len(), wells_up=(gain > 0).sum(), wells_down=(gain < 0).sum()
    )
    # Pairs without common cells get a row too, so that they are not computed again.
    gains = pairs.join(gains, on=pairs.columns, how="left").with_columns(pl.exclude(pairs.columns).fill_null(0))
    mirror = {"model_run": "previous_run", "wells_up": "wells_down", "hits_now": "hits_before"}
    mirror |= {"adjusted_now": "adjusted_before"}
    mirrored = gains.rename(mirror | {other: name for name, other in mirror.items()})
    return pl.concat([gains, mirrored], how="diagonal")
