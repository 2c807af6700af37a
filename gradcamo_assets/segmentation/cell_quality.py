"""Can the masks be trusted? Cells that are unlike the others, and fields whose masks are of no use.

Takes frames, gives texts; "the others" are the cells or fields that are passed together (in the pipeline: one site of
one plate, which is what is known when the table is made). Not here: how cells are measured (``cells``, ``shapes``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from gradcamo_assets.settings import Amount, Count, Share, section, setting

_MAD = 1.4826
_FEW_CELLS = 20
_FEW_FIELDS = 5


@section
class QcConfig:
    """Which cells and fields are doubted, and which of the doubted ones are left out: section ``[segmentation_qc]``."""

    outlier: Amount = setting(
        5.0, "Robust standard deviations (1.4826 x MAD) from the median beyond which a cell is an outlier; 0: never."
    )
    drop_outliers: bool = setting(False, "Leave outliers out of the crops; they are only warned of otherwise.")
    min_probability: Share = setting(0.0, "Least mean cell probability of a cell; 0 keeps all.")
    max_nuclei: Count = setting(0, "Most nuclei of a cell that is kept; 0 keeps all.")
    need_nucleus: bool = setting(False, "Leave out cells without a nucleus.")
    max_foreground: Share = setting(0.95, "Share of a field inside cells above which its masks are unusable; 1: never.")
    max_over_split: Share = setting(0.5, "Share of cells like splinters above which masks are unusable; 1: never.")


def cell_flags(cells: pl.DataFrame, config: QcConfig, channels: Sequence[str] = ()) -> pl.Series:
    """In what each cell is unlike the others, or NULL: ``volume 12.3 x the median; solidity 0.41, the median 0.93``.

    Volumes and intensities are compared as logarithms, on both sides; solidity and cell probability are doubted where
    low, the flow error where high. What has no spread, and what fewer than 20 cells have, says nothing.

    Args:
        cells: with the columns of ``CELL_SCHEMA``. channels: names for ``mean_intensity``.
    """
    texts: list[list[str]] = [[] for _ in range(len(cells))]

    def judge(name: str, column: pl.Series, side: int) -> None:
        value = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
        compared = value if side else np.log(np.where(value > 0, value, np.nan))
        known = np.isfinite(compared)
        if not config.outlier or known.sum() < _FEW_CELLS:
            return
        median = float(np.median(compared[known]))
        spread = _MAD * float(np.median(np.abs(compared[known] - median)))
        beyond = (compared - median) * side if side else np.abs(compared - median)
        for row in np.flatnonzero(known & (beyond > config.outlier * spread)) if spread > 1e-9 else ():
            usual = f"{name} {value[row]:.2g}, the median {median:.2g}"
            texts[row].append(usual if side else f"{name} {np.exp(compared[row] - median):.3g} x the median")

    judge("volume", cells["volume_voxels"], 0)
    judge("solidity", cells["solidity"], -1)
    judge("cell probability", cells["cell_probability"], -1)
    judge("flow error", cells["flow_error"], 1)
    for index in range(int(cells["mean_intensity"].list.len().max() or 0)):  # type: ignore[arg-type]
        name = channels[index] if index < len(channels) else f"channel {index + 1}"
        judge(f"{name} intensity", cells["mean_intensity"].list.get(index, null_on_oob=True), 0)
    return pl.Series("qc_flag", ["; ".join(found) or None for found in texts], dtype=pl.String)


def judged(cells: pl.DataFrame, config: QcConfig, channels: Sequence[str] = ()) -> pl.DataFrame:
    """The cells with ``qc_warning`` and ``qc_flag`` completed; a flag that was there stays.

    Args:
        cells: with the columns of ``CELL_SCHEMA`` and ``qc_flag``. channels: names for ``mean_intensity``.
    """
    warning, probability, nuclei = pl.col("qc_warning"), pl.col("cell_probability"), pl.col("n_nuclei")
    odd = cell_flags(cells, config, channels).alias("odd")
    flags = [
        pl.col("qc_flag"),
        pl.when(probability < config.min_probability).then(pl.format("cell probability {}", probability.round(3))),
        pl.when((nuclei > config.max_nuclei) & bool(config.max_nuclei)).then(warning),
        pl.when((nuclei == 0) & config.need_nucleus).then(warning),
        pl.when(config.drop_outliers).then("odd"),
    ]
    text = pl.concat_str(warning, "odd", separator="; ", ignore_nulls=True)
    return cells.with_columns(odd).with_columns(
        qc_flag=pl.coalesce(flags), qc_warning=pl.when(text != "").then(text)
    ).drop("odd")  # fmt: skip


def over_split(cells: pl.DataFrame, median: float) -> float:
    """Share of a field's cells that touch another and have less than a quarter of the ``median`` volume in voxels."""
    splinters = (cells["volume_voxels"] < median / 4) & (cells["nearest_neighbour_um"] == 0).fill_null(False)
    return float(splinters.mean() or 0.0)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Verdict:
    """Why a field's masks are ``unusable``, and what to look at where they are used all the same; None: nothing."""

    unusable: str | None
    warning: str | None


def field_verdict(
    counts: Sequence[int], foreground: Sequence[float], splinters: Sequence[float], config: QcConfig
) -> list[Verdict]:
    """What the masks of each field are worth, beside those of the others.

    Unusable: nothing was found, all is inside cells, or the cells are splinters. Worth a look: less than a fifth or
    more than five times the median count, where there are five fields or more.

    Args:
        counts: cells of each field. foreground: share of its voxels inside cells. splinters: ``over_split``.
    """
    median = float(np.median(counts)) if len(counts) >= _FEW_FIELDS else 0.0
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
        verdicts.append(Verdict(unusable, warning))
    return verdicts
