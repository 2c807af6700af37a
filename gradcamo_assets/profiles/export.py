"""Profiles as other tools take them: wide tables for pycytominer and copairs, and AnnData.

Metadata columns begin with ``Metadata_``; all others are features. These are named ``Cells_Embedding_0001`` and so on,
since pycytominer takes for features what begins with ``Cells_`` (``infer_cp_features``).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles.well_profiles import MODEL, vectors
from gradcamo_assets.storage import atomic_folder, remove

_RENAMED = {
    "model_name": "Metadata_Model",
    "model_version": "Metadata_Model_Version",
    "model_run": "Metadata_Model_Run",
    "population": "Metadata_Population",
    "sphering": "Metadata_Sphering",
    "n_cells": "Metadata_Object_Count",
}


def wide_profiles(profiles: pl.DataFrame) -> pl.DataFrame:
    """One ``Metadata_`` column a key, one Float32 column a feature. Text that is NULL is empty: copairs takes no NULL.

    Args:
        profiles: of one model version, as from ``sphered_profiles``.
    """
    metadata = profiles.drop("profile").rename(_RENAMED, strict=False)
    metadata = metadata.select(pl.selectors.starts_with("Metadata_")).with_columns(pl.selectors.string().fill_null(""))
    x = vectors(profiles["profile"])
    names = [f"Cells_Embedding_{number:04d}" for number in range(1, x.shape[1] + 1)]
    return pl.concat([metadata, pl.DataFrame(x, names).cast(pl.Float32)], how="horizontal")


def export_profiles(profiles: pl.DataFrame, folder: Path, formats: tuple[str, ...] = ("parquet",)) -> list[Path]:
    """Write a plate's profiles, a file a population and format, in the place of what was in ``folder`` before.

    Args:
        profiles: of one plate and model version, as from ``sphered_profiles``; not empty.
        folder: gets ``<population>.parquet`` and ``<population>.h5ad``.

    Raises:
        GradcamoError: where AnnData is asked for and not installed, or there are profiles of several model versions.
    """
    if profiles.select(MODEL).n_unique() > 1:
        raise GradcamoError("profiles of several model versions do not go into one file", "Export one at a time.")
    names = []
    with atomic_folder(folder) as temporary:
        for (population,), part in profiles.group_by(["population"], maintain_order=True):
            wide = wide_profiles(part)
            for ending in formats:
                names.append(f"{population}.{ending}")
                if ending == "parquet":
                    wide.write_parquet(temporary / names[-1])
                else:
                    _write_h5ad(wide, temporary / names[-1])
        remove(folder)
    return [folder / name for name in names]


def _write_h5ad(wide: pl.DataFrame, path: Path) -> None:
    try:
        from anndata import AnnData
    except ImportError as error:
        raise GradcamoError(
            "AnnData is not installed", "Install it: pip install 'gradcamo-assets[anndata]', or leave out 'h5ad'."
        ) from error
    metadata = wide.select(pl.selectors.starts_with("Metadata_"))
    features = wide.drop(metadata.columns)
    obs = metadata.to_pandas().set_axis([f"{n}" for n in range(len(wide))])
    table = AnnData(features.to_numpy(), obs=obs)
    table.var_names = features.columns
    table.write_h5ad(path)
