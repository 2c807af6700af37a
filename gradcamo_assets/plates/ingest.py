"""Taking in a plate: everything is checked where it lies, taken in field by field, and recorded at the very end."""

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

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.companions import LABELS_ENDING, companions, walk
from gradcamo_assets.plates.formats import format_of
from gradcamo_assets.plates.illumination import estimate_illumination
from gradcamo_assets.plates.image_quality import FieldMeter, center_and_scale, field_warnings
from gradcamo_assets.plates.omezarr import Plate
from gradcamo_assets.plates.plate_records import (
    ILLUMINATION_ENDING,
    MAP_ENDING,
    RECORD_ENDING,
    from_home,
    home_of,
    load_plate,
)
from gradcamo_assets.plates.platemap import PlateMap, read_label_table, read_plate_map
from gradcamo_assets.plates.sources import ExportSource, ZarrSource
from gradcamo_assets.plates.staging import Staging, staged
from gradcamo_assets.settings import section, setting

_SAMPLED = 4_000_000
"""Pixels a channel that count in a large plate's statistics."""
_CODE = "2"


@section
class IngestConfig:
    """How plates are taken in: section ``[plates]`` of ``gradcamo.toml``."""

    ome_zarr: Literal["copy", "reference"] = setting(
        "copy", "What becomes of an OME-Zarr plate: a copy, or a reference to where it lies, which must then stay."
    )
    illumination: bool = setting(False, "Take uneven illumination out of pixels that are read; it is estimated anyway.")
    camera_offset: float = setting(0.0, "What the camera reads in the dark, in counts: no part of illumination.")


@dataclass(frozen=True)
class Ingested:
    """A plate taken in: where it is now, its rows, its intensities, and what a person should know.

    ``fields_frame`` has bad fields too, with their reason in ``qc_flag``. ``statistics``: ``{channel: {"center",
    "scale"}}`` in counts. ``illumination``: (C, y, x) around 1, or None where the plate has too few fields to tell.
    ``source_problems``: of ``problems``, the export's.
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
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Ingested:
    """Check the plate ``source``, take it in as ``<plates>/<name>.zarr``, and record it in ``<plates>/<name>.json``.

    OME-Zarr is copied (or referred to), every other format written as OME-Zarr 0.5; plate map and label table are kept
    in the field's spelling. Bad fields are listed, good ones go on. A plate that is known already is replaced. Where an
    ingestion of the same source was killed, its finished fields are not done again.

    Args:
        progress: called with the number of fields done and of all fields.

    Raises:
        PlateError: no readable plate or field, a symbolic link, a plate that changes meanwhile. No record is left.
        PlateMapError: a plate map or label table that cannot be understood.
    """
    config = config or IngestConfig()
    source = source.absolute()
    signature, newest = walk(source)
    is_export = format_of(source) is not None
    found = ExportSource(source) if is_export else ZarrSource(source, by_reference=config.ome_zarr == "reference")
    plate, name = found.plate, found.plate.name
    beside = companions(source)
    if len(beside.maps) > 1:
        problem = f"two plate maps, {beside.maps[0].name} and {beside.maps[1].name}"
        raise PlateError(problem, "Keep one of them.", plate=name, path=source)
    wells = sorted({field.well for field in (*plate.fields, *plate.bad_fields)}, key=natural_key)
    plate_map = read_plate_map(beside.maps[0] if beside.maps else None, wells, beside.metadata)
    labels = None if beside.labels is None else read_label_table(beside.labels)

    made_from = {
        "signature": signature, "ome_zarr": config.ome_zarr, "channels": list(plate.channels), "code": _CODE,
        "fields": len(plate.fields),
    }  # fmt: skip
    with staged(plates, name, made_from) as staging:
        fields, measured = _take_in(found, staging, progress)
        fields = fields.with_columns(pl.col("qc_flag").str.replace_all(f"{home_of(plates)}/", "", literal=True))
        if walk(source) != (signature, newest):
            remedy = "Wait until it is complete, then ingest it again."
            raise PlateError("the plate changed while it was taken in", remedy, plate=name, path=source)
        numbers = zip(plate.channels, *center_and_scale([one["sample"] for one in measured]), strict=True)
        statistics = {channel: {"center": center, "scale": scale} for channel, center, scale in numbers}
        light = estimate_illumination([one["shade"] for one in measured], config.camera_offset)
        shape = mode(tuple(one["shape"].tolist()) for one in measured)
        record = {
            "name": name, "source": from_home(plates, source), "signature": signature,
            "by_reference": not staging.plate.exists(), "format": found.format, "acquisition": dict(found.acquisition),
            "ngff_version": plate.ngff_version, "channels": plate.channels, "voxel_size": plate.voxel_size,
            "camera_offset": config.camera_offset, "shape": shape, "statistics": statistics,
            "fields": fields.select(
                "image_version", well="Metadata_Well", site="Metadata_Site", path="path", reason="qc_flag"
            ).to_dicts(),
        }  # fmt: skip
        files = {
            MAP_ENDING: plate_map.frame.write_csv().encode(),
            RECORD_ENDING: json.dumps(record, indent=2, sort_keys=True, allow_nan=False).encode(),
        }
        if labels is not None:
            files[LABELS_ENDING] = labels.write_csv().encode()
        if light is not None:
            np.save(buffer := io.BytesIO(), light, allow_pickle=False)
            files[ILLUMINATION_ENDING] = buffer.getvalue()
        staging.publish(files, signature)
    row = {
        "Metadata_Plate": name, "source_path": record["source"], "format": found.format,
        "n_wells": len(wells), "n_fields": fields.height, "n_channels": len(plate.channels),
        **{f"size_{axis}": size for axis, size in zip("zyx", shape, strict=True)},
        **{f"voxel_{axis}_um": size for axis, size in zip("zyx", plate.voxel_size, strict=True)},
        "channels": list(plate.channels),
        "intensity_center": [channel["center"] for channel in statistics.values()],
        "intensity_scale": [channel["scale"] for channel in statistics.values()],
        "ingested_at": datetime.now(UTC).replace(tzinfo=None),
    }  # fmt: skip
    problems = [*found.problems, *_problems(plate_map, bool(beside.maps), fields, labels)]
    return Ingested(
        load_plate(plates, name), pl.DataFrame([row]),
        plate_map.frame.select(pl.lit(name).alias("Metadata_Plate"), pl.all()),
        fields, statistics, light, problems, found.problems,
    )  # fmt: skip


def _take_in(
    source: ZarrSource | ExportSource, staging: Staging, progress: Callable[[int, int], None]
) -> tuple[pl.DataFrame, list[dict[str, NDArray[Any]]]]:
    """Take in every field that is not done yet: the rows of all, and what was measured of those fit for use."""
    plate = source.plate
    fields = sorted((*plate.fields, *plate.bad_fields), key=lambda field: (natural_key(field.well), field.site))
    sampled = int(np.clip(_SAMPLED // len(fields), 256, 4096))
    source.begin(staging.plate)
    rows, measured = [], []
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
            meter = FieldMeter(key, sampled)
            try:
                source.take(field, staging.plate, meter.add)
            except PlateError as error:
                row["qc_flag"] = error.problem
                continue
            numbers = {name: _finite(value) for name, value in meter.quality().items()}
            finished = numbers, {"sample": meter.sample, "shade": meter.shade, "shape": np.array(meter.shape)}
            staging.finish(key, *finished)
        row |= finished[0]
        if row["qc_flag"] is None:
            measured.append(finished[1])
        else:
            row["image_version"] = None
    progress(len(fields), len(fields))
    if not measured:
        raise PlateError(
            f"none of its {len(rows)} fields can be used, the first ({rows[0]['path']}): {rows[0]['qc_flag']}",
            "Export the plate again.", plate=plate.name, path=plate.path,
        )  # fmt: skip
    frame = pl.DataFrame(rows, schema_overrides={"qc_flag": pl.String}, infer_schema_length=None)
    return frame.with_columns(field_warnings(frame, plate.channels)), measured


def _finite(value: Any) -> Any:
    """NaN, which JSON has not, as None, in lists too."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _problems(plate_map: PlateMap, has_map: bool, fields: pl.DataFrame, labels: pl.DataFrame | None) -> list[str]:
    problems = [
        f"field {path}: {told}"
        for column in ("qc_flag", "qc_warning")
        for path, told in fields.drop_nulls(column).select("path", column).iter_rows()
    ]
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
