"""``qc_report``: what the champion makes of one plate, as a page for those who never open Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from gradcamo_assets.common import GradcamoError, slug
from gradcamo_assets.common.files import replaced_file
from gradcamo_assets.figures import (
    Listing,
    Picture,
    channel_correlations,
    crops_by_dose,
    crops_with_maps,
    on_target_intervals,
    pipeline_on_one_cell,
    plate_heat_map,
    qc_report_html,
    score_against_ceiling,
    score_distributions,
    segmentation_overlay,
    to_markdown,
    treatment_name,
    umap_scatter,
    verdict,
)
from gradcamo_assets.orchestration.assets.qc import qc_database
from gradcamo_assets.orchestration.fields import number
from gradcamo_assets.orchestration.partitions import AUTOMATIC, PLATES
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.orchestration.seen import SeenCell, cases, look, typical_of_doses
from gradcamo_assets.orchestration.stores import mask_folder
from gradcamo_assets.plates import IngestConfig, load_plate, read_field
from gradcamo_assets.segmentation import read_masks
from gradcamo_assets.warehouse import run_sql

_KEYS = ("model_name", "model_version", "Metadata_Plate")
_TABLES = {
    "trusted_doses": "Which doses can be trusted",
    "wells_to_drop": "Which wells to drop",
    "site_effect": "Whether the site matters",
    "cells_to_look_at": "Which cells to look at",
    "audit_by_plate": "Whether the maps are to be believed",
    "model_gain": "Whether the new model has helped",
    "plate_drift": "Whether the plate is like earlier ones",
    "qc_by_dose_site": "Scores by dose and site",
    "qc_by_well": "Scores by well",
}
"""Titles of the views that a report lists."""


@dg.asset(
    partitions_def=PLATES,
    deps=[qc_database, "audit", "umap", "channel_correlation"],
    group_name="qc",
    kinds={"html"},
    automation_condition=AUTOMATIC,
)
def qc_report(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """One self-contained page a plate and model version: the verdict in words, then pictures, then tables."""
    plate, home = context.partition_key, platform.home
    ask = _asking(home.database, plate, platform.model_name)
    models = run_sql(
        home.database, "SELECT models.* FROM models JOIN champions USING (model_name, model_version) "
        "WHERE model_name = $name", {"name": platform.model_name},
    )  # fmt: skip
    scores = ask("current_scores", "AND split <> 'train'")
    tables = {name: ask(name) for name in _TABLES}
    model = models.row(0, named=True) if len(models) else None
    found = verdict(scores, tables, model)
    if model is None or scores.is_empty():
        return dg.MaterializeResult(metadata={"verdict": found.headline, "cells": 0})
    version = f"{model['model_name']} version {model['model_version']}"
    wells = _wells(run_sql(home.database, "SELECT * FROM wells WHERE Metadata_Plate = $plate", {"plate": plate}), tables,
                   {well.rpartition("/")[2] for well in model["train_wells"] or [] if well.startswith(f"{plate}/")})  # fmt: skip
    pictures = [*_charts(scores, tables, ask("umap")), *_stains(home.database, plate)]
    try:
        pictures = [*_cells(platform, plate, model["model_version"], scores), *pictures]
    except GradcamoError as error:
        context.log.warning(f"The report goes without pictures of cells: {error}")
    page = qc_report_html(
        plate, version, found, pictures, _listings(home.database, tables), wells,
        made=f"scored {scores['scored_at'].max():%Y-%m-%d}",
    )  # fmt: skip
    target = home.reports / plate / f"{slug(model['model_name'], 'model name')}-v{model['model_version']}.html"
    with replaced_file(target) as path:
        path.write_text(page, encoding="utf-8")
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.url(target.as_uri()),
            "verdict": f"{found.headline}. {found.shares}",
            "model_version": model["model_version"],
            "cells": len(scores),
            "on_target_share": number(scores["on_target"].mean()),
            "wells_to_drop": len(tables["wells_to_drop"]),
            "megabytes": len(page) / 1e6,
            "plate": dg.MetadataValue.md(
                to_markdown(
                    plate_heat_map(wells, "on_target_fraction", "share of cells on target"), "On-target share by well"
                )
            ),
            "distributions": dg.MetadataValue.md(
                to_markdown(score_distributions(scores), "Grad-CAMO by treatment and by site")
            ),
        }
    )


def _asking(database: Path, plate: str, model_name: str) -> Callable[..., pl.DataFrame]:
    """A function that gives the rows of a view, of this plate and the champion."""

    def ask(view: str, condition: str = "") -> pl.DataFrame:
        sql = f"""SELECT t.* EXCLUDE ({", ".join(_KEYS)}) FROM {view} t JOIN champions USING (model_name, model_version)
            WHERE model_name = $name AND Metadata_Plate = $plate {condition} ORDER BY ALL"""
        return run_sql(database, sql, {"plate": plate, "name": model_name})

    return ask


def _wells(plate_map: pl.DataFrame, tables: dict[str, pl.DataFrame], trained: set[str]) -> pl.DataFrame:
    """Every well of the plate map, with its share on target if it was judged, and why it should be dropped if so."""
    judged = tables["qc_by_well"].select("Metadata_Well", "on_target_fraction", n_cells=pl.col("n_cells") - pl.col("null_cells"))
    wells = plate_map.join(judged, on="Metadata_Well", how="full", coalesce=True)
    wells = wells.join(tables["wells_to_drop"].select("Metadata_Well", "reason"), on="Metadata_Well", how="left")
    return wells.with_columns(trained=pl.col("Metadata_Well").is_in(trained))


def _listings(database: Path, tables: dict[str, pl.DataFrame]) -> list[Listing]:
    """The tables with the comments that the database has on them."""
    said = run_sql(
        database, "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal UNION ALL "
        "SELECT view_name, '', comment FROM duckdb_views() WHERE NOT internal UNION ALL "
        "SELECT table_name, '', comment FROM duckdb_tables()",
    )  # fmt: skip
    comments = {(table, column): comment or "" for table, column, comment in said.iter_rows()}
    return [
        Listing(title, comments[name, ""], frame, {column: comments[name, column] for column in frame.columns})
        for name, title in _TABLES.items()
        for frame in [tables[name]]
    ]


def _charts(scores: pl.DataFrame, tables: dict[str, pl.DataFrame], umap: pl.DataFrame) -> list[Picture]:
    doses = tables["trusted_doses"]
    medians = ", ".join(
        f"site {site} {median:.2f}"
        for site, median in scores.group_by("Metadata_Site").agg(pl.col("gradcamo").median()).drop_nulls().sort("Metadata_Site").iter_rows()
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
            "Boxes: median and quartiles, whiskers to 1.5 interquartile ranges; points are cells. The dashed line is one half.",
            f"Boxes of the Grad-CAMO score by treatment and by site; medians: {medians}",
            score_distributions(scores),
        ),
        Picture(
            "Adjusted score by dose and site",
            "The same for the adjusted score: 0 is chance, 1 the best the maps allow.",
            f"Boxes of the adjusted score; the median over all cells is {number(scores['gradcamo_adjusted'].median()):.2f}",
            score_distributions(scores, "gradcamo_adjusted", "adjusted Grad-CAMO", threshold=None),
        ),
        Picture(
            "Score against its ceiling",
            "A map's resolution bounds the score it can give. Points are cells; the line is the median of eight groups "
            f"of cells with like ceilings. {capped:.0%} of the cells could not exceed one half wherever the model looked.",
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
    return pictures


def _stains(database: Path, plate: str) -> list[Picture]:
    table = run_sql(database, "SELECT * FROM channel_correlation WHERE Metadata_Plate = $plate", {"plate": plate})
    if table.is_empty():
        return []
    named = "; ".join(
        f"{a} and {b} {median:.2f}"
        for a, b, median in table.select("channel_a", "channel_b", "median_correlation").drop_nulls().iter_rows()
    )
    caption = "Pearson's correlation between stains over the voxels of a cell: how much one stain tells of another."
    return [Picture("Correlation between stains", caption, f"Median correlations: {named}", channel_correlations(table))]


def _cells(platform: Platform, plate: str, version: int, scores: pl.DataFrame) -> list[Picture]:
    """Pictures of single cells with the model's maps on them, and of a segmented field; none where crops are gone."""
    home, registry = platform.home, platform.registry
    bundle = next((registry.fetch(known) for known in registry.versions() if known.version == version), None)
    seen = look(home, plate, cases(scores), bundle) if bundle else []
    typical = look(home, plate, typical_of_doses(scores))
    pictures = []
    if seen:
        example = next((cell for cell in seen if cell.row["case"] == "target, median"), seen[0])
        row = example.row
        pictures += [_pipeline(example), _segmentation(platform, plate, row["Metadata_Well"], row["Metadata_Site"])]
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
            f"{cell.row['case']}: {cell.row['gradcamo_adjusted']:.2f}\n{cell.row['Metadata_Well']}, site "
            f"{cell.row['Metadata_Site']}, {treatment_name(cell.row) or 'untreated'}"
            for cell in seen
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
    shares = {"its cell": row["gradcamo"], "neighbours": row["neighbour_share"], "the background": row["background_share"]}
    falls = ", ".join(f"{number(share):.0%} on {what}" for what, share in shares.items())
    assert cell.cam is not None
    return Picture(
        "From a cell to its score",
        f"Cell {row['Metadata_CellID']}, taken for {row['predicted_class']}. The score is the share of the whole map, all "
        f"slices, that lies inside the mask: here {row['gradcamo']:.2f}, where {row['mask_fraction']:.2f} would be chance and "
        f"{number(row['gradcamo_max']):.2f} the ceiling. The slice shown is the one in which the cell is largest.",
        f"One crop, its mask, the model's map and their overlap; of the map {falls}",
        pipeline_on_one_cell(cell.image, cell.labels, cell.cam, row),
    )


def _segmentation(platform: Platform, plate_name: str, well: str, site: int) -> Picture:
    home = platform.home
    plate = load_plate(home.plates, plate_name, illumination=home.settings("plates", IngestConfig).illumination)
    field = next(field for field in plate.fields if (field.well, field.site) == (well, site))
    masks = read_masks(mask_folder(home, field))
    count = np.count_nonzero(np.unique(masks.cells))
    return Picture(
        "Segmentation",
        "Outlines of cells (white) and nuclei (blue) in a slice, and below it in the cut through the stack along the "
        "dotted line.",
        f"Field {field.path} with the outlines of {count} cells and their nuclei, from above and from the side",
        segmentation_overlay(read_field(plate, field), masks.cells, masks.nuclei, plate.voxel_size, field.path),
    )
