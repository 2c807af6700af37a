"""Taking in a plate: everything is checked where it lies, then copied whole, and its record is written last."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.common.files import replaced_file, replaced_folder, write_json
from gradcamo_assets.common.names import natural_key
from gradcamo_assets.plates.hcs import Field, Plate, open_plate, read_field
from gradcamo_assets.plates.platemap import PlateMap, read_label_table, read_plate_map
from gradcamo_assets.plates.quality import FieldQuality, PlateStatistics, field_quality
from gradcamo_assets.plates.records import (
    LABELS_ENDING,
    companions,
    load_plate,
    quick_signature,
    record_path,
    source_signature,
)

_FIELDS_SCHEMA = pl.Schema({
    "Metadata_Plate": pl.String(), "Metadata_Well": pl.String(), "Metadata_Site": pl.Int32(), "path": pl.String(),
    "qc_flag": pl.String(), "focus_slice": pl.Int32(), "focus_score": pl.Float64(), "saturation": pl.Float64(),
    "intensity_p1": pl.List(pl.Float64()), "intensity_median": pl.List(pl.Float64()),
    "intensity_p99": pl.List(pl.Float64()),
})  # fmt: skip
_PLATES_SCHEMA = pl.Schema({
    "Metadata_Plate": pl.String(), "source_path": pl.String(), "format": pl.String(),
    "n_wells": pl.Int32(), "n_fields": pl.Int32(), "n_channels": pl.Int32(),
    "size_z": pl.Int32(), "size_y": pl.Int32(), "size_x": pl.Int32(),
    "voxel_z_um": pl.Float64(), "voxel_y_um": pl.Float64(), "voxel_x_um": pl.Float64(),
    "channels": pl.List(pl.String()),
    "intensity_center": pl.List(pl.Float64()), "intensity_scale": pl.List(pl.Float64()),
    "ingested_at": pl.Datetime("us"),
})  # fmt: skip


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


@dataclass(frozen=True)
class _Examined:
    """The pixels of a plate, examined: the quality of every field that could be read, why others could not."""

    quality: dict[Field, FieldQuality]
    reasons: dict[Field, str]
    shape: tuple[int, int, int]
    center: list[float]
    scale: list[float]


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
    signature, quick = source_signature(source), quick_signature(source)
    plate = open_plate(source)
    map_path, labels_path = companions(source)
    wells = list(dict.fromkeys(field.well for field in _all_fields(plate)))
    plate_map = read_plate_map(map_path, wells)
    labels = None if labels_path is None else read_label_table(labels_path)
    examined = _examine(plate)

    statistics = {
        channel: {"center": center, "scale": scale}
        for channel, center, scale in zip(plate.channels, examined.center, examined.scale, strict=True)
    }
    record_path(plates, plate.name).unlink(missing_ok=True)
    with replaced_folder(plates / f"{plate.name}.zarr") as folder:
        # Links are copied as links, never followed: one that appears after the check cannot reach outside.
        shutil.copytree(source, folder, dirs_exist_ok=True, symlinks=True)
        if source_signature(source) != signature:
            raise PlateError(
                "the plate changed while it was copied", "Wait until it is complete, then ingest it again.",
                plate=plate.name, path=source,
            )  # fmt: skip
    _write_table(plates / f"{plate.name}.platemap.csv", plate_map.frame)
    _write_table(plates / f"{plate.name}{LABELS_ENDING}", labels)
    write_json(
        record_path(plates, plate.name),
        {
            "name": plate.name, "source": str(source), "signature": signature, "quick_signature": quick,
            "ngff_version": plate.ngff_version, "channels": plate.channels, "voxel_size": plate.voxel_size,
            "shape": examined.shape, "statistics": statistics,
            "fields": [
                {"well": f.well, "site": f.site, "path": f.path, "reason": examined.reasons.get(f)}
                for f in _all_fields(plate)
            ],
        },
    )  # fmt: skip
    return Ingested(
        load_plate(plates, plate.name), _plate_frame(plate, source, len(wells), examined),
        plate_map.frame.select(pl.lit(plate.name).alias("Metadata_Plate"), pl.all()), _fields_frame(plate, examined),
        statistics, _problems(plate_map, map_path, examined, labels),
    )  # fmt: skip


def _all_fields(plate: Plate) -> list[Field]:
    fields = [*plate.fields, *(bad.field for bad in plate.bad_fields)]
    return sorted(fields, key=lambda field: (natural_key(field.well), field.site))


def _examine(plate: Plate) -> _Examined:
    """Read every field once."""
    quality: dict[Field, FieldQuality] = {}
    reasons = {bad.field: bad.reason for bad in plate.bad_fields}
    shapes: Counter[tuple[int, ...]] = Counter()
    statistics = PlateStatistics()
    for field in plate.fields:
        try:
            image = read_field(plate, field)
        except PlateError as error:
            reasons[field] = error.problem
            continue
        quality[field] = field_quality(image)
        if (flag := quality[field].flag) is not None:
            reasons[field] = flag
            continue
        statistics.add(image)
        shapes[image.shape[1:]] += 1
    if not shapes:
        first = next(iter(reasons.items()))
        raise PlateError(
            f"none of its {len(reasons)} fields can be used, the first ({first[0].path}): {first[1]}",
            "Export the plate again.", plate=plate.name, path=plate.path,
        )  # fmt: skip
    z, y, x = shapes.most_common(1)[0][0]
    return _Examined(quality, reasons, (z, y, x), *statistics.center_and_scale())


def _write_table(path: Path, table: pl.DataFrame | None) -> None:
    if table is None:
        path.unlink(missing_ok=True)
        return
    with replaced_file(path) as temporary:
        table.write_csv(temporary)


def _plate_frame(plate: Plate, source: Path, wells: int, examined: _Examined) -> pl.DataFrame:
    row = (
        plate.name, str(source), f"ome-zarr {plate.ngff_version}", wells, len(_all_fields(plate)), len(plate.channels),
        *examined.shape, *plate.voxel_size, list(plate.channels), examined.center, examined.scale,
        datetime.now(UTC).replace(tzinfo=None),
    )  # fmt: skip
    return pl.DataFrame([row], schema=_PLATES_SCHEMA, orient="row")


def _fields_frame(plate: Plate, examined: _Examined) -> pl.DataFrame:
    rows = []
    for field in _all_fields(plate):
        q = examined.quality.get(field)
        measured = (None,) * 6 if q is None else (q.focus_slice, q.focus_score, q.saturation, q.p1, q.median, q.p99)
        rows.append((field.plate, field.well, field.site, field.path, examined.reasons.get(field), *measured))
    return pl.DataFrame(rows, schema=_FIELDS_SCHEMA, orient="row")


def _problems(
    plate_map: PlateMap, map_path: Path | None, examined: _Examined, labels: pl.DataFrame | None
) -> list[str]:
    problems = [f"field {field.path}: {reason}" for field, reason in examined.reasons.items()]
    if map_path is None:
        problems.append("no plate map beside the plate: its wells have no treatment")
    elif plate_map.missing:
        problems.append(f"the plate map lacks wells {', '.join(plate_map.missing)}")
    if plate_map.unknown:
        problems.append(f"the plate map has wells that the plate lacks: {', '.join(plate_map.unknown)}")
    if labels is not None:
        beyond = sorted(set(labels["Metadata_Well"]) - set(plate_map.frame["Metadata_Well"]))
        if beyond:
            problems.append(f"the label table has wells that the plate lacks: {', '.join(beyond)}")
    return problems
