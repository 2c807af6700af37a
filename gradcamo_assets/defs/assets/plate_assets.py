"""Asset ``plate_images``: ingestion of a plate from the inbox."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import polars as pl

from gradcamo_assets.defs.automation.pending import read_inbox
from gradcamo_assets.defs.each_field import as_number, markdown_list
from gradcamo_assets.defs.field_results import site_version
from gradcamo_assets.defs.launchpad import settings_metadata
from gradcamo_assets.defs.partitions import PLATES, SITES
from gradcamo_assets.defs.pictures import show_picture
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.errors import PlateError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import IngestedPlate, ingest_plate
from gradcamo_assets.plates.failures import recorded_attempt
from gradcamo_assets.report import illumination_maps
from gradcamo_assets.storage_errors import explain_storage_errors
from gradcamo_assets.tables.schema import tables_keyed_by


def find_source(home: Home, plate: str) -> tuple[Path, str]:
    """Find the path of a plate in the inbox and its signature.

    Raises:
        PlateError: if the inbox has no such plate, the plate cannot be read, or its name is not unique.
    """
    inbox = read_inbox(home, datetime.now(UTC), only=plate)
    for state in sorted(inbox.states, key=lambda state: state.state == "unreadable"):
        if state.state == "unreadable":
            raise PlateError(state.reason.rstrip("."), "Then launch ingest_plates again.", plate=plate, path=state.path)
        return state.path, inbox.signature(state)
    raise PlateError("the inbox has no plate of this name", "Copy it there, with its plate map.", plate=plate)


@dg.asset(
    partitions_def=PLATES,
    group_name="plates",
    kinds={"zarr"},
    pool="ingestion",
    check_specs=[
        dg.AssetCheckSpec(
            "fields_readable", asset="plate_images", description="Every field is readable and contains an image."
        ),
        dg.AssetCheckSpec(
            "plate_map_matches", asset="plate_images", description="The plate map and the plate have the same wells."
        ),
        dg.AssetCheckSpec(
            "fields_in_focus",
            asset="plate_images",
            description="No field is out of focus compared with the others, and no stack repeats a plane.",
        ),
        dg.AssetCheckSpec(
            "true_z_stacks",
            asset="plate_images",
            description="The images are z-stacks as declared: no projections, repeated planes or missing wavelengths.",
        ),
    ],
)
@explain_storage_errors
def plate_images(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """A plate from the inbox: OME-Zarr images, field QC, plate map, intensity statistics and illumination."""
    name = context.partition_key
    home, lake = platform.home, platform.lake
    source, signature = find_source(home, name)
    config = platform.settings.plates
    with recorded_attempt(home.plates, name, signature):
        ingested = ingest_plate(source, home.plates, config, _progress_logger(context, name))
        # The attempt includes the rows in the lake: if writing them fails, the plate is ingested again.
        lake.write("plates", ingested.plate_frame, plate=name)
        lake.write("wells", ingested.wells_frame, plate=name)
        for (key,), fields in ingested.fields_frame.group_by("Metadata_Site"):
            site = int(str(key))
            lake.write("fields", fields, plate=name, site=site)
            readable = len(fields) - fields["qc_flag"].count()
            lake.record_version(
                "image_versions", site_version(ingested.plate, site), None, readable, plate=name, site=site
            )
        recorded_sites = set(lake.partition_versions("image_versions", plate=name)["Metadata_Site"])
        for site in recorded_sites - set(ingested.fields_frame["Metadata_Site"]):
            for table in tables_keyed_by("plate", "site"):
                lake.drop(table, plate=name, site=site)
    sites = sorted({str(field.site) for field in ingested.plate.fields}, key=int)
    context.instance.add_dynamic_partitions(str(SITES.name), sites)
    bad = ingested.fields_frame.filter(pl.col("qc_flag").is_not_null())
    map_problems = [text for text in ingested.problems if "plate map" in text or "label table" in text]
    for problem in ingested.problems:
        context.log.warning(problem)
    row = ingested.plate_frame.row(0, named=True)
    warned = ingested.fields_frame.filter(pl.col("qc_warning").is_not_null())
    return dg.MaterializeResult(
        data_version=dg.DataVersion(ingested.plate.version),
        metadata={
            **settings_metadata(plates=config),
            "wells": row["n_wells"],
            "fields": row["n_fields"],
            "bad_fields": len(bad),
            "sites": len(sites),
            "channels": ", ".join(ingested.plate.channels),
            "voxel_size_zyx_um": str(ingested.plate.voxel_size),
            "source": row["source_path"],
            "format": row["format"],
            "problems": dg.MetadataValue.md(markdown_list(ingested.problems)),
            "median_focus": as_number(ingested.fields_frame["focus_score"].median()),
            "median_saturation": as_number(ingested.fields_frame["saturation"].median()),
            "fields_out_of_focus": len(warned),
            "channels_measured": dg.MetadataValue.md(_channel_table(ingested)),
            **_illumination_picture(context, platform.home, ingested),
            "plate_map": dg.MetadataValue.md(_plate_map_table(ingested.wells_frame)),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="fields_readable",
                passed=not len(bad),
                severity=dg.AssetCheckSeverity.ERROR,
                metadata={"bad_fields": dg.MetadataValue.md(_field_reasons(bad, "qc_flag"))},
            ),
            dg.AssetCheckResult(
                check_name="fields_in_focus",
                passed=not len(warned),
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"warned": len(warned), "fields": dg.MetadataValue.md(_field_reasons(warned, "qc_warning"))},
            ),
            dg.AssetCheckResult(
                check_name="true_z_stacks",
                passed=not ingested.source_problems,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"problems": dg.MetadataValue.md(markdown_list(ingested.source_problems))},
            ),
            dg.AssetCheckResult(
                check_name="plate_map_matches",
                passed=not map_problems,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"problems": dg.MetadataValue.md(markdown_list(map_problems))},
            ),
        ],
    )


def _progress_logger(context: dg.AssetExecutionContext, name: str) -> Callable[[int, int], None]:
    """A callback that logs the progress at every tenth of the fields."""

    def log_progress(done: int, total: int) -> None:
        if done and done * 10 // total > (done - 1) * 10 // total:
            context.log.info(f"{name}: {done} of {total} fields ingested")

    return log_progress


def _field_reasons(fields: pl.DataFrame, reason: str) -> str:
    return markdown_list(f"{path}: {text}" for path, text in fields.select("path", reason).iter_rows())


def _channel_table(ingested: IngestedPlate) -> str:
    """Markdown table of the measurements of each channel: medians over fields."""
    columns = ("channel_focus", "channel_saturation", "background", "signal_to_noise")
    lines = ["| channel | focus | saturation | background | signal to noise |", "| --- | --- | --- | --- | --- |"]
    for index, channel in enumerate(ingested.plate.channels):
        values = ingested.fields_frame.select(pl.col(columns).list.get(index).median()).row(0)
        lines.append(f"| {channel} | " + " | ".join("" if v is None else f"{v:.3g}" for v in values) + " |")
    return "\n".join(lines)


def _illumination_picture(
    context: dg.AssetExecutionContext, home: Home, ingested: IngestedPlate
) -> dict[str, dg.MetadataValue]:
    if ingested.illumination is None:
        return {}
    figure = illumination_maps(ingested.illumination, ingested.plate.channels)
    alt = f"Illumination of plate {ingested.plate.name}, by channel"
    return show_picture(context, home, "illumination", figure, alt)


def _plate_map_table(wells: pl.DataFrame) -> str:
    counts = (
        wells.group_by("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_pert_type")
        .agg(wells=pl.len())
        .sort("Metadata_Compound", "Metadata_Dose")
    )
    lines = ["| compound | dose | unit | type | wells |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *("| " + " | ".join(str(v) for v in row) + " |" for row in counts.iter_rows())])
