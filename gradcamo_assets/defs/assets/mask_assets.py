"""Asset ``masks``: segmentation of the cells and nuclei of every field with Cellpose."""

from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from gradcamo_assets.defs.assets.plate_assets import plate_images
from gradcamo_assets.defs.each_field import as_number, field_row, load_site_fields, process_fields_of_site
from gradcamo_assets.defs.field_results import combine_field_versions, mask_folder, require_current_pixels, site_version
from gradcamo_assets.defs.launchpad import settings_metadata
from gradcamo_assets.defs.partitions import PLATE_SITES, plate_site_of
from gradcamo_assets.defs.pictures import show_picture
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.unfinished_runs import announce_outputs
from gradcamo_assets.plates import Field, field_version, read_field
from gradcamo_assets.provenance import Provenance, digest
from gradcamo_assets.report import segmentation_overlay
from gradcamo_assets.segmentation import Segmenter, read_masks, write_masks
from gradcamo_assets.storage import folder_exists
from gradcamo_assets.storage_errors import explain_storage_errors
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
@explain_storage_errors
def masks(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Masks of cells and nuclei, one OME-Zarr label image per field. Up-to-date fields are skipped."""
    plate_name, site = plate_site_of(context)
    home, lake = platform.home, platform.lake
    plate, fields = load_site_fields(home, plate_name, site)
    settings = platform.settings
    segmenter = Segmenter(settings.segmentation)
    skipped: list[str] = []

    def segment(field: Field) -> dict[str, Any]:
        read_version = field_version(plate, field)
        provenance = Provenance(read_version, segmenter.version, _CODE)
        folder = mask_folder(home, plate_name, field.well, site, provenance.version)
        if folder_exists(folder):
            skipped.append(field.well)
            field_masks = read_masks(folder)
        else:
            field_masks = segmenter.segment(read_field(plate, field), plate.channels, plate.voxel_size)
            require_current_pixels(home, plate, field)
            write_masks(folder, field_masks, plate.voxel_size, provenance)
        return {
            "image_version": plate.image_versions[field],
            "read_version": read_version,
            "mask_version": provenance.version,
            "n_cells": int(field_masks.cells.max()),
            "foreground_share": float(np.count_nonzero(field_masks.cells) / field_masks.cells.size),
        }

    with announce_outputs(home, context.run.run_id, home.masks, plate_name, site):
        outcome = process_fields_of_site(context, fields, segment)
        rows = [field_row(plate_name, well, site, **values) for well, values in outcome.done.items()]
        rows += [
            field_row(plate_name, well, site, qc_flag=f"not segmented: {reason}")
            for well, reason in outcome.failed.items()
        ]
        table = pl.DataFrame(rows, schema=lake_table("masks").schema)
        made_from = site_version(plate, site)
        # Later stages depend on the plate's statistics, which can change while the masks remain the same.
        version = digest(
            [made_from, combine_field_versions(dict(table.select("Metadata_Well", "mask_version").rows()))]
        )
        lake.write_stage(
            "mask_versions", {"masks": table}, version=version, made_from=made_from, n=len(outcome.done),
            plate=plate_name, site=site,
        )  # fmt: skip
    shown = next(field for field in fields if field.well in outcome.done)
    example = read_masks(mask_folder(home, plate_name, shown.well, site, outcome.done[shown.well]["mask_version"]))
    name = f"{shown.well}, site {shown.site}"
    overlay = segmentation_overlay(read_field(plate, shown), example.cells, example.nuclei, plate.voxel_size, name)
    counts = table["n_cells"].drop_nulls()
    return dg.MaterializeResult(
        data_version=dg.DataVersion(version),
        metadata={
            **settings_metadata(plates=settings.plates, segmentation=settings.segmentation),
            "fields": len(outcome.done),
            "fields_failed": len(outcome.failed),
            "fields_already_right": len(skipped),
            # Without new masks no network was loaded.
            **({"runtime": segmenter.runtime} if len(skipped) < len(outcome.done) else {}),
            "cells": int(counts.sum()),
            "cells_a_field": as_number(counts.mean()),
            **show_picture(context, home, "example", overlay, f"Cells and nuclei of {name}"),
        },
        check_results=[outcome.check_result("fields_segmented")],
    )
