"""``<plate>.toml`` beside a plate's folder: what an export does not say of itself, written by a person."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.plates.hcs import name_of

CONFIGURATION_ENDING = ".toml"
_GOOD: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pattern": (lambda value: isinstance(value, str), "Give a regular expression as text."),
    "voxel_size": (
        lambda v: isinstance(v, list) and len(v) == 3 and all(type(n) in (int, float) and 0 < n < 1e6 for n in v),
        "Give [z, y, x] in micrometres.",
    ),
    "channels": (
        lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()), 'Write {w1 = "DNA"}.'
    ),
    "format": (lambda value: isinstance(value, str), "Give the name of a format."),
    "wells": (lambda value: value in (24, 48, 96, 384), "Give 24, 48, 96 or 384."),
}  # fmt: skip


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
    for key, value in content.items():
        if key not in _GOOD:
            raise PlateError(f"there is no setting {key!r}", f"Known are {', '.join(_GOOD)}.", path=path)
        good, remedy = _GOOD[key]
        if not good(value):
            raise PlateError(f"{key} is {str(value)[:200]!r}", remedy, path=path)
    if "voxel_size" in content:
        content["voxel_size"] = tuple(content["voxel_size"])
    return Configuration(**content)
