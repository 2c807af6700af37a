"""What is known of an ingested plate: its record, ``<plates>/<name>.json``, without which a plate is not known."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.common.names import plate_name
from gradcamo_assets.plates.hcs import Field, Plate
from gradcamo_assets.plates.staging import ILLUMINATION_ENDING, RECORD_ENDING


def known_plate(plates: Path, name: str) -> dict[str, Any] | None:
    """The record of an ingested plate, or None where the plate is not known.

    Raises:
        PlateError: where there is a record that cannot be read.
    """
    path = plates / f"{plate_name(name)}{RECORD_ENDING}"
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
    """The records of all ingested plates by name. A folder that is not there holds none.

    A record that cannot be read is told of in the log and counts as none: its plate is taken in again.
    """
    known = {}
    for path in sorted(plates.glob(f"[!.]*{RECORD_ENDING}")):
        try:
            record = known_plate(plates, path.stem)
        except PlateError as error:
            logging.getLogger(__name__).warning(str(error))
            continue
        if record is not None:
            known[path.stem] = record
    return known


def load_plate(plates: Path, name: str, illumination: bool = False) -> Plate:
    """An ingested plate, from its record alone; ``fields`` are those fit for use.

    Args:
        illumination: whether pixels are to be read as under even light, where the plate's illumination is known.

    Raises:
        PlateError: where the plate is not known or its folder is gone.
    """
    record = known_plate(plates, name)
    path = plates / f"{name}.zarr"
    if record is not None and record.get("by_reference"):
        path = Path(record["source"])
    if record is None or not path.is_dir():
        raise PlateError("the plate has not been ingested", "Ingest it first.", plate=name, path=path)
    reasons = {Field(name, f["well"], f["site"], f["path"]): f["reason"] for f in record["fields"]}
    z, y, x = record["voxel_size"]
    light = plates / f"{name}{ILLUMINATION_ENDING}"
    return Plate(
        name, path, record["ngff_version"], tuple(record["channels"]), (z, y, x),
        tuple(field for field, reason in reasons.items() if reason is None),
        {field: reason for field, reason in reasons.items() if reason is not None},
        illumination=light if illumination and light.is_file() else None,
        camera_offset=record.get("camera_offset", 0.0),
    )  # fmt: skip
