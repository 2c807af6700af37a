"""Cells to look at in a report: which ones, their crops, and the model's maps on them. Drawing them is ``figures``'."""

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

_MOST_DOSES = 8
_DOSE = ("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit")


@dataclass(frozen=True)
class SeenCell:
    """A row of the scores with its crop: ``image`` (C, Z, Y, X), ``labels`` (Z, Y, X), ``cam`` (z, y, x)."""

    row: dict[str, Any]
    image: np.ndarray
    labels: np.ndarray
    channels: list[str]
    cam: np.ndarray


def cases(scores: pl.DataFrame) -> list[dict[str, Any]]:
    """The best, the median and the worst cell, by adjusted score, of those that look at each region.

    A region with fewer than three cells has fewer cases. Rows gain ``case``, such as ``target, best``.
    """
    found = []
    for region in ("target", "neighbour", "background"):
        part = (
            scores.filter(looks_at=region).drop_nulls("gradcamo_adjusted").sort("gradcamo_adjusted", "Metadata_CellID")
        )
        last = len(part) - 1
        places = {0: "worst", len(part) // 2: "median", last: "best"} if last else {0: "best"}
        for place in sorted(places, reverse=True)[: len(part)]:
            found.append({**part.row(place, named=True), "case": f"{region}, {places[place]}"})
    return found


def typical_of_doses(scores: pl.DataFrame) -> list[dict[str, Any]]:
    """The cell of median score of the controls and of each dose, at most 8, of the compound with the most doses."""
    scores = scores.drop_nulls("gradcamo").sort("gradcamo", "Metadata_CellID")
    treated = scores.filter(pl.col("Metadata_Dose") > 0)
    if len(treated):
        counts = treated.group_by("Metadata_Compound").agg(pl.col("Metadata_Dose").n_unique())
        first = counts.sort(-pl.col("Metadata_Dose").cast(pl.Int64), "Metadata_Compound")["Metadata_Compound"][0]
        scores = scores.filter((pl.col("Metadata_Dose") == 0) | pl.col("Metadata_Compound").eq_missing(first))
    groups = scores.sort("Metadata_Dose", maintain_order=True).partition_by(_DOSE, maintain_order=True)
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(_MOST_DOSES, len(groups))).round().astype(int))
    return [groups[place].row(len(groups[place]) // 2, named=True) for place in chosen]


def look(home: Home, plate: str, rows: Iterable[dict[str, Any]], bundle: Path | None = None) -> list[SeenCell]:
    """The crops of some cells, and the maps that an encoder makes on them; cells whose crops are gone are left out.

    Args:
        rows: of the table ``scores``. bundle: of the encoder; without it no maps are made.

    Raises:
        BundleError: where the encoder does not fit the crops. CropError: where one cannot be read.
    """
    from gradcamo_assets.explain import gradcamo
    from gradcamo_assets.scoring.scorer import Scorer

    scorer = Scorer(bundle, read_settings(home).scoring) if bundle else None
    seen = []
    for row in rows:
        folder = crop_folder(home, {**row, "Metadata_Plate": plate})
        if not folder.exists():
            continue
        field = open_crops(folder)
        place = field.cell_ids.index(row["Metadata_CellID"])
        image, labels = field.read(place)
        cam = np.empty((0, 0, 0))
        for images, masks in scorer.batches(field, [slice(place, place + 1)]) if scorer else ():
            result = gradcamo(scorer.model, images, masks == TARGET, layer=scorer.config.layer)  # type: ignore[union-attr]
            cam = result.cam.float().cpu().numpy().reshape(-1, *result.cam.shape[-2:])
        seen.append(SeenCell(row, image, labels, field.channels, cam))
    return seen
