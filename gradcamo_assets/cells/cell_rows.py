"""Build the rows of the tables ``cells`` and ``crops``, read cells joined with their crops, and sample them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.cells import cell_table, match_labels
from gradcamo_assets.plates import treatment_class
from gradcamo_assets.segmentation import Masks
from gradcamo_assets.tables import Lake

TREATMENT_COLUMNS = (
    "Metadata_Compound",
    "Metadata_Dose",
    "Metadata_Dose_Unit",
    "Metadata_Dose_Rank",
    "Metadata_pert_type",
)
_MIN_OVERLAP = 0.5
"""Smallest share of a predicted cell inside a true cell that makes the two a match."""


def build_field_cells(
    masks: Masks,
    *,
    plate: str,
    well: str,
    site: int,
    voxel_size: Sequence[float | None],
    well_row: dict[str, object],
    mask_version: str,
    image: np.ndarray | None = None,
    label_table: pl.DataFrame | None = None,
    true_cells: np.ndarray | None = None,
) -> pl.DataFrame:
    """Build one row per cell of a field: geometry from the masks, treatment from the plate map or the label table.

    With a label table, a predicted cell takes the treatment of the true cell that covers at least half of it.
    Bystanders and cells without a match get a ``qc_flag``, so they are not scored.

    Args:
        masks: masks of the field.
        voxel_size: (z, y, x) in um, None where unknown.
        well_row: the well's row of the plate map.
        image: (C, Z, Y, X), for mean intensities; None leaves them NULL.
        label_table: the plate's label table for this field.
        true_cells: (Z, Y, X), the labels that ``label_table`` refers to.
    """
    table = cell_table(masks.cells, masks.nuclei, voxel_size, image=image, confidence=masks.confidence)
    table = table.with_columns(qc_flag=pl.lit(None, pl.String))
    known = [size for size in voxel_size if size is not None]
    voxel_volume = pl.lit(math.prod(known) if len(known) == 3 else None, pl.Float64)
    if label_table is not None and true_cells is not None:
        matches = match_labels(masks.cells, true_cells).filter(pl.col("overlap") >= _MIN_OVERLAP)
        treatments = label_table.select(pl.col("label").cast(pl.Int32).alias("true_label"), "kind", *TREATMENT_COLUMNS)
        matches = matches.select(pl.col("label").cast(pl.Int32), pl.col("true_label").cast(pl.Int32))
        matches = matches.join(treatments, on="true_label").drop("true_label")
        table = table.join(matches, on="label", how="left").with_columns(
            qc_flag=pl.when(pl.col("kind").is_null())
            .then(pl.lit("no labelled cell"))
            .when(pl.col("kind") == "bystander")
            .then(pl.lit("bystander"))
        )
    else:
        table = table.with_columns(pl.lit(well_row[name]).alias(name) for name in TREATMENT_COLUMNS)
    return table.with_columns(
        pl.lit(plate).alias("Metadata_Plate"),
        pl.lit(well).alias("Metadata_Well"),
        pl.lit(site, pl.Int32).alias("Metadata_Site"),
        Metadata_CellID=pl.format("{}/{}/{}/{}", pl.lit(plate), pl.lit(well), pl.lit(site), "label"),
        volume_um3=pl.col("volume_voxels") * voxel_volume,
        mask_version=pl.lit(mask_version),
        treatment_class=treatment_class(),
    )


def number_crops(cells: pl.DataFrame, flag: pl.Expr) -> pl.DataFrame:
    """Apply ``flag`` as ``qc_flag`` and number the cells without a flag from 0, in the order of their labels."""
    flagged = cells.sort("label").with_columns(qc_flag=flag)
    is_kept = pl.col("qc_flag").is_null()
    index = is_kept.cast(pl.Int32).cum_sum() - 1
    return flagged.with_columns(crop_index=pl.when(is_kept).then(index).cast(pl.Int32))


def sample_cells(cells: pl.DataFrame, max_cells: int) -> pl.DataFrame:
    """Return at most ``max_cells`` cells, drawn at random, in the order of ``Metadata_CellID``.

    Equal cells give an equal sample, in whatever order they come.
    """
    cells = cells.sort("Metadata_CellID")
    return cells if len(cells) <= max_cells else cells.sample(max_cells, seed=0).sort("Metadata_CellID")


def cells_with_crops(lake: Lake, **keys: Any) -> pl.LazyFrame:
    """Scan the cells of the lake joined with their crops, as in the SQL table ``cells``.

    A cell excluded by the cell table or by the crops has a ``qc_flag`` and no ``crop_index``. A cell whose crops were
    cut from other masks has neither: its crop is pending.

    Args:
        keys: partition keys of the lake, ``plate`` and ``site``.
    """
    join_keys = ["Metadata_Plate", "Metadata_CellID", "mask_version"]
    crop_flag = pl.col("qc_flag").alias("crop_flag")
    crops = lake.scan("crops", **keys).select(*join_keys, "crop_index", "crop_version", crop_flag)
    cells = lake.scan("cells", **keys).join(crops, on=join_keys, how="left", nulls_equal=True)
    cells = cells.with_columns(qc_flag=pl.coalesce("qc_flag", "crop_flag")).drop("crop_flag")
    is_kept = pl.col("qc_flag").is_null()
    return cells.with_columns(pl.when(is_kept).then(name).alias(name) for name in ("crop_index", "crop_version"))
