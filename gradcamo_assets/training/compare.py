"""Compare model versions on held-out cells: accuracy and Grad-CAMO, with confidence intervals over wells."""

from __future__ import annotations

import io
from collections.abc import Mapping

import polars as pl

from gradcamo_assets.tables import Lake
from gradcamo_assets.tables.aggregates import bootstrap_intervals
from gradcamo_assets.training.model_registry import ModelRegistry, ModelVersion
from gradcamo_assets.training.training_run import CELLS

_COLUMNS = (
    "Metadata_CellID", "Metadata_Plate", "Metadata_Well", "mask_version", "split", "true_class", "predicted_class",
    "gradcamo_adjusted", "on_target",
)  # fmt: skip
_WELL = ["Metadata_Plate", "Metadata_Well"]
MEASURES = {
    "accuracy": (pl.col("predicted_class") == pl.col("true_class")).cast(pl.Float64),
    "on_target_fraction": pl.col("on_target").cast(pl.Float64),
    "gradcamo_adjusted": pl.col("gradcamo_adjusted"),
}
"""The compared measures; each is a mean over cells."""
_SUMMARY_SCHEMA: dict[str, type[pl.DataType]] = {
    "model_version": pl.Int64,
    "part": pl.String,
    "n_cells": pl.Int64,
    "n_wells": pl.Int64,
    **{f"{measure}{end}": pl.Float64 for measure in MEASURES for end in ("", "_low", "_high")},
}
_DIFFERENCE_SCHEMA: dict[str, type[pl.DataType]] = {
    "model_version": pl.Int64,
    "measure": pl.String,
    "n_cells": pl.Int64,
    "n_wells": pl.Int64,
    **dict.fromkeys(["difference", "low", "high"], pl.Float64),
}


def held_out_cells(lake: Lake, registry: ModelRegistry, version: ModelVersion) -> pl.DataFrame:
    """Return a version's results on test wells and unseen plates, one row per cell.

    They come from the scores in the lake. A version that was never champion has no scores there; its results come from
    the table logged with its training.
    """
    scores = lake.scan("scores", model_run=version.run_id)
    held_out = scores.filter(pl.col("split").is_in(["test", "unseen"])).select(_COLUMNS).collect()
    logged = registry.read_artifact(version, CELLS) if held_out.is_empty() else None
    if logged is None:
        return held_out
    return pl.concat([held_out, pl.read_parquet(io.BytesIO(logged))], how="diagonal_relaxed").select(_COLUMNS)


def summarise_versions(cells: Mapping[int, pl.DataFrame]) -> pl.DataFrame:
    """Return one row per version and part (``test``, ``unseen``): each measure with its 95% confidence interval.

    Args:
        cells: result of ``held_out_cells`` by version number.
    """
    rows = []
    for version, version_cells in sorted(cells.items()):
        for (part,), group in sorted(version_cells.group_by("split")):
            row = {"model_version": version, "part": part, "n_cells": len(group), "n_wells": _count_wells(group)}
            for measure, value in MEASURES.items():
                mean, low, high = mean_with_interval(group.with_columns(value=value))
                row |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
            rows.append(row)
    return pl.DataFrame(rows, _SUMMARY_SCHEMA)


def differences_from_champion(cells: Mapping[int, pl.DataFrame], champion: int) -> pl.DataFrame:
    """Compare every other version with the champion on the cells that both have, with equal masks.

    Args:
        cells: result of ``held_out_cells`` by version number.

    Returns:
        One row per version and measure: ``n_cells``, ``n_wells``, ``difference`` (mean over cells of the version's
        value minus the champion's) and its 95% confidence interval, ``low`` and ``high``. A version without a common
        cell has no row.
    """
    keys = ["Metadata_CellID", "mask_version"]
    rows = []
    for version, version_cells in sorted(cells.items()):
        if version == champion:
            continue
        for measure, value in MEASURES.items():
            champion_values = cells[champion].select(*keys, champion_value=value)
            version_values = version_cells.select(*keys, *_WELL, version_value=value)
            pairs = version_values.join(champion_values, on=keys, nulls_equal=True)
            pairs = pairs.with_columns(value=pl.col("version_value") - pl.col("champion_value")).drop_nulls("value")
            if len(pairs):
                mean, low, high = mean_with_interval(pairs)
                rows.append(
                    {
                        "model_version": version,
                        "measure": measure,
                        "n_cells": len(pairs),
                        "n_wells": _count_wells(pairs),
                        "difference": mean,
                        "low": low,
                        "high": high,
                    }
                )
    return pl.DataFrame(rows, _DIFFERENCE_SCHEMA)


def mean_with_interval(cells: pl.DataFrame) -> tuple[float | None, float | None, float | None]:
    """Return the mean of ``value`` over cells and its 95% confidence interval over wells.

    Cells without a value are ignored. The interval is None for fewer than three wells. The result does not depend on
    the order of the rows.
    """
    wells = cells.drop_nulls("value").group_by(_WELL).agg(pl.col("value").sum(), n=pl.len()).sort(_WELL)
    if wells.is_empty():
        return None, None, None
    total, n = wells["value"].to_numpy(), wells["n"].to_numpy().astype(float)
    low, high = pl.Series(bootstrap_intervals(total[None], n[None])[0]).fill_nan(None)
    return float(total.sum() / n.sum()), low, high


def _count_wells(cells: pl.DataFrame) -> int:
    return cells.select(_WELL).n_unique()
