"""The tables of cells: a field's rows (geometry from masks, treatment from a table), and cells with their crops."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.cells import cell_table, match_labels
from gradcamo_assets.plates import treatment_class
from gradcamo_assets.segmentation import Masks
from gradcamo_assets.tables import Lake

TREATMENT = ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_Dose_Rank", "Metadata_pert_type")
_LEAST_OVERLAP = 0.5


def build_field_cells(
    masks: Masks,
    *,
    plate: str,
    well: str,
    site: int,
    voxel_size: tuple[float, float, float],
    well_row: dict[str, object],
    mask_version: str,
    image: np.ndarray | None = None,
    label_table: pl.DataFrame | None = None,
    true_cells: np.ndarray | None = None,
) -> pl.DataFrame:
    """One row a cell of one field.

    Args:
        masks: of the field. voxel_size: (z, y, x) in um. well_row: the well's row of the plate map.
        image: (C, Z, Y, X), for the mean intensities; None leaves them NULL.
        label_table: the plate's label table for this field; ``true_cells`` (Z, Y, X), the labels it speaks of. A
            predicted cell takes the treatment of the true cell that covers at least half of it; bystanders and cells
            that match none are flagged and left unscored.
    """
    table = cell_table(masks.cells, masks.nuclei, voxel_size, image=image, confidence=masks.confidence)
    table = table.with_columns(qc_flag=pl.lit(None, pl.String))
    if label_table is not None and true_cells is not None:
        matches = match_labels(masks.cells, true_cells).filter(pl.col("overlap") >= _LEAST_OVERLAP)
        treatments = label_table.select(pl.col("label").cast(pl.Int32).alias("true_label"), "kind", *TREATMENT)
        matched = matches.select(pl.col("label").cast(pl.Int32), pl.col("true_label").cast(pl.Int32)).join(
            treatments, on="true_label"
        )
        table = table.join(matched.drop("true_label"), on="label", how="left").with_columns(
            qc_flag=pl.when(pl.col("kind").is_null())
            .then(pl.lit("no labelled cell"))
            .when(pl.col("kind") == "bystander")
            .then(pl.lit("bystander"))
        )
    else:
        table = table.with_columns(pl.lit(well_row[name]).alias(name) for name in TREATMENT)
    return table.with_columns(
        pl.lit(plate).alias("Metadata_Plate"),
        pl.lit(well).alias("Metadata_Well"),
        pl.lit(site, pl.Int32).alias("Metadata_Site"),
        Metadata_CellID=pl.format("{}/{}/{}/{}", pl.lit(plate), pl.lit(well), pl.lit(site), "label"),
        volume_um3=pl.col("volume_voxels") * float(np.prod(voxel_size)),
        mask_version=pl.lit(mask_version),
        treatment_class=treatment_class(),
    )


def number_crops(cells: pl.DataFrame, flag: pl.Expr) -> pl.DataFrame:
    """Flag the cells that are left out and number those that are kept, from 0, in the order of their labels."""
    flagged = cells.sort("label").with_columns(qc_flag=flag)
    kept = pl.col("qc_flag").is_null()
    return flagged.with_columns(crop_index=pl.when(kept).then(kept.cast(pl.Int32).cum_sum() - 1).cast(pl.Int32))


def cells_with_crops(lake: Lake, **keys: Any) -> pl.LazyFrame:
    """The cells of the lake with their crops: what SQL knows as the table ``cells``.

    A cell that is left out, by the cell table or by the crops, has a ``qc_flag`` and no ``crop_index``. So has a cell
    whose crops were cut by other masks, but for the flag: it waits for its crop.

    Args:
        keys: of the lake: ``plate``, ``site``.
    """
    same = ["Metadata_Plate", "Metadata_CellID", "mask_version"]
    crops = lake.scan("crops", **keys).select(*same, "crop_index", "crop_version", pl.col("qc_flag").alias("why_not"))
    found = lake.scan("cells", **keys).join(crops, on=same, how="left", nulls_equal=True)
    found = found.with_columns(qc_flag=pl.coalesce("qc_flag", "why_not")).drop("why_not")
    kept = pl.col("qc_flag").is_null()
    return found.with_columns(pl.when(kept).then(name).alias(name) for name in ("crop_index", "crop_version"))
