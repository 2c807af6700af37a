"""Read TIFF or PNG files of any microscope by a regular expression on their paths.

The plate's configuration gives it, or the files follow a scheme that is known (``schemes``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mode
from typing import NamedTuple

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.formats.configuration import read_configuration
from gradcamo_assets.plates.formats.files import find_images
from gradcamo_assets.plates.formats.planes import (
    MAX_PLANES,
    PROBED,
    Export,
    build_export,
    parse_integer,
    spread_out,
    well_from_indices,
)
from gradcamo_assets.plates.formats.png import is_png, png_shape
from gradcamo_assets.plates.formats.schemes import SCHEMES
from gradcamo_assets.plates.formats.untrusted import count_pages, open_tiff, parse_xml
from gradcamo_assets.plates.image_layout import to_micrometres

_GROUPS = ("well", "row", "column", "site", "channel", "z")
_EXAMPLE = r"Write, for example, pattern = '(?P<well>[A-P]\d\d)_s(?P<site>\d)_(?P<channel>w\d)\.tif'."


class _Layout(NamedTuple):
    """What the header of a file says.

    Attributes:
        pages: (channel, z) of each page.
        channels: channel names.
        voxel_size: (z, y, x) in micrometres, None where the OME-XML gives none.
        problem: what is wrong with its metadata.
    """

    pages: tuple[tuple[int, int], ...]
    channels: tuple[str, ...]
    voxel_size: tuple[float | None, ...]
    problem: str | None


def read(folder: Path, scheme: str | None = None) -> Export:
    """Read the paths below the folder and the headers of a few files; the most common layout is that of all files.

    If the pattern has no groups for them, the pages of a file are z, or z and channels as in its OME-XML or ImageJ
    metadata.

    Args:
        scheme: name of the scheme that the files follow; None: the configuration has a pattern.
    """
    expression = _compile_pattern(SCHEMES[scheme] if scheme else read_configuration(folder).pattern)
    candidates = [(file, expression.fullmatch(file)) for file in find_images(folder)]
    matches = [{"file": file, **match.groupdict(default="")} for file, match in candidates if match]
    others = [file for file, match in candidates if not match]
    if not matches:
        example = f", for example {others[0]}" if others else ""
        remedy = "It must match a file's whole path below the folder, with '/' between folders."
        raise PlateError(f"the pattern matches none of {len(others)} image files{example}", remedy)
    first = matches[0]
    layout = _most_common_layout(folder, [match["file"] for match in matches])
    pages, names = layout.pages, list(layout.channels)
    if len(matches) * len(pages) > MAX_PLANES:
        problem = f"it has {len(matches)} files of {len(pages)} planes, more than {MAX_PLANES} planes"
        raise PlateError(problem, "Split the plate, or correct the pattern.")
    depth = max(z for _, z in pages) + 1
    for axis, group, size in (("channels", "channel", len(names)), ("z", "z", depth)):
        if size > 1 and group in first:
            problem = f"a file has {size} {axis}, and the pattern has a group {group} too"
            raise PlateError(problem, f"Leave the group {group} out of the pattern.", path=first["file"])
    if "channel" in first:
        names = sorted({match["channel"] for match in matches}, key=natural_key)
    indices = {name: index for index, name in enumerate(names)}
    rows = [
        {
            "well": match["well"] if "well" in match else well_from_indices(match["row"], match["column"]),
            "site": match.get("site") or "1",
            "channel": indices[match["channel"]] if "channel" in match else channel,
            "z": _trailing_number(match["z"] or "0") if "z" in match else z,
            "file": match["file"],
            "page": page,
        }
        for match in matches
        for page, (channel, z) in enumerate(pages)
    ]
    problems = [f"the pattern does not match {len(others)} image files, for example {others[0]}"] if others else []
    if layout.problem is not None:
        problems.append(layout.problem)
    return build_export(
        folder,
        pl.DataFrame(rows),
        names,
        format=scheme or "Pattern",
        source="the pattern",
        voxel_size=layout.voxel_size,
        problems=problems,
    )


def _compile_pattern(pattern: str | None) -> re.Pattern[str]:
    if pattern is None or len(pattern) > 1000:
        raise PlateError("the configuration has no pattern, or one of more than 1000 characters", _EXAMPLE)
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise PlateError(f"the pattern is not a valid regular expression: {error}", _EXAMPLE) from error
    groups = set(expression.groupindex)
    if groups - set(_GROUPS) or not ({"well"} <= groups or {"row", "column"} <= groups):
        remedy = f"The groups must be well (or row and column) and any others of {', '.join(_GROUPS)}."
        raise PlateError(f"the pattern's groups are {sorted(groups)}", remedy)
    return expression


def _trailing_number(text: str) -> int:
    digits = re.search("[0-9]{1,6}$", text)
    if digits is None:
        problem = f"the pattern's group z matches {text!r}, which does not end in a number"
        raise PlateError(problem, "Let the group match the number alone.")
    return int(digits[0])


def _most_common_layout(folder: Path, files: Sequence[str]) -> _Layout:
    """Most common layout of a few readable files. Unreadable ones are reported during ingestion.

    Raises:
        PlateError: none of the files can be read.
    """
    layouts: list[_Layout] = []
    errors: list[PlateError] = []
    for file in spread_out(files):
        if len(layouts) == PROBED:
            break
        try:
            layouts.append(_read_layout(folder / file))
        except PlateError as error:
            errors.append(error)
    if not layouts:
        raise errors[0]
    return mode(layouts)


def _read_layout(path: Path) -> _Layout:
    if is_png(path):
        png_shape(path)  # Raises if the file is damaged.
        return _Layout(((0, 0),), ("channel_0",), (None, None, None), None)
    with open_tiff(path) as tif:
        count = count_pages(tif)
        names, voxel_size, problem = _parse_ome(tif.ome_metadata or "", count) if tif.is_ome else ([], [None] * 3, None)
        series = tif.series[0]
        axes, shape = series.axes.removesuffix("YX"), tuple(series.shape[:-2])
        if math.prod(shape) != count:
            remedy = "Export the plate again."
            raise PlateError(f"its {count} pages do not fit its axes {series.axes} {series.shape}", remedy)
        if axes in ("Q", "I"):
            axes = "Z"
        if not set(axes) <= {"Z", "C"}:
            remedy = "Export one time point, with z and channels only."
            raise PlateError(f"its pages have the axes {axes}, expected Z and C only", remedy)
        pages: list[tuple[int, int]] = [(0, 0)] * count
        for page, indices in zip(series.pages, product(*map(range, shape)), strict=True):
            position = dict(zip(axes, indices, strict=True))
            pages[page.index if page else 0] = (position.get("C", 0), position.get("Z", 0))
    channels = max(channel for channel, _ in pages) + 1
    if len(names) != channels:
        names = [f"channel_{index}" for index in range(channels)]
    return _Layout(tuple(pages), tuple(names), tuple(voxel_size), problem)


def _parse_ome(text: str, pages: int) -> tuple[list[str], list[float | None], str | None]:
    """Channel names, voxel size (z, y, x) and what is wrong with it.

    Only what is needed is read: many programs write words that the schema of OME does not know.
    """
    root = parse_xml(text)
    if root is None or (pixels := root.find("{*}Image/{*}Pixels")) is None:
        return [], [None] * 3, "the OME-XML of its files is damaged and was ignored"
    planes = math.prod(parse_integer(pixels.get(f"Size{axis}"), f"Size{axis}", 1, MAX_PLANES) for axis in "ZCT")
    if planes != pages:
        problem = f"its OME-XML lists {planes} planes, the file has {pages} pages"
        raise PlateError(problem, "Export every field as one complete file.")
    names = [channel.get("Name") or f"channel_{index}" for index, channel in enumerate(pixels.findall("{*}Channel"))]
    sizes = (f"PhysicalSize{axis}" for axis in "ZYX")
    return names, [to_micrometres(pixels.get(size), pixels.get(f"{size}Unit", "µm")) for size in sizes], None
