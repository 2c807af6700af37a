"""Draw the pictures of a report, with captions and alternative texts for readers who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from gradcamo_assets.defs.cells_to_look_at import (
    ExampleCell,
    load_examples,
    select_example_cells,
    select_median_cells_by_treatment,
)
from gradcamo_assets.defs.each_field import as_number
from gradcamo_assets.defs.field_results import mask_folder
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.plates import load_plate, read_field
from gradcamo_assets.profiles.well_profiles import TREATMENT
from gradcamo_assets.report import (
    Picture,
    channel_correlations,
    colour_key,
    crops_by_treatment,
    crops_with_maps,
    pipeline_on_one_cell,
    score_against_ceiling,
    score_distributions,
    score_intervals,
    segmentation_overlay,
    treatment_name,
    umap_scatter,
)
from gradcamo_assets.segmentation import read_masks
from gradcamo_assets.thresholds import THRESHOLDS


def score_pictures(
    scores: pl.DataFrame, doses: pl.DataFrame, umap: pl.DataFrame, stains: pl.DataFrame
) -> list[Picture]:
    """Draw the charts of a plate.

    Args:
        scores: scores of held-out cells.
        doses: rows of ``trusted_doses``.
        umap: rows of the table ``umap``; if empty, its chart is left out.
        stains: rows of the table ``channel_correlation``; if empty, its chart is left out.
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
    capped = as_number((scores["gradcamo_max"].drop_nulls() <= THRESHOLDS.paper).mean())
    threshold = as_number(doses["adjusted_threshold"][0]) if len(doses) else None
    pictures = [
        Picture(
            "Mean adjusted score by dose",
            "Mean over cells, with the 95% interval of a bootstrap over wells. The interval of a trusted dose lies "
            "above the dashed line.",
            "Dots with intervals. " + "; ".join(
                f"{treatment_name(row) or 'untreated'} {row['mean_adjusted']:.2f}"
                for row in doses.drop_nulls("mean_adjusted").head(20).iter_rows(named=True)
            ),
            score_intervals(
                doses, ("mean_adjusted", "adjusted_low", "adjusted_high"), "Mean adjusted Grad-CAMO", threshold
            ),
        ),
        Picture(
            "Share on target by dose",
            f"The rule of the paper: share of cells whose score exceeds {THRESHOLDS.paper:g}, with the 95% interval of "
            "a bootstrap over wells.",
            "Dots with intervals. " + "; ".join(
                f"{treatment_name(row) or 'untreated'} {as_number(row['on_target_fraction']):.0%}"
                for row in doses.head(20).iter_rows(named=True)
            ),
            score_intervals(doses),
        ),
        Picture(
            "Score by dose and site",
            "Boxes: median and quartiles, whiskers to 1.5 interquartile ranges; points: cells; dashed line: "
            f"{THRESHOLDS.paper:g}.",
            f"Box plots of the Grad-CAMO score by treatment and by site; medians: {medians}",
            score_distributions(scores),
        ),
        Picture(
            "Adjusted score by dose and site",
            "The same for the adjusted score; 0: chance, 1: the highest score that the maps allow.",
            f"Box plots of the adjusted score; its median is {as_number(scores['gradcamo_adjusted'].median()):.2f}",
            score_distributions(scores, "gradcamo_adjusted", "adjusted Grad-CAMO", threshold=None),
        ),
        Picture(
            "Score against its ceiling",
            "The resolution of a map limits its score. Points: cells; line: median of eight groups of cells with "
            f"similar ceilings. {capped:.0%} of the cells could not exceed {THRESHOLDS.paper:g} wherever the "
            "model looked.",
            f"Scatter plot of the score against its ceiling, whose median is {as_number(ceiling):.2f}; all points are "
            "below the line of equality",
            score_against_ceiling(scores),
        ),
    ]  # fmt: skip
    if len(umap):
        points = umap.join(scores.select("Metadata_CellID", "gradcamo"), on="Metadata_CellID", how="left")
        pictures.append(
            Picture(
                "Map of the embedding",
                "UMAP of the cells' embeddings: left by treatment (colour) and site (marker), right by Grad-CAMO. "
                "Hollow: cells that the model was trained on, or without a score.",
                f"Two scatter plots of {len(points)} cells on the same map, one by treatment and site, one by score",
                umap_scatter(points),
            )
        )
    if len(stains):
        pairs = stains.select("channel_a", "channel_b", "median_correlation").drop_nulls().iter_rows()
        pictures.append(
            Picture(
                "Correlation between stains",
                "Pearson correlation between stains within a cell: the redundancy of the stains.",
                "Medians over cells: " + "; ".join(f"{a} and {b} {median:.2f}" for a, b, median in pairs),
                channel_correlations(stains),
            )
        )
    return pictures


def cell_pictures(platform: Platform, plate: str, model_run: str, scores: pl.DataFrame) -> list[Picture]:
    """Draw example cells with the model's maps, and a segmented field. Cells whose crops were deleted are left out.

    Raises:
        GradcamoError: if the encoder, a crop, the field or its masks cannot be read.
    """
    home, registry = platform.home, platform.registry
    bundle = next((registry.fetch(known) for known in registry.versions() if known.run_id == model_run), None)
    examples = load_examples(home, plate, select_example_cells(scores), bundle) if bundle else []
    typical = load_examples(home, plate, select_median_cells_by_treatment(scores))
    pictures = []
    if examples:
        example = next((cell for cell in examples if cell.row["case"] == "target, median"), examples[0])
        pictures += [_pipeline(example), _segmentation(platform, plate, example.row)]
    if typical:
        pictures.append(_by_treatment(typical, n_treatments=scores.drop_nulls("gradcamo").n_unique(TREATMENT)))
    if examples:
        titles = [
            f"{row['case']}: {round(row['gradcamo_adjusted'], 2) + 0.0:.2f}\n"
            f"{row['Metadata_Well']}, site {row['Metadata_Site']}, {treatment_name(row) or 'untreated'}"
            for row in (cell.row for cell in examples)
        ]
        pictures.append(
            Picture(
                "Where the model looks",
                "The cells with the best, median and worst adjusted score among those whose map looks at the target, a "
                "neighbour or the background. Left: stains in colours; right: the Grad-CAM map over grey stains. "
                f"Colours: {colour_key(examples[0].channels)}.",
                "; ".join(title.replace("\n", ", ") for title in titles),
                crops_with_maps(*_stacked(examples), np.stack([cell.cam for cell in examples]), titles, across=3),
            )
        )
    return pictures


def _stacked(cells: list[ExampleCell]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([cell.image for cell in cells]), np.stack([cell.labels for cell in cells])


def _by_treatment(cells: list[ExampleCell], n_treatments: int) -> Picture:
    names = [treatment_name(cell.row) or "untreated" for cell in cells]
    shown = f" {len(cells)} of {n_treatments} treatments are shown." if len(cells) < n_treatments else ""
    return Picture(
        "Cells by treatment",
        f"The cell with the median score of each treatment.{shown} White: the cell; dashed: its neighbours. "
        "Each stain has one intensity scale for all cells. If stains are merged, their colours are "
        f"{colour_key(cells[0].channels)}.",
        f"Crops of {len(cells)} cells in {', '.join(cells[0].channels)}: {', '.join(names)}",
        crops_by_treatment(*_stacked(cells), cells[0].channels, [cell.row for cell in cells]),
    )


def _pipeline(cell: ExampleCell) -> Picture:
    row = cell.row
    shares = {
        "its cell": row["gradcamo"],
        "neighbours": row["neighbour_share"],
        "the background": row["background_share"],
    }
    fractions = ", ".join(f"{as_number(share):.0%} on {what}" for what, share in shares.items())
    is_stack = len(cell.labels) > 1
    slice_note = " The slice with the largest area of the cell is shown." if is_stack else ""
    return Picture(
        "From a cell to its score",
        f"Cell {row['Metadata_CellID']}, predicted class {row['predicted_class']}. The score is the share of the map "
        f"inside the mask{', over all slices' * is_stack}: {row['gradcamo']:.2f}; chance: {row['mask_fraction']:.2f}; "
        f"ceiling: {as_number(row['gradcamo_max']):.2f}.{slice_note}",
        f"One crop, its mask, the model's map and their overlap; of the map {fractions}",
        pipeline_on_one_cell(cell.image, cell.labels, cell.cam, row),
    )


def _segmentation(platform: Platform, plate_name: str, row: Mapping[str, Any]) -> Picture:
    home, well, site = platform.home, row["Metadata_Well"], row["Metadata_Site"]
    plate = load_plate(home.plates, plate_name, illumination=platform.settings.plates.illumination)
    field = next(field for field in plate.fields if (field.well, field.site) == (well, site))
    masks = read_masks(mask_folder(home, plate_name, well, site, row["mask_version"]))
    count = np.count_nonzero(np.unique(masks.cells))
    is_stack = len(masks.cells) > 1
    name = f"{well}, site {site}"
    section = " in a slice, and below it in a section through the stack along the dotted line" * is_stack
    return Picture(
        "Segmentation",
        f"Outlines of cells (white) and nuclei (blue){section}. Colours: {colour_key(plate.channels)}.",
        f"{name} with the outlines of {count} cells and their nuclei" + ", from above and from the side" * is_stack,
        segmentation_overlay(read_field(plate, field), masks.cells, masks.nuclei, plate.voxel_size, name),
    )
