"""Readers of microscope exports: detect the format, list the planes, and read single planes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import incell, loaddata, metaxpress, operetta, pattern, uzh
from gradcamo_assets.plates.formats.configuration import Configuration, read_configuration
from gradcamo_assets.plates.formats.files import list_names
from gradcamo_assets.plates.formats.planes import PLANE_SCHEMA, PROJECTION, Export
from gradcamo_assets.plates.formats.proposals import propose_configuration
from gradcamo_assets.plates.formats.schemes import SCHEMES, recognise_scheme
from gradcamo_assets.plates.formats.untrusted import plane_shape, read_plane
from gradcamo_assets.plates.omezarr import plate_name_of

__all__ = ["PLANE_SCHEMA", "PROJECTION", "Export", "detect_format", "plane_shape", "read_export", "read_plane"]

_NO_INDEX = re.compile("(?!)")
# The folders in which the index of a format may be, a regular expression for its name, and the reader; in order of
# precedence. Vendor files come before a LoadData table, which a user may have added, and an index before the names of
# images. A pattern is never detected: the configuration must give it.
_READERS: dict[str, tuple[tuple[str, ...], re.Pattern[str], Callable[[Path], Export]]] = {
    "Operetta": (("", operetta.IMAGES), operetta.INDEX, operetta.read),
    "MetaXpress": (("", "TimePoint_1"), metaxpress.INDEX, metaxpress.read),
    "CellVoyager": (("",), re.compile(re.escape(uzh.YOKOGAWA[0])), uzh.read_yokogawa),
    "ScanR": ((uzh.SCANR.rpartition("/")[0],), re.compile(re.escape(uzh.SCANR.rpartition("/")[2])), uzh.read_scanr),
    "ImageXpress HCS.ai": (
        ("experiment_z_stack", "experiment", "experiment_montage"),
        re.compile(r".*\.jdce"),
        uzh.read_hcs_ai,
    ),
    "IN Cell": (("",), incell.INDEX, incell.read),
    "LoadData": (("",), loaddata.INDEX, loaddata.read),
    **{scheme: ((), _NO_INDEX, partial(pattern.read, scheme=scheme)) for scheme in SCHEMES},
    # Its reader also knows the folders of z steps, projections, and the voxel size in the headers.
    "MetaXpress names": ((), _NO_INDEX, metaxpress.read),
    "Pattern": ((), _NO_INDEX, pattern.read),
}
_REMEDY = "Give a pattern: see the page 'Your own plate' of the documentation."
_ZARR_NAMES = {"zarr.json", ".zattrs", ".zgroup"}


def detect_format(folder: Path) -> str | None:
    """Detect the format of a plate folder by the names of files; None if it is unknown.

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
    listed = {"": list_names(folder)}
    for format, (folders, index, _) in _READERS.items():
        for below in folders:
            if below not in listed:
                listed[below] = list_names(folder / below) if below in listed[""] else []
            if any(map(index.fullmatch, listed[below])) and (format != "LoadData" or loaddata.has_table(folder)):
                return format
    if damaged:
        return "Pattern"
    return None if _ZARR_NAMES.intersection(listed[""]) else recognise_scheme(folder)


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
            raise PlateError(problem, propose_configuration(folder, name) or _REMEDY)
        return _READERS[format][2](folder)
    except OSError as error:
        remedy = "Check the folder and its permissions."
        raise PlateError(f"it cannot be read: {error}", remedy, plate=name, path=folder) from error
    except PlateError as error:
        raise error.at(plate=name, path=error.path or folder) from error
