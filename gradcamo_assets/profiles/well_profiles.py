"""From cells to wells: one profile a well, treatment and population of cells."""

from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.errors import GradcamoError

MODEL = ["model_name", "model_version", "model_run"]
TREATMENT = ["Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"]
_WELL = ["Metadata_Plate", "Metadata_Well", *TREATMENT, "Metadata_Dose_Rank", "Metadata_pert_type", *MODEL]


def vectors(column: pl.Series) -> np.ndarray:
    """A list column of n vectors as an (n, d) array.

    Raises:
        GradcamoError: where the vectors differ in length or hold values that are not finite.
    """
    lengths = column.list.len().unique().to_list()
    if len(lengths) != 1 or not lengths[0]:
        raise GradcamoError(
            f"the vectors of one model version have the lengths {lengths}, not one length of 1 or more",
            "Rescore the plates, so that all rows of a model version come from the same network.",
        )
    x = column.list.to_array(lengths[0]).to_numpy()
    if not np.isfinite(x).all():
        raise GradcamoError(
            f"{int((~np.isfinite(x)).any(axis=1).sum())} of {len(x)} vectors hold values that are not finite",
            "Rescore the plate with a model that is sound; a diverged training is the usual cause.",
        )
    return x


def well_profiles(cells: pl.DataFrame) -> pl.DataFrame:
    """One profile a well: the median over the cells of each site, then the mean over sites.

    Where a well holds several treatments (a pooled screen), there is one profile a well and treatment. Where cells
    have weights, the median is the smallest value that cells of half of the weight do not exceed.

    Args:
        cells: one row a cell and model version, as from ``population``: ``Metadata_Plate``, ``_Well``, ``_Site``,
            ``_Compound``, ``_Dose``, ``_Dose_Unit``, ``_Dose_Rank``, ``_pert_type``, ``model_name``,
            ``model_version``, ``model_run``, ``population``, ``embedding`` (list of floats), and possibly ``split``
            and ``weight``.
            Rows without an embedding are left out.

    Returns:
        The same columns less site, weight and embedding, and ``n_cells``, ``profile`` (list of float32); sorted.
    """
    rows, groups = [], [*_WELL, "population", *(["split"] if "split" in cells.columns else [])]
    for key, group in cells.drop_nulls("embedding").group_by(groups, maintain_order=True):
        x, sites = vectors(group["embedding"]).astype(np.float64), group["Metadata_Site"].to_numpy()
        weights = group["weight"].to_numpy() if "weight" in group.columns else None
        medians = [
            np.median(x[at], axis=0)
            if weights is None
            else np.quantile(x[at], 0.5, axis=0, weights=weights[at], method="inverted_cdf")
            for at in (sites == site for site in np.unique(sites))
        ]
        rows.append((*key, len(x), np.mean(medians, axis=0).tolist()))
    schema = {name: cells.schema[name] for name in groups}
    return pl.DataFrame(rows, {**schema, "n_cells": pl.Int64(), "profile": pl.List(pl.Float32())}, orient="row").sort(
        [*MODEL, "population", "Metadata_Plate", "Metadata_Well", *TREATMENT]
    )
