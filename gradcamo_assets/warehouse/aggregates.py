"""The QC aggregates: how far the scores of a dose, site or well can be trusted, with intervals over wells.

One plate x model version at a time, so that publishing costs what changed. Nothing here knows the database.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.common.provenance import digest
from gradcamo_assets.warehouse.schema_scores import QC_GROUPS, QC_TABLES, REGIONS

RESAMPLES = 2000
MIN_WELLS = 3

_SCHEMAS = {table.name: table.polars for table in QC_TABLES}


def bootstrap_interval(hits: np.ndarray, cells: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """95% percentile interval of a share of cells, resampling wells (Efron and Tibshirani 1993, chapter 13).

    Cells of a well are no independent samples of its treatment; wells are.

    Args:
        hits: cells on target, one value a well.
        cells: cells with a score, one value a well, all above 0.
        seed: equal seeds give equal intervals.

    Returns:
        Both ends, or None twice below three wells.
    """
    if len(cells) < MIN_WELLS:
        return None, None
    draws = np.random.default_rng(seed).integers(0, len(cells), (RESAMPLES, len(cells)))
    low, high = np.quantile(hits[draws].sum(axis=1) / cells[draws].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def aggregate(scores: pl.DataFrame, by: str) -> pl.DataFrame:
    """The rows of ``qc_by_<by>`` for some scores.

    Args:
        scores: rows of the table ``scores``.
        by: ``dose``, ``site``, ``dose_site``, ``well`` or ``plate``.

    Returns:
        One row a group x model version x plate, sorted; cells of split ``train`` are left out, cells without a score
        count in ``n_cells`` and ``null_cells`` only.
    """
    groups = [*(column.name for column in QC_GROUPS[by]), "model_name", "model_version", "Metadata_Plate"]
    kept = scores.filter(pl.col("split") != "train").sort("Metadata_CellID")
    score = pl.col("gradcamo")
    looks = pl.col("looks_at").filter(score.is_not_null())
    rows = kept.group_by(groups, maintain_order=True).agg(
        n_cells=pl.len().cast(pl.Int64),
        n_wells=pl.col("Metadata_Well").n_unique().cast(pl.Int64),
        median_gradcamo=score.median(),
        mean_gradcamo=score.mean(),
        q25_gradcamo=score.quantile(0.25, "linear"),
        q75_gradcamo=score.quantile(0.75, "linear"),
        on_target_fraction=pl.col("on_target").filter(score.is_not_null()).mean(),
        median_adjusted=pl.col("gradcamo_adjusted").median(),
        **{f"looks_at_{region}": (looks == region).mean() for region in REGIONS},
        null_cells=score.is_null().sum().cast(pl.Int64),
    )
    rows = rows.join(_intervals(kept, groups), on=groups, how="left", nulls_equal=True)
    schema = _SCHEMAS[f"qc_by_{by}"]
    return rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items()).sort(groups)


def _intervals(kept: pl.DataFrame, groups: list[str]) -> pl.DataFrame:
    """``ci_low`` and ``ci_high`` of every group. The seed is the group's own name, so that no order matters."""
    scored = kept.filter(pl.col("gradcamo").is_not_null() & pl.col("on_target").is_not_null())
    wells = (
        scored.group_by(list(dict.fromkeys([*groups, "Metadata_Well"])))
        .agg(hits=pl.col("on_target").sum(), cells=pl.len())
        .sort("Metadata_Well")
        .group_by(groups, maintain_order=True)
        .agg("hits", "cells")
    )
    ends = [
        bootstrap_interval(np.array(hits, float), np.array(cells, float), int(digest([str(part) for part in name]), 16))
        for *name, hits, cells in wells.iter_rows()
    ]
    return wells.select(groups).with_columns(
        pl.Series("ci_low", [low for low, _ in ends], dtype=pl.Float64),
        pl.Series("ci_high", [high for _, high in ends], dtype=pl.Float64),
    )
