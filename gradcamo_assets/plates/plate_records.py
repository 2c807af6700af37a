"""Records of ingested plates, and the listing of all known plates.

``<plates>/<name>.json`` records the fields, the versions of their pixels, and the intensity statistics of a plate; in a
bucket, where a folder cannot be replaced in one step, also the name of the plate's folder. The empty file
``<plates>/known/<name>@<signature>`` is written last and marks the plate as known, so that listing known plates opens
no record. Stored paths are relative to the home folder, so a home can be moved; only plates outside it are stored with
absolute paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import check_plate_name
from gradcamo_assets.plates.companions import LABELS_ENDING
from gradcamo_assets.plates.omezarr import Field, Plate
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import create_marker, exists, is_in_bucket, list_visible, read_json

ILLUMINATION_ENDING, MAP_ENDING, RECORD_ENDING = ".illumination.npy", ".platemap.csv", ".json"
PLATE_FILE_ENDINGS = (MAP_ENDING, LABELS_ENDING, ILLUMINATION_ENDING, RECORD_ENDING)
"""Files beside an ingested plate. The record comes last."""


def known_markers(plates: Path, name: str) -> list[Path]:
    """The marker file of a known plate: a list of one path, or an empty list."""
    return list_visible(plates / "known", f"{check_plate_name(name)}@*")


def mark_known(plates: Path, name: str, signature: str) -> None:
    """Mark a fully written plate as known, with the signature of its source."""
    create_marker(plates / "known" / f"{check_plate_name(name)}@{signature}")


def list_known_plates(plates: Path) -> dict[str, str]:
    """The source signature of every ingested plate, by name. This lists one folder and opens no file.

    Raises:
        PlateError: plates of an earlier release, or an unreadable record while no plate is marked as known.
    """
    markers = list_visible(plates / "known")
    if not markers:
        for record in list_visible(plates, f"*{RECORD_ENDING}"):
            read_plate_record(plates, record.stem)  # Raises for a record of an earlier release.
    return {name: signature for name, _, signature in (file.name.partition("@") for file in markers) if signature}


def _earlier_release_error(record: Path) -> PlateError:
    problem = "it was ingested by an earlier release, which did not record the versions of its pixels"
    return PlateError(problem, "Ingest the plate again into a new home.", plate=record.stem, path=record)


def home_folder(plates: Path) -> Path:
    """The home folder that contains ``plates``."""
    return plates.absolute().parent


def path_from_home(plates: Path, source: Path) -> str:
    """A path as it is stored: relative to the home if it lies inside, else absolute."""
    home, source = home_folder(plates), source.absolute()
    return (source.relative_to(home) if source.is_relative_to(home) else source).as_posix()


def read_plate_record(plates: Path, name: str) -> dict[str, Any] | None:
    """Read the record of an ingested plate; None if the plate is not known.

    Raises:
        PlateError: the record is unreadable or was written by an earlier release.
    """
    path = plates / f"{check_plate_name(name)}{RECORD_ENDING}"
    try:
        record = read_json(path)
        if record is None:
            return None
        if record["name"] != name:
            raise ValueError(f"it is the record of {record['name']}")
        if any("image_version" not in field for field in record["fields"]):
            raise _earlier_release_error(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlateError(f"unreadable record: {error}", "Ingest the plate again.", plate=name, path=path) from error
    return record


def plate_folder(plates: Path, name: str, record: Mapping[str, Any] | None) -> Path:
    """The folder of an ingested copy of a plate, from its record.

    Raises:
        PlateError: the record names the folder of another plate.
    """
    folder = (record or {}).get("folder")
    if folder is not None and not _is_folder_of(folder, name):
        problem = f"its record names the folder {folder!r}, which is not its own"
        raise PlateError(problem, "Ingest the plate again.", plate=name, path=plates / f"{name}{RECORD_ENDING}")
    return plates / (folder or f"{name}.zarr")


def plate_folders(plates: Path, name: str) -> list[Path]:
    """The folders of a plate, in a bucket with those of interrupted ingestions."""
    if not is_in_bucket(plates):
        return [plates / f"{name}.zarr"]
    return [path for path in list_visible(plates, f"{check_plate_name(name)}.*.zarr") if _is_folder_of(path.name, name)]


def _is_folder_of(folder: str, plate: str) -> bool:
    return re.fullmatch(rf"{re.escape(plate)}\.[0-9a-f]{{12}}\.zarr", folder) is not None


def load_plate(plates: Path, name: str, illumination: bool = False) -> Plate:
    """Load an ingested plate from its record. Its ``fields`` are the usable ones, each with its image version.

    Args:
        illumination: correct uneven illumination when pixels are read, if the plate's illumination is known.

    Raises:
        PlateError: the plate is not known or its folder no longer exists.
    """
    record = read_plate_record(plates, name)
    path = plate_folder(plates, name, record)
    if record is not None and record["by_reference"]:
        path = home_folder(plates) / record["source"]
    if record is None or not (is_in_bucket(path) or path.is_dir()):
        raise PlateError("the plate has not been ingested", "Ingest it first.", plate=name, path=path)
    entries = {Field(name, entry["well"], entry["site"], entry["path"]): entry for entry in record["fields"]}
    versions = {field: entry["image_version"] for field, entry in entries.items() if entry["reason"] is None}
    z, y, x = record["voxel_size"]
    illumination_file = plates / f"{name}{ILLUMINATION_ENDING}"
    return Plate(
        name=name,
        path=path,
        ngff_version=record["ngff_version"],
        channels=tuple(record["channels"]),
        voxel_size=(z, y, x),
        fields=tuple(versions),
        bad_fields={field: entry["reason"] for field, entry in entries.items() if field not in versions},
        illumination=illumination_file if illumination and exists(illumination_file) else None,
        camera_offset=record["camera_offset"],
        image_versions=versions,
        version=_record_version(record),
    )


def is_current(plates: Path, plate: Plate) -> bool:
    """Whether ``plate``, loaded earlier, is still the ingested one.

    Call it after reading pixels: results would otherwise come from a plate that is being replaced.
    """
    record = read_plate_record(plates, plate.name)
    return record is not None and _record_version(record) == plate.version


def _record_version(record: Mapping[str, Any]) -> str:
    """Version of everything ingestion found. Ingesting an unchanged plate again gives an equal version."""
    found = ("fields", "channels", "voxel_size", "statistics", "camera_offset", "treatments")
    # Records of earlier releases have no treatments.
    return digest([record[key] for key in found if key in record])
