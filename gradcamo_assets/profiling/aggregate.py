"""From cells to wells: aggregated profiles, and the same sphered on the control wells."""

from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.profiling.sphering import fit_sphering

MODEL = ["model_name", "model_version"]
TREATMENT = ["Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"]
_WELL = ["Metadata_Plate", "Metadata_Well", *TREATMENT, "Metadata_Dose_Rank", "Metadata_pert_type", *MODEL]


def vectors(column: pl.Series) -> np.ndarray:
    """A list column of n vectors as an (n, d) array.

    Raises:
        GradcamoError: where the vectors differ in length or hold values that are not finite.
    """
    if column.is_empty():
        return np.empty((0, 0), np.float32)
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


def well_profiles(embeddings: pl.DataFrame) -> pl.DataFrame:
    """One profile a well: the median over the cells of each site, then the mean over sites.

    Where a well holds several treatments (a pooled screen), there is one profile a well and treatment.

    Args:
        embeddings: one row a cell and model version, with ``Metadata_Plate``, ``_Well``, ``_Site``, ``_Compound``,
            ``_Dose``, ``_Dose_Unit``, ``_Dose_Rank``, ``_pert_type``, ``model_name``, ``model_version``, ``embedding``
            (list of floats). Rows without an embedding are left out.

    Returns:
        The same columns less site and embedding, and ``n_cells``, ``profile`` (list of float32); sorted.
    """
    rows = []
    for key, group in embeddings.drop_nulls("embedding").group_by(_WELL, maintain_order=True):
        x, sites = vectors(group["embedding"]), group["Metadata_Site"].to_numpy()
        medians = [np.median(x[sites == site].astype(np.float64), axis=0) for site in np.unique(sites)]
        rows.append((*key, len(x), np.mean(medians, axis=0).tolist()))
    schema = {name: embeddings.schema[name] for name in _WELL}
    return pl.DataFrame(rows, {**schema, "n_cells": pl.Int64(), "profile": pl.List(pl.Float32())}, orient="row").sort(
        [*MODEL, "Metadata_Plate", "Metadata_Well", *TREATMENT]
    )


def sphered_profiles(embeddings: pl.DataFrame, regularisation: float = 1e-2) -> tuple[pl.DataFrame, list[str]]:
    """``well_profiles``, sphered per model version and plate on the plate's control wells (``negcon``).

    A plate with fewer than two controls is sphered on those of all plates; where these are fewer than two as well, its
    profiles stay as they are.

    Returns:
        The profiles, and one sentence for each plate that was not sphered on its own controls.
    """
    profiles, notes, parts = well_profiles(embeddings), [], []
    is_control = pl.col("Metadata_pert_type") == "negcon"
    for (name, version), model in profiles.group_by(MODEL, maintain_order=True):
        for (plate,), wells in model.group_by(["Metadata_Plate"], maintain_order=True):
            controls, where = wells.filter(is_control), f"{name} version {version}, plate {plate}"
            if controls.height < 2:
                controls = model.filter(is_control)
                notes.append(
                    f"{where}: fewer than two control wells; sphered on the {controls.height} of all plates."
                    if controls.height >= 2
                    else f"{where}: fewer than two control wells on all plates; profiles are not sphered."
                )
            if controls.height >= 2:
                sphering = fit_sphering(vectors(controls["profile"]), regularisation)
                sphered = sphering.transform(vectors(wells["profile"])).astype(np.float32)
                wells = wells.with_columns(pl.Series("profile", sphered.tolist(), dtype=pl.List(pl.Float32())))
            parts.append(wells)
    return pl.concat(parts) if parts else profiles, notes
