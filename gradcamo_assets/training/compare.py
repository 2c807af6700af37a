"""Model versions side by side on cells that none of them learned from: accuracy beside where they look.

Here: which rows of which version, and numbers with intervals over wells. Not here: pictures, and who asks.
"""

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
"""What is compared, each a mean over cells."""
_SIDE: dict[str, type[pl.DataType]] = {
    "model_version": pl.Int64,
    "part": pl.String,
    "n_cells": pl.Int64,
    "n_wells": pl.Int64,
    **{f"{measure}{end}": pl.Float64 for measure in MEASURES for end in ("", "_low", "_high")},
}
_PAIRED: dict[str, type[pl.DataType]] = {
    "model_version": pl.Int64,
    "measure": pl.String,
    "n_cells": pl.Int64,
    "n_wells": pl.Int64,
    **dict.fromkeys(["difference", "low", "high"], pl.Float64),
}


def held_out_cells(lake: Lake, registry: ModelRegistry, version: ModelVersion) -> pl.DataFrame:
    """Cells of test wells and unseen plates as a version sees them, a row a cell.

    They are its rows in the lake; or, of a version that was never champion, what was logged with it.
    """
    scored = lake.scan("scores", model_run=version.run_id)
    found = scored.filter(pl.col("split").is_in(["test", "unseen"])).select(_COLUMNS).collect()
    logged = registry.file(version, CELLS) if found.is_empty() else None
    if logged is None:
        return found
    return pl.concat([found, pl.read_parquet(io.BytesIO(logged))], how="diagonal_relaxed").select(_COLUMNS)


def side_by_side(cells: Mapping[int, pl.DataFrame]) -> pl.DataFrame:
    """A row a version and part (``test``, ``unseen``): each measure with the ends of its 95% interval.

    Args:
        cells: ``held_out_cells`` by version.
    """
    rows = []
    for version, found in sorted(cells.items()):
        for (part,), group in sorted(found.group_by("split")):
            row = {"model_version": version, "part": part, "n_cells": len(group), "n_wells": _wells(group)}
            for measure, value in MEASURES.items():
                mean, low, high = mean_by_wells(group.with_columns(value=value))
                row |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
            rows.append(row)
    return pl.DataFrame(rows, _SIDE)


def paired_with(cells: Mapping[int, pl.DataFrame], champion: int) -> pl.DataFrame:
    """What each other version does more than the champion on the very same cells, cut out by the same masks.

    Returns:
        A row a version and measure: ``n_cells``, ``n_wells``, ``difference`` (mean over cells of its value less the
        champion's) and the ends of its 95% interval, ``low`` and ``high``. A version without a common cell has no row.
    """
    keys = ["Metadata_CellID", "mask_version"]
    rows = []
    for version, found in sorted(cells.items()):
        if version == champion:
            continue
        for measure, value in MEASURES.items():
            mine = found.select(*keys, *_WELL, theirs=value)
            pairs = mine.join(cells[champion].select(*keys, own=value), on=keys, nulls_equal=True)
            pairs = pairs.with_columns(value=pl.col("theirs") - pl.col("own")).drop_nulls("value")
            if len(pairs):
                mean, low, high = mean_by_wells(pairs)
                rows.append(
                    {
                        "model_version": version,
                        "measure": measure,
                        "n_cells": len(pairs),
                        "n_wells": _wells(pairs),
                        "difference": mean,
                        "low": low,
                        "high": high,
                    }
                )
    return pl.DataFrame(rows, _PAIRED)


def mean_by_wells(cells: pl.DataFrame) -> tuple[float | None, float | None, float | None]:
    """Mean of ``value`` over cells, and its 95% interval over wells (None below three); cells without one are left out.

    Equal wells draw equal samples, in whatever order they come.
    """
    wells = cells.drop_nulls("value").group_by(_WELL).agg(pl.col("value").sum(), n=pl.len()).sort(_WELL)
    if wells.is_empty():
        return None, None, None
    total, n = wells["value"].to_numpy(), wells["n"].to_numpy().astype(float)
    low, high = pl.Series(bootstrap_intervals(total[None], n[None])[0]).fill_nan(None)
    return float(total.sum() / n.sum()), low, high


def _wells(cells: pl.DataFrame) -> int:
    return cells.select(_WELL).n_unique()
