"""Random rows that fit the tables and hold the invariants, for the warehouse's tests."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.warehouse import LAKE_TABLES, Lake

NOW = datetime(2026, 1, 2, 3, 4, 5)
WELLS = ("A01", "A02", "A03", "B01", "B02", "B03")
DOSES = (0.0, 0.0, 0.0, 0.1, 10.0, 10.0)


def treatment(well: str) -> dict[str, Any]:
    dose = DOSES[WELLS.index(well)]
    return {
        "Metadata_Compound": "aspirin" if dose else "DMSO",
        "Metadata_Dose": dose,
        "Metadata_Dose_Unit": "uM",
        "Metadata_Dose_Rank": [0.0, 0.1, 10.0].index(dose),
        "Metadata_pert_type": "trt" if dose else "negcon",
    }


def frame(table: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=LAKE_TABLES[table].polars, orient="row")


def cells(
    rng: np.random.Generator, plate: str, site: int, n: int, masks: str = "m1", crops: str = "c1"
) -> pl.DataFrame:
    rows = []
    for label in range(1, n + 1):
        well = WELLS[rng.integers(len(WELLS))]
        flagged = rng.random() < 0.15
        rows.append(
            {
                "Metadata_Plate": plate,
                "Metadata_Well": well,
                "Metadata_Site": site,
                **treatment(well),
                "Metadata_CellID": f"{plate}/{well}/{site}/{label}",
                "label": label,
                "volume_voxels": int(rng.integers(10, 1000)),
                "touches_xy_border": flagged,
                "crop_index": None if flagged else label,
                "qc_flag": "touches the border" if flagged else None,
                "mask_version": masks,
                "crop_version": crops,
                "treatment_class": well,
            }
        )
    return frame("cells", rows)


def scores(rng: np.random.Generator, found: pl.DataFrame, version: int, name: str = "hepg2") -> pl.DataFrame:
    keys = [column for column in found.columns if column.startswith("Metadata_")]
    rows = []
    for cell in found.filter(pl.col("qc_flag").is_null()).iter_rows(named=True):
        target, neighbour, background = rng.dirichlet([2, 1, 2])
        evidence = rng.normal(size=3)
        row = {key: cell[key] for key in keys} | {
            "model_name": name,
            "model_version": version,
            "mask_version": cell["mask_version"],
            "crop_version": cell["crop_version"],
            "true_class": cell["treatment_class"],
            "predicted_class": WELLS[rng.integers(len(WELLS))],
            "probability": rng.random(),
            "logit": evidence.sum() + 0.25,
            "logit_bias": 0.25,
            "split": ["train", "val", "test", "unseen"][rng.integers(4)],
            "mask_fraction": 0.1,
            "evidence_target": evidence[0],
            "evidence_neighbour": evidence[1],
            "evidence_background": evidence[2],
            "run_id": "r",
            "scored_at": NOW,
        }
        if rng.random() < 0.1:
            row["null_reason"] = "the map is empty"
        else:
            row |= {
                "gradcamo": target,
                "gradcamo_max": 1.0,
                "gradcamo_adjusted": (target - 0.1) / 0.9,
                "neighbour_share": neighbour,
                "background_share": background,
                "neighbour_fraction": 0.1,
                "looks_at": ["target", "neighbour", "background", "none"][rng.integers(4)],
                "on_target": bool(target > 0.5),
            }
        rows.append(row)
    return frame("scores", rows)


def promotion(version: int | None, minute: int, name: str = "hepg2") -> pl.DataFrame:
    row = {
        "model_name": name,
        "alias": "champion",
        "to_version": version,
        "promoted_at": NOW.replace(minute=minute),
        "promoted_by": "test",
        "reason": "because",
    }
    return frame("promotions", [row])


def model(version: int, name: str = "hepg2") -> pl.DataFrame:
    row = {
        "model_name": name,
        "model_version": version,
        "architecture": "efficientnet3d",
        "classes": ["a", "b"],
        "metrics": {"accuracy": version / 10},
    }
    return frame("models", [row])


def put(lake: Lake, rng: np.random.Generator, plate: str, site: int, version: int, n: int = 60) -> None:
    """Cells of one plate x site, and one model version's scores of them."""
    found = lake.read("cells", plate=plate, site=site)
    if found.is_empty():
        found = cells(rng, plate, site, n)
        lake.write("cells", found, plate=plate, site=site)
    lake.write("scores", scores(rng, found, version), plate=plate, site=site, model_name="hepg2", model_version=version)


def filled(root: Path, seed: int = 0, plates: int = 2, sites: int = 2, versions: int = 2) -> Lake:
    lake, rng = Lake(root), np.random.default_rng(seed)
    for plate in range(1, plates + 1):
        wells = [{"Metadata_Plate": f"P{plate}", "Metadata_Well": well, **treatment(well)} for well in WELLS]
        lake.write("wells", frame("wells", wells), plate=f"P{plate}")
        for site in range(1, sites + 1):
            for version in range(1, versions + 1):
                put(lake, rng, f"P{plate}", site, version)
    for version in range(1, versions + 1):
        lake.append("models", model(version))
        lake.append("promotions", promotion(version, version))
    return lake
