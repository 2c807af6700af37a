"""TIFF files of any microscope, by a regular expression on their paths, which the plate's configuration gives."""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.formats.configuration import configuration_of
from gradcamo_assets.plates.formats.planes import MAX_PLANES, Export, finish, micrometres, well_at
from gradcamo_assets.plates.formats.untrusted import open_tiff, pages_of, screen

_GROUPS = ("well", "row", "column", "site", "channel", "z")
_EXAMPLE = r"Write, for example, pattern = '(?P<well>[A-P]\d\d)_s(?P<site>\d)_(?P<channel>w\d)\.tif'."


def read(folder: Path) -> Export:
    """Read the paths below the folder, and one header: what the pages of a file are, the first file tells for all.

    Pages are z, or z and channels as OME-XML or ImageJ say, where the pattern has no groups for these.
    """
    expression = _compiled(configuration_of(folder).pattern)
    # The walk does not follow links to folders.
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.[tT][iI][fF]*")]
    found = [(file, expression.fullmatch(file)) for file in sorted(files, key=natural_key)]
    matches = [{"file": file, **match.groupdict(default="")} for file, match in found if match]
    others = [file for file, match in found if not match]
    if not matches:
        example = f", for example {others[0]}" if others else ""
        remedy = "It must match a file's whole path below the folder, with '/' between folders."
        raise PlateError(f"the pattern matches none of {len(others)} TIFF files{example}", remedy)
    first = matches[0]
    pages, names, voxel_size = _pages(folder / first["file"])
    if len(matches) * len(pages) > MAX_PLANES:
        raise PlateError(f"it has {len(matches)} files of {len(pages)} planes", f"At most {MAX_PLANES} are read.")
    depth = max(z for _, z in pages) + 1
    for axis, group, size in (("channels", "channel", len(names)), ("z", "z", depth)):
        if size > 1 and group in first:
            problem = f"a file has {size} {axis}, and the pattern names its {group}"
            raise PlateError(problem, "Leave that group out.", path=first["file"])
    if "channel" in first:
        names = sorted({match["channel"] for match in matches}, key=natural_key)
    numbers = {name: index for index, name in enumerate(names)}
    rows = [
        {
            "well": match["well"] if "well" in match else well_at(match["row"], match["column"]),
            "site": match.get("site") or "1",
            "channel": numbers[match["channel"]] if "channel" in match else channel,
            "z": _level(match["z"]) if "z" in match else z,
            "file": match["file"],
            "page": page,
        }
        for match in matches
        for page, (channel, z) in enumerate(pages)
    ]  # fmt: skip
    problems = [f"the pattern does not match {len(others)} TIFF files, for example {others[0]}"] if others else []
    return finish(
        folder, pl.DataFrame(rows), names, format="Pattern", source="the pattern", voxel_size=voxel_size,
        problems=problems,
    )  # fmt: skip


def _compiled(pattern: str | None) -> re.Pattern[str]:
    if pattern is None or len(pattern) > 1000:
        raise PlateError("the configuration gives no pattern, or one of more than 1000 characters", _EXAMPLE)
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise PlateError(f"the pattern is no regular expression: {error}", _EXAMPLE) from error
    groups = set(expression.groupindex)
    if groups - set(_GROUPS) or not ({"well"} <= groups or {"row", "column"} <= groups):
        remedy = f"Name well (or row and column), and of {_GROUPS} what there is."
        raise PlateError(f"the pattern's groups are {sorted(groups)}", remedy)
    return expression


def _level(text: str) -> int:
    digits = re.search("[0-9]{1,6}$", text)
    if digits is None:
        raise PlateError(f"the group z is {text!r}, which ends in no number", "Let it match the number alone.")
    return int(digits[0])


def _pages(path: Path) -> tuple[list[tuple[int, int]], list[str], list[float | None]]:
    """(channel, z) of each page of a file, the channels' names, and the voxel size where OME-XML has it."""
    with open_tiff(path) as tif:
        count = pages_of(tif)
        names, voxel_size = _ome(tif.ome_metadata or "", count) if tif.is_ome else ([], [None] * 3)
        series = tif.series[0]
        axes, shape = series.axes.removesuffix("YX"), tuple(series.shape[:-2])
        if math.prod(shape) != count:
            raise PlateError(f"its {count} pages do not fit its axes {series.axes} {series.shape}", "Export it again.")
        if axes in ("Q", "I"):
            axes = "Z"
        if not set(axes) <= {"Z", "C"}:
            raise PlateError(f"its pages are of the axes {axes}", "Export one time point, with z and channels only.")
        pages: list[tuple[int, int]] = [(0, 0)] * count
        for page, place in zip(series.pages, product(*map(range, shape)), strict=True):
            at = dict(zip(axes, place, strict=True))
            pages[page.index if page else 0] = (at.get("C", 0), at.get("Z", 0))
    channels = max(channel for channel, _ in pages) + 1
    return pages, names if len(names) == channels else [f"channel_{i}" for i in range(channels)], voxel_size


def _ome(text: str, pages: int) -> tuple[list[str], list[float | None]]:
    screen(text)
    from ome_types import from_xml

    image = from_xml(text).images[0].pixels
    if (claimed := image.size_z * image.size_c * image.size_t) != pages:
        problem = f"its OME-XML names {claimed} planes, the file has {pages} pages"
        raise PlateError(problem, "Export every field as one file that is whole.")
    sizes = [f"physical_size_{axis}" for axis in "zyx"]
    names = [channel.name or f"channel_{index}" for index, channel in enumerate(image.channels)]
    return names, [micrometres(getattr(image, size), getattr(image, f"{size}_unit").value) for size in sizes]
