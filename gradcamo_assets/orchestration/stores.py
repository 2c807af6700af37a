"""Where each field's results lie: a folder for each version, which never changes once it is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcamo_assets.common import GradcamoError, Home
from gradcamo_assets.common.provenance import digest
from gradcamo_assets.plates import Plate

FIELD = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
"""The columns that name a field."""


def mask_folder(home: Home, plate: str, well: str, site: int, version: str) -> Path:
    """Masks of one field."""
    return home.masks / plate / f"{well}_s{site}" / version


def crop_folder(home: Home, row: Mapping[str, Any]) -> Path:
    """Crops of the field that a row of a cell belongs to."""
    field = f"{row['Metadata_Well']}_s{row['Metadata_Site']}"
    return home.crops / row["Metadata_Plate"] / field / row["crop_version"]


def site_version(plate: Plate, site: int) -> str:
    """Version of the images of a plate x site: of the pixels of its readable fields, whoever wrote them."""
    return of_fields({field.well: plate.image_versions[field] for field in plate.fields if field.site == site})


def of_fields(versions: Mapping[str, str | None]) -> str:
    """Version of a plate x site by those of its fields, by well; fields without one do not count."""
    return digest(sorted((well, version) for well, version in versions.items() if version is not None))


def check_pixels(plate: Plate, now: bool, well: str, site: int) -> None:
    """Refuse pixels that may be older or newer than what is made of them.

    Raises:
        GradcamoError: unless they are those of ``now``.
    """
    if not now:
        problem = "the plate was taken in again while this field was worked on"
        raise GradcamoError(problem, "Launch process_fields again.", plate=plate.name, well=well, site=site)
