"""What the database keeps of the scores, by plate and MLflow run, so that an answer about a whole screen reads no cell.

``refresh`` makes it anew for the plates x runs that changed. Nothing here knows the database.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from gradcamo_assets.tables import columns as c
from gradcamo_assets.tables.aggregates import KEYS, aggregate, counts, judged
from gradcamo_assets.tables.columns import DOSE_NAMES, Column, Table
from gradcamo_assets.tables.schema import lake_table
from gradcamo_assets.tables.schema_scores import QC_GROUPS, QC_TABLES, REGIONS, SCORES

# The columns of ``scores`` that summaries are made of, and those of them that are compared.
NEEDED = (
    *("model_run", "Metadata_Plate", "Metadata_Well", "Metadata_Site", *DOSE_NAMES, "Metadata_CellID"),
    *("mask_version", "crop_version", "true_class", "predicted_class", "split"),
    *("gradcamo", "gradcamo_adjusted", "on_target", "looks_at"),
)

COMPARED = (
    *("model_run", "Metadata_Plate", "Metadata_Well", "Metadata_CellID", "mask_version", "crop_version"),
    *("split", "gradcamo_adjusted", "on_target"),
)

# Below so many scores a plate, they are kept as they are for the medians of a screen; above, to three digits.
_EXACT = 2000

_KEYS = (c.MODEL[2], c.PLATE)


def _count(name: str, comment: str) -> Column:
    return Column(name, pl.Int64, comment, nullable=False)


TOTALS = Table(
    "totals",
    "One row a plate x MLflow run: how many cells, those of split train left out",
    (
        *_KEYS,
        _count("n_cells", "Cells scored"),
        _count("null_cells", "Cells of n_cells without a score"),
        *(
            column
            for split in ("test", "unseen")
            for column in (
                _count(f"judged_{split}", f"Cells of split {split} whose class is known"),
                _count(f"right_{split}", f"Cells of judged_{split} whose class was predicted"),
            )
        ),
        _count("placed", "Cells with a score of which is known whether they are on target"),
        _count("on_target", "Cells of placed that are on target"),
        _count("looked", "Cells with a score of which is known what the map looks at"),
        *(_count(f"looks_at_{region}", f"Cells of looked whose map looks at: {region}") for region in REGIONS),
    ),
)

SCORE_VALUES = Table(
    "score_values",
    "One row a value of a measure x plate x MLflow run: how often it stands there, cells of split train left out",
    (
        *_KEYS,
        Column("measure", pl.String, "gradcamo or gradcamo_adjusted", nullable=False),
        Column("value", pl.Float64, f"Its value; to 0.001 where the plate has over {_EXACT} scores", nullable=False),
        _count("n", "Cells with this value"),
    ),
)

SITE_DIFFERENCES = Table(
    "site_differences",
    "One row a site x plate x MLflow run: its cells against those at the other sites of the same wells",
    (
        *_KEYS,
        c.SITE,
        Column(
            "difference",
            pl.Float64,
            "Mean adjusted score of a well at this site less that at its other sites, median over wells",
        ),
        _count("wells_up", "Wells whose cells score higher at this site"),
        _count("wells_down", "Wells whose cells score lower at this site"),
    ),
)

WORST_CELLS = Table(
    "worst_cells",
    "Three rows a compound x dose x plate x MLflow run: the cells with the lowest adjusted scores",
    (
        *_KEYS,
        *c.DOSE,
        Column("place", pl.Int64, "1 is the lowest adjusted score of its compound x dose", nullable=False),
        c.CELL_ID,
        *c.MADE_FROM,
        Column("crop_index", pl.Int32, "Index of the cell's crop in its crop array; NULL where it is no more"),
        *(column for column in SCORES.columns if column.name in ("looks_at", "gradcamo", "gradcamo_adjusted")),
    ),
)

GAINS = Table(
    "gains",
    "One row a plate x MLflow run x run before it: the cells that both have scored, from the same masks and crops",
    (
        *_KEYS,
        Column("previous_run", pl.String, "MLflow run that it is compared with", nullable=False),
        _count("n_cells", "Cells with an adjusted score of both"),
        _count("n_wells", "Wells they lie in"),
        _count("hits_before", "Cells of them on target, by the run before"),
        _count("hits_now", "Cells of them on target, by the run"),
        Column("adjusted_before", pl.Float64, "Sum of their adjusted scores, by the run before"),
        Column("adjusted_now", pl.Float64, "Sum of their adjusted scores, by the run"),
        _count("wells_up", "Wells whose mean adjusted score rose"),
        _count("wells_down", "Wells whose mean adjusted score fell"),
    ),
)


_MASKS = {column.name: column for column in lake_table("masks").columns}
FIELD_STATES = Table(
    "field_states",
    "One row a field with masks: what is said of it after its images were taken in",
    (
        *(_MASKS[name] for name in ("Metadata_Plate", "Metadata_Well", "Metadata_Site", "image_version", "n_cells")),
        _MASKS["foreground_share"],
        Column("mask_flag", pl.String, "Why the field has no masks; NULL: it has"),
        Column("verdict_flag", pl.String, "Why no cell of the field is used; NULL: they are"),
        Column("verdict_warning", pl.String, "What to look at in a field that is used all the same"),
        Column("crop_flag", pl.String, "Why the field has no crops; NULL: it has"),
    ),
)
# The tables of the lake that it is made of, and its columns by theirs.
STATES_FROM = {
    "masks": {"image_version": "image_version", "n_cells": "n_cells", "foreground_share": "foreground_share"}
    | {"mask_flag": "qc_flag"},
    "field_verdicts": {"verdict_flag": "qc_flag", "verdict_warning": "qc_warning"},
    "field_crops": {"crop_flag": "qc_flag"},
}


def _without_labels(table: Table, **changes: str) -> Table:
    columns = tuple(column for column in table.columns if column not in c.MODEL[:2])
    return replace(table, columns=columns, **changes)  # type: ignore[arg-type]


AUDITED_SCORES = _without_labels(
    SCORES, name="audited_scores", comment="One row an audited cell x MLflow run: its scores"
)

LABELS = Table(
    "labels",
    "One row an MLflow run that the registry names: the version it is shown as",
    (
        c.MODEL[2],
        *c.MODEL[:2],
        Column("is_champion", pl.Boolean, "Whether it is the champion of its model name", nullable=False),
    ),
)

# Made of the scores of a plate x run alone.
SUMMARIES = (TOTALS, SCORE_VALUES, SITE_DIFFERENCES, WORST_CELLS, *map(_without_labels, QC_TABLES))


def summarise(scores: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The rows of all ``SUMMARIES`` by name; ``crop_index`` is left out.

    Args:
        scores: rows of ``scores`` of whole plates x runs, at least the columns ``NEEDED``.
    """
    cells = judged(scores)
    counted = counts(cells)
    return {
        "totals": counted.group_by(KEYS).agg(pl.col(column.name).sum() for column in TOTALS.columns[2:]),
        "score_values": pl.concat(_values(cells, name) for name in ("gradcamo", "gradcamo_adjusted")),
        "site_differences": _site_differences(counted),
        "worst_cells": _worst(cells),
        **{f"qc_by_{by}": aggregate(cells, counted, by) for by in QC_GROUPS},
    }


def _values(cells: pl.DataFrame, measure: str) -> pl.DataFrame:
    value = pl.col("value")
    values = cells.select(*KEYS, measure=pl.lit(measure), value=measure).drop_nulls("value")
    values = values.with_columns(pl.when(pl.len().over(KEYS) > _EXACT).then(value.round(3)).otherwise(value))
    return values.group_by(*KEYS, "measure", "value").agg(n=pl.len()).sort(*KEYS, "value")


def _site_differences(counted: pl.DataFrame) -> pl.DataFrame:
    well = [*KEYS, "Metadata_Well"]
    n, total, difference = pl.col("n_adjusted"), pl.col("sum_adjusted"), pl.col("difference")
    fields = counted.group_by(*well, "Metadata_Site", maintain_order=True).agg(n.sum(), total.sum()).filter(n > 0)
    others = (total.sum().over(well) - total) / (n.sum().over(well) - n)
    paired = fields.with_columns(difference=pl.when(pl.len().over(well) > 1).then(total / n - others))
    return paired.group_by(*KEYS, "Metadata_Site").agg(
        difference.median(), wells_up=(difference > 0).sum(), wells_down=(difference < 0).sum()
    )


def _worst(cells: pl.DataFrame) -> pl.DataFrame:
    treated, score = [*KEYS, *DOSE_NAMES], pl.col("gradcamo_adjusted")
    low = cells.filter(score.is_not_null()).filter(score.rank("min").over(treated) <= 3)
    low = low.sort("gradcamo_adjusted", "Metadata_CellID").with_columns(
        place=pl.int_range(1, pl.len() + 1).over(treated)
    )
    return low.filter(pl.col("place") <= 3).select(name for name in WORST_CELLS.polars if name != "crop_index")


def compare(scores: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """The rows of ``GAINS``, in both directions, so that a rollback has nothing to compute.

    Args:
        scores: rows of ``scores`` of both runs of each pair, at least the columns ``COMPARED``.
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
    found = wells.group_by(pairs.columns).agg(
        *(pl.col(name).sum() for name in sums), n_wells=pl.len(), wells_up=(gain > 0).sum(), wells_down=(gain < 0).sum()
    )
    # A pair without a common cell has a row too: it is known, and not asked for again.
    found = pairs.join(found, on=pairs.columns, how="left").with_columns(pl.exclude(pairs.columns).fill_null(0))
    mirror = {"model_run": "previous_run", "wells_up": "wells_down", "hits_now": "hits_before"}
    mirror |= {"adjusted_now": "adjusted_before"}
    mirrored = found.rename(mirror | {other: name for name, other in mirror.items()})
    return pl.concat([found, mirrored], how="diagonal")
