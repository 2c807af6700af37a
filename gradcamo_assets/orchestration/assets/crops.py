"""``cells`` and ``crops``: the table of segmented cells, and each kept cell cut out with its surroundings."""

from dataclasses import asdict

import dagster as dg
import numpy as np
import polars as pl

from gradcamo_assets.common import GradcamoError
from gradcamo_assets.common.provenance import Provenance, stored_version
from gradcamo_assets.crops import cut_crops, write_crops
from gradcamo_assets.crops.cut import qc_flag
from gradcamo_assets.crops.table import field_cells, number_crops
from gradcamo_assets.orchestration.assets.masks import masks
from gradcamo_assets.orchestration.catalogue import column_lineage
from gradcamo_assets.orchestration.fields import fields_at, flag_fields, for_each_field, listing, measure_fields, number
from gradcamo_assets.orchestration.launchpad import used
from gradcamo_assets.orchestration.partitions import PLATE_SITES, plate_site_of
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.orchestration.stores import crop_folder, field_signature, mask_folder, plate_record
from gradcamo_assets.plates import Field, read_field, read_label, read_label_table
from gradcamo_assets.segmentation import read_masks
from gradcamo_assets.segmentation.quality import field_verdict, judged, over_split
from gradcamo_assets.warehouse import lake_table

_CODE = "1"


@dg.asset(
    partitions_def=PLATE_SITES,
    deps=[masks],
    group_name="cells",
    kinds={"polars", "parquet"},
    check_specs=[
        dg.AssetCheckSpec(
            "fields_usable",
            asset="cells",
            description="The masks of every field are of use; nothing is cropped or scored where they are not.",
        )
    ],
)
def cells(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The table of cells: shape, borders, nuclei, doubts, treatment; pooled screens take it from the label table."""
    plate_name, site = plate_site_of(context)
    home, lake = platform.home, platform.lake
    settings = platform.settings
    qc = settings.segmentation_qc
    plate, fields = fields_at(home, plate_name, site)
    wells = {row["Metadata_Well"]: row for row in lake.read("wells", plate=plate_name).iter_rows(named=True)}
    label_path = home.plates / f"{plate_name}.labels.csv"
    labels = read_label_table(label_path) if label_path.exists() else None

    foreground: dict[str, float] = {}

    def tabulate(field: Field) -> pl.DataFrame:
        folder = mask_folder(home, field)
        version = stored_version(folder)
        if version is None:
            raise GradcamoError(
                "the field has no masks", "Materialise masks for this plate and site.",
                plate=plate_name, well=field.well, site=site,
            )  # fmt: skip
        true_cells = read_label(plate, field, "cells") if labels is not None else None
        found = read_masks(folder)
        foreground[field.well] = float(np.count_nonzero(found.cells) / found.cells.size)
        return field_cells(
            found,
            plate=plate_name,
            well=field.well,
            site=site,
            voxel_size=plate.voxel_size,
            well_row=wells[field.well],
            mask_version=version,
            image=read_field(plate, field),
            label_table=labels.filter(Metadata_Well=field.well, Metadata_Site=site) if labels is not None else None,
            true_cells=true_cells,
        )

    outcome = for_each_field(context, fields, tabulate)
    frames = {well: frame for well, frame in outcome.done.items() if isinstance(frame, pl.DataFrame)}
    table = judged(pl.concat(frames.values(), how="vertical_relaxed"), qc, plate.channels)
    usual = number(table["volume_voxels"].median())
    counts = [len(frame) for frame in frames.values()]
    split = [over_split(frame, usual) for frame in frames.values()]
    verdicts = dict(zip(frames, field_verdict(counts, [foreground[well] for well in frames], split, qc), strict=True))
    unusable = {well: verdict.unusable for well, verdict in verdicts.items() if verdict.unusable}
    warnings = {well: verdict.warning for well, verdict in verdicts.items() if verdict.warning}
    reason = pl.format("unusable masks: {}", pl.col("Metadata_Well").replace_strict(unusable, default=None))
    table = table.with_columns(qc_flag=pl.coalesce("qc_flag", reason)).select(list(lake_table("cells").polars))
    lake.write("cells", table, plate=plate_name, site=site)
    measure_fields(
        lake,
        plate_name,
        site,
        {"n_cells": dict(zip(frames, counts, strict=True)), "foreground_share": foreground},
        warnings,
    )
    flag_fields(lake, plate_name, site, "unusable masks", unusable)
    return dg.MaterializeResult(
        metadata={
            **column_lineage("cells"),
            "cells": len(table),
            "fields": len(frames),
            "fields_without_cells": counts.count(0),
            "cells_touching_border": int(table["touches_xy_border"].sum()),
            "median_volume_um3": number(table["volume_um3"].median()),
            "cells_with_warning": len(table) - table["qc_warning"].null_count(),
            "fields_unusable": len(unusable),
            **used(segmentation_qc=qc, plates=settings.plates),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="fields_usable",
                passed=not unusable,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={
                    "unusable": dg.MetadataValue.md(listing(unusable)),
                    "warned": dg.MetadataValue.md(listing(warnings)),
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
def crops(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Every kept cell cut out in 3D, with target and neighbour masks; raw intensities with the plate's statistics."""
    plate_name, site = plate_site_of(context)
    home, lake = platform.home, platform.lake
    settings = platform.settings
    config, qc = settings.crops, settings.segmentation_qc
    plate, fields = fields_at(home, plate_name, site)
    record = plate_record(home, plate_name)
    statistics = record["statistics"]
    center = [float(statistics[name]["center"]) for name in plate.channels]
    scale = [float(statistics[name]["scale"]) for name in plate.channels]
    table = lake.read("cells", plate=plate_name, site=site)
    with_masks = [field for field in fields if mask_folder(home, field).exists()]

    def cut(field: Field) -> pl.DataFrame:
        mine = number_crops(table.filter(Metadata_Well=field.well), qc_flag(config, record["shape"]))
        kept = mine.filter(pl.col("crop_index").is_not_null())
        masks_at = mask_folder(home, field)
        provenance = Provenance(
            f"{field_signature(plate, field)} {stored_version(masks_at)}",
            {**asdict(config), "qc": asdict(qc), "center": center, "scale": scale, "cells": kept["label"].to_list()},
            _CODE,
        )
        folder = crop_folder(home, plate_name, field.well, site)
        if not provenance.is_current(folder):
            image = read_field(plate, field)
            write_crops(
                folder,
                cut_crops(image, read_masks(masks_at).cells, kept, config, np.array(center)),
                cell_ids=kept["Metadata_CellID"].to_list(),
                shape=config.shape,
                channels=list(plate.channels),
                statistics={"center": center, "scale": scale},
                voxel_size=list(plate.voxel_size),
                provenance=provenance,
            )
        return mine.with_columns(
            crop_version=pl.when(pl.col("crop_index").is_not_null()).then(pl.lit(provenance.version))
        )

    outcome = for_each_field(context, with_masks, cut)
    flag_fields(lake, plate_name, site, "not cropped", outcome.failed)
    done = [frame for frame in outcome.done.values() if isinstance(frame, pl.DataFrame)]
    updated = pl.concat([table.clear(), *done], how="vertical_relaxed")
    lake.write("cells", updated, plate=plate_name, site=site)
    kept = int(updated["crop_index"].count())
    flags = updated.drop_nulls("qc_flag").group_by("qc_flag").len().sort("qc_flag")
    return dg.MaterializeResult(
        metadata={
            "crops": kept,
            "cells_left_out": len(updated) - kept,
            "left_out_because": dg.MetadataValue.json(dict(flags.iter_rows())),
            **used(crops=config, segmentation_qc=qc, plates=settings.plates),
        },
        check_results=[outcome.check("fields_cropped")],
    )
