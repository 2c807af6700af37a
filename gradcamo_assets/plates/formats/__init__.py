"""Readers of microscope exports: detect the format, list the planes, and read single planes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import loaddata, metaxpress, operetta, pattern, uzh
from gradcamo_assets.plates.formats.configuration import Configuration, read_configuration
from gradcamo_assets.plates.formats.planes import PLANE_SCHEMA, PROJECTION, Export
from gradcamo_assets.plates.formats.untrusted import plane_shape, read_plane
from gradcamo_assets.plates.omezarr import plate_name_of

__all__ = ["PLANE_SCHEMA", "PROJECTION", "Export", "detect_format", "plane_shape", "read_export", "read_plane"]

# File patterns that identify each format, in order of precedence. Vendor files come before a LoadData table, which a
# user may have added. A pattern is never detected: the configuration must give it.
_READERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Export]]] = {
    "Operetta": (operetta.INDEX, operetta.read),
    "MetaXpress": (("*.[hH][tT][dD]", "TimePoint_1/*.[hH][tT][dD]"), metaxpress.read),
    "CellVoyager": ((uzh.YOKOGAWA[0],), uzh.read_yokogawa),
    "ScanR": ((uzh.SCANR,), uzh.read_scanr),
    "ImageXpress HCS.ai": (("experiment*/*.jdce",), uzh.read_hcs_ai),
    "LoadData": ((), loaddata.read),
    "Pattern": ((), pattern.read),
}


def detect_format(folder: Path) -> str | None:
    """Detect the format of a plate folder from a few file names, without listing the folder; None if unknown.

    A configuration beside the folder that names a format or a pattern decides. A damaged configuration or table does
    not hide the plate: ``read_export`` reports the damage.
    """
    configuration, damaged = Configuration(), False
    try:
        configuration = read_configuration(folder)
    except PlateError as error:
        damaged = error.path is not None
    if not folder.is_dir():
        return None
    if configuration.format in _READERS:
        return configuration.format
    if configuration.pattern is not None:
        return "Pattern"
    for name, (patterns, _) in _READERS.items():
        if any(any(folder.glob(glob)) for glob in patterns) or (name == "LoadData" and loaddata.has_table(folder)):
            return name
    return "Pattern" if damaged else None


def read_export(folder: Path) -> Export:
    """Read the metadata and file names of a microscope export, and at most a few image headers.

    Raises:
        PlateError: unknown format, damaged or malicious metadata, several plates or time points, or no usable plane.
            The error names the plate.
    """
    name = plate_name_of(folder)
    try:
        requested = read_configuration(folder).format
        if requested not in (None, *_READERS):
            raise PlateError(f"unknown format {requested!r}", f"Use one of {', '.join(_READERS)}.")
        if (format := detect_format(folder)) is None:
            problem = "it is not an export of a supported microscope"
            raise PlateError(problem, "Give a pattern: see the page 'Your own plate' of the documentation.")
        return _READERS[format][1](folder)
    except OSError as error:
        remedy = "Check the folder and its permissions."
        raise PlateError(f"it cannot be read: {error}", remedy, plate=name, path=folder) from error
    except PlateError as error:
        raise error.at(plate=name, path=error.path or folder) from error
