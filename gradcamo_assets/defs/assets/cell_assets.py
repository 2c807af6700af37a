"""Assets ``cells`` and ``crops``: the table of segmented cells, and the crops of the kept ones."""

from typing import Any

import dagster as dg
import polars as pl

from gradcamo_assets.cells import FieldSource, record_crops, store_pixels
from gradcamo_assets.cells.cell_rows import TREATMENT_COLUMNS, build_field_cells, number_crops
from gradcamo_assets.cells.crop import qc_flag
from gradcamo_assets.defs.assets.mask_assets import masks
from gradcamo_assets.defs.each_field import (
    as_number,
    field_row,
    load_site_fields,
    markdown_reasons,
    process_fields_of_site,
)
from gradcamo_assets.defs.field_results import (
    combine_field_versions,
    crop_folder,
    mask_folder,
    require_current_pixels,
    require_version,
)
from gradcamo_assets.defs.launchpad import settings_metadata
from gradcamo_assets.defs.partitions import PLATE_SITES, plate_site_of
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.defs.unfinished_runs import announce_outputs
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.local_copies import fetch_file
from gradcamo_assets.plates import Field, Plate, read_field, read_label, read_label_table, read_plate_record
from gradcamo_assets.provenance import Provenance, digest
from gradcamo_assets.segmentation import read_masks
from gradcamo_assets.segmentation.cell_quality import add_quality_flags, judge_fields, over_split_share
from gradcamo_assets.storage import exists, folder_exists
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.tables import lake_table

_CODE = "1"


def _load_segmented_fields(
    platform: Platform, plate_name: str, site: int
) -> tuple[Plate, list[Field], dict[str, dict[str, Any]], str]:
    """Load the plate and its segmented fields at a site.

    Returns:
        The plate, the fields with masks, their rows of the table ``masks`` by well, and the version of the masks.

    Raises:
        GradcamoError: if there are no masks.
    """
    plate, fields = load_site_fields(platform.home, plate_name, site)
    version = require_version(platform.lake, "masks", plate_name, site)
    rows = platform.lake.read("masks", plate=plate_name, site=site).drop_nulls("mask_version")
    if rows.is_empty():
        remedy = "Materialise masks for this plate and site."
        raise GradcamoError("there are no masks", remedy, plate=plate_name, site=site)
    row_of_well = {row["Metadata_Well"]: row for row in rows.iter_rows(named=True)}
    return plate, [field for field in fields if field.well in row_of_well], row_of_well, version


def _count_flags(table: pl.DataFrame) -> dg.JsonMetadataValue:
    """Number of cells by ``qc_flag``, without those that are kept."""
    flags = table.drop_nulls("qc_flag").group_by("qc_flag").len().sort("qc_flag")
    return dg.MetadataValue.json(dict(flags.iter_rows()))


def _count_nuclei(table: pl.DataFrame) -> dict[str, int]:
    """Number of cells without a nucleus and with several, as metadata; empty without a nucleus stain."""
    counts = table["n_nuclei"].drop_nulls()
    if counts.is_empty():
        return {}
    return {
        "cells_without_nucleus": int((counts == 0).sum()),
        "cells_with_several_nuclei": int((counts > 1).sum()),
    }


@dg.asset(
    partitions_def=PLATE_SITES,
    deps=[masks],
    group_name="cells",
    kinds={"polars", "deltalake"},
    check_specs=[
        dg.AssetCheckSpec(
            "fields_usable",
            asset="cells",
            description="Every field's masks are usable. Fields with unusable masks are neither cropped nor scored.",
        )
    ],
)
@explain_storage_errors
def cells(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The table of cells: shape, borders, nuclei, QC and treatment (in pooled screens, from the label table)."""
    plate_name, site = plate_site_of(context)
    home, lake = platform.home, platform.lake
    settings = platform.settings
    qc = settings.segmentation_qc
    plate, fields, segmented, made_from = _load_segmented_fields(platform, plate_name, site)
    wells = {row["Metadata_Well"]: row for row in lake.read("wells", plate=plate_name).iter_rows(named=True)}
    label_path = home.plates / f"{plate_name}.labels.csv"
    labels = read_label_table(fetch_file(label_path)) if exists(label_path) else None

    def tabulate(field: Field) -> pl.DataFrame:
        mask_row = segmented[field.well]
        image = read_field(plate, field)
        require_current_pixels(home, plate, field, mask_row["read_version"])
        return build_field_cells(
            read_masks(mask_folder(home, plate_name, field.well, site, mask_row["mask_version"])),
            plate=plate_name,
            well=field.well,
            site=site,
            voxel_size=plate.voxel_size,
            well_row=wells[field.well],
            mask_version=mask_row["mask_version"],
            image=image,
            label_table=labels.filter(Metadata_Well=field.well, Metadata_Site=site) if labels is not None else None,
            true_cells=read_label(plate, field, "cells") if labels is not None else None,
        )

    outcome = process_fields_of_site(context, fields, tabulate)
    frames = outcome.done
    table = add_quality_flags(pl.concat(frames.values(), how="vertical_relaxed"), qc, plate.channels)
    median_volume = as_number(table["volume_voxels"].median())
    counts = [len(frame) for frame in frames.values()]
    split = [over_split_share(frame, median_volume) for frame in frames.values()]
    filled = [segmented[well]["foreground_share"] for well in frames]
    verdicts = dict(zip(frames, judge_fields(counts, filled, split, qc), strict=True))
    unusable = {well: verdict.unusable for well, verdict in verdicts.items() if verdict.unusable}
    warnings = {well: verdict.warning for well, verdict in verdicts.items() if verdict.warning}
    reason = pl.format("unusable masks: {}", pl.col("Metadata_Well").replace_strict(unusable, default=None))
    table = table.with_columns(qc_flag=pl.coalesce("qc_flag", reason)).select(list(lake_table("cells").schema))
    flags = {well: f"unusable masks: {reason}" for well, reason in unusable.items()}
    flags |= {well: f"not tabulated: {reason}" for well, reason in outcome.failed.items()}
    rows = [
        field_row(
            plate_name, well, site, qc_flag=flags.get(well),
            qc_warning=f"masks: {warnings[well]}" if well in warnings else None,
        )
        for well in sorted(segmented)
    ]  # fmt: skip
    # The plate's statistics are in the crops, and can change while the cells remain the same.
    version = digest([made_from, table.sort("Metadata_CellID").to_dicts(), rows])
    frames = {"cells": table, "field_verdicts": pl.DataFrame(rows, schema=lake_table("field_verdicts").schema)}
    lake.write_stage(
        "cell_versions", frames, version=version, made_from=made_from, n=len(table), plate=plate_name, site=site
    )
    volume = table["volume_um3"].median()
    return dg.MaterializeResult(
        data_version=dg.DataVersion(version),
        metadata={
            "cells": len(table),
            "fields": len(frames),
            "fields_without_cells": counts.count(0),
            "cells_touching_border": int(table["touches_xy_border"].sum()),
            **({} if volume is None else {"median_volume_um3": as_number(volume)}),
            **_count_nuclei(table),
            "cells_with_warning": len(table) - table["qc_warning"].null_count(),
            "left_out_because": _count_flags(table),
            "fields_unusable": len(unusable),
            **settings_metadata(segmentation_qc=qc, plates=settings.plates),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="fields_usable",
                passed=not flags,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={
                    "unusable": dg.MetadataValue.md(markdown_reasons(flags)),
                    "warned": dg.MetadataValue.md(markdown_reasons(warnings)),
                },
            )
        ],
    )


@dg.asset(
    partitions_def=PLATE_SITES,
    deps=[cells],
    group_name="cells",
    kinds={"zarr"},
    check_specs=[dg.AssetCheckSpec("fields_cropped", asset="crops", description="Every segmented field has crops.")],
)
@explain_storage_errors
def crops(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The crops of the kept cells: where to cut them, and the plate's statistics. Pixels are stored on demand."""
    plate_name, site = plate_site_of(context)
    home, lake = platform.home, platform.lake
    settings = platform.settings
    config = settings.crops
    plate, fields, segmented, _ = _load_segmented_fields(platform, plate_name, site)
    made_from = require_version(lake, "cells", plate_name, site)
    record = read_plate_record(home.plates, plate_name) or {}
    center, scale = ([float(record["statistics"][name][key]) for name in plate.channels] for key in ("center", "scale"))
    table = lake.read("cells", plate=plate_name, site=site)
    flag = qc_flag(config, record["shape"])
    flagged = {field.well: number_crops(table.filter(Metadata_Well=field.well), flag) for field in fields}

    def cut(field: Field) -> str | None:
        kept = flagged[field.well].drop_nulls("crop_index")
        if kept.is_empty():
            return None
        mask_row = segmented[field.well]
        if set(kept["mask_version"]) != {mask_row["mask_version"]}:
            problem = "the table of cells was made from other masks"
            remedy = "Materialise cells for this plate and site."
            raise GradcamoError(problem, remedy, plate=plate_name, well=field.well, site=site)
        provenance = Provenance(
            f"{mask_row['read_version']} {mask_row['mask_version']}",
            {"shape": list(config.shape), "center": center, "scale": scale, "cells": kept["label"].to_list()},
            _CODE,
        )
        folder = crop_folder(home, {**kept.row(0, named=True), "crop_version": provenance.version})
        if not folder_exists(folder):
            require_current_pixels(home, plate, field, mask_row["read_version"])
            source = FieldSource(
                plates=home.plates,
                masks=mask_folder(home, plate_name, field.well, site, mask_row["mask_version"]),
                plate=plate_name,
                well=field.well,
                site=site,
                illumination=plate.illumination is not None,
                field_version=mask_row["read_version"],
            )
            record_crops(
                folder,
                kept,
                source,
                shape=config.shape,
                channels=list(plate.channels),
                statistics={"center": center, "scale": scale},
                voxel_size=list(plate.voxel_size),
                provenance=provenance,
            )
        if config.store == "always":
            store_pixels(folder)
        return provenance.version

    with announce_outputs(home, context.run.run_id, home.crops, plate_name, site):
        outcome = process_fields_of_site(context, fields, cut)
        failed = {well: f"not cropped: {reason}" for well, reason in outcome.failed.items()}
        well = pl.col("Metadata_Well")
        updated = pl.concat([lake_table("crops").empty(), *flagged.values()], how="diagonal_relaxed").with_columns(
            qc_flag=pl.coalesce("qc_flag", well.replace_strict(failed, default=None, return_dtype=pl.String)),
            crop_version=well.replace_strict(outcome.done, default=None, return_dtype=pl.String),
        )
        kept = pl.col("qc_flag").is_null()
        names = ("crop_index", "crop_version")
        updated = updated.with_columns(pl.when(kept).then(name).alias(name) for name in names)
        counts = dict(updated.group_by("Metadata_Well").agg(pl.col("crop_index").count()).iter_rows())
        rows = [
            field_row(
                plate_name, name, site, crop_version=outcome.done.get(name), qc_flag=failed.get(name),
                n_crops=counts.get(name, 0) if name in outcome.done else None,
            )
            for name in segmented
        ]  # fmt: skip
        frames = {
            "crops": updated.select(list(lake_table("crops").schema)),
            "field_crops": pl.DataFrame(rows, schema=lake_table("field_crops").schema),
        }
        # Scores hold the treatment, so that they are made again when the plate map was corrected.
        treated = updated.filter(kept).select("Metadata_CellID", *TREATMENT_COLUMNS).sort("Metadata_CellID").rows()
        version, n = digest([combine_field_versions(outcome.done), treated]), int(updated["crop_index"].count())
        lake.write_stage(
            "crop_versions", frames, version=version, made_from=made_from, n=n, plate=plate_name, site=site
        )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(version),
        metadata={
            "crops": n,
            "cells_left_out": len(updated) - n,
            "left_out_because": _count_flags(updated),
            **settings_metadata(crops=config, plates=settings.plates),
        },
        check_results=[outcome.check_result("fields_cropped")],
    )
