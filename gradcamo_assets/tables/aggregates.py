"""Aggregate scores by dose, site, well or plate, with bootstrap intervals over wells.

This module does not depend on the database.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import polars as pl

from gradcamo_assets.tables.columns import DOSE_NAMES
from gradcamo_assets.tables.schema_scores import QC_GROUPS, QC_TABLES, REGIONS
from gradcamo_assets.thresholds import THRESHOLDS

RESAMPLES = 2000

KEYS = ["model_run", "Metadata_Plate"]
_MEASURES = {table.name: list(table.schema.items()) for table in QC_TABLES}


@lru_cache(maxsize=32)
def _resampled_counts(wells: int, seed: int) -> np.ndarray:
    """Number of times each well is drawn in each resample, (resamples, wells)."""
    return np.random.default_rng(seed).multinomial(wells, np.full(wells, 1 / wells), RESAMPLES).astype(float)


def bootstrap_intervals(sums: np.ndarray, cells: np.ndarray, seed: int = 0) -> np.ndarray:
    """95% percentile bootstrap intervals of a mean over cells (Efron and Tibshirani 1993, chapter 13).

    Wells are resampled, since the cells of a well are not independent samples of its treatment. All groups use the same
    resamples, so that an interval depends on its own group only.

    Args:
        sums: sum over the cells of each well, (groups, wells); for a fraction, the number of its cells.
        cells: number of cells in the sums, (groups, wells), all above 0.
        seed: equal seeds give equal intervals.

    Returns:
        Lower and upper bound, (groups, 2); NaN if there are fewer than three wells.
    """
    groups, wells = sums.shape
    if wells < THRESHOLDS.fewest_wells:
        return np.full((groups, 2), np.nan)
    draws = _resampled_counts(wells, seed)
    return np.quantile((sums @ draws.T) / (cells @ draws.T), [0.025, 0.975], axis=1).T


def evaluated_cells(scores: pl.DataFrame) -> pl.DataFrame:
    """The cells without those of split ``train``, sorted by score so that sums do not depend on the order of rows."""
    return scores.filter(pl.col("split") != "train").sort("gradcamo", nulls_last=True)


def count_cells(cells: pl.DataFrame) -> pl.DataFrame:
    """Count ``evaluated_cells`` by plate, run, dose, site and well."""
    scored, right = pl.col("gradcamo").is_not_null(), pl.col("predicted_class") == pl.col("true_class")
    on_target, looks_at, split = pl.col("on_target"), pl.col("looks_at"), pl.col("split")
    counts = cells.group_by(*KEYS, *DOSE_NAMES, "Metadata_Site", "Metadata_Well").agg(
        n_cells=pl.len(),
        null_cells=(~scored).sum(),
        placed=(scored & on_target.is_not_null()).sum(),
        on_target=(scored & on_target).sum(),
        looked=(scored & looks_at.is_not_null()).sum(),
        **{f"looks_at_{region}": (scored & (looks_at == region)).sum() for region in REGIONS},
        **{f"judged_{name}": ((split == name) & right.is_not_null()).sum() for name in ("test", "unseen")},
        **{f"right_{name}": ((split == name) & right).sum() for name in ("test", "unseen")},
        n_adjusted=pl.col("gradcamo_adjusted").count(),
        sum_adjusted=pl.col("gradcamo_adjusted").sum(),
    )
    return counts.with_columns(pl.col(pl.UInt32).cast(pl.Int64)).sort("Metadata_Well", "Metadata_Site", *DOSE_NAMES)


def aggregate(cells: pl.DataFrame, counts: pl.DataFrame, by: str) -> pl.DataFrame:
    """Compute the rows of ``qc_by_<by>``.

    Args:
        cells: from ``evaluated_cells``.
        counts: from ``count_cells``.
        by: ``dose``, ``site``, ``dose_site``, ``well`` or ``plate``.

    Returns:
        One row per group x MLflow run x plate, sorted. Cells without a score are included in ``n_cells`` and
        ``null_cells`` only.
    """
    groups = [*(column.name for column in QC_GROUPS[by]), *KEYS]
    score = pl.col("gradcamo")
    rows = counts.group_by(groups).agg(
        pl.col("n_cells", "null_cells", "placed", "looked").sum(),
        n_wells=pl.col("Metadata_Well").n_unique(),
        on_target_fraction=_fraction("on_target", "placed"),
        mean_adjusted=_fraction("sum_adjusted", "n_adjusted"),
        **{f"looks_at_{region}": _fraction(f"looks_at_{region}", "looked") for region in REGIONS},
    )
    values = cells.group_by(groups).agg(
        median_gradcamo=_quantile(score, 0.5),
        mean_gradcamo=score.mean(),
        q25_gradcamo=_quantile(score, 0.25),
        q75_gradcamo=_quantile(score, 0.75),
        median_adjusted=pl.col("gradcamo_adjusted").median(),
    )
    on_target = _intervals(counts, groups, "on_target", "placed", ("ci_low", "ci_high"))
    adjusted = _intervals(counts, groups, "sum_adjusted", "n_adjusted", ("adjusted_low", "adjusted_high"))
    for other in (values, on_target, adjusted):
        rows = rows.join(other, on=groups, how="left", nulls_equal=True)
    schema = {name: dtype for name, dtype in _MEASURES[f"qc_by_{by}"] if name in rows.columns}
    return rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items()).sort(groups)


def _fraction(part: str, whole: str) -> pl.Expr:
    return pl.when(pl.col(whole).sum() > 0).then(pl.col(part).sum() / pl.col(whole).sum())


def _quantile(values: pl.Expr, share: float) -> pl.Expr:
    """The quantile by linear interpolation of values sorted within their group, NULLs last."""
    position = (values.count() - 1) * share
    low, high = (values.get(end.cast(pl.Int64), null_on_oob=True) for end in (position.floor(), position.ceil()))
    return pl.when(values.count() > 0).then(low + (high - low) * (position - position.floor()))


def _intervals(counts: pl.DataFrame, groups: list[str], part: str, whole: str, names: tuple[str, str]) -> pl.DataFrame:
    """The bounds, called ``names``, of the groups with at least ``THRESHOLDS.fewest_wells``."""
    wells = (
        counts.filter(pl.col(whole) > 0)
        .group_by(list(dict.fromkeys([*groups, "Metadata_Well"])))
        .agg(sums=pl.col(part).sum(), cells=pl.col(whole).sum())
        .sort("Metadata_Well")
        .group_by(groups, maintain_order=True)
        .agg("sums", "cells", n=pl.len())
        .filter(pl.col("n") >= THRESHOLDS.fewest_wells)
    )
    parts = [wells.select(groups).clear().with_columns(pl.lit(0.0).alias(name) for name in names)]
    for same_size in wells.partition_by("n"):
        sums, cells = (np.array(same_size[name].to_list(), float) for name in ("sums", "cells"))
        bounds = bootstrap_intervals(sums, cells).T
        parts.append(same_size.select(groups).with_columns(map(pl.Series, names, bounds)))
    return pl.concat(parts)
