"""``<plate>.toml`` beside a plate's folder: what an export does not say of itself, written by a person."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.omezarr import name_of

CONFIGURATION_ENDING = ".toml"
_Length = Annotated[float, Field(gt=0, lt=1e6)]


class Configuration(BaseModel):
    """Each is None or empty where the file does not give it.

    Attributes:
        pattern: regular expression on a file's path below the folder, with '/' separators.
        voxel_size: (z, y, x) in micrometres, instead of the export's.
        channels: the export's channel name to the one wanted; their order does not change.
        format: which reader to take.
        wells: of the plate, for exports that number wells through (ScanR).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str | None = None
    voxel_size: tuple[_Length, _Length, _Length] | None = None
    channels: dict[str, str] = {}
    format: str | None = None
    wells: Literal[24, 48, 96, 384] | None = None


def configuration_of(folder: Path) -> Configuration:
    """The configuration beside the plate ``folder``, or one that says nothing.

    Raises:
        PlateError: no TOML, an unknown key, a value of the wrong kind.
    """
    path = folder.with_name(name_of(folder) + CONFIGURATION_ENDING)
    try:
        return Configuration(**tomllib.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Configuration()
    except ValidationError as error:
        wrong = error.errors()[0]
        key = str(wrong["loc"][0])
        known = f"Known are {', '.join(Configuration.model_fields)}."
        if key not in Configuration.model_fields:
            raise PlateError(f"there is no setting {key!r}", known, path=path) from error
        raise PlateError(f"{key} is {str(wrong['input'])[:200]!r}", f"{wrong['msg']}.", path=path) from error
    except (ValueError, OSError, RecursionError) as error:
        raise PlateError(f"it is no TOML: {error}", "Correct it.", path=path) from error
