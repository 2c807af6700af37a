"""The QC aggregates: how far the scores of a dose, site or well can be trusted, with intervals over wells.

Nothing here knows the database.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import polars as pl

from gradcamo_assets.warehouse.schema_scores import QC_GROUPS, REGIONS
from gradcamo_assets.warehouse.summaries import QC_SUMMARIES

RESAMPLES = 2000
MIN_WELLS = 3

_SCHEMAS = {table.name: table.polars for table in QC_SUMMARIES}


@lru_cache(maxsize=32)
def _draws(wells: int, seed: int) -> np.ndarray:
    """How often each well is drawn in each resample, resamples x wells."""
    return np.random.default_rng(seed).multinomial(wells, np.full(wells, 1 / wells), RESAMPLES).astype(float)


def bootstrap_intervals(hits: np.ndarray, cells: np.ndarray, seed: int = 0) -> np.ndarray:
    """95% percentile intervals of a share of cells, resampling wells (Efron and Tibshirani 1993, chapter 13).

    Cells of a well are no independent samples of its treatment; wells are. All groups are resampled alike, so that an
    interval depends on nothing but its own group.

    Args:
        hits: cells on target, groups x wells.
        cells: cells with a score, groups x wells, all above 0.
        seed: equal seeds give equal intervals.

    Returns:
        Lower and upper end, groups x 2; NaN below three wells.
    """
    groups, wells = hits.shape
    if wells < MIN_WELLS:
        return np.full((groups, 2), np.nan)
    draws = _draws(wells, seed)
    return np.quantile((draws @ hits.T) / (draws @ cells.T), [0.025, 0.975], axis=0).T


def aggregate(scores: pl.DataFrame, by: str) -> pl.DataFrame:
    """The rows of ``qc_by_<by>`` for some scores.

    Args:
        scores: rows of the table ``scores``, at least the columns ``NEEDED`` of ``summaries``.
        by: ``dose``, ``site``, ``dose_site``, ``well`` or ``plate``.

    Returns:
        One row a group x MLflow run x plate, sorted; cells of split ``train`` are left out, cells without a score
        count in ``n_cells`` and ``null_cells`` only.
    """
    groups = [*(column.name for column in QC_GROUPS[by]), "model_run", "Metadata_Plate"]
    kept = scores.filter(pl.col("split") != "train")
    score = pl.col("gradcamo")
    looks = pl.col("looks_at").filter(score.is_not_null())
    rows = kept.group_by(groups).agg(
        n_cells=pl.len().cast(pl.Int64),
        n_wells=pl.col("Metadata_Well").n_unique().cast(pl.Int64),
        median_gradcamo=score.median(),
        # Sorted, since a sum of floats depends on its order.
        mean_gradcamo=score.sort().mean(),
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
    """``ci_low`` and ``ci_high`` of every group that has one."""
    scored = kept.filter(pl.col("gradcamo").is_not_null() & pl.col("on_target").is_not_null())
    wells = (
        scored.group_by(list(dict.fromkeys([*groups, "Metadata_Well"])))
        .agg(hits=pl.col("on_target").sum(), cells=pl.len())
        .sort("Metadata_Well")
        .group_by(groups, maintain_order=True)
        .agg("hits", "cells", n=pl.len())
        .filter(pl.col("n") >= MIN_WELLS)
    )
    parts = [wells.select(groups).clear().with_columns(ci_low=pl.lit(0.0), ci_high=pl.lit(0.0))]
    for alike in wells.partition_by("n"):
        hits, cells = (np.array(alike[name].to_list(), float) for name in ("hits", "cells"))
        ends = bootstrap_intervals(hits, cells)
        parts.append(alike.select(groups).with_columns(ci_low=pl.lit(ends[:, 0]), ci_high=pl.lit(ends[:, 1])))
    return pl.concat(parts)
