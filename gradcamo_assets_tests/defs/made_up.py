"""Synthetic lake rows and random crops of plates that can be scored, made in milliseconds."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from gradcamo_assets.cells import write_crops
from gradcamo_assets.defs.field_results import crop_folder
from gradcamo_assets.networks.bundle import BundleConfig
from gradcamo_assets.provenance import Provenance, digest
from gradcamo_assets.tables import lake_table
from gradcamo_assets.training.model_registry import ModelVersion
from gradcamo_assets_tests.defs.conftest import Bench

SHAPE, VOXELS, CHANNELS, CLASSES = (2, 16, 16), [1.0, 0.5, 0.5], ["DNA", "ER"], ["cpd@1uM", "negcon"]
ENCODER = "gradcamo_assets_tests.defs.made_up:tiny_encoder"
SETTINGS = """[encoders]
modules = ["gradcamo_assets_tests.defs.made_up", "gradcamo_assets_tests.defs.test_promotion"]
"""


def tiny_encoder(in_channels: int, classes: int) -> tuple[nn.Module, str]:
    """A network that is fast to run."""
    return nn.Sequential(
        nn.Conv3d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, classes)
    ), "1"


def add_version(bench: Bench, seed: int = 0, **changes: object) -> ModelVersion:
    """Register a new tiny encoder as the next version."""
    torch.manual_seed(seed)
    model, layer = tiny_encoder(len(CHANNELS), len(CLASSES))
    values = {
        "encoder": ENCODER, "layer": layer, "classes": CLASSES, "channels": CHANNELS, "crop_shape": list(SHAPE),
        "voxel_size": VOXELS, **changes,
    }  # fmt: skip
    return bench.platform.registry.register(model, BundleConfig(**values))  # type: ignore[arg-type]


def add_plate(bench: Bench, plate: str, sites: int = 2, masks: str = "first", shape: tuple[int, ...] = SHAPE) -> None:
    """Add an ingested, segmented and cropped plate: two wells (control, treatment), three cells per field."""
    lake = bench.platform.lake
    bench.instance.add_dynamic_partitions("plates", [plate])
    bench.instance.add_dynamic_partitions("sites", [str(site + 1) for site in range(sites)])
    row = {"Metadata_Plate": plate, "channels": CHANNELS, "ingested_at": datetime(2026, 1, 1)}
    row |= {f"voxel_{axis}_um": um for axis, um in zip("zyx", VOXELS, strict=True)}
    lake.write("plates", _frame("plates", [row]), plate=plate)
    for site in range(1, sites + 1):
        keys: dict[str, Any] = {"plate": plate, "site": site}
        rows = [row for well in ("A01", "A02") for row in _crops(bench, plate, well, site, masks, shape)]
        for table in ("cells", "crops"):
            columns = lake_table(table).schema
            lake.write(table, _frame(table, [{k: v for k, v in row.items() if k in columns} for row in rows]), **keys)
        made_from = None
        for stage in ("image", "mask", "cell", "crop"):
            version = digest([plate, site, masks, stage])
            lake.record_version(f"{stage}_versions", version, made_from, len(rows), **keys)
            made_from = version


def _crops(bench: Bench, plate: str, well: str, site: int, masks: str, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    rng = np.random.default_rng([site, int(well[1:]), *map(ord, plate + masks)])
    ids = [f"{plate}/{well}/{site}/{label}" for label in (1, 2, 3)]
    images = rng.poisson(100, (3, len(CHANNELS), *shape)).astype(np.uint16)
    labels = np.zeros((3, *shape), np.uint8)
    labels[:, :, 4:12, 4:12] = 1
    made_from = Provenance(f"{plate} {well} {site} {masks}", {}, "1")
    field = {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": site, "crop_version": made_from.version}
    write_crops(
        crop_folder(bench.home, field), iter(zip(images, labels, strict=True)), cell_ids=ids,
        shape=shape, channels=CHANNELS, statistics={"center": [100.0] * 2, "scale": [10.0] * 2},
        voxel_size=VOXELS, provenance=made_from,
    )  # fmt: skip
    name = CLASSES[well == "A01"]
    return [
        {
            "Metadata_CellID": cell_id, **field,
            "Metadata_Compound": name, "Metadata_Dose": float(well == "A02"), "Metadata_Dose_Unit": "uM",
            "Metadata_pert_type": "negcon" if well == "A01" else "trt", "treatment_class": name, "label": index + 1,
            "crop_index": index, "mask_version": masks,
        }
        for index, cell_id in enumerate(ids)
    ]  # fmt: skip


def _frame(table: str, rows: list[dict]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=lake_table(table).schema)


def scored_by(lake: Path, table: str = "scores") -> dict[tuple[str, int], dict[int, int]]:
    """Number of cells by partition and version, read with polars' Delta reader; fails for duplicate cells."""
    rows = pl.scan_delta(str(lake / table))
    found: dict[tuple[str, int], dict[int, int]] = {}
    counted = rows.group_by("Metadata_Plate", "Metadata_Site", "model_version").agg(
        n=pl.len(), cells=pl.col("Metadata_CellID").n_unique()
    )
    for plate, site, version, n, cells in counted.collect().iter_rows():
        assert n == cells, (plate, site, version)
        found.setdefault((plate, site), {})[version] = n
    return found
