"""Readers of microscope exports: detect the format, list the planes, and read single planes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

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


class _Format(NamedTuple):
    """A reader, and the index by which its format is detected.

    Attributes:
        index_name: regular expression for the name of the index; None if the format has none.
        folders: where the index may be.
    """

    read: Callable[[Path], Export]
    index_name: re.Pattern[str] | None = None
    folders: tuple[str, ...] = ("",)


_SCANR_FOLDER, _, _SCANR_INDEX = uzh.SCANR.rpartition("/")
# In order of precedence. Vendor files come before a LoadData table, which a user may have added, and an index before
# the names of images. A pattern is never detected: the configuration must give it.
_FORMATS = {
    "Operetta": _Format(operetta.read, operetta.INDEX, ("", operetta.IMAGES)),
    "MetaXpress": _Format(metaxpress.read, metaxpress.INDEX, ("", "TimePoint_1")),
    "CellVoyager": _Format(uzh.read_yokogawa, re.compile(re.escape(uzh.YOKOGAWA[0]))),
    "ScanR": _Format(uzh.read_scanr, re.compile(re.escape(_SCANR_INDEX)), (_SCANR_FOLDER,)),
    "ImageXpress HCS.ai": _Format(
        uzh.read_hcs_ai, re.compile(r".*\.jdce"), ("experiment_z_stack", "experiment", "experiment_montage")
    ),
    "IN Cell": _Format(incell.read, incell.INDEX),
    "LoadData": _Format(loaddata.read, loaddata.INDEX),
    **{scheme: _Format(partial(pattern.read, scheme=scheme)) for scheme in SCHEMES},
    # This reader also knows the folders of z steps, projections, and the voxel size in the headers.
    "MetaXpress names": _Format(metaxpress.read),
    "Pattern": _Format(pattern.read),
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
    if configuration.format in _FORMATS:
        return configuration.format
    if configuration.pattern is not None:
        return "Pattern"
    listed = {"": list_names(folder)}
    for name, format in _FORMATS.items():
        if format.index_name is None:
            continue
        for below in format.folders:
            if below not in listed:
                listed[below] = list_names(folder / below) if below in listed[""] else []
            has_index = any(map(format.index_name.fullmatch, listed[below]))
            if has_index and (name != "LoadData" or loaddata.has_table(folder)):
                return name
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
        if requested not in (None, *_FORMATS):
            raise PlateError(f"unknown format {requested!r}", f"Use one of {', '.join(_FORMATS)}.")
        if (format := detect_format(folder)) is None:
            problem = "it is not an export of a supported microscope"
            raise PlateError(problem, propose_configuration(folder, name) or _REMEDY)
        return _FORMATS[format].read(folder)
    except OSError as error:
        remedy = "Check the folder and its permissions."
        raise PlateError(f"it cannot be read: {error}", remedy, plate=name, path=folder) from error
    except PlateError as error:
        raise error.at(plate=name, path=error.path or folder) from error
