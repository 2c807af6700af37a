"""The QC aggregates: how far the scores of a dose, site or well can be trusted, with intervals over wells.

Nothing here knows the database.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import polars as pl

from gradcamo_assets.tables.columns import DOSE_NAMES
from gradcamo_assets.tables.schema_scores import QC_GROUPS, QC_TABLES, REGIONS

RESAMPLES = 2000
MIN_WELLS = 3

KEYS = ["model_run", "Metadata_Plate"]
_MEASURES = {table.name: list(table.polars.items()) for table in QC_TABLES}


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
    return np.quantile((hits @ draws.T) / (cells @ draws.T), [0.025, 0.975], axis=1).T


def judged(scores: pl.DataFrame) -> pl.DataFrame:
    """The cells that count, those of split ``train`` left out, by rising score: no sum depends on the order of rows."""
    return scores.filter(pl.col("split") != "train").sort("gradcamo", nulls_last=True)


def counts(cells: pl.DataFrame) -> pl.DataFrame:
    """How many of ``judged`` cells are what, by plate, run, dose, site and well."""
    scored, right = pl.col("gradcamo").is_not_null(), pl.col("predicted_class") == pl.col("true_class")
    on_target, looks_at, split = pl.col("on_target"), pl.col("looks_at"), pl.col("split")
    found = cells.group_by(*KEYS, *DOSE_NAMES, "Metadata_Site", "Metadata_Well").agg(
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
    return found.with_columns(pl.col(pl.UInt32).cast(pl.Int64)).sort("Metadata_Well", "Metadata_Site", *DOSE_NAMES)


def aggregate(cells: pl.DataFrame, counted: pl.DataFrame, by: str) -> pl.DataFrame:
    """The rows of ``qc_by_<by>``.

    Args:
        cells: of ``judged``.
        counted: their ``counts``.
        by: ``dose``, ``site``, ``dose_site``, ``well`` or ``plate``.

    Returns:
        One row a group x MLflow run x plate, sorted; cells without a score are in ``n_cells`` and ``null_cells`` alone.
    """
    groups = [*(column.name for column in QC_GROUPS[by]), *KEYS]
    score = pl.col("gradcamo")
    rows = counted.group_by(groups).agg(
        pl.col("n_cells", "null_cells", "placed", "looked").sum(),
        n_wells=pl.col("Metadata_Well").n_unique(),
        on_target_fraction=_share("on_target", "placed"),
        **{f"looks_at_{region}": _share(f"looks_at_{region}", "looked") for region in REGIONS},
    )
    values = cells.group_by(groups).agg(
        median_gradcamo=_quantile(score, 0.5),
        mean_gradcamo=score.mean(),
        q25_gradcamo=_quantile(score, 0.25),
        q75_gradcamo=_quantile(score, 0.75),
        median_adjusted=pl.col("gradcamo_adjusted").median(),
    )
    for other in (values, _intervals(counted, groups)):
        rows = rows.join(other, on=groups, how="left", nulls_equal=True)
    schema = {name: dtype for name, dtype in _MEASURES[f"qc_by_{by}"] if name in rows.columns}
    return rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items()).sort(groups)


def _share(part: str, whole: str) -> pl.Expr:
    return pl.when(pl.col(whole).sum() > 0).then(pl.col(part).sum() / pl.col(whole).sum())


def _quantile(values: pl.Expr, share: float) -> pl.Expr:
    """By linear interpolation, of values that rise within their group, NULLs last."""
    place = (values.count() - 1) * share
    low, high = (values.get(end.cast(pl.Int64), null_on_oob=True) for end in (place.floor(), place.ceil()))
    return pl.when(values.count() > 0).then(low + (high - low) * (place - place.floor()))


def _intervals(counted: pl.DataFrame, groups: list[str]) -> pl.DataFrame:
    """``ci_low`` and ``ci_high`` of every group that has one."""
    wells = (
        counted.filter(pl.col("placed") > 0)
        .group_by(list(dict.fromkeys([*groups, "Metadata_Well"])))
        .agg(hits=pl.col("on_target").sum(), cells=pl.col("placed").sum())
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
