"""Read exports of ImageXpress microscopes by MetaXpress: an HTD file that describes the plate, and one TIFF a plane.

MetaXpress 5 and 6 name files ``[TimePoint_N/][ZStep_N/]<base>_<well>[_s<site>][_w<wave>][GUID].tif``.
"""

from __future__ import annotations

import csv
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats.files import list_names
from gradcamo_assets.plates.formats.planes import (
    ROW_SCHEMA,
    Export,
    build_export,
    parse_integer,
    spread_out,
    well_from_indices,
)
from gradcamo_assets.plates.formats.untrusted import open_tiff
from gradcamo_assets.plates.image_layout import to_micrometres

if TYPE_CHECKING:
    import tifffile

INDEX = re.compile(r"(?i).*\.htd")
"""The name of the HTD."""
_GUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_IMAGE_NAME = re.compile(
    rf"(?:.*?_)?([a-z]{{1,2}}[0-9]{{1,2}})(?:_s([0-9]+))?(?:_w([0-9]+?))?(?:_?{_GUID})?\.tiff?", re.IGNORECASE
)
_FOLDER_NAME = re.compile("(TimePoint|ZStep)_([0-9]{1,4})", re.IGNORECASE)
_ACQUISITION = {
    "objective": "_MagSetting_", "numerical_aperture": "_MagNA_", "binning": "camera-binning-x",
    "exposure": "Exposure Time", "instrument_serial": "Instrument Serial Number",
}  # fmt: skip


def read(folder: Path) -> Export:
    """Read file names, the HTD if there is one, and the headers of one or two TIFF files for the voxel size.

    Projections are files beside ZStep folders, and files in ZStep_0 if there are other steps or the HTD announces a
    projection.
    """
    times = _numbered_folders(folder, "timepoint")
    if len(times) > 1:
        raise PlateError(f"it has {len(times)} time points, expected 1", "Keep one TimePoint folder.")
    base = next(iter(times.values()), folder)
    steps = _numbered_folders(base, "zstep")
    htds = [parent / name for parent in (folder, base) for name in list_names(parent) if INDEX.fullmatch(name)]
    htd = _read_htd(htds[0]) if htds else {}
    has_projection = "TRUE" in htd.get("ZProjection", []) or any(steps.keys() - {0})
    rows: list[tuple[str, str, int, int | None, str]] = []
    unrecognised: list[str] = []
    folders = [(None if steps else 0, base)]
    folders += [(None if step == 0 and has_projection else step, path) for step, path in steps.items()]
    for z, parent in folders:
        for name in list_names(parent):
            if not re.search(r"(?i)\.tiff?$", name):
                continue
            if match := _IMAGE_NAME.fullmatch(name):
                wave = parse_integer(match[3] or 1, "the wavelength in a file name", 1, 99)
                rows.append((match[1], match[2] or "1", wave - 1, z, (parent / name).relative_to(folder).as_posix()))
            elif "_thumb" not in name.lower():
                unrecognised.append(name)
    table = pl.DataFrame(rows, ROW_SCHEMA, orient="row")
    if table.is_empty():
        raise PlateError("there is no image <base>_<well>_s<site>_w<wave>.tif", "Copy the images too.", path=base)
    problems = []
    if not htds:
        problems.append("there is no HTD file, so channels have no names, and wells without any file are not known")
    if unrecognised:
        problems.append(f"{len(unrecognised)} TIFF files have unrecognised names, for example {unrecognised[0]}")
    for key, count in (("TimePoints", 1), ("ZSteps", table["z"].drop_nulls().n_unique())):
        if (listed := _get_integer(htd, key, count, 0, 9999)) > count:
            problems.append(f"the HTD lists {listed} {key}, the export has {count}")
    wave_count = max(_get_integer(htd, "NWavelengths", 1, 0, 99), *(row[2] + 1 for row in rows))
    voxel_size, acquisition = _read_first_headers(folder, table)
    return build_export(
        folder,
        table,
        channels=["".join(htd.get(f"WaveName{wave}", [])[:1]) or f"w{wave}" for wave in range(1, wave_count + 1)],
        format="MetaXpress",
        source="the HTD" if htds else "the numbering of the files",
        noun="wavelength",
        voxel_size=voxel_size,
        promised=_selected_fields(htd, table),
        problems=problems,
        acquisition={"description": " ".join(htd.get("Description", [])), **acquisition},
    )


def _numbered_folders(folder: Path, kind: str) -> dict[int, Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    matches = (match for name in names if (match := _FOLDER_NAME.fullmatch(name)) and match[1].lower() == kind)
    return {int(match[2]): folder / match[0] for match in matches}


def _read_htd(path: Path) -> dict[str, list[str]]:
    """Read an HTD file (Latin-1). Each line is a quoted key and its values."""
    with path.open("rb") as file:
        text = file.read(2**20).decode("latin-1").replace("\0", "")
    try:
        lines = [next(csv.reader([line], skipinitialspace=True), []) for line in re.split("[\r\n]+", text)]
    except csv.Error as error:
        raise PlateError(f"the HTD is damaged: {error}", "Copy it again.", path=path) from error
    content = {line[0].strip(): [value.strip() for value in line[1:]] for line in lines if line}
    if "HTSInfoFile" not in content:
        raise PlateError("it is not an HTD file (its first entry is not HTSInfoFile)", "Copy it again.", path=path)
    return content


def _get_integer(htd: dict[str, list[str]], key: str, default: int, low: int, high: int) -> int:
    values = htd.get(key)
    return parse_integer(values[0], f"{key} in the HTD", low, high) if values else default


def _selected_fields(htd: dict[str, list[str]], table: pl.DataFrame) -> list[tuple[str, int]]:
    """The fields selected in the HTD. It numbers sites consecutively; if the files number them otherwise, they win."""
    rows, columns = _get_integer(htd, "YWells", 0, 1, 32), _get_integer(htd, "XWells", 0, 1, 48)
    x_sites, y_sites = _get_integer(htd, "XSites", 1, 1, 100), _get_integer(htd, "YSites", 1, 1, 100)
    flags = [flag for y in range(y_sites) for flag in htd.get(f"SiteSelection{y + 1}", ["TRUE"])[:x_sites]]
    sites = {int(site) for site in table["site"].unique()}
    selected = set(range(1, flags.count("TRUE") + 1)) if "TRUE" in htd.get("Sites", []) else {1}
    wells = [
        well_from_indices(row + 1, column + 1)
        for row in range(rows)
        for column, flag in enumerate(htd.get(f"WellsSelection{row + 1}", [])[:columns])
        if flag == "TRUE"
    ]
    return [(well, site) for well in wells for site in sorted(selected if sites <= selected else sites)]


def _read_first_headers(folder: Path, table: pl.DataFrame) -> tuple[list[float | None], dict[str, object]]:
    """Voxel size and acquisition metadata from two planes of the first channel and field whose files can be read."""
    keys = ["channel", "well", "site"]
    stacks = [stack for _, stack in table.sort(*keys, "z", nulls_last=True).group_by(keys, maintain_order=True)]
    for stack in spread_out(stacks):
        # Unreadable files are reported during ingestion.
        with suppress(PlateError):
            return _read_headers(folder, stack.head(2))
    return [None] * 3, {}


def _read_headers(folder: Path, stack: pl.DataFrame) -> tuple[list[float | None], dict[str, object]]:
    planes: list[dict[str, Any]] = []
    for file in stack["file"]:
        with open_tiff(folder / file) as tif:
            planes.append(_plane_info(tif))
    steps = [plane.get("Z Projection Step Size") for plane in planes]
    positions = [to_micrometres(plane.get("z-position"), signed=True) for plane in planes]
    if stack["z"].n_unique() == 2 and None not in (*positions, *stack["z"]):
        step = (positions[1] - positions[0]) / (stack["z"][1] - stack["z"][0])  # type: ignore[operator]
        steps.append(round(abs(step), 6))
    units = str(planes[0].get("spatial-calibration-units", ""))
    pixel_size = [to_micrometres(planes[0].get(f"spatial-calibration-{axis}"), units) for axis in "yx"]
    acquisition = {name: planes[0].get(key) for name, key in _ACQUISITION.items()}
    return [next(filter(None, map(to_micrometres, steps)), None), *pixel_size], acquisition


def _plane_info(tif: tifffile.TiffFile) -> dict[str, Any]:
    """The properties of a plane in its MetaSeries description; empty if it has none or its XML is damaged."""
    if not tif.is_metaseries:
        return {}
    # The XML of a MetaSeries file begins with its root element, so it cannot contain a DTD.
    with suppress(ElementTree.ParseError, ValueError, AttributeError):
        return dict((tif.metaseries_metadata or {}).get("PlaneInfo", {}))
    return {}
