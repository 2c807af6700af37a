"""The platform's stages called one after the other, without Dagster or MLflow: what the benchmarks measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from gradcamo_assets.cells import CropConfig, cut_crops, open_crops, write_crops
from gradcamo_assets.cells.cell_rows import build_field_cells, number_crops
from gradcamo_assets.cells.crop import qc_flag
from gradcamo_assets.home import Home
from gradcamo_assets.plates import ingest_plate, read_field, read_label, read_label_table
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.segmentation import Masks, Segmenter
from gradcamo_assets.synthetic import SyntheticPlate, write_synthetic_plate
from gradcamo_assets.training.split import as_lists, split_wells
from gradcamo_assets.training.training import TrainingConfig

MODULES = ["benchmarks.variants"]
"""Modules whose functions may build encoders."""


@dataclass(frozen=True)
class Prepared:
    """A plate as far as its crops: the kept cells, and the stored crops of each field."""

    cells: pl.DataFrame
    crops: list[Path]


def prepare(config: SyntheticPlate, folder: Path, crop: CropConfig, true_masks: bool = False) -> Prepared:
    """Synthesise a plate, take it in, segment it (or take the true masks) and cut its cells out."""
    home = Home(folder).create()
    found = ingest_plate(write_synthetic_plate(home.inbox, config), home.plates)
    plate, segmenter = found.plate, Segmenter()
    center = np.array([found.statistics[name]["center"] for name in plate.channels])
    scale = [found.statistics[name]["scale"] for name in plate.channels]
    label_path = home.plates / f"{plate.name}.labels.csv"
    labels = read_label_table(label_path) if label_path.exists() else None
    wells = {row["Metadata_Well"]: row for row in found.wells_frame.iter_rows(named=True)}
    tables, paths = [], []
    for field in plate.fields:
        image = read_field(plate, field)
        masks = (
            Masks(read_label(plate, field, "cells"), read_label(plate, field, "nuclei"))
            if true_masks
            else segmenter.segment(image, plate.channels, plate.voxel_size)
        )
        table = build_field_cells(
            masks, plate=plate.name, well=field.well, site=field.site, voxel_size=plate.voxel_size,
            well_row=wells[field.well], mask_version="1",
            label_table=None if labels is None else labels.filter(Metadata_Well=field.well, Metadata_Site=field.site),
            true_cells=None if labels is None else read_label(plate, field, "cells"),
        )  # fmt: skip
        table = number_crops(table, qc_flag(crop))
        kept = table.filter(pl.col("crop_index").is_not_null())
        path = home.crops / f"{field.well}_{field.site}.zarr"
        write_crops(
            path, cut_crops(image, masks.cells, kept, crop, center), cell_ids=kept["Metadata_CellID"].to_list(),
            shape=crop.shape, channels=list(plate.channels), voxel_size=list(plate.voxel_size),
            statistics={"center": center.tolist(), "scale": scale}, provenance=Provenance(field.path, {}, "1"),
        )  # fmt: skip
        tables.append(kept)
        paths.append(path)
    return Prepared(pl.concat(tables, how="vertical_relaxed"), paths)


def train_and_score(prepared: Prepared, config: TrainingConfig, folder: Path) -> tuple[pl.DataFrame, dict[str, float]]:
    """Train on the training wells, then score every cell: the score's columns beside the cell's, and the metrics."""
    from gradcamo_assets.cells.dataset import CropDataset
    from gradcamo_assets.networks.bundle import BundleConfig, save_bundle
    from gradcamo_assets.scoring.scorer import Scorer
    from gradcamo_assets.training.training import train_encoder

    fields = [open_crops(path) for path in prepared.crops]
    split = split_wells(prepared.cells, seed=config.seed)
    cells = prepared.cells.join(split, on=["Metadata_Plate", "Metadata_Well"])
    classes = cells["treatment_class"].unique().sort().to_list()
    parts = {
        part: CropDataset(
            fields,
            {
                row["Metadata_CellID"]: classes.index(row["treatment_class"])
                for row in cells.filter(split=part).iter_rows(named=True)
            },
            fields[0].channels,
        )
        for part in ("train", "val")
    }
    result = train_encoder(parts["train"], parts["val"], classes, config, work=folder, progress=False, modules=MODULES)
    bundle = BundleConfig(
        encoder=config.encoder, layer=result.layer, classes=classes, channels=fields[0].channels,
        crop_shape=list(fields[0].crop_shape), voxel_size=fields[0].voxel_size, split=as_lists(split),
        cure=config.mitigation, objective=config.objective,
    )  # fmt: skip
    save_bundle(folder / "bundle", result.model, bundle)
    scorer = Scorer(folder / "bundle", modules=MODULES)
    scores = pl.concat(scorer.score(field).scores for field in fields)
    return cells.join(scores, on="Metadata_CellID"), result.metrics
