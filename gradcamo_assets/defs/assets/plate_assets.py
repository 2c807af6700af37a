"""``plate_images``: a plate of the inbox, checked, copied and measured."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import polars as pl

from gradcamo_assets.defs.automation.pending import read_inbox
from gradcamo_assets.defs.each_field import bullets, number
from gradcamo_assets.defs.field_results import site_version
from gradcamo_assets.defs.launchpad import used
from gradcamo_assets.defs.partitions import PLATES, SITES
from gradcamo_assets.defs.resources import Platform
from gradcamo_assets.errors import PlateError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import Ingested, ingest_plate
from gradcamo_assets.plates.failures import attempt
from gradcamo_assets.report import illumination_maps, to_markdown
from gradcamo_assets.tables.schema import tables_keyed_by


def source_of(home: Home, plate: str) -> tuple[Path, str]:
    """The folder of the inbox that a plate name means, and its signature.

    Raises:
        PlateError: if there is none, it cannot be read, or the name is not unique.
    """
    inbox = read_inbox(home, datetime.now(UTC), only=plate)
    for state in sorted(inbox.states, key=lambda state: state.state == "unreadable"):
        if state.state == "unreadable":
            raise PlateError(state.reason.rstrip("."), "Then launch ingest_plates again.", plate=plate, path=state.path)
        return state.path, inbox.signature(state)
    raise PlateError("the inbox holds no plate of this name", "Put it there, with its plate map.", plate=plate)


@dg.asset(
    partitions_def=PLATES,
    group_name="plates",
    kinds={"zarr"},
    pool="ingestion",
    check_specs=[
        dg.AssetCheckSpec(
            "fields_readable", asset="plate_images", description="Every field can be read and holds an image."
        ),
        dg.AssetCheckSpec(
            "plate_map_matches", asset="plate_images", description="Plate map and plate name the same wells."
        ),
        dg.AssetCheckSpec(
            "fields_in_focus",
            asset="plate_images",
            description="No field is out of focus beside the others, and no stack repeats a plane.",
        ),
        dg.AssetCheckSpec(
            "true_z_stacks",
            asset="plate_images",
            description="What came in is what its files claim: no projection or repeated plane, no wavelength missing.",
        ),
    ],
)
def plate_images(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """A plate taken in: written as OME-Zarr, fields measured, plate map read, intensities and illumination stored."""
    name = context.partition_key
    home, lake = platform.home, platform.lake
    source, signature = source_of(home, name)
    config = platform.settings.plates
    with attempt(home.plates, name, signature):
        found = ingest_plate(source, home.plates, config, _progress(context, name))
        # A plate is in once its rows are: an attempt that ends before that is made again.
        lake.write("plates", found.plate_frame, plate=name)
        lake.write("wells", found.wells_frame, plate=name)
        for (key,), fields in found.fields_frame.group_by("Metadata_Site"):
            site = int(str(key))
            lake.write("fields", fields, plate=name, site=site)
            readable = len(fields) - fields["qc_flag"].count()
            lake.record_version(
                "image_versions", site_version(found.plate, site), None, readable, plate=name, site=site
            )
        there = set(lake.partition_versions("image_versions", plate=name)["Metadata_Site"])
        for site in there - set(found.fields_frame["Metadata_Site"]):
            for table in tables_keyed_by("plate", "site"):
                lake.drop(table, plate=name, site=site)
    sites = sorted({str(field.site) for field in found.plate.fields}, key=int)
    context.instance.add_dynamic_partitions(str(SITES.name), sites)
    bad = found.fields_frame.filter(pl.col("qc_flag").is_not_null())
    map_problems = [text for text in found.problems if "plate map" in text or "label table" in text]
    for problem in found.problems:
        context.log.warning(problem)
    row = found.plate_frame.row(0, named=True)
    warned = found.fields_frame.filter(pl.col("qc_warning").is_not_null())
    return dg.MaterializeResult(
        data_version=dg.DataVersion(found.plate.version),
        metadata={
            **used(plates=config),
            "wells": row["n_wells"],
            "fields": row["n_fields"],
            "bad_fields": len(bad),
            "sites": len(sites),
            "channels": ", ".join(found.plate.channels),
            "voxel_size_zyx_um": str(found.plate.voxel_size),
            "source": row["source_path"],
            "format": row["format"],
            "problems": dg.MetadataValue.md(bullets(found.problems)),
            "median_focus": number(found.fields_frame["focus_score"].median()),
            "median_saturation": number(found.fields_frame["saturation"].median()),
            "fields_out_of_focus": len(warned),
            "channels_measured": dg.MetadataValue.md(_channels(found)),
            **({} if found.illumination is None else {"illumination": _illumination(found)}),
            "plate_map": dg.MetadataValue.md(_plate_map(found.wells_frame)),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="fields_readable",
                passed=not len(bad),
                severity=dg.AssetCheckSeverity.ERROR,
                metadata={"bad_fields": dg.MetadataValue.md(_listing(bad, "qc_flag"))},
            ),
            dg.AssetCheckResult(
                check_name="fields_in_focus",
                passed=not len(warned),
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"warned": len(warned), "fields": dg.MetadataValue.md(_listing(warned, "qc_warning"))},
            ),
            dg.AssetCheckResult(
                check_name="true_z_stacks",
                passed=not found.source_problems,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"problems": dg.MetadataValue.md(bullets(found.source_problems))},
            ),
            dg.AssetCheckResult(
                check_name="plate_map_matches",
                passed=not map_problems,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"problems": dg.MetadataValue.md(bullets(map_problems))},
            ),
        ],
    )


def _progress(context: dg.AssetExecutionContext, name: str) -> Callable[[int, int], None]:
    """Say in the log how far the plate is, at every tenth of it."""

    def tell(done: int, of: int) -> None:
        if done and done * 10 // of > (done - 1) * 10 // of:
            context.log.info(f"{name}: {done} of {of} fields taken in")

    return tell


def _listing(fields: pl.DataFrame, reason: str) -> str:
    return bullets(f"{path}: {text}" for path, text in fields.select("path", reason).iter_rows())


def _channels(found: Ingested) -> str:
    """What was measured a channel: the median over fields."""
    columns = ("channel_focus", "channel_saturation", "background", "signal_to_noise")
    lines = ["| channel | focus | saturation | background | signal to noise |", "| --- | --- | --- | --- | --- |"]
    for index, channel in enumerate(found.plate.channels):
        values = found.fields_frame.select(pl.col(columns).list.get(index).median()).row(0)
        lines.append(f"| {channel} | " + " | ".join("" if v is None else f"{v:.3g}" for v in values) + " |")
    return "\n".join(lines)


def _illumination(found: Ingested) -> dg.MetadataValue:
    assert found.illumination is not None
    figure = illumination_maps(found.illumination, found.plate.channels)
    return dg.MetadataValue.md(to_markdown(figure, f"Illumination of plate {found.plate.name}, by channel"))


def _plate_map(wells: pl.DataFrame) -> str:
    counts = (
        wells.group_by("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_pert_type")
        .agg(wells=pl.len())
        .sort("Metadata_Compound", "Metadata_Dose")
    )
    lines = ["| compound | dose | unit | type | wells |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *("| " + " | ".join(str(v) for v in row) + " |" for row in counts.iter_rows())])
