"""Taking in a plate: everything is checked where it lies, then copied whole, and its record is written last.

A plate without a record is not known, whatever else lies in the folder.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mode
from typing import Any

import polars as pl

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.common.files import replaced_folder, write_json
from gradcamo_assets.common.names import natural_key, plate_name
from gradcamo_assets.plates.companions import LABELS_ENDING, companions
from gradcamo_assets.plates.hcs import Field, Plate, open_plate, read_field
from gradcamo_assets.plates.inbox import source_signature
from gradcamo_assets.plates.platemap import PlateMap, read_label_table, read_plate_map
from gradcamo_assets.plates.quality import PlateStatistics, field_quality


@dataclass(frozen=True)
class Ingested:
    """A plate taken in: where it is now, its rows, its intensities, and what a person should know.

    ``plate_frame`` has one row, ``wells_frame`` one a well, ``fields_frame`` one a field, bad ones with their reason in
    ``qc_flag``. ``statistics``: ``{channel: {"center", "scale"}}`` in counts.
    """

    plate: Plate
    plate_frame: pl.DataFrame
    wells_frame: pl.DataFrame
    fields_frame: pl.DataFrame
    statistics: dict[str, dict[str, float]]
    problems: list[str]


def ingest_plate(source: Path, plates: Path) -> Ingested:
    """Check the plate ``source``, copy it to ``<plates>/<name>.zarr``, and record it in ``<plates>/<name>.json``.

    Beside a plate may lie its plate map (``<name>.csv``, ``.tsv`` or ``.platemap.csv``) and, for a pooled screen, its
    ``<name>.labels.csv``; both are kept in the field's spelling. Bad fields are listed, good ones go on. A plate that
    is known already is replaced.

    Raises:
        PlateError: no readable plate or field, a symbolic link, a plate that changes meanwhile. No record is left.
        PlateMapError: a plate map or label table that cannot be understood.
    """
    source = source.absolute()
    signature, quick = source_signature(source), source_signature(source, depth=2)
    plate = open_plate(source)
    beside = companions(source)
    maps = beside.maps
    if len(maps) > 1:
        problem = f"two plate maps, {maps[0].name} and {maps[1].name}"
        raise PlateError(problem, "Keep one of them.", plate=plate.name, path=source)
    wells = sorted({field.well for field in (*plate.fields, *plate.bad_fields)}, key=natural_key)
    plate_map = read_plate_map(maps[0] if maps else None, wells, beside.metadata)
    labels = None if beside.labels is None else read_label_table(beside.labels)
    fields, shape, statistics = _examine(plate)

    record, name = plates / f"{plate.name}.json", plate.name
    record.unlink(missing_ok=True)
    with replaced_folder(plates / f"{name}.zarr") as folder:
        # Links are copied as links, never followed: one that appears after the check cannot reach outside.
        shutil.copytree(source, folder, dirs_exist_ok=True, symlinks=True)
        if source_signature(source) != signature:
            remedy = "Wait until it is complete, then ingest it again."
            raise PlateError("the plate changed while it was copied", remedy, plate=name, path=source)
    plate_map.frame.write_csv(plates / f"{name}.platemap.csv")
    (plates / f"{name}{LABELS_ENDING}").unlink(missing_ok=True)
    if labels is not None:
        labels.write_csv(plates / f"{name}{LABELS_ENDING}")
    content = {
        "name": name, "source": str(source), "signature": signature, "quick_signature": quick,
        "ngff_version": plate.ngff_version, "channels": plate.channels, "voxel_size": plate.voxel_size,
        "shape": shape, "statistics": statistics,
        "fields": fields.select(well="Metadata_Well", site="Metadata_Site", path="path", reason="qc_flag").to_dicts(),
    }  # fmt: skip
    write_json(record, content)
    row = {
        "Metadata_Plate": name, "source_path": str(source), "format": f"ome-zarr {plate.ngff_version}",
        "n_wells": len(wells), "n_fields": fields.height, "n_channels": len(plate.channels),
        **{f"size_{axis}": size for axis, size in zip("zyx", shape, strict=True)},
        **{f"voxel_{axis}_um": size for axis, size in zip("zyx", plate.voxel_size, strict=True)},
        "channels": list(plate.channels),
        "intensity_center": [channel["center"] for channel in statistics.values()],
        "intensity_scale": [channel["scale"] for channel in statistics.values()],
        "ingested_at": datetime.now(UTC).replace(tzinfo=None),
    }  # fmt: skip
    return Ingested(
        load_plate(plates, name), pl.DataFrame([row]),
        plate_map.frame.select(pl.lit(name).alias("Metadata_Plate"), pl.all()), fields, statistics,
        _problems(plate_map, bool(maps), fields, labels),
    )  # fmt: skip


def known_plate(plates: Path, name: str) -> dict[str, Any] | None:
    """The record of an ingested plate, or None where the plate is not known.

    Raises:
        PlateError: where there is a record that cannot be read.
    """
    path = plates / f"{plate_name(name)}.json"
    try:
        record = json.loads(path.read_text())
        if record["name"] != name:
            raise ValueError(f"it is the record of {record['name']}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlateError(f"unreadable record: {error}", "Ingest the plate again.", plate=name, path=path) from error
    return record


def known_plates(plates: Path) -> dict[str, dict[str, Any]]:
    """The records of all ingested plates by name. A folder that is not there holds none."""
    names = sorted(path.stem for path in plates.glob("[!.]*.json"))
    return {name: record for name in names if (record := known_plate(plates, name)) is not None}


def load_plate(plates: Path, name: str) -> Plate:
    """An ingested plate, from its record alone; ``fields`` are those fit for use.

    Raises:
        PlateError: where the plate is not known or its folder is gone.
    """
    record = known_plate(plates, name)
    path = plates / f"{name}.zarr"
    if record is None or not path.is_dir():
        raise PlateError("the plate has not been ingested", "Ingest it first.", plate=name, path=path)
    reasons = {Field(name, f["well"], f["site"], f["path"]): f["reason"] for f in record["fields"]}
    z, y, x = record["voxel_size"]
    return Plate(
        name, path, record["ngff_version"], tuple(record["channels"]), (z, y, x),
        tuple(field for field, reason in reasons.items() if reason is None),
        {field: reason for field, reason in reasons.items() if reason is not None},
    )  # fmt: skip


def _examine(plate: Plate) -> tuple[pl.DataFrame, tuple[int, ...], dict[str, dict[str, float]]]:
    """Read every field once: the rows of all fields, the commonest shape, and the plate's intensities."""
    rows = []
    shapes = []
    intensities = PlateStatistics()
    for field in sorted((*plate.fields, *plate.bad_fields), key=lambda field: (natural_key(field.well), field.site)):
        row: dict[str, Any] = {
            "Metadata_Plate": plate.name, "Metadata_Well": field.well, "Metadata_Site": field.site,
            "path": field.path, "qc_flag": plate.bad_fields.get(field),
        }  # fmt: skip
        rows.append(row)
        if row["qc_flag"] is not None:
            continue
        try:
            image = read_field(plate, field)
        except PlateError as error:
            row["qc_flag"] = error.problem
            continue
        row |= asdict(field_quality(image))
        if row["qc_flag"] is None:
            intensities.add(image)
            shapes.append(image.shape[1:])
    if not shapes:
        raise PlateError(
            f"none of its {len(rows)} fields can be used, the first ({rows[0]['path']}): {rows[0]['qc_flag']}",
            "Export the plate again.", plate=plate.name, path=plate.path,
        )  # fmt: skip
    center_and_scale = zip(plate.channels, *intensities.center_and_scale(), strict=True)
    statistics = {channel: {"center": center, "scale": scale} for channel, center, scale in center_and_scale}
    fields = pl.DataFrame(rows, schema_overrides={"qc_flag": pl.String}, infer_schema_length=None)
    return fields, mode(shapes), statistics


def _problems(plate_map: PlateMap, has_map: bool, fields: pl.DataFrame, labels: pl.DataFrame | None) -> list[str]:
    flagged = fields.drop_nulls("qc_flag").select("path", "qc_flag")
    problems = [f"field {path}: {reason}" for path, reason in flagged.iter_rows()]
    beyond = set() if labels is None else set(labels["Metadata_Well"]) - set(plate_map.frame["Metadata_Well"])
    if not has_map:
        problems.append("no plate map beside the plate: its wells have no treatment")
    elif plate_map.missing:
        problems.append(f"the plate map lacks wells {', '.join(plate_map.missing)}")
    if plate_map.unknown:
        problems.append(f"the plate map has wells that the plate lacks: {', '.join(plate_map.unknown)}")
    if beyond:
        problems.append(f"the label table has wells that the plate lacks: {', '.join(sorted(beyond))}")
    return problems
