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
from gradcamo_assets.profiles.well_profiles import TREATMENT
from gradcamo_assets.storage import folder_exists

_MAX_DOSES, _MAX_SERIES, _MAX_TREATMENTS = 7, 12, 73


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


def select_median_cells_by_treatment(scores: pl.DataFrame) -> list[dict[str, Any]]:
    """Select the cell with the median score of each treatment: of controls first, then of compounds with many doses.

    At most 7 doses of a compound, from its lowest to its highest, 12 compounds with several doses, and 73 cells in all
    are selected.
    """
    compound, is_control = "Metadata_Compound", (pl.col("Metadata_Dose") == 0).fill_null(value=False)
    medians = (
        scores.drop_nulls("gradcamo")
        .sort("gradcamo", "Metadata_CellID")
        .group_by(TREATMENT, maintain_order=True)
        .agg(pl.all().get(pl.len() // 2))
        .with_columns(is_control=is_control)
        .with_columns(doses=pl.len().over("is_control", compound))
        .sort(~pl.col("is_control"), -pl.col("doses").cast(pl.Int64), *TREATMENT)
    )
    selected: list[dict[str, Any]] = []
    series = 0
    for _, rows in medians.group_by("is_control", compound, maintain_order=True):
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(_MAX_DOSES, len(rows))).round().astype(int))
        series += len(chosen) > 1
        if len(selected) + len(chosen) <= _MAX_TREATMENTS and (len(chosen) == 1 or series <= _MAX_SERIES):
            selected += rows[chosen].to_dicts()
    return selected


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
        if not folder_exists(folder):
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
