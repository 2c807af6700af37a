"""Read TIFF or PNG files of any microscope by a regular expression on their paths.

The plate's configuration gives it, or the files follow a scheme that is known (``schemes``).
"""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import natural_key
from gradcamo_assets.plates.formats.configuration import read_configuration
from gradcamo_assets.plates.formats.files import find_images
from gradcamo_assets.plates.formats.planes import MAX_PLANES, Export, build_export, to_micrometres, well_from_indices
from gradcamo_assets.plates.formats.png import is_png
from gradcamo_assets.plates.formats.schemes import SCHEMES
from gradcamo_assets.plates.formats.untrusted import count_pages, open_tiff, reject_dtd

_GROUPS = ("well", "row", "column", "site", "channel", "z")
_EXAMPLE = r"Write, for example, pattern = '(?P<well>[A-P]\d\d)_s(?P<site>\d)_(?P<channel>w\d)\.tif'."


def read(folder: Path, scheme: str | None = None) -> Export:
    """Read the paths below the folder and the header of the first file, which stands for all files.

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
    pages, names, voxel_size = _read_pages(folder / first["file"])
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
    return build_export(
        folder,
        pl.DataFrame(rows),
        names,
        format=scheme or "Pattern",
        source="the pattern",
        voxel_size=voxel_size,
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


def _read_pages(path: Path) -> tuple[list[tuple[int, int]], list[str], list[float | None]]:
    """(channel, z) of each page of a file, channel names, and the voxel size if the OME-XML gives it."""
    if is_png(path):
        return [(0, 0)], ["channel_0"], [None] * 3
    with open_tiff(path) as tif:
        count = count_pages(tif)
        names, voxel_size = _parse_ome(tif.ome_metadata or "", count) if tif.is_ome else ([], [None] * 3)
        series = tif.series[0]
        axes, shape = series.axes.removesuffix("YX"), tuple(series.shape[:-2])
        if math.prod(shape) != count:
            problem = f"its {count} pages do not fit its axes {series.axes} {series.shape}"
            raise PlateError(problem, "Export the plate again.")
        if axes in ("Q", "I"):
            axes = "Z"
        if not set(axes) <= {"Z", "C"}:
            problem = f"its pages have the axes {axes}, expected Z and C only"
            raise PlateError(problem, "Export one time point, with z and channels only.")
        pages: list[tuple[int, int]] = [(0, 0)] * count
        for page, indices in zip(series.pages, product(*map(range, shape)), strict=True):
            position = dict(zip(axes, indices, strict=True))
            pages[page.index if page else 0] = (position.get("C", 0), position.get("Z", 0))
    channels = max(channel for channel, _ in pages) + 1
    return pages, names if len(names) == channels else [f"channel_{i}" for i in range(channels)], voxel_size


def _parse_ome(text: str, pages: int) -> tuple[list[str], list[float | None]]:
    reject_dtd(text)
    from ome_types import from_xml

    image = from_xml(text).images[0].pixels
    if (planes := image.size_z * image.size_c * image.size_t) != pages:
        problem = f"its OME-XML lists {planes} planes, the file has {pages} pages"
        raise PlateError(problem, "Export every field as one complete file.")
    sizes = [f"physical_size_{axis}" for axis in "zyx"]
    names = [channel.name or f"channel_{index}" for index, channel in enumerate(image.channels)]
    return names, [to_micrometres(getattr(image, size), getattr(image, f"{size}_unit").value) for size in sizes]
