"""Ingest a plate: check it where it lies, store it field by field, and record it last."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mode
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradcamo_assets.csv_text import to_csv
from gradcamo_assets.errors import PlateError
from gradcamo_assets.local_copies import fetch_tree, temporary_copies
from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.companions import LABELS_ENDING, Companions, fetch_tables, find_companions, scan_source
from gradcamo_assets.plates.formats import detect_format
from gradcamo_assets.plates.illumination import estimate_illumination
from gradcamo_assets.plates.image_quality import FieldMeter, center_and_scale, field_warnings
from gradcamo_assets.plates.omezarr import Plate
from gradcamo_assets.plates.plate_records import (
    ILLUMINATION_ENDING,
    MAP_ENDING,
    RECORD_ENDING,
    home_folder,
    load_plate,
    path_from_home,
)
from gradcamo_assets.plates.platemap import PlateMap, read_label_table, read_plate_map
from gradcamo_assets.plates.sources import ExportSource, ZarrSource
from gradcamo_assets.plates.staging import Staging, open_staging
from gradcamo_assets.provenance import digest
from gradcamo_assets.settings import section, setting
from gradcamo_assets.storage import is_in_bucket

_MAX_STATISTICS_SAMPLE = 4_000_000
"""Pixels sampled from each channel of a large plate for its intensity statistics."""
_CODE_VERSION = "4"


@section
class IngestConfig:
    """How to ingest plates: section ``[plates]`` of ``gradcamo.toml``."""

    ome_zarr: Literal["copy", "reference"] = setting(
        "copy", "Copy OME-Zarr plates, or only refer to their folder, which must then stay where it is."
    )
    illumination: bool = setting(False, "Correct uneven illumination when pixels are read; it is always estimated.")
    camera_offset: float = setting(0.0, "Camera counts in the dark; the illumination correction leaves them out.")


@dataclass(frozen=True)
class IngestedPlate:
    """An ingested plate with its table rows, intensity statistics and problems.

    Attributes:
        fields_frame: rows of all fields; bad fields have their reason in ``qc_flag``.
        statistics: ``{channel: {"center", "scale"}}`` in counts.
        illumination: (C, y, x) with mean 1, or None if the plate has too few fields to estimate it.
        problems: everything a user should know about the plate.
        source_problems: the part of ``problems`` found in the export.
    """

    plate: Plate
    plate_frame: pl.DataFrame
    wells_frame: pl.DataFrame
    fields_frame: pl.DataFrame
    statistics: dict[str, dict[str, float]]
    illumination: NDArray[np.float32] | None
    problems: list[str]
    source_problems: tuple[str, ...]


def ingest_plate(
    source: Path,
    plates: Path,
    config: IngestConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IngestedPlate:
    """Check the plate ``source``, store it as ``<plates>/<name>.zarr``, and record it in ``<plates>/<name>.json``.

    An OME-Zarr plate is copied or referred to; other formats are converted to OME-Zarr 0.5. The plate map and label
    table are stored with standard column names. Bad fields are listed and the others ingested. A plate that is already
    known is replaced. If an ingestion of the same source was interrupted, its finished fields are kept.

    Args:
        progress: called with the number of finished fields and of all fields.

    Raises:
        PlateError: no readable plate or field, a symbolic link, or a plate that changes during ingestion. No record is
            written.
        PlateMapError: an invalid plate map or label table.
    """
    with temporary_copies():
        if is_in_bucket(source):
            fetch_tables(source.parent)
            fetch_tree(source)
        return _ingest(source.absolute(), plates, config or IngestConfig(), progress)


def _ingest(source: Path, plates: Path, config: IngestConfig, progress: Callable[[int, int], None]) -> IngestedPlate:
    signature, newest = scan_source(source)
    plate_source: ZarrSource | ExportSource
    if detect_format(source) is not None:
        plate_source = ExportSource(source)
    else:
        plate_source = ZarrSource(source, by_reference=config.ome_zarr == "reference")
    plate, name = plate_source.plate, plate_source.plate.name
    companions = find_companions(source)
    if len(companions.maps) > 1:
        problem = f"it has two plate maps, {companions.maps[0].name} and {companions.maps[1].name}"
        raise PlateError(problem, "Keep one of them.", plate=name, path=source)
    wells = sorted({field.well for field in (*plate.fields, *plate.bad_fields)}, key=natural_key)
    plate_map = read_plate_map(companions.maps[0] if companions.maps else None, wells, companions.metadata)
    labels = None if companions.labels is None else read_label_table(companions.labels)

    made_from = {
        "signature": signature, "ome_zarr": config.ome_zarr, "channels": list(plate.channels), "code": _CODE_VERSION,
        "fields": len(plate.fields),
    }  # fmt: skip
    with open_staging(plates, name, made_from) as staging:
        fields, measurements = _ingest_fields(plate_source, staging, progress)
        fields = fields.with_columns(pl.col("qc_flag").str.replace_all(f"{home_folder(plates)}/", "", literal=True))
        if scan_source(source) != (signature, newest):
            remedy = "Wait until it is complete, then ingest it again."
            raise PlateError("the plate changed while it was ingested", remedy, plate=name, path=source)
        centers, scales = center_and_scale([field["sample"] for field in measurements])
        statistics = {
            channel: {"center": center, "scale": scale}
            for channel, center, scale in zip(plate.channels, centers, scales, strict=True)
        }
        illumination = estimate_illumination([field["shade"] for field in measurements], config.camera_offset)
        shape = mode(tuple(field["shape"].tolist()) for field in measurements)
        record = {
            "name": name, "source": path_from_home(plates, source), "signature": signature,
            "by_reference": not staging.plate.exists(), **staging.place, "format": plate_source.format,
            "acquisition": dict(plate_source.acquisition),
            "ngff_version": plate.ngff_version, "channels": plate.channels, "voxel_size": plate.voxel_size,
            "camera_offset": config.camera_offset, "shape": shape, "statistics": statistics,
            "fields": fields.select(
                "image_version", well="Metadata_Well", site="Metadata_Site", path="path", reason="qc_flag"
            ).to_dicts(),
        }  # fmt: skip
        tables = {MAP_ENDING: to_csv(plate_map.frame), LABELS_ENDING: "" if labels is None else to_csv(labels)}
        record["treatments"] = digest(tables)
        files = {
            **{ending: table.encode() for ending, table in tables.items() if table},
            RECORD_ENDING: json.dumps(record, indent=2, sort_keys=True, allow_nan=False).encode(),
        }
        if illumination is not None:
            np.save(buffer := io.BytesIO(), illumination, allow_pickle=False)
            files[ILLUMINATION_ENDING] = buffer.getvalue()
        staging.publish(files, signature)
    row = {
        "Metadata_Plate": name, "source_path": record["source"], "format": plate_source.format,
        "n_wells": len(wells), "n_fields": fields.height, "n_channels": len(plate.channels),
        **{f"size_{axis}": size for axis, size in zip("zyx", shape, strict=True)},
        **{f"voxel_{axis}_um": size for axis, size in zip("zyx", plate.voxel_size, strict=True)},
        "channels": list(plate.channels),
        "intensity_center": [channel["center"] for channel in statistics.values()],
        "intensity_scale": [channel["scale"] for channel in statistics.values()],
        "ingested_at": datetime.now(UTC).replace(tzinfo=None),
    }  # fmt: skip
    problems = [
        *plate_source.problems,
        *_describe_unknown_sizes(plate, shape[0]),
        *_list_problems(plate_map, companions, fields, labels),
    ]
    return IngestedPlate(
        plate=load_plate(plates, name),
        plate_frame=pl.DataFrame([row]),
        wells_frame=plate_map.frame.select(pl.lit(name).alias("Metadata_Plate"), pl.all()),
        fields_frame=fields,
        statistics=statistics,
        illumination=illumination,
        problems=problems,
        source_problems=plate_source.problems,
    )


def _ingest_fields(
    source: ZarrSource | ExportSource, staging: Staging, progress: Callable[[int, int], None]
) -> tuple[pl.DataFrame, list[dict[str, NDArray[Any]]]]:
    """Ingest every unfinished field. Return the rows of all fields, and the measurements of the usable ones."""
    plate = source.plate
    fields = sorted((*plate.fields, *plate.bad_fields), key=lambda field: (natural_key(field.well), field.site))
    sample_size = int(np.clip(_MAX_STATISTICS_SAMPLE // len(fields), 256, 4096))
    source.prepare(staging.plate)
    rows, measurements = [], []
    for done, field in enumerate(fields):
        progress(done, len(fields))
        row: dict[str, Any] = {
            "Metadata_Plate": plate.name, "Metadata_Well": field.well, "Metadata_Site": field.site,
            "path": field.path, "qc_flag": plate.bad_fields.get(field),
        }  # fmt: skip
        rows.append(row)
        if row["qc_flag"] is not None:
            continue
        key = f"{field.well}_s{field.site}"
        finished = staging.finished(key)
        if finished is None:
            meter = FieldMeter(key, sample_size)
            try:
                note = source.store_field(field, staging.plate, meter.add)
            except PlateError as error:
                row["qc_flag"] = error.problem
                continue
            quality = {name: _nan_to_none(value) for name, value in meter.quality().items()} | {"qc_warning": note}
            arrays: dict[str, NDArray[Any]] = {
                "sample": meter.sample,
                "shade": meter.thumbnail,
                "shape": np.array(meter.shape),
            }
            staging.finish(key, field.path, quality, arrays)
            finished = quality, arrays
        quality, arrays = finished
        row |= quality
        if row["qc_flag"] is None:
            measurements.append(arrays)
        else:
            row["image_version"] = None
    progress(len(fields), len(fields))
    if not measurements:
        raise PlateError(
            f"none of its {len(rows)} fields can be used, the first ({rows[0]['path']}): {rows[0]['qc_flag']}",
            "Export the plate again.", plate=plate.name, path=plate.path,
        )  # fmt: skip
    texts = {"qc_flag": pl.String, "qc_warning": pl.String}
    frame = pl.DataFrame(rows, schema_overrides=texts, infer_schema_length=None)
    return frame.with_columns(field_warnings(frame, plate.channels)), measurements


def _describe_unknown_sizes(plate: Plate, depth: int) -> list[str]:
    """Name the axes whose voxel size is unknown, with the remedy; a single slice needs no z."""
    sizes = zip("zyx", plate.voxel_size, strict=True)
    axes = [axis for axis, size in sizes if size is None and not (axis == "z" and depth == 1)]
    remedy = f"give voxel_size = [z, y, x] in {plate.name}.toml beside the plate"
    return [f"the voxel size along {', '.join(axes)} is not known; {remedy}"] if axes else []


def _nan_to_none(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, also inside lists."""
    if isinstance(value, list):
        return [_nan_to_none(element) for element in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _list_problems(
    plate_map: PlateMap, companions: Companions, fields: pl.DataFrame, labels: pl.DataFrame | None
) -> list[str]:
    problems = plate_map.notes + [
        f"field {path}: {problem}"
        for column in ("qc_flag", "qc_warning")
        for path, problem in fields.drop_nulls(column).select("path", column).iter_rows()
    ]
    unknown_wells = set() if labels is None else set(labels["Metadata_Well"]) - set(plate_map.frame["Metadata_Well"])
    if not companions.maps:
        reason = f" ({companions.note})" if companions.note else ""
        problems.append(f"there is no plate map beside the plate{reason}, so its wells have no treatment")
    elif plate_map.missing:
        problems.append(f"the plate map lacks wells {', '.join(plate_map.missing)}")
    if plate_map.unknown:
        problems.append(f"the plate map has wells that the plate lacks: {', '.join(plate_map.unknown)}")
    if unknown_wells:
        problems.append(f"the label table has wells that the plate lacks: {', '.join(sorted(unknown_wells))}")
    return problems
