"""Asset ``channel_correlation``: correlation between the stains of a plate inside its cells."""

import dagster as dg
import numpy as np
import polars as pl

from gradcamo_assets.cells import TARGET, open_crops
from gradcamo_assets.cells.cell_rows import cells_with_crops
from gradcamo_assets.defs.field_results import crop_folder
from gradcamo_assets.defs.partitions import ON_INPUT_CHANGE, PLATES
from gradcamo_assets.defs.pictures import show_picture
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.report import channel_correlations
from gradcamo_assets.storage_errors import explain_storage_errors

_MAX_CELLS = 512


@dg.asset(
    partitions_def=PLATES, deps=["crops"], group_name="profiles", kinds={"polars"}, automation_condition=ON_INPUT_CHANGE
)
@explain_storage_errors
def channel_correlation(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Pearson correlation between stains over the voxels of a cell, in a sample of a plate's cells."""
    from gradcamo_assets.profiles import correlation_table, stain_correlation

    plate, lake = context.partition_key, platform.lake
    cells = cells_with_crops(lake, plate=plate).filter(pl.col("crop_index").is_not_null())
    kept = cells.sort("Metadata_CellID").collect()
    sample = kept.sample(min(_MAX_CELLS, len(kept)), seed=0)
    if not len(sample):
        raise dg.Failure(f"Plate {plate} has no crops.")
    correlations, channels = [], []
    for rows in sample.partition_by("Metadata_Well", "Metadata_Site", maintain_order=True):
        field = open_crops(crop_folder(platform.home, rows.row(0, named=True)))
        channels = field.channels
        for index in rows["crop_index"]:
            image, labels = field.read(index)
            correlations.append(stain_correlation(image, labels == TARGET))
    table = correlation_table(np.stack(correlations), channels).with_columns(Metadata_Plate=pl.lit(plate))
    lake.write("channel_correlation", table, plate=plate)
    median = {f"{a} x {b}": r for a, b, r in table.select("channel_a", "channel_b", "median_correlation").iter_rows()}
    most_alike = max(median, key=lambda pair: abs(median[pair] or 0), default="none: only one stain")
    figure, alt = channel_correlations(table), f"Correlation between the stains of {plate}"
    picture = show_picture(context, platform.home, "correlations", figure, alt)
    return dg.MaterializeResult(metadata={"cells": len(sample), "most_alike": most_alike, **picture})
