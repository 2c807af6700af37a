"""The classic export of ImageXpress microscopes: an HTD file that describes the plate, and one TIFF a plane.

MetaXpress 5 and 6 name files ``[TimePoint_N/][ZStep_N/]<base>_<well>[_s<site>][_w<wave>][GUID].tif``.
"""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Any

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats.planes import ROWS, Export, finish, micrometres, well_at, whole_number
from gradcamo_assets.plates.formats.untrusted import open_tiff

_GUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_FILE = re.compile(
    rf"(?:.*?_)?([a-z]{{1,2}}[0-9]{{1,2}})(?:_s([0-9]+))?(?:_w([0-9]+?))?(?:_?{_GUID})?\.tiff?", re.IGNORECASE
)
_FOLDER = re.compile("(TimePoint|ZStep)_([0-9]{1,4})", re.IGNORECASE)
_ACQUISITION = {
    "objective": "_MagSetting_", "numerical_aperture": "_MagNA_", "binning": "camera-binning-x",
    "exposure": "Exposure Time", "instrument_serial": "Instrument Serial Number",
}  # fmt: skip


def read(folder: Path) -> Export:
    """Read what an export holds: names and the HTD; of the TIFFs one or two headers, for the voxel size.

    ZStep_0 beside other steps (or where the HTD promises a projection) and files beside ZSteps are projections.
    """
    times = _numbered(folder, "timepoint")
    if len(times) > 1:
        raise PlateError(f"it has {len(times)} time points", "Keep one TimePoint folder: one time point is read.")
    base = next(iter(times.values()), folder)
    steps = _numbered(base, "zstep")
    htds = [path for place in (folder, base) for path in sorted(place.glob("*.[hH][tT][dD]")) if path.is_file()]
    if not htds:
        raise PlateError("there is no HTD file", "Copy it from the microscope.", path=base)
    htd = _htd(htds[0])
    projection = "TRUE" in htd.get("ZProjection", []) or any(steps.keys() - {0})
    rows: list[tuple[str, str, int, int | None, str]] = []
    strange: list[str] = []
    places = {None if step == 0 and projection else step: at for step, at in steps.items()}
    for z, place in [(None if steps else 0, base), *places.items()]:
        for name in sorted(entry.name for entry in os.scandir(place) if re.search(r"(?i)\.tiff?$", entry.name)):
            if match := _FILE.fullmatch(name):
                wave = whole_number(match[3] or 1, "the wavelength in a file's name", 1, 99)
                rows.append((match[1], match[2] or "1", wave - 1, z, (place / name).relative_to(folder).as_posix()))
            elif "_thumb" not in name.lower():
                strange.append(name)
    table = pl.DataFrame(rows, ROWS, orient="row")
    if table.is_empty():
        raise PlateError("there is no image <base>_<well>_s<site>_w<wave>.tif", "Copy the images too.", path=base)
    problems = [f"{len(strange)} TIFF files have names that are not understood: {strange[0]}"] if strange else []
    for key, found in (("TimePoints", 1), ("ZSteps", table["z"].drop_nulls().n_unique())):
        if (said := _number(htd, key, found, 0, 9999)) > found:
            problems.append(f"the HTD names {said} {key}, there {'is' if found == 1 else 'are'} {found}")
    waves = max(_number(htd, "NWavelengths", 1, 0, 99), *(row[2] + 1 for row in rows))
    voxel_size, facts = _first_headers(folder, table)
    return finish(
        folder, table, ["".join(htd.get(f"WaveName{wave}", [])[:1]) or f"w{wave}" for wave in range(1, waves + 1)],
        format="MetaXpress", source="the HTD", noun="wavelength", voxel_size=voxel_size,
        promised=_promised(htd, table), problems=problems,
        acquisition={"description": " ".join(htd.get("Description", [])), **facts},
    )  # fmt: skip


def _numbered(folder: Path, kind: str) -> dict[int, Path]:
    with os.scandir(folder) as entries:
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    found = (match for name in folders if (match := _FOLDER.fullmatch(name)) and match[1].lower() == kind)
    return {int(match[2]): folder / match[0] for match in found}


def _htd(path: Path) -> dict[str, list[str]]:
    """Each line is a quoted key and its values, in Windows' Latin letters."""
    with path.open("rb") as file:
        text = file.read(2**20).decode("latin-1").replace("\0", "")
    try:
        lines = [next(csv.reader([line], skipinitialspace=True), []) for line in re.split("[\r\n]+", text)]
    except csv.Error as error:
        raise PlateError(f"the HTD is damaged: {error}", "Copy it again.", path=path) from error
    content = {line[0].strip(): [value.strip() for value in line[1:]] for line in lines if line}
    if "HTSInfoFile" not in content:
        raise PlateError("it is no HTD (its first entry is not HTSInfoFile)", "Copy it again.", path=path)
    return content


def _number(htd: dict[str, list[str]], key: str, default: int, low: int, high: int) -> int:
    values = htd.get(key)
    return whole_number(values[0], f"{key} in the HTD", low, high) if values else default


def _promised(htd: dict[str, list[str]], table: pl.DataFrame) -> list[tuple[str, int]]:
    """The fields the HTD selects. Sites are numbered through; where the files count otherwise, they are right."""
    rows, columns = _number(htd, "YWells", 0, 1, 32), _number(htd, "XWells", 0, 1, 48)
    x_sites, y_sites = _number(htd, "XSites", 1, 1, 100), _number(htd, "YSites", 1, 1, 100)
    flags = [flag for y in range(y_sites) for flag in htd.get(f"SiteSelection{y + 1}", ["TRUE"])[:x_sites]]
    sites = {int(site) for site in table["site"].unique()}
    selected = set(range(1, flags.count("TRUE") + 1)) if "TRUE" in htd.get("Sites", []) else {1}
    wells = [
        well_at(row + 1, column + 1)
        for row in range(rows)
        for column, flag in enumerate(htd.get(f"WellsSelection{row + 1}", [])[:columns])
        if flag == "TRUE"
    ]
    return [(well, site) for well in wells for site in sorted(selected if sites <= selected else sites)]


def _first_headers(folder: Path, table: pl.DataFrame) -> tuple[list[float | None], dict[str, object]]:
    """Voxel size and acquisition facts from two planes of the first channel and field."""
    first = table.sort("channel", "well", "site", "z", nulls_last=True)
    stack = first.filter(pl.col(key) == first[key][0] for key in ("channel", "well", "site")).head(2)
    planes: list[dict[str, Any]] = []
    for file in stack["file"]:
        # Of a MetaSeries file the description is XML that begins with its root, so that no DTD can stand before.
        with open_tiff(folder / file) as tif:
            planes.append((tif.metaseries_metadata or {}).get("PlaneInfo", {}) if tif.is_metaseries else {})
    steps = [plane.get("Z Projection Step Size") for plane in planes]
    heights = [micrometres(plane.get("z-position"), signed=True) for plane in planes]
    if stack["z"].n_unique() == 2 and None not in (*heights, *stack["z"]):
        steps.append(round(abs((heights[1] - heights[0]) / (stack["z"][1] - stack["z"][0])), 6))  # type: ignore[operator]
    units = str(planes[0].get("spatial-calibration-units", ""))
    size = [micrometres(planes[0].get(f"spatial-calibration-{axis}"), units) for axis in "yx"]
    facts = {name: planes[0].get(key) for name, key in _ACQUISITION.items()}
    return [next(filter(None, map(micrometres, steps)), None), *size], facts
