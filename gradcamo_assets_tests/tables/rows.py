"""Random rows that fit the tables and satisfy the invariants."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from deltalake import write_deltalake

from gradcamo_assets.tables import LAKE_TABLES, Lake

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
    return pl.DataFrame(rows, schema=LAKE_TABLES[table].schema, orient="row")


def run_of(version: int, name: str = "hepg2") -> str:
    """The MLflow run of a synthetic model version."""
    return f"{name}-run-{version}"


def cells(rng: np.random.Generator, plate: str, site: int, n: int, masks: str = "m1") -> pl.DataFrame:
    rows = []
    for label in range(1, n + 1):
        well = WELLS[rng.integers(len(WELLS))]
        rows.append(
            {
                "Metadata_Plate": plate,
                "Metadata_Well": well,
                "Metadata_Site": site,
                **treatment(well),
                "Metadata_CellID": f"{plate}/{well}/{site}/{label}",
                "label": label,
                "volume_voxels": int(rng.integers(10, 1000)),
                "qc_flag": "small" if rng.random() < 0.1 else None,
                "mask_version": masks,
                "treatment_class": well,
            }
        )
    return frame("cells", rows)


def crops(found: pl.DataFrame, version: str = "c1") -> pl.DataFrame:
    """A crop of every cell without a flag, except every tenth label, which is flagged as touching the border."""
    rows = []
    for cell in found.filter(pl.col("qc_flag").is_null()).iter_rows(named=True):
        flag = "touches the border" if cell["label"] % 10 == 0 else None
        row = {name: cell[name] for name in LAKE_TABLES["crops"].schema if name in cell}
        index = None if flag else cell["label"]
        rows.append(row | {"crop_index": index, "qc_flag": flag, "crop_version": version})
    return frame("crops", rows)


def kept(found: pl.DataFrame, cut: pl.DataFrame) -> pl.DataFrame:
    """The cells that have crops, with ``crop_index`` and ``crop_version``."""
    names = ["Metadata_CellID", "mask_version", "crop_index", "crop_version"]
    return found.join(cut.filter(pl.col("qc_flag").is_null()).select(names), on=names[:2])


def scores(rng: np.random.Generator, cells: pl.DataFrame, version: int, name: str = "hepg2") -> pl.DataFrame:
    """Scores of ``kept`` cells by one model version."""
    keys = [column for column in cells.columns if column.startswith("Metadata_")]
    rows = []
    for cell in cells.iter_rows(named=True):
        target, neighbour, background = rng.dirichlet([2, 1, 2])
        evidence = rng.normal(size=3)
        row = {key: cell[key] for key in keys} | {
            "model_name": name,
            "model_version": version,
            "model_run": run_of(version, name),
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
        "to_run": None if version is None else run_of(version, name),
        "promoted_at": NOW.replace(minute=minute),
        "promoted_by": "test",
        "reason": "because",
    }
    return frame("promotions", [row])


def model(version: int, name: str = "hepg2") -> pl.DataFrame:
    row = {
        "model_name": name,
        "model_version": version,
        "model_run": run_of(version, name),
        "architecture": "efficientnet3d",
        "classes": ["a", "b"],
        "metrics": {"accuracy": version / 10},
    }
    return frame("models", [row])


def crop_version(found: pl.DataFrame, cut: pl.DataFrame, version: str) -> pl.DataFrame:
    """The row of ``crop_versions`` for the cells and crops of a plate x site."""
    here = found.select("Metadata_Plate", "Metadata_Site").row(0, named=True)
    name = f"{found['mask_version'][0]}-{version}"
    return frame("crop_versions", [here | {"version": name, "made_from": "t", "n": cut["qc_flag"].null_count()}])


def score_version(
    scores: pl.DataFrame, plate: str, site: int, version: int, made_from: str | None, name: str = "hepg2"
) -> pl.DataFrame:
    """The row of ``score_versions`` for the scores of a plate x site."""
    row = {"Metadata_Plate": plate, "Metadata_Site": site, "model_run": run_of(version, name)}
    return frame("score_versions", [row | {"version": "s", "made_from": made_from, "n": len(scores)}])


def write_cells(lake: Lake, found: pl.DataFrame, version: str = "c1") -> pl.DataFrame:
    """Write the cells of one plate x site, their crops and the crop version. Returns the kept cells."""
    plate, site, cut = found["Metadata_Plate"][0], found["Metadata_Site"][0], crops(found, version)
    lake.write("cells", found, plate=plate, site=site)
    lake.write("crops", cut, plate=plate, site=site)
    lake.write("crop_versions", crop_version(found, cut, version), plate=plate, site=site)
    return kept(found, cut)


def read_kept(lake: Lake, plate: str, site: int) -> pl.DataFrame:
    return kept(lake.read("cells", plate=plate, site=site), lake.read("crops", plate=plate, site=site))


def write_scores(lake: Lake, frame: pl.DataFrame, plate: str, site: int, version: int, name: str = "hepg2") -> None:
    """Write the scores of a plate x site by a model version, made from the current crops."""
    run = run_of(version, name)
    lake.write("scores", frame, plate=plate, site=site, model_run=run)
    made_from = lake.partition_versions("crop_versions", plate=plate, site=site)["version"].first()
    made = score_version(frame, plate, site, version, made_from, name)
    lake.write("score_versions", made, plate=plate, site=site, model_run=run)


def put(lake: Lake, rng: np.random.Generator, plate: str, site: int, version: int, n: int = 60) -> None:
    """Write scores of a plate x site by a model version, with the plate and cells if they do not exist."""
    if lake.read("plates", plate=plate).is_empty():
        lake.write("plates", frame("plates", [{"Metadata_Plate": plate, "ingested_at": NOW}]), plate=plate)
    if lake.read("cells", plate=plate, site=site).is_empty():
        write_cells(lake, cells(rng, plate, site, n))
    write_scores(lake, scores(rng, read_kept(lake, plate, site), version), plate, site, version)


def append(lake: Lake, table: str, frame: pl.DataFrame) -> None:
    """Write rows of several new partitions in one commit, which is faster than one commit each."""
    if lake.delta_version(table) < 0:
        lake.replace(table, frame.clear())
    write_deltalake(lake.root / table, frame, mode="append")


def filled(root: Path, seed: int = 0, plates: int = 2, sites: int = 2, versions: int = 2) -> Lake:
    """A lake with plates P1, P2, ..., scored by all model versions, the last of which is champion."""
    lake, rng = Lake(root), np.random.default_rng(seed)
    made: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for plate in (f"P{number}" for number in range(1, plates + 1)):
        made["plates"].append(frame("plates", [{"Metadata_Plate": plate, "ingested_at": NOW}]))
        wells = [{"Metadata_Plate": plate, "Metadata_Well": well, **treatment(well)} for well in WELLS]
        made["wells"].append(frame("wells", wells))
        for site in range(1, sites + 1):
            found = cells(rng, plate, site, 60)
            cut = crops(found)
            made["cells"].append(found)
            made["crops"].append(cut)
            made["crop_versions"].append(crop_version(found, cut, "c1"))
            for version in range(1, versions + 1):
                made["scores"].append(scores(rng, kept(found, cut), version))
                made["score_versions"].append(score_version(made["scores"][-1], plate, site, version, "m1-c1"))
    for table, frames in made.items():
        append(lake, table, pl.concat(frames))
    lake.append("models", pl.concat([model(version) for version in range(1, versions + 1)]))
    lake.append("promotions", pl.concat([promotion(version, version) for version in range(1, versions + 1)]))
    return lake


def audited(rng: np.random.Generator, scores: pl.DataFrame, version: int, n: int = 25) -> pl.DataFrame:
    """Audit rows of a sample of scored cells."""
    audit_rows = []
    for cell in scores.sample(n, seed=version).iter_rows(named=True):
        row = {name: cell[name] for name in scores.columns if name.startswith(("Metadata_", "model_", "crop_"))}
        names = [n for n, dtype in frame("audit", []).schema.items() if dtype == pl.Float64 and n not in row]
        row |= {name: float(value) for name, value in zip(names, rng.uniform(-1, 1, len(names)), strict=True)}
        audit_rows.append(row | {"survives_swap": [True, False, True, None][rng.integers(4)]})
    return frame("audit", audit_rows)
