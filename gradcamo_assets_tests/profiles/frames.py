"""Create synthetic embeddings for the tests of profiles."""

from __future__ import annotations

import numpy as np
import polars as pl


def embeddings(
    wells: dict[str, tuple[str, float]],
    vectors,
    plates: tuple[str, ...] = ("P1",),
    sites: int = 2,
    cells: int = 6,
    model: str = "encoder",
) -> pl.DataFrame:
    """Return one row per cell, embedded by ``vectors(plate, well, site, compound, dose)``; DMSO is the control."""
    rows = [
        {
            "Metadata_Plate": plate,
            "Metadata_Well": well,
            "Metadata_Site": site,
            "Metadata_Compound": compound,
            "Metadata_Dose": dose,
            "Metadata_Dose_Unit": None if compound == "DMSO" else "uM",
            "Metadata_Dose_Rank": 0 if compound == "DMSO" else 1,
            "Metadata_pert_type": "negcon" if compound == "DMSO" else "trt",
            "model_name": model,
            "model_version": "1",
            "model_run": f"run of {model}",
            "population": "all",
            "cells_in_field": cells,
            "Metadata_CellID": f"{plate}/{well}/{site}/{label}",
            "embedding": np.asarray(vectors(plate, well, site, compound, dose), np.float32).tolist(),
        }
        for plate in plates
        for well, (compound, dose) in wells.items()
        for site in range(1, sites + 1)
        for label in range(1, cells + 1)
    ]
    return pl.DataFrame(rows, schema_overrides={"embedding": pl.List(pl.Float32), "Metadata_Dose_Unit": pl.String})
