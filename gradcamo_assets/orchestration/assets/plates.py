"""``plate_images``: a plate of the inbox, checked, copied and measured."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import polars as pl

from gradcamo_assets.common import Home
from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.orchestration.partitions import PLATES, SITES
from gradcamo_assets.orchestration.reconcile import read_inbox
from gradcamo_assets.orchestration.resources import Platform
from gradcamo_assets.plates import ingest_plate
from gradcamo_assets.plates.failures import attempt


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
    ],
)
def plate_images(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """A plate (OME-Zarr HCS) taken in: fields checked and measured, plate map read, intensity statistics stored."""
    name = context.partition_key
    home, lake = platform.home, platform.lake
    source, signature = source_of(home, name)
    with attempt(home.plates, name, signature):
        found = ingest_plate(source, home.plates)
    lake.write("plates", found.plate_frame, plate=name)
    lake.write("wells", found.wells_frame, plate=name)
    for (site,), fields in found.fields_frame.group_by("Metadata_Site"):
        lake.write("fields", fields, plate=name, site=site)
    sites = sorted({str(field.site) for field in found.plate.fields}, key=int)
    context.instance.add_dynamic_partitions(str(SITES.name), sites)
    bad = found.fields_frame.filter(pl.col("qc_flag").is_not_null())
    map_problems = [text for text in found.problems if "plate map" in text or "label table" in text]
    for problem in found.problems:
        context.log.warning(problem)
    row = found.plate_frame.row(0, named=True)
    return dg.MaterializeResult(
        metadata={
            "wells": row["n_wells"],
            "fields": row["n_fields"],
            "bad_fields": len(bad),
            "sites": len(sites),
            "channels": ", ".join(found.plate.channels),
            "voxel_size_zyx_um": str(found.plate.voxel_size),
            "source": row["source_path"],
            "plate_map": dg.MetadataValue.md(_plate_map(found.wells_frame)),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="fields_readable",
                passed=not len(bad),
                severity=dg.AssetCheckSeverity.ERROR,
                metadata={"bad_fields": dg.MetadataValue.md(_listing(bad))},
            ),
            dg.AssetCheckResult(
                check_name="plate_map_matches",
                passed=not map_problems,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"problems": dg.MetadataValue.md("\n".join(f"- {text}" for text in map_problems) or "none")},
            ),
        ],
    )


def _listing(bad: pl.DataFrame) -> str:
    rows = bad.select("path", "qc_flag").iter_rows()
    return "\n".join(f"- {path}: {reason}" for path, reason in rows) or "none"


def _plate_map(wells: pl.DataFrame) -> str:
    counts = (
        wells.group_by("Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit", "Metadata_pert_type")
        .agg(wells=pl.len())
        .sort("Metadata_Compound", "Metadata_Dose")
    )
    lines = ["| compound | dose | unit | type | wells |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *("| " + " | ".join(str(v) for v in row) + " |" for row in counts.iter_rows())])
