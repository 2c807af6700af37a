"""What the questions need to know of the scores, by plate and MLflow run: small tables, and the SQL that makes them.

They are stored, so that an answer about a whole screen reads no cell. ``refresh`` makes them anew for the plates x runs
that changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from gradcamo_assets.warehouse import columns as c
from gradcamo_assets.warehouse.columns import Column, Table
from gradcamo_assets.warehouse.schema_scores import QC_TABLES, REGIONS, SCORES

_KEYS = (c.MODEL[2], c.PLATE)
_KEY_NAMES = "model_run, Metadata_Plate"
_DOSE_NAMES = ", ".join(c.DOSE_NAMES)
_MADE_FROM_NAMES = ", ".join(column.name for column in c.MADE_FROM)

# The columns of ``scores`` that summaries are made of.
NEEDED = (
    *("model_run", "Metadata_Plate", "Metadata_Well", "Metadata_Site", *c.DOSE_NAMES, "Metadata_CellID"),
    *("mask_version", "crop_version", "true_class", "predicted_class", "split"),
    *("gradcamo", "gradcamo_adjusted", "on_target", "looks_at"),
)

# Below so many cells a plate, their scores are kept as they are for the medians of a screen; above, to three digits.
_EXACT_CELLS = 2000


def _count(name: str, comment: str) -> Column:
    return Column(name, pl.Int64, comment, nullable=False)


@dataclass(frozen=True)
class Summary:
    """A table, and the query that makes its rows from ``batch``: scores of some plates x runs, columns ``NEEDED``."""

    table: Table
    sql: str


_SEEN = {"test": "of split test", "unseen": "of split unseen"}
_SCORED = "gradcamo IS NOT NULL"
_JUDGED = ", ".join(
    f"count(predicted_class = true_class) FILTER (split = '{split}') AS judged_{split}, "
    f"count(*) FILTER (split = '{split}' AND predicted_class = true_class) AS right_{split}"
    for split in _SEEN
)
_LOOKS = ", ".join(f"count(*) FILTER (looks_at = '{region}' AND {_SCORED}) AS looks_at_{region}" for region in REGIONS)

TOTALS = Summary(
    Table(
        "totals",
        "One row a plate x MLflow run: how many cells, those of split train left out",
        (
            *_KEYS,
            _count("n_cells", "Cells scored"),
            _count("null_cells", "Cells of n_cells without a score"),
            *(
                column
                for split, told in _SEEN.items()
                for column in (
                    _count(f"judged_{split}", f"Cells {told} whose class is known"),
                    _count(f"right_{split}", f"Cells of judged_{split} whose class was predicted"),
                )
            ),
            _count("placed", "Cells with a score of which is known whether they are on target"),
            _count("on_target", "Cells of placed that are on target"),
            _count("looked", "Cells with a score of which is known what the map looks at"),
            *(_count(f"looks_at_{region}", f"Cells of looked whose map looks at: {region}") for region in REGIONS),
        ),
    ),
    f"""
    SELECT {_KEY_NAMES}, count(*) AS n_cells, count(*) FILTER (gradcamo IS NULL) AS null_cells, {_JUDGED},
        count(on_target) FILTER ({_SCORED}) AS placed, count(*) FILTER (on_target AND {_SCORED}) AS on_target,
        count(looks_at) FILTER ({_SCORED}) AS looked, {_LOOKS}
    FROM batch WHERE split <> 'train' GROUP BY ALL
    """,
)

SCORE_VALUES = Summary(
    Table(
        "score_values",
        "One row a value of a measure x plate x MLflow run: how often it stands there, cells of split train left out",
        (
            *_KEYS,
            Column("measure", pl.String, "gradcamo or gradcamo_adjusted", nullable=False),
            Column(
                "value",
                pl.Float64,
                f"Its value; to 0.001 where the plate has over {_EXACT_CELLS} scores",
                nullable=False,
            ),
            _count("n", "Cells with this value"),
        ),
    ),
    f"""
    WITH measured AS (
        UNPIVOT (SELECT {_KEY_NAMES}, gradcamo, gradcamo_adjusted FROM batch WHERE split <> 'train')
        ON gradcamo, gradcamo_adjusted INTO NAME measure VALUE value
    ), counted AS (SELECT *, count(*) OVER (PARTITION BY {_KEY_NAMES}, measure) AS cells FROM measured)
    SELECT {_KEY_NAMES}, measure, if(cells > {_EXACT_CELLS}, round(value, 3), value) AS value, count(*) AS n
    FROM counted GROUP BY ALL ORDER BY ALL
    """,
)

SITE_DIFFERENCES = Summary(
    Table(
        "site_differences",
        "One row a site x plate x MLflow run: its cells against those at the other sites of the same wells",
        (
            *_KEYS,
            c.SITE,
            Column(
                "difference", pl.Float64,
                "Mean adjusted score of a well at this site less that at its other sites, median over wells",
            ),
            _count("wells_up", "Wells whose cells score higher at this site"),
            _count("wells_down", "Wells whose cells score lower at this site"),
        ),
    ),
    f"""
    WITH by_field AS (
        SELECT {_KEY_NAMES}, Metadata_Well, Metadata_Site,
            sum(gradcamo_adjusted) AS total, count(gradcamo_adjusted) AS n
        FROM batch WHERE split <> 'train' GROUP BY ALL HAVING n > 0
    ), paired AS (
        SELECT *, total / n - (sum(total) OVER well - total) / nullif(sum(n) OVER well - n, 0) AS difference
        FROM by_field WINDOW well AS (PARTITION BY {_KEY_NAMES}, Metadata_Well)
    )
    SELECT {_KEY_NAMES}, Metadata_Site, median(difference) AS difference,
        count(*) FILTER (difference > 0) AS wells_up, count(*) FILTER (difference < 0) AS wells_down
    FROM paired GROUP BY ALL
    """,
)  # fmt: skip

WORST_CELLS = Summary(
    Table(
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
    ),
    # Only these columns are carried through the ranking: it is most of the cost.
    f"""
    SELECT {_KEY_NAMES}, {_DOSE_NAMES}, Metadata_CellID, {_MADE_FROM_NAMES}, looks_at, gradcamo, gradcamo_adjusted,
        row_number() OVER (
            PARTITION BY {_KEY_NAMES}, {_DOSE_NAMES} ORDER BY gradcamo_adjusted, Metadata_CellID) AS place
    FROM batch WHERE split <> 'train' AND gradcamo_adjusted IS NOT NULL QUALIFY place <= 3
    """,
)

SUMMARIES = (TOTALS, SCORE_VALUES, SITE_DIFFERENCES, WORST_CELLS)

GAINS = Summary(
    Table(
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
    ),
    # Of the table ``wanted``: the keys. Both directions, so that a rollback has nothing to compute.
    """
    WITH cells AS (SELECT * FROM batch WHERE split <> 'train' AND gradcamo_adjusted IS NOT NULL),
    by_well AS (
        SELECT
            now.Metadata_Plate, wanted.model_run, wanted.previous_run, now.Metadata_Well, count(*) AS n,
            count(*) FILTER (before.on_target) AS hits_before, count(*) FILTER (now.on_target) AS hits_now,
            sum(before.gradcamo_adjusted) AS adjusted_before, sum(now.gradcamo_adjusted) AS adjusted_now,
            sum(now.gradcamo_adjusted - before.gradcamo_adjusted) AS gain
        FROM wanted JOIN cells now USING (Metadata_Plate, model_run)
        JOIN cells before ON before.Metadata_Plate = now.Metadata_Plate AND before.model_run = previous_run
            AND before.Metadata_CellID = now.Metadata_CellID
            AND before.mask_version = now.mask_version AND before.crop_version = now.crop_version
        GROUP BY ALL
    ), by_plate AS (
        SELECT
            Metadata_Plate, model_run, previous_run, coalesce(sum(n), 0)::BIGINT AS n_cells, count(n) AS n_wells,
            coalesce(sum(hits_before), 0)::BIGINT AS hits_before, coalesce(sum(hits_now), 0)::BIGINT AS hits_now,
            sum(adjusted_before) AS adjusted_before, sum(adjusted_now) AS adjusted_now,
            count(*) FILTER (gain > 0) AS wells_up, count(*) FILTER (gain < 0) AS wells_down
        FROM wanted LEFT JOIN by_well USING (Metadata_Plate, model_run, previous_run) GROUP BY ALL
    )
    FROM by_plate UNION ALL BY NAME
    SELECT Metadata_Plate, previous_run AS model_run, model_run AS previous_run, n_cells, n_wells,
        hits_now AS hits_before, hits_before AS hits_now, adjusted_now AS adjusted_before,
        adjusted_before AS adjusted_now, wells_down AS wells_up, wells_up AS wells_down
    FROM by_plate
    """,
)

AUDITED_SCORES = Summary(
    replace(
        SCORES,
        name="audited_scores",
        comment="One row an audited cell x MLflow run: its scores",
        columns=tuple(column for column in SCORES.columns if column not in c.MODEL[:2]),
    ),
    # ``batch`` has all columns here.
    "SELECT * FROM batch SEMI JOIN lake.audit USING (Metadata_Plate, model_run, Metadata_CellID)",
)

LABELS = Table(
    "labels",
    "One row an MLflow run that the registry names: the version it is shown as",
    (
        c.MODEL[2],
        c.MODEL[0],
        c.MODEL[1],
        Column("is_champion", pl.Boolean, "Whether it is the champion of its model name", nullable=False),
    ),
)

QC_SUMMARIES = tuple(
    replace(table, columns=tuple(column for column in table.columns if column not in c.MODEL[:2]))
    for table in QC_TABLES
)

SUMMARY_TABLES = (
    *(summary.table for summary in SUMMARIES),
    GAINS.table,
    AUDITED_SCORES.table,
    *QC_SUMMARIES,
    LABELS,
)
