"""Read ``<plate>.toml`` beside a plate's folder: what a user adds to the metadata of an export."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.omezarr import plate_name_of

CONFIGURATION_ENDING = ".toml"
_Length = Annotated[float, Field(gt=0, lt=1e6)]


class Configuration(BaseModel):
    """Settings of one plate; None or empty if the file does not set them.

    Attributes:
        pattern: regular expression for the path of a file below the folder, with '/' separators.
        voxel_size: (z, y, x) in micrometres; replaces that of the export or OME-Zarr plate.
        channels: new names by the export's channel names; the order of channels stays.
        format: the reader to use.
        wells: number of wells of the plate, for exports that number wells consecutively (ScanR).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str | None = None
    voxel_size: tuple[_Length, _Length, _Length] | None = None
    channels: dict[str, str] = {}
    format: str | None = None
    wells: Literal[24, 48, 96, 384] | None = None


def read_configuration(folder: Path) -> Configuration:
    """Read the configuration beside the plate ``folder``; all settings are empty without a file.

    Raises:
        PlateError: not valid TOML, an unknown setting, or a value of the wrong type.
    """
    path = folder.with_name(plate_name_of(folder) + CONFIGURATION_ENDING)
    try:
        return Configuration(**tomllib.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Configuration()
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if key not in Configuration.model_fields:
            remedy = f"Use one of {', '.join(Configuration.model_fields)}."
            raise PlateError(f"unknown setting {key!r}", remedy, path=path) from error
        raise PlateError(f"{key} is {str(first['input'])[:200]!r}", f"{first['msg']}.", path=path) from error
    except (ValueError, OSError, RecursionError) as error:
        raise PlateError(f"it is not valid TOML: {error}", "Correct its syntax.", path=path) from error
