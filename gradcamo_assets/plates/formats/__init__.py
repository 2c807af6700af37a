"""Exports of microscopes: what planes there are, and how one plane is read. Nothing here writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import loaddata, metaxpress, operetta, pattern, uzh
from gradcamo_assets.plates.formats.configuration import Configuration, configuration_of
from gradcamo_assets.plates.formats.planes import PLANES, PROJECTION, Export
from gradcamo_assets.plates.formats.untrusted import plane_shape, read_plane
from gradcamo_assets.plates.omezarr import name_of

__all__ = ["PLANES", "PROJECTION", "Export", "format_of", "plane_shape", "read_export", "read_plane"]

# By what each is recognised, in this order: what a vendor wrote comes before a table that somebody added; a pattern is
# asked for, not recognised.
_READERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Export]]] = {
    "Operetta": (operetta.INDEX, operetta.read),
    "MetaXpress": (("*.[hH][tT][dD]", "TimePoint_1/*.[hH][tT][dD]"), metaxpress.read),
    "CellVoyager": ((uzh.YOKOGAWA[0],), uzh.read_yokogawa),
    "ScanR": ((uzh.SCANR,), uzh.read_scanr),
    "ImageXpress HCS.ai": (("experiment*/*.jdce",), uzh.read_hcs_ai),
    "LoadData": ((), loaddata.read),
    "Pattern": ((), pattern.read),
}


def format_of(folder: Path) -> str | None:
    """The format of a plate folder, told from a few names and never by a walk, or None where it is none we read.

    A configuration beside the folder that asks for a format or gives a pattern decides. A damaged one does not hide a
    plate, nor does a damaged table: ``read_export`` says what is wrong with it.
    """
    configuration, damaged = Configuration(), False
    try:
        configuration = configuration_of(folder)
    except PlateError as error:
        damaged = error.path is not None
    if not folder.is_dir():
        return None
    if configuration.format in _READERS:
        return configuration.format
    if configuration.pattern is not None:
        return "Pattern"
    for name, (marks, _) in _READERS.items():
        if any(any(folder.glob(mark)) for mark in marks) or (name == "LoadData" and loaddata.has_table(folder)):
            return name
    return "Pattern" if damaged else None


def read_export(folder: Path) -> Export:
    """What the export of a microscope holds: metadata and names, and of pixels at most a header or three.

    Raises:
        PlateError: no format we read, damaged or hostile metadata, several plates or time points, nothing usable; it
            names the plate.
    """
    name = name_of(folder)
    try:
        wanted = configuration_of(folder).format
        if wanted not in (None, *_READERS):
            raise PlateError(f"there is no format {wanted!r}", f"Known are {', '.join(_READERS)}.")
        if (format := format_of(folder)) is None:
            problem = "it is no export of a microscope that is read here"
            raise PlateError(problem, "Give a pattern (see plates/readers).")
        return _READERS[format][1](folder)
    except OSError as error:
        raise PlateError(f"it cannot be read: {error}", "Check the folder.", plate=name, path=folder) from error
    except PlateError as error:
        raise error.at(plate=name, path=error.path or folder) from error
