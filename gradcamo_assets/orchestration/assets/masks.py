"""``masks``: cells and nuclei of every field, by Cellpose."""

import dagster as dg

from gradcamo_assets.common.provenance import Provenance
from gradcamo_assets.figures import segmentation_overlay, to_markdown
from gradcamo_assets.orchestration.assets.plates import plate_images
from gradcamo_assets.orchestration.fields import fields_at, flag_fields, for_each_field
from gradcamo_assets.orchestration.launchpad import used
from gradcamo_assets.orchestration.partitions import PLATE_SITES, plate_site_of
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.orchestration.stores import field_signature, mask_folder
from gradcamo_assets.plates import Field, read_field
from gradcamo_assets.segmentation import Masks, Segmenter, read_masks, write_masks

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
    home = platform.home
    plate, fields = fields_at(home, plate_name, site)
    settings = platform.settings
    segmenter = Segmenter(settings.segmentation)
    skipped: list[str] = []

    def segment(field: Field) -> Masks:
        folder = mask_folder(home, field)
        provenance = Provenance(field_signature(plate, field), segmenter.version, _CODE)
        if provenance.is_current(folder):
            skipped.append(field.well)
            return read_masks(folder)
        found = segmenter.segment(read_field(plate, field), plate.channels, plate.voxel_size)
        write_masks(folder, found, plate.voxel_size, provenance)
        return found

    counts: dict[str, int] = {}

    def segment_and_count(field: Field) -> None:
        counts[field.well] = int(segment(field).cells.max())

    outcome = for_each_field(context, fields, segment_and_count)
    flag_fields(platform.lake, plate_name, site, "not segmented", outcome.failed)
    shown = next(field for field in fields if field.well in outcome.done)
    example = read_masks(mask_folder(home, shown))
    overlay = segmentation_overlay(
        read_field(plate, shown), example.cells, example.nuclei, plate.voxel_size, shown.path
    )
    return dg.MaterializeResult(
        metadata={
            **used(plates=settings.plates, segmentation=settings.segmentation),
            "fields": len(outcome.done),
            "fields_failed": len(outcome.failed),
            "fields_already_right": len(skipped),
            "cells": sum(counts.values()),
            "cells_a_field": sum(counts.values()) / max(1, len(counts)),
            "example": dg.MetadataValue.md(to_markdown(overlay, f"Cells and nuclei of field {shown.path}")),
        },
        check_results=[outcome.check("fields_segmented")],
    )
