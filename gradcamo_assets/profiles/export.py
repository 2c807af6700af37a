"""Export profiles as wide tables for pycytominer and copairs, and as AnnData.

Metadata columns start with ``Metadata_``; all other columns are features. Features are named ``Cells_Embedding_0001``
and so on, because pycytominer identifies features by the prefix ``Cells_`` (``infer_cp_features``).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles.well_profiles import MODEL, stack_vectors
from gradcamo_assets.storage import replaced_folder

_METADATA_NAMES = {
    "model_name": "Metadata_Model",
    "model_version": "Metadata_Model_Version",
    "model_run": "Metadata_Model_Run",
    "population": "Metadata_Population",
    "sphering": "Metadata_Sphering",
    "n_cells": "Metadata_Object_Count",
}


def wide_profiles(profiles: pl.DataFrame) -> pl.DataFrame:
    """Return one ``Metadata_`` column per key and one Float32 column per feature.

    NULL texts become empty texts, because copairs does not accept NULL.

    Args:
        profiles: result of ``sphered_profiles`` for one model version.
    """
    metadata = profiles.drop("profile").rename(_METADATA_NAMES, strict=False)
    metadata = metadata.select(pl.selectors.starts_with("Metadata_")).with_columns(pl.selectors.string().fill_null(""))
    features = stack_vectors(profiles["profile"])
    names = [f"Cells_Embedding_{number:04d}" for number in range(1, features.shape[1] + 1)]
    return pl.concat([metadata, pl.DataFrame(features, names).cast(pl.Float32)], how="horizontal")


def export_profiles(profiles: pl.DataFrame, folder: Path, formats: tuple[str, ...] = ("parquet",)) -> list[Path]:
    """Write a plate's profiles, one file per population and format; previous content of the folder is replaced.

    Args:
        profiles: result of ``sphered_profiles`` for one plate and model version; not empty.
        folder: destination of ``<population>.parquet`` and ``<population>.h5ad``.

    Raises:
        GradcamoError: if AnnData is requested but not installed, or the profiles belong to several model versions.
    """
    if profiles.select(MODEL).n_unique() > 1:
        versions = profiles.select(MODEL).n_unique()
        raise GradcamoError(
            f"an export holds one model version, got profiles of several model versions ({versions})",
            "Export one model version at a time.",
            path=folder,
        )
    names = []
    with replaced_folder(folder) as temporary:
        for (population,), part in profiles.group_by(["population"], maintain_order=True):
            wide = wide_profiles(part)
            for file_format in formats:
                name = f"{population}.{file_format}"
                if file_format == "parquet":
                    wide.write_parquet(temporary / name)
                else:
                    _write_h5ad(wide, temporary / name)
                names.append(name)
    return [folder / name for name in names]


def _write_h5ad(wide: pl.DataFrame, path: Path) -> None:
    try:
        from anndata import AnnData
    except ImportError as error:
        raise GradcamoError(
            "AnnData is not installed, but formats contains h5ad",
            "Install it with pip install 'gradcamo-assets[anndata]', or remove h5ad from formats.",
        ) from error
    metadata = wide.select(pl.selectors.starts_with("Metadata_"))
    features = wide.drop(metadata.columns)
    obs = metadata.to_pandas().set_axis([str(row) for row in range(len(wide))])
    table = AnnData(features.to_numpy(), obs=obs)
    table.var_names = features.columns
    table.write_h5ad(path)
