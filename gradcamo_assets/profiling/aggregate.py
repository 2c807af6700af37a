"""From cells to wells: aggregated profiles, and the same sphered on the control wells."""

from __future__ import annotations

import numpy as np
import polars as pl

from gradcamo_assets.common import GradcamoError

MODEL = ["model_name", "model_version"]
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
        x, sites = vectors(group["embedding"]).astype(np.float64), group["Metadata_Site"].to_numpy()
        medians = [np.median(x[sites == site], axis=0) for site in np.unique(sites)]
        rows.append((*key, len(x), np.mean(medians, axis=0).tolist()))
    schema = {name: embeddings.schema[name] for name in _WELL}
    return pl.DataFrame(rows, {**schema, "n_cells": pl.Int64(), "profile": pl.List(pl.Float32())}, orient="row").sort(
        [*MODEL, "Metadata_Plate", "Metadata_Well", *TREATMENT]
    )


def sphere(x: np.ndarray, controls: np.ndarray, regularisation: float = 1e-2) -> np.ndarray:
    """Profiles x (n, d) under the linear map by which controls (n_wells, d) vary alike in every direction, float64.

    As DeepProfiler's experiments do (Moshkov et al. 2024): with mu and C = V diag(s) V' the mean and covariance of the
    control wells, (x - mu) V diag(1 / sqrt(s + lambda)) V'. Here lambda = ``regularisation`` x max(s), as embeddings
    have no natural scale, and the mean of s would shrink with the number of empty directions (there are always some
    where wells are fewer than dimensions). A direction that no control varies in is stretched 1 / sqrt(regularisation)
    times as much as the widest one at most. Controls that are all the same give centring alone.

    Raises:
        GradcamoError: for fewer than two wells, values that are not finite, or a regularisation that is not positive.
    """
    controls = np.asarray(controls, np.float64)
    if len(controls) < 2:
        raise GradcamoError(
            f"sphering needs at least 2 control wells, but the controls have shape {controls.shape}",
            "Mark the control wells as 'negcon' in the plate map, or fit on the controls of several plates.",
        )
    if not np.isfinite(controls).all():
        raise GradcamoError("a control profile has values that are not finite", "Rescore the wells with a sound model.")
    if not 0 < regularisation < np.inf:
        raise GradcamoError(f"the regularisation is {regularisation}", "Give a positive number, for example 0.01.")
    centred = np.asarray(x, np.float64) - controls.mean(axis=0)
    spectrum, directions = np.linalg.eigh(np.atleast_2d(np.cov(controls, rowvar=False)))
    spectrum = spectrum.clip(min=0)
    # Equal rows leave rounding noise in the spectrum, which must not be stretched to unit variance.
    if spectrum.max() <= (np.finfo(np.float64).eps * np.abs(controls).max()) ** 2:
        return centred
    return centred @ (directions / np.sqrt(spectrum + regularisation * spectrum.max())) @ directions.T


def sphered_profiles(embeddings: pl.DataFrame, regularisation: float = 1e-2) -> tuple[pl.DataFrame, list[str]]:
    """``well_profiles``, sphered per model version and plate on the plate's control wells (``negcon``).

    A plate with fewer than two controls is sphered on those of all plates; where these are fewer than two as well, its
    profiles stay as they are.

    Returns:
        The profiles, and one sentence for each plate that was not sphered on its own controls.
    """
    profiles, notes, parts = well_profiles(embeddings), [], []
    is_control = pl.col("Metadata_pert_type") == "negcon"
    for (name, version, plate), wells in profiles.group_by([*MODEL, "Metadata_Plate"], maintain_order=True):
        controls = wells.filter(is_control)
        if len(controls) < 2:
            controls = profiles.filter(is_control, model_name=name, model_version=version)
            outcome = "not sphered" if len(controls) < 2 else f"sphered on the {len(controls)} of all plates"
            notes.append(f"{name} version {version}, plate {plate}: fewer than two control wells; {outcome}.")
        if len(controls) >= 2:
            sphered = sphere(vectors(wells["profile"]), vectors(controls["profile"]), regularisation)
            wells = wells.with_columns(pl.Series("profile", sphered.astype(np.float32)).arr.to_list())
        parts.append(wells)
    return pl.concat(parts) if parts else profiles, notes
