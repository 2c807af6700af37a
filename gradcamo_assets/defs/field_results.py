"""Folders and versions of the results of fields. Every version has its own folder, which is never modified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import Field, Plate, field_version, is_current
from gradcamo_assets.provenance import digest
from gradcamo_assets.tables import Lake

FIELD = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
"""The columns that identify a field."""


def mask_folder(home: Home, plate: str, well: str, site: int, version: str) -> Path:
    """The folder of the masks of one field."""
    return home.masks / plate / f"{well}_s{site}" / version


def crop_folder(home: Home, row: Mapping[str, Any]) -> Path:
    """The folder of the crops of the field to which the row of a cell belongs."""
    field = f"{row['Metadata_Well']}_s{row['Metadata_Site']}"
    return home.crops / row["Metadata_Plate"] / field / row["crop_version"]


def site_version(plate: Plate, site: int) -> str:
    """The version of the images of a plate x site. It depends on the whole plate, whose statistics are in its crops."""
    return digest([plate.version, site])


def combine_field_versions(versions: Mapping[str, str | None]) -> str:
    """The version of a plate x site from the versions of its fields, by well. Fields without a version are ignored."""
    return digest(sorted((well, version) for well, version in versions.items() if version is not None))


def require_version(lake: Lake, asset: str, plate: str, site: int) -> str:
    """The version of the results of ``masks``, ``cells`` or ``crops`` at a plate and site.

    Read it before the rows of these results. If the rows are newer than their version, they are processed again later;
    if they are older, nobody notices.

    Raises:
        GradcamoError: if there are no results yet.
    """
    row = lake.partition_version(f"{asset.removesuffix('s')}_versions", plate=plate, site=site)
    if row is None:
        remedy = f"Materialise {asset} for this plate and site first."
        raise GradcamoError(f"the asset {asset} has no results yet", remedy, plate=plate, site=site)
    return str(row["version"])


def require_current_pixels(home: Home, plate: Plate, field: Field, made_from: str | None = None) -> None:
    """Check that the pixels of a field just read are those of the expected version.

    Args:
        made_from: the expected ``field_version``; default: any version of ``plate``.

    Raises:
        GradcamoError: if the plate was ingested again meanwhile, or the field has another version.
    """
    if not is_current(home.plates, plate) or made_from not in (None, field_version(plate, field)):
        raise GradcamoError(
            "the plate was ingested again since this field was segmented", "Launch process_fields again.",
            plate=plate.name, well=field.well, site=field.site,
        )  # fmt: skip
