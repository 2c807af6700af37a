"""Select the example cells of a report and load their crops and Grad-CAM maps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.cells import TARGET, open_crops
from gradcamo_assets.defs.field_results import crop_folder
from gradcamo_assets.defs.settings import read_settings
from gradcamo_assets.home import Home

_MAX_DOSES = 8
_DOSE = ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit")


@dataclass(frozen=True)
class ExampleCell:
    """A row of the scores with its crop: ``image`` (C, Z, Y, X), ``labels`` (Z, Y, X), map ``cam`` (z, y, x)."""

    row: dict[str, Any]
    image: np.ndarray
    labels: np.ndarray
    channels: list[str]
    cam: np.ndarray


def select_example_cells(scores: pl.DataFrame) -> list[dict[str, Any]]:
    """Select the cells with the best, median and worst adjusted score among those that look at each region.

    Regions with fewer than three cells give fewer examples. If no cell looks at a region, the examples are of cells
    that look at none. Rows gain ``case``, such as ``target, best``.
    """
    scores = scores.drop_nulls("gradcamo_adjusted").sort("gradcamo_adjusted", "Metadata_CellID")
    named = [region for region in ("target", "neighbour", "background") if region in scores["looks_at"]]
    examples = []
    for region in named or ["none"]:
        part = scores.filter(looks_at=region)
        last = len(part) - 1
        names = {0: "worst", len(part) // 2: "median", last: "best"} if last else {0: "best"}
        for index in sorted(names, reverse=True)[: len(part)]:
            examples.append({**part.row(index, named=True), "case": f"{region}, {names[index]}"})
    return examples


def select_median_cells_by_dose(scores: pl.DataFrame) -> list[dict[str, Any]]:
    """Select the cell with the median score of the controls and of each dose of the compound with the most doses.

    At most 8 cells are returned.
    """
    scores = scores.drop_nulls("gradcamo").sort("gradcamo", "Metadata_CellID")
    treated = scores.filter(pl.col("Metadata_Dose") > 0)
    if len(treated):
        counts = treated.group_by("Metadata_Compound").agg(pl.col("Metadata_Dose").n_unique())
        compound = counts.sort(-pl.col("Metadata_Dose").cast(pl.Int64), "Metadata_Compound")["Metadata_Compound"][0]
        scores = scores.filter((pl.col("Metadata_Dose") == 0) | pl.col("Metadata_Compound").eq_missing(compound))
    groups = scores.sort("Metadata_Dose", maintain_order=True).partition_by(_DOSE, maintain_order=True)
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(_MAX_DOSES, len(groups))).round().astype(int))
    return [groups[index].row(len(groups[index]) // 2, named=True) for index in chosen]


def load_examples(
    home: Home, plate: str, rows: Iterable[dict[str, Any]], bundle: Path | None = None
) -> list[ExampleCell]:
    """Load the crops of cells and compute an encoder's maps of them. Cells without crops are left out.

    Args:
        rows: rows of the table ``scores``.
        bundle: the encoder; None: do not compute maps.

    Raises:
        BundleError: if the encoder does not fit the crops.
        CropError: if a crop cannot be read.
    """
    from gradcamo_assets.explain import gradcamo
    from gradcamo_assets.scoring.scorer import Scorer

    settings = read_settings(home)
    scorer = Scorer(bundle, settings.scoring, settings.encoders.modules) if bundle else None
    examples = []
    for row in rows:
        folder = crop_folder(home, {**row, "Metadata_Plate": plate})
        if not folder.exists():
            continue
        field = open_crops(folder)
        index = field.cell_ids.index(row["Metadata_CellID"])
        image, labels = field.read(index)
        cam = np.empty((0, 0, 0))
        for images, masks in scorer.batches(field, [slice(index, index + 1)]) if scorer else ():
            result = gradcamo(scorer.model, images, masks == TARGET, layer=scorer.config.layer)  # type: ignore[union-attr]
            cam = result.cam.float().cpu().numpy().reshape(-1, *result.cam.shape[-2:])
        examples.append(ExampleCell(row, image, labels, field.channels, cam))
    return examples
