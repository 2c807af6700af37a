"""Check masks: find cells that differ from the others, and fields whose masks are unusable.

"The others" are the cells or fields passed together; in the pipeline, those of one site of one plate, which are
available when the table is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from gradcamo_assets.settings import Amount, Count, Share, section, setting

_MIN_CELLS = 20
_MIN_FIELDS = 5


@section
class QcConfig:
    """Which cells and fields get warnings, and which are left out: section ``[segmentation_qc]``."""

    outlier: Amount = setting(
        5.0, "A cell is an outlier beyond this many robust standard deviations (1.4826 x MAD) from the median; 0: off."
    )
    drop_outliers: bool = setting(False, "Leave outliers out of the crops; otherwise they only get a warning.")
    min_probability: Share = setting(0.0, "Lowest mean cell probability of a cell; 0 keeps all.")
    max_nuclei: Count = setting(0, "Highest number of nuclei in a cell; 0 keeps all.")
    need_nucleus: bool = setting(
        True, "Leave out objects without a nucleus, mostly debris and fragments; no effect without a nucleus stain."
    )
    max_foreground: Share = setting(0.95, "Highest share of a field inside cells; masks above are unusable. 1: off.")
    max_over_split: Share = setting(0.5, "Highest share of splinters among cells; masks above are unusable. 1: off.")


def describe_outliers(cells: pl.DataFrame, config: QcConfig, channels: Sequence[str] = ()) -> pl.Series:
    """Describe how each cell differs from the others, or NULL: ``volume 12.3 x the median``.

    Volumes and intensities are compared as logarithms and may be too high or too low; solidity and cell probability may
    be too low, and the flow error too high. A measure is skipped if fewer than 20 cells have it or if it has no spread.

    Args:
        cells: with the columns of ``CELL_SCHEMA``.
        channels: names for ``mean_intensity``.
    """
    from scipy.stats import median_abs_deviation

    texts: list[list[str]] = [[] for _ in range(len(cells))]

    def compare(name: str, column: pl.Series, side: int) -> None:
        """``side``: 1 for values that may be too high, -1 for too low, 0 for logarithms on both sides."""
        value = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
        compared = value if side else np.log(np.where(value > 0, value, np.nan))
        finite = np.isfinite(compared)
        if not config.outlier or finite.sum() < _MIN_CELLS:
            return
        median = float(np.median(compared[finite]))
        spread = float(median_abs_deviation(compared[finite], scale="normal"))
        if spread <= 1e-9:
            return
        deviation = (compared - median) * side if side else np.abs(compared - median)
        for row in np.flatnonzero(finite & (deviation > config.outlier * spread)):
            if side:
                texts[row].append(f"{name} {value[row]:.2g}, the median {median:.2g}")
            else:
                texts[row].append(f"{name} {np.exp(compared[row] - median):.3g} x the median")

    compare("volume", cells["volume_voxels"], 0)
    compare("solidity", cells["solidity"], -1)
    compare("cell probability", cells["cell_probability"], -1)
    compare("flow error", cells["flow_error"], 1)
    for index in range(int(cells["mean_intensity"].list.len().max() or 0)):  # type: ignore[arg-type]
        name = channels[index] if index < len(channels) else f"channel {index + 1}"
        compare(f"{name} intensity", cells["mean_intensity"].list.get(index, null_on_oob=True), 0)
    return pl.Series("qc_flag", ["; ".join(parts) or None for parts in texts], dtype=pl.String)


def add_quality_flags(cells: pl.DataFrame, config: QcConfig, channels: Sequence[str] = ()) -> pl.DataFrame:
    """Complete ``qc_warning`` and ``qc_flag`` of the cells; existing flags stay.

    Args:
        cells: with the columns of ``CELL_SCHEMA`` and ``qc_flag``.
        channels: names for ``mean_intensity``.
    """
    warning, probability, nuclei = pl.col("qc_warning"), pl.col("cell_probability"), pl.col("n_nuclei")
    outlier = describe_outliers(cells, config, channels).alias("outlier")
    flags = [
        pl.col("qc_flag"),
        pl.when(probability < config.min_probability).then(pl.format("cell probability {}", probability.round(3))),
        pl.when((nuclei > config.max_nuclei) & bool(config.max_nuclei)).then(warning),
        pl.when((nuclei == 0) & config.need_nucleus).then(warning),
        pl.when(config.drop_outliers).then("outlier"),
    ]
    text = pl.concat_str(warning, "outlier", separator="; ", ignore_nulls=True)
    return cells.with_columns(outlier).with_columns(
        qc_flag=pl.coalesce(flags), qc_warning=pl.when(text != "").then(text)
    ).drop("outlier")  # fmt: skip


def over_split_share(cells: pl.DataFrame, median: float) -> float:
    """Share of splinters: cells that touch another and have less than a quarter of the ``median`` volume in voxels."""
    splinters = (cells["volume_voxels"] < median / 4) & (cells["nearest_neighbour_um"] == 0).fill_null(False)
    return float(splinters.mean() or 0.0)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FieldVerdict:
    """Why a field's masks are ``unusable``, or a ``warning`` about usable ones; None if there is no problem."""

    unusable: str | None
    warning: str | None


def judge_fields(
    counts: Sequence[int], foreground: Sequence[float], splinters: Sequence[float], config: QcConfig
) -> list[FieldVerdict]:
    """Judge the masks of each field in comparison with the others.

    Masks are unusable if there are no cells, if nearly the whole field is inside cells, or if most cells are splinters.
    With five fields or more, less than a fifth or more than five times the median number of cells gives a warning.

    Args:
        counts: number of cells in each field.
        foreground: share of its voxels inside cells.
        splinters: ``over_split_share`` of each field.
    """
    median = float(np.median(counts)) if len(counts) >= _MIN_FIELDS else 0.0
    verdicts = []
    for count, share, split in zip(counts, foreground, splinters, strict=True):
        unusable = warning = None
        if not count:
            unusable = "no cell was found"
        elif share > config.max_foreground:
            unusable = f"{share:.0%} of the field is inside cells"
        elif split > config.max_over_split:
            unusable = f"over-split, {split:.0%} of the cells are splinters that touch another"
        elif median and not median / 5 <= count <= median * 5:
            warning = f"{count} cells, the median of this site's fields is {median:g}"
        verdicts.append(FieldVerdict(unusable, warning))
    return verdicts
