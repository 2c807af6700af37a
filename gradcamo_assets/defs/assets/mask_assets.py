"""``masks``: cells and nuclei of every field, by Cellpose."""

from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from gradcamo_assets.defs.assets.plate_assets import plate_images
from gradcamo_assets.defs.each_field import field_row, fields_at, for_each_field, number
from gradcamo_assets.defs.field_results import check_pixels, mask_folder, of_fields, site_version
from gradcamo_assets.defs.launchpad import used
from gradcamo_assets.defs.partitions import PLATE_SITES, plate_site_of
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.unfinished_runs import announced
from gradcamo_assets.plates import Field, field_version, read_field
from gradcamo_assets.provenance import Provenance
from gradcamo_assets.report import segmentation_overlay, to_markdown
from gradcamo_assets.segmentation import Segmenter, read_masks, write_masks
from gradcamo_assets.tables import lake_table

_CODE = "1"


@dg.asset(
    partitions_def=PLATE_SITES,
    deps=[plate_images],
    group_name="cells",
    kinds={"cellpose", "zarr"},
    pool="segmentation",
    check_specs=[dg.AssetCheckSpec("fields_segmented", asset="masks", description="Every readable field has masks.")],
)
def masks(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Masks of cells and nuclei, one OME-Zarr label image a field; fields that are already right are skipped."""
    plate_name, site = plate_site_of(context)
    home, lake = platform.home, platform.lake
    plate, fields = fields_at(home, plate_name, site)
    settings = platform.settings
    segmenter = Segmenter(settings.segmentation)
    skipped: list[str] = []

    def segment(field: Field) -> dict[str, Any]:
        read = field_version(plate, field)
        made_from = Provenance(read, segmenter.version, _CODE)
        folder = mask_folder(home, plate_name, field.well, site, made_from.version)
        if folder.exists():
            skipped.append(field.well)
            found = read_masks(folder)
        else:
            found = segmenter.segment(read_field(plate, field), plate.channels, plate.voxel_size)
            check_pixels(home, plate, field)
            write_masks(folder, found, plate.voxel_size, made_from)
        return {
            "image_version": plate.image_versions[field],
            "read_version": read,
            "mask_version": made_from.version,
            "n_cells": int(found.cells.max()),
            "foreground_share": float(np.count_nonzero(found.cells) / found.cells.size),
        }

    with announced(home, context.run_id, home.masks, plate_name, site):
        outcome = for_each_field(context, fields, segment)
        rows = [field_row(plate_name, well, site, **values) for well, values in outcome.done.items()]
        rows += [
            field_row(plate_name, well, site, qc_flag=f"not segmented: {why}") for well, why in outcome.failed.items()
        ]
        table = pl.DataFrame(rows, schema=lake_table("masks").schema)
        version = of_fields(dict(table.select("Metadata_Well", "mask_version").iter_rows()))
        lake.write_stage(
            "mask_versions", {"masks": table}, version=version, made_from=site_version(plate, site),
            n=len(outcome.done), plate=plate_name, site=site,
        )  # fmt: skip
    shown = next(field for field in fields if field.well in outcome.done)
    example = read_masks(mask_folder(home, plate_name, shown.well, site, outcome.done[shown.well]["mask_version"]))
    overlay = segmentation_overlay(
        read_field(plate, shown), example.cells, example.nuclei, plate.voxel_size, shown.path
    )
    counts = table["n_cells"].drop_nulls()
    return dg.MaterializeResult(
        data_version=dg.DataVersion(version),
        metadata={
            **used(plates=settings.plates, segmentation=settings.segmentation),
            "fields": len(outcome.done),
            "fields_failed": len(outcome.failed),
            "fields_already_right": len(skipped),
            "cells": int(counts.sum()),
            "cells_a_field": number(counts.mean()),
            "example": dg.MetadataValue.md(to_markdown(overlay, f"Cells and nuclei of field {shown.path}")),
        },
        check_results=[outcome.check("fields_segmented")],
    )
