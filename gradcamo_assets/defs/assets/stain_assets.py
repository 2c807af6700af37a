"""``channel_correlation``: how alike the stains of a plate are inside its cells."""

import dagster as dg
import numpy as np
import polars as pl

from gradcamo_assets.cells import TARGET, open_crops
from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.defs.field_results import crop_folder
from gradcamo_assets.defs.partitions import AUTOMATIC, PLATES
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.report import channel_correlations, to_markdown

_CELLS = 512


@dg.asset(
    partitions_def=PLATES, deps=["crops"], group_name="profiles", kinds={"polars"}, automation_condition=AUTOMATIC
)
def channel_correlation(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Pearson's correlation between stains over the voxels of a cell, in a sample of a plate's cells."""
    from gradcamo_assets.profiles import correlation_table, stain_correlation

    plate, lake = context.partition_key, platform.lake
    cells = cells_with_crops(lake, plate=plate).filter(pl.col("crop_index").is_not_null())
    kept = cells.sort("Metadata_CellID").collect()
    sample = kept.sample(min(_CELLS, len(kept)), seed=0)
    if not len(sample):
        raise dg.Failure(f"Plate {plate} has no crops.")
    found, channels = [], []
    for rows in sample.partition_by("Metadata_Well", "Metadata_Site", maintain_order=True):
        field = open_crops(crop_folder(platform.home, rows.row(0, named=True)))
        channels = field.channels
        for index in rows["crop_index"]:
            image, labels = field.read(index)
            found.append(stain_correlation(image, labels == TARGET))
    table = correlation_table(np.stack(found), channels).with_columns(Metadata_Plate=pl.lit(plate))
    lake.write("channel_correlation", table, plate=plate)
    median = {f"{a} x {b}": r for a, b, r in table.select("channel_a", "channel_b", "median_correlation").iter_rows()}
    alike = max(median, key=lambda pair: abs(median[pair] or 0), default="none: there is one stain")
    picture = to_markdown(channel_correlations(table), f"Correlation between the stains of {plate}")
    return dg.MaterializeResult(
        metadata={"cells": len(sample), "most_alike": alike, "correlations": dg.MetadataValue.md(picture)}
    )
