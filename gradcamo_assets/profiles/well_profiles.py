"""Aggregate cell embeddings to one profile per well, treatment and population of cells."""

from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.errors import GradcamoError

MODEL = ["model_name", "model_version", "model_run"]
TREATMENT = ["Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"]
_WELL = ["Metadata_Plate", "Metadata_Well", *TREATMENT, "Metadata_Dose_Rank", "Metadata_pert_type", *MODEL]


def stack_vectors(column: pl.Series) -> np.ndarray:
    """Convert a list column of n vectors to an (n, d) array.

    Raises:
        GradcamoError: if the vectors differ in length or contain non-finite values.
    """
    lengths = column.list.len().unique().to_list()
    if len(lengths) != 1 or not lengths[0]:
        raise GradcamoError(
            f"vectors of one model version must have one length of at least 1, got lengths {lengths}",
            "Rescore the plates, so that all rows of a model version come from the same network.",
        )
    x = column.list.to_array(lengths[0]).to_numpy()
    if not np.isfinite(x).all():
        raise GradcamoError(
            f"{int((~np.isfinite(x)).any(axis=1).sum())} of {len(x)} vectors have values that are not finite",
            "Train the model again, because its training probably diverged, and rescore the plate.",
        )
    return x


def well_profiles(cells: pl.DataFrame) -> pl.DataFrame:
    """Compute one profile per well: the median over the cells of each site, then the mean over sites.

    A well with several treatments (a pooled screen) gets one profile per treatment. With weights, the median is the
    smallest value such that the cells at or below it have at least half of the weight.

    Args:
        cells: one row per cell and model version, as from ``select_population``: ``Metadata_Plate``, ``_Well``,
            ``_Site``, ``_Compound``, ``_Dose``, ``_Dose_Unit``, ``_Dose_Rank``, ``_pert_type``, ``model_name``,
            ``model_version``, ``model_run``, ``population``, ``embedding`` (list of floats), and optionally
            ``split`` and ``weight``. Rows without an embedding are ignored.

    Returns:
        The same columns without site, weight and embedding, and with ``n_cells`` and ``profile`` (list of float32);
        sorted.
    """
    rows, groups = [], [*_WELL, "population", *(["split"] if "split" in cells.columns else [])]
    for key, group in cells.drop_nulls("embedding").group_by(groups, maintain_order=True):
        embeddings, sites = stack_vectors(group["embedding"]).astype(np.float64), group["Metadata_Site"].to_numpy()
        weights = group["weight"].to_numpy() if "weight" in group.columns else None
        medians = []
        for site in np.unique(sites):
            in_site = sites == site
            if weights is None:
                median = np.median(embeddings[in_site], axis=0)
            else:
                median = np.quantile(embeddings[in_site], 0.5, axis=0, weights=weights[in_site], method="inverted_cdf")
            medians.append(median)
        rows.append((*key, len(embeddings), np.mean(medians, axis=0).tolist()))
    schema = {name: cells.schema[name] for name in groups}
    return pl.DataFrame(rows, {**schema, "n_cells": pl.Int64(), "profile": pl.List(pl.Float32())}, orient="row").sort(
        [*MODEL, "population", "Metadata_Plate", "Metadata_Well", *TREATMENT]
    )
