"""Where each field's results lie: a folder for each version, which never changes once it is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import Field, Plate, field_version, is_current
from gradcamo_assets.provenance import digest

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
    """Version of the images of a plate x site. The whole plate counts, since its statistics stand in every crop."""
    return digest([plate.version, site])


def of_fields(versions: Mapping[str, str | None]) -> str:
    """Version of a plate x site by those of its fields, by well; fields without one do not count."""
    return digest(sorted((well, version) for well, version in versions.items() if version is not None))


def check_pixels(home: Home, plate: Plate, field: Field, made_from: str | None = None) -> None:
    """Refuse the pixels of a field that was just read where they may be others than they were taken for.

    Args:
        made_from: the version that they must have (``field_version``); by default the one ``plate`` knows.

    Raises:
        GradcamoError: where the plate was taken in again meanwhile, or they have another version.
    """
    if not is_current(home.plates, plate) or made_from not in (None, field_version(plate, field)):
        raise GradcamoError(
            "the plate was taken in again since this field was segmented", "Launch process_fields again.",
            plate=plate.name, well=field.well, site=field.site,
        )  # fmt: skip
