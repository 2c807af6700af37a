"""What is known of ingested plates: a record of each, and one listing that tells of all.

``<plates>/<name>.json`` is a plate's record: its fields, the version of their pixels, intensities. The empty file
``<plates>/known/<name>@<signature>`` comes last, and by its name a plate is known, so that nobody opens a thousand
records to tell what is new. A home can be moved: no path above it is stored, but where a plate came from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import check_plate_name
from gradcamo_assets.plates.companions import LABELS_ENDING
from gradcamo_assets.plates.omezarr import Field, Plate
from gradcamo_assets.provenance import digest
from gradcamo_assets.storage import create_marker, list_visible, read_json

ILLUMINATION_ENDING, MAP_ENDING, RECORD_ENDING = ".illumination.npy", ".platemap.csv", ".json"
ENDINGS = (MAP_ENDING, LABELS_ENDING, ILLUMINATION_ENDING, RECORD_ENDING)
"""What lies beside an ingested plate. The record comes last."""


def known_files(plates: Path, name: str) -> list[Path]:
    """What says that a plate is known: one file, or none."""
    return list_visible(plates / "known", f"{check_plate_name(name)}@*")


def mark_known(plates: Path, name: str, signature: str) -> None:
    """Say that a plate is known, once all of it is there. ``signature``: of its source."""
    create_marker(plates / "known" / f"{check_plate_name(name)}@{signature}")


def known_plates(plates: Path) -> dict[str, str]:
    """The signature of every ingested plate's source, by name; one listing, and no file is opened.

    Raises:
        PlateError: for the plates of an earlier release, or a record that cannot be read where no plate is known.
    """
    if not (files := list_visible(plates / "known")):
        for record in list_visible(plates, f"*{RECORD_ENDING}"):
            known_plate(plates, record.stem)  # It refuses a record of an earlier release.
    return {name: signature for name, _, signature in (file.name.partition("@") for file in files) if signature}


def _of_an_earlier_release(record: Path) -> PlateError:
    problem = "it was ingested by an earlier release, which did not tell what pixels it had"
    return PlateError(problem, "Ingest the plate again into a new home.", plate=record.stem, path=record)


def home_of(plates: Path) -> Path:
    """The home in which ``plates`` is a folder. What is stored names no path above it, so that it can be moved."""
    return plates.absolute().parent


def from_home(plates: Path, source: Path) -> str:
    """A path as it is stored: relative to the home where it lies below it, else absolute."""
    home, source = home_of(plates), source.absolute()
    return (source.relative_to(home) if source.is_relative_to(home) else source).as_posix()


def known_plate(plates: Path, name: str) -> dict[str, Any] | None:
    """The record of an ingested plate, or None where the plate is not known.

    Raises:
        PlateError: for one that cannot be read, or was written by an earlier release.
    """
    path = plates / f"{check_plate_name(name)}{RECORD_ENDING}"
    try:
        record = read_json(path)
        if record is None:
            return None
        if record["name"] != name:
            raise ValueError(f"it is the record of {record['name']}")
        if any("image_version" not in field for field in record["fields"]):
            raise _of_an_earlier_release(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlateError(f"unreadable record: {error}", "Ingest the plate again.", plate=name, path=path) from error
    return record


def load_plate(plates: Path, name: str, illumination: bool = False) -> Plate:
    """An ingested plate, from its record alone; ``fields`` are those fit for use, each with its image version.

    ``illumination``: whether pixels are to be read as under even light, where the plate's illumination is known.
    PlateError where the plate is not known or its folder is gone.
    """
    record = known_plate(plates, name)
    path = plates / f"{name}.zarr"
    if record is not None and record["by_reference"]:
        path = home_of(plates) / record["source"]
    if record is None or not path.is_dir():
        raise PlateError("the plate has not been ingested", "Ingest it first.", plate=name, path=path)
    fields = {Field(name, each["well"], each["site"], each["path"]): each for each in record["fields"]}
    usable = {field: each["image_version"] for field, each in fields.items() if each["reason"] is None}
    z, y, x = record["voxel_size"]
    light = plates / f"{name}{ILLUMINATION_ENDING}"
    return Plate(
        name, path, record["ngff_version"], tuple(record["channels"]), (z, y, x), tuple(usable),
        {field: each["reason"] for field, each in fields.items() if field not in usable},
        illumination=light if illumination and light.is_file() else None,
        camera_offset=record["camera_offset"], image_versions=usable, version=_version(record),
    )  # fmt: skip


def still_current(plates: Path, plate: Plate) -> bool:
    """Whether the plate that ``load_plate`` gave is the one there is: ask it after its pixels were read, or what is
    made of them may be made of a plate that is being replaced."""
    record = known_plate(plates, plate.name)
    return record is not None and _version(record) == plate.version


def _version(record: Mapping[str, Any]) -> str:
    """Of all that ingestion found: equal where a plate was taken in again and nothing had changed."""
    return digest([record[key] for key in ("fields", "channels", "voxel_size", "statistics", "camera_offset")])
