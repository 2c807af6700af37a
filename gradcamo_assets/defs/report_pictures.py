"""The pictures of a report with their words: captions for all, alternative texts for those who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.defs.cells_to_look_at import SeenCell, cases, look, typical_of_doses
from gradcamo_assets.defs.each_field import number
from gradcamo_assets.defs.field_results import mask_folder
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.plates import load_plate, read_field
from gradcamo_assets.report import (
    Picture,
    channel_correlations,
    crops_by_dose,
    crops_with_maps,
    on_target_intervals,
    pipeline_on_one_cell,
    score_against_ceiling,
    score_distributions,
    segmentation_overlay,
    treatment_name,
    umap_scatter,
)
from gradcamo_assets.segmentation import read_masks


def of_scores(scores: pl.DataFrame, doses: pl.DataFrame, umap: pl.DataFrame, stains: pl.DataFrame) -> list[Picture]:
    """Charts of a plate.

    Args:
        scores: held-out cells. doses: rows of ``trusted_doses``. umap, stains: rows of the tables ``umap`` and
            ``channel_correlation``; without rows there is no picture of them.
    """
    medians = ", ".join(
        f"site {site} {median:.2f}"
        for site, median in scores.group_by("Metadata_Site")
        .agg(pl.col("gradcamo").median())
        .drop_nulls()
        .sort("Metadata_Site")
        .iter_rows()
    )
    ceiling = scores["gradcamo_max"].median()
    capped = number((scores["gradcamo_max"].drop_nulls() <= 0.5).mean())
    pictures = [
        Picture(
            "Share on target by dose",
            "Share of cells whose score exceeds one half, with its 95% interval: a bootstrap over wells.",
            "Dots with intervals. " + "; ".join(
                f"{treatment_name(row) or 'untreated'} {number(row['on_target_fraction']):.0%}"
                for row in doses.head(20).iter_rows(named=True)
            ),
            on_target_intervals(doses),
        ),
        Picture(
            "Score by dose and site",
            "Boxes: median and quartiles, whiskers to 1.5 interquartile ranges; points are cells; dashed: one half.",
            f"Boxes of the Grad-CAMO score by treatment and by site; medians: {medians}",
            score_distributions(scores),
        ),
        Picture(
            "Adjusted score by dose and site",
            "The same for the adjusted score: 0 is chance, 1 the best the maps allow.",
            f"Boxes of the adjusted score; its median is {number(scores['gradcamo_adjusted'].median()):.2f}",
            score_distributions(scores, "gradcamo_adjusted", "adjusted Grad-CAMO", threshold=None),
        ),
        Picture(
            "Score against its ceiling",
            "A map's resolution bounds the score it can give. Points are cells; the line is the median of eight groups "
            f"of cells with like ceilings. {capped:.0%} of the cells could not exceed one half wherever it looked.",
            f"Scatter of the score over its ceiling, whose median is {number(ceiling):.2f}, below the line of equality",
            score_against_ceiling(scores),
        ),
    ]  # fmt: skip
    if len(umap):
        points = umap.join(scores.select("Metadata_CellID", "gradcamo"), on="Metadata_CellID", how="left")
        pictures.append(
            Picture(
                "Map of the embedding",
                "UMAP of the cells' embeddings: left by dose (colour) and site (marker), right by Grad-CAMO. Hollow: "
                "cells the model was trained on, or without a score.",
                f"Two scatters of {len(points)} cells on the same map, one by dose and site, one by score",
                umap_scatter(points),
            )
        )
    if len(stains):
        pairs = stains.select("channel_a", "channel_b", "median_correlation").drop_nulls().iter_rows()
        pictures.append(
            Picture(
                "Correlation between stains",
                "Pearson's correlation between stains over the voxels of a cell: how much one stain tells of another.",
                "Medians over cells: " + "; ".join(f"{a} and {b} {median:.2f}" for a, b, median in pairs),
                channel_correlations(stains),
            )
        )
    return pictures


def of_cells(platform: Platform, plate: str, model_run: str, scores: pl.DataFrame) -> list[Picture]:
    """Pictures of single cells with the model's maps on them, and of a segmented field; none where crops are gone.

    Raises:
        GradcamoError: where the encoder, a crop, the field or its masks cannot be had.
    """
    home, registry = platform.home, platform.registry
    bundle = next((registry.fetch(known) for known in registry.versions() if known.run_id == model_run), None)
    seen = look(home, plate, cases(scores), bundle) if bundle else []
    typical = look(home, plate, typical_of_doses(scores))
    pictures = []
    if seen:
        example = next((cell for cell in seen if cell.row["case"] == "target, median"), seen[0])
        row = example.row
        pictures += [_pipeline(example), _segmentation(platform, plate, row)]
    if typical:
        names = [treatment_name(cell.row) or "untreated" for cell in typical]
        pictures.append(
            Picture(
                "Cells by dose",
                "The cell of median score of each dose, a stain a row, each stain on one grey scale. White: the cell; "
                "dashed: its neighbours.",
                f"Crops of {len(typical)} cells in {', '.join(typical[0].channels)}: {', '.join(names)}",
                crops_by_dose(*_stacked(typical), typical[0].channels, names),
            )
        )
    if seen:
        titles = [
            f"{row['case']}: {round(row['gradcamo_adjusted'], 2) + 0.0:.2f}\n"
            f"{row['Metadata_Well']}, site {row['Metadata_Site']}, {treatment_name(row) or 'untreated'}"
            for row in (cell.row for cell in seen)
        ]
        pictures.append(
            Picture(
                "Where the model looks",
                "Of the cells whose map looks at the target, at a neighbour and at the background the best, the median "
                "and the worst by adjusted score: the stains in colours, and the Grad-CAM map over them in grey.",
                "; ".join(title.replace("\n", ", ") for title in titles),
                crops_with_maps(*_stacked(seen), np.stack([cell.cam for cell in seen]), titles, across=3),
            )
        )
    return pictures


def _stacked(cells: list[SeenCell]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([cell.image for cell in cells]), np.stack([cell.labels for cell in cells])


def _pipeline(cell: SeenCell) -> Picture:
    row = cell.row
    shares = {
        "its cell": row["gradcamo"],
        "neighbours": row["neighbour_share"],
        "the background": row["background_share"],
    }
    falls = ", ".join(f"{number(share):.0%} on {what}" for what, share in shares.items())
    return Picture(
        "From a cell to its score",
        f"Cell {row['Metadata_CellID']}, taken for {row['predicted_class']}. The score is the share of the whole map, "
        f"all slices, that lies inside the mask: here {row['gradcamo']:.2f}, where {row['mask_fraction']:.2f} would be "
        f"chance and {number(row['gradcamo_max']):.2f} the ceiling. Shown is the slice in which the cell is largest.",
        f"One crop, its mask, the model's map and their overlap; of the map {falls}",
        pipeline_on_one_cell(cell.image, cell.labels, cell.cam, row),
    )


def _segmentation(platform: Platform, plate_name: str, row: Mapping[str, Any]) -> Picture:
    home, well, site = platform.home, row["Metadata_Well"], row["Metadata_Site"]
    plate = load_plate(home.plates, plate_name, illumination=platform.settings.plates.illumination)
    field = next(field for field in plate.fields if (field.well, field.site) == (well, site))
    masks = read_masks(mask_folder(home, plate_name, well, site, row["mask_version"]))
    count = np.count_nonzero(np.unique(masks.cells))
    return Picture(
        "Segmentation",
        "Outlines of cells (white) and nuclei (blue) in a slice, and below it in the cut through the stack along the "
        "dotted line.",
        f"Field {field.path} with the outlines of {count} cells and their nuclei, from above and from the side",
        segmentation_overlay(read_field(plate, field), masks.cells, masks.nuclei, plate.voxel_size, field.path),
    )
