"""``<plate>.toml`` beside a plate's folder: what an export does not say of itself, written by a person."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.plates.hcs import name_of

CONFIGURATION_ENDING = ".toml"
_KEYS = {"pattern": str, "voxel_size": list, "channels": dict, "format": str, "wells": int}
_WELLS = (24, 48, 96, 384)


@dataclass(frozen=True)
class Configuration:
    """Each is None or empty where the file does not give it.

    Attributes:
        pattern: regular expression on a file's path below the folder, with '/' separators.
        voxel_size: (z, y, x) in micrometres, instead of the export's.
        channels: the export's channel name to the one wanted; their order does not change.
        format: which reader to take.
        wells: of the plate, for exports that number wells through (ScanR).
    """

    pattern: str | None = None
    voxel_size: tuple[float, float, float] | None = None
    channels: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    wells: int | None = None


NOTHING = Configuration()


def configuration_of(folder: Path) -> Configuration:
    """The configuration beside the plate ``folder``, or one that says nothing.

    Raises:
        PlateError: no TOML, an unknown key, a value of the wrong kind.
    """
    path = folder.with_name(name_of(folder) + CONFIGURATION_ENDING)
    if not path.is_file():
        return NOTHING
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise PlateError(f"it is no TOML: {error}", "Correct it.", path=path) from error
    known = f"Known are {', '.join(_KEYS)}."
    for key, value in content.items():
        if key not in _KEYS:
            raise PlateError(f"there is no setting {key!r}", known, path=path)
        if type(value) is not _KEYS[key]:
            raise PlateError(f"{key} is {value!r}, no {_KEYS[key].__name__}", known, path=path)
    voxel_size = content.get("voxel_size")
    if voxel_size is not None and not (len(voxel_size) == 3 and all(_is_length(value) for value in voxel_size)):
        raise PlateError(f"voxel_size is {voxel_size!r}", "Give [z, y, x] in micrometres.", path=path)
    channels = content.get("channels", {})
    if not all(isinstance(value, str) for value in channels.values()):
        raise PlateError("channels names a channel by something that is no text", 'Write w1 = "DNA".', path=path)
    if content.get("wells", 96) not in _WELLS:
        raise PlateError(f"there is no plate of {content['wells']} wells", f"Give one of {_WELLS}.", path=path)
    return Configuration(
        content.get("pattern"), tuple(voxel_size) if voxel_size else None, channels, content.get("format"),
        content.get("wells"),
    )  # fmt: skip


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 < value < 1e6
