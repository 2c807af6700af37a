"""What a vendor's export holds, its planes as a table before any pixel is read; and how readers come to a checked one.

Names and numbers are checked here, files looked for, and what is missing is named.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import natural_key, normalise_well_name
from gradcamo_assets.plates.formats.configuration import configuration_of
from gradcamo_assets.plates.omezarr import name_of

PROJECTION = -1
"""The ``z`` of a plane that projects the whole stack."""
PLANES = {
    **{"well": pl.String, "site": pl.Int32, "channel": pl.Int32, "z": pl.Int32},
    **{"file": pl.String, "page": pl.Int32},
}
ROWS = {"well": pl.String, "site": pl.String, "channel": pl.Int32, "z": pl.Int32, "file": pl.String}
"""What readers find of a plane, in so far as they do not build the table themselves; see ``finish``."""
MAX_PLANES = 10_000_000
_FIELD, _PLANE = ["well", "site"], ["well", "site", "channel", "z"]
_OUTSIDE = r"^/|(^|/)[A-Za-z]:|//|(^|/)\.\.?(/|$)|[\x00-\x1f\x7f\\]|^$"
_MICRONS = {"m": 1e6, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3}
_AGAIN = "Copy the plate again, or export it again."


@dataclass(frozen=True)
class Export:
    """One plate of TIFF planes.

    Attributes:
        path: the folder; ``file`` in ``planes`` is relative to it, and lies inside it.
        format: for people, for example ``MetaXpress``.
        channels: names in order; those for which there is no file at all are left out (and named in ``problems``).
        voxel_size: (z, y, x) in micrometres, 1.0 where the export gives none.
        planes: columns as in ``PLANES``, sorted by the first four, which together are unique. ``site`` from 1,
            ``channel`` an index into ``channels``, ``z`` from 0 or ``PROJECTION``, ``page`` from 0.
        incomplete: what fields (well, site) lack that the plate's other fields have, or that its metadata promise.
        problems: what a person should know about the plate, without a full stop.
        acquisition: what the export says of instrument and objective.
    """

    name: str
    path: Path
    format: str
    channels: tuple[str, ...]
    voxel_size: tuple[float, float, float]
    planes: pl.DataFrame
    incomplete: Mapping[tuple[str, int], str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    acquisition: Mapping[str, str | float] = field(default_factory=dict)


def micrometres(value: object, unit: str = "um", *, signed: bool = False) -> float | None:
    """A length (``signed``: a position) in micrometres, or None where it is none: no number, not positive, no unit."""
    try:
        length = float(str(value)) * _MICRONS[unit.strip()]
    except (ValueError, KeyError):
        return None
    return length if abs(length) < 1e6 and (signed or length > 0) else None


def whole_number(text: object, what: str, low: int, high: int) -> int:
    """An integer between two bounds, from text; PlateError where it is none."""
    plain = str(text).strip()
    if re.fullmatch("[0-9]{1,9}", plain) and low <= int(plain) <= high:
        return int(plain)
    raise PlateError(f"{what} is {plain[:60]!r}, no number from {low} to {high}", _AGAIN)


def well_at(row: object, column: object) -> str:
    """The name of a well by its numbers, from 1: (2, 3) is B03; a row may be letters already. PlateError for others."""
    text = str(row).strip()
    if not re.fullmatch("[A-Za-z]{1,2}", text):
        index = whole_number(text, "the row of a well", 1, 32) - 1
        text = ("A" if index >= 26 else "") + chr(ord("A") + index % 26)
    return normalise_well_name(f"{text}{whole_number(column, 'the column of a well', 1, 48)}")


def finish(
    folder: Path, rows: pl.DataFrame, channels: Sequence[str], *, format: str, source: str, noun: str = "channel",
    voxel_size: Sequence[float | None] = (None, None, None), promised: Iterable[tuple[str, int]] = (),
    problems: Sequence[str] = (), acquisition: Mapping[str, object] = {},
) -> Export:  # fmt: skip
    """Check what a reader found and complete it by the plate's configuration.

    Args:
        rows: one a plane that the metadata name: ``well`` and ``site`` as text, ``channel`` an index into ``channels``,
            ``z`` any numbers that rise (null: a projection), ``file`` below the folder (null: known to be missing),
            ``page`` (left out: 0).
        source: where the planes are named, for sentences: ``the HTD``; ``noun`` is its word for a channel.
        voxel_size: (z, y, x), each None where it is not known.
        promised: further fields that should be there.

    Raises:
        PlateError: names that are none, files outside the folder or behind links, two files for one plane, no plane.
    """
    name, configuration = name_of(folder), configuration_of(folder)
    if not 0 < rows.height <= MAX_PLANES:
        raise PlateError(f"{source} names {rows.height} planes", f"There must be 1 to {MAX_PLANES}.")
    labels = _labels(channels, configuration.channels)
    wells = {well: normalise_well_name(well) for well in rows["well"].unique()}
    if "page" not in rows.columns:
        rows = rows.with_columns(page=pl.lit(0))
    rows = rows.with_columns(
        pl.col("well").replace_strict(wells, return_dtype=pl.String),
        pl.col("site").replace_strict(_sites(rows["site"].unique().to_list()), return_dtype=pl.Int32),
        (pl.col("z").cast(pl.Float64).rank("dense").cast(pl.Int32) - 1).fill_null(PROJECTION),
        pl.col("channel", "page").cast(pl.Int32),
    ).select(list(PLANES))
    planes = rows.join(_files_there(folder, rows["file"].drop_nulls().unique()), on="file", how="semi").sort(_PLANE)
    if planes.is_empty():
        first = ", ".join(rows["file"].drop_nulls()[:1])
        raise PlateError(f"none of the {rows.height} planes that {source} names has a file ({first})", _AGAIN)
    if (twice := planes.filter(pl.struct(_PLANE).is_duplicated())).height:
        (well, site, *_, one, page), (*_, two, other) = twice.rows()[:2]
        problem = f"both {one} (page {page}) and {two} (page {other}) are the same plane"
        raise PlateError(problem, "Leave one of them.", well=well, site=site)

    used = planes["channel"].unique().sort().to_list()
    absent = [label for index, label in enumerate(labels) if index not in used]
    notes = [*problems, *(f"{source} names {noun} {label}, but there is no file of it" for label in absent)]
    names = tuple(labels[index] for index in used)
    new = pl.col("channel").replace_strict(used, range(len(used)), return_dtype=pl.Int32)
    planes, rows = planes.with_columns(new), rows.filter(pl.col("channel").is_in(used)).with_columns(new)
    flat = planes["z"].n_unique() == 1
    sizes = zip("zyx", voxel_size, strict=True)
    unknown = [axis for axis, size in sizes if size is None and not (axis == "z" and flat)]
    if unknown and configuration.voxel_size is None:
        told = f"the voxel size along {', '.join(unknown)} is not known and taken as 1 um"
        notes.append(f"{told}; give voxel_size = [z, y, x] in {name}.toml beside the plate")
    z, y, x = configuration.voxel_size or (size or 1.0 for size in voxel_size)
    incomplete = _incomplete(rows, planes, names, promised, source)
    facts = {key: fact for key, value in acquisition.items() if (fact := _fact(value)) != ""}
    return Export(
        name, folder, format, names, (float(z), float(y), float(x)), planes, incomplete, tuple(notes), facts
    )  # fmt: skip


def _sites(names: list[str]) -> dict[str, int]:
    """The vendor's numbers where all are whole and from 1, otherwise the names' natural order, from 1."""
    if all(re.fullmatch("[0-9]{1,9}", name) and int(name) for name in names):
        return {name: int(name) for name in names}
    return {name: site for site, name in enumerate(sorted(names, key=natural_key), start=1)}


def _labels(channels: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    if unknown := [name for name in renamed if name not in channels]:
        raise PlateError(f"there is no channel {unknown[0]!r} to rename", f"There are {', '.join(channels)}.")
    labels: list[str] = []
    for index, channel in enumerate(channels):
        label = renamed.get(channel, channel).strip() or f"channel_{index}"
        if not label.isprintable() or len(label) > 100:
            raise PlateError(f"{label[:100]!r} is no usable channel name", "Give it at most 100 printable characters.")
        labels.append(label if label not in labels else f"{label} ({index + 1})")
    return labels


def _files_there(folder: Path, files: pl.Series) -> pl.DataFrame:
    """Those of the files that are there, as a column ``file``; each folder is listed once."""
    outside = files.filter(files.str.contains(_OUTSIDE) | (files.str.len_bytes() > 1000))
    if outside.len():
        raise PlateError(f"{outside[0][:200]!r} is no path of a file inside the plate's folder", _AGAIN)
    there: list[str] = []
    links: list[str] = []
    for parent in files.str.extract("^(.*/)", 1).fill_null("").unique().sort():
        places = [folder.joinpath(*parent.split("/")[:depth]) for depth in range(1, parent.count("/") + 1)]
        if link := next((place for place in places if place.is_symlink()), None):
            raise PlateError(f"{link.relative_to(folder)} is a link", "Copy what it points to.", path=link)
        if (folder / parent).is_dir():
            with os.scandir(folder / parent) as entries:
                for entry in entries:
                    (links if entry.is_symlink() else there).append(parent + entry.name)
    if (linked := files.filter(files.is_in(links))).len():
        raise PlateError(f"{linked[0]} is a link", "Copy the file that it points to.", path=folder / linked[0])
    return pl.DataFrame({"file": there}, schema={"file": pl.String})


def _incomplete(
    rows: pl.DataFrame, planes: pl.DataFrame, names: Sequence[str], promised: Iterable[tuple[str, int]], source: str
) -> dict[tuple[str, int], str]:
    """What each field lacks of the planes that any field has or should have."""
    fields = rows.select(_FIELD).vstack(pl.DataFrame(list(promised), rows.select(_FIELD).schema, orient="row")).unique()
    expected = rows.select("channel", "z").unique()
    missing = fields.join(expected, how="cross").join(planes, on=_PLANE, how="anti").sort(_PLANE)
    stacks = dict(expected.group_by("channel").agg(pl.col("z").sort()).iter_rows())
    n_fields = dict(fields.group_by("well").len().iter_rows())
    lost = missing.group_by("well", "channel").len()
    whole = {(well, channel) for well, channel, n in lost.iter_rows() if n == n_fields[well] * len(stacks[channel])}
    reasons: dict[tuple[str, int], list[str]] = {}
    for well, site, channel, zs in missing.group_by(_PLANE[:3], maintain_order=True).agg("z").iter_rows():
        of_well = f"{names[channel]} in the whole well" if (well, channel) in whole else None
        reasons.setdefault((well, site), []).append(of_well or _lack(names[channel], zs, stacks[channel]))
    empty = set(missing.group_by(_FIELD).len().filter(pl.col("len") == expected.height).select(_FIELD).iter_rows())
    absent = f"{source} names it, but there is no file of it"
    return {field: absent if field in empty else f"lacks {', '.join(lacks)}" for field, lacks in reasons.items()}


def _lack(name: str, missing: list[int], stack: list[int]) -> str:
    """``AGP at z 2 and 3 of 5``, z from 1."""
    if missing == stack:
        return name + " at all z" * (len(stack) > 1)
    *some, last = [str(z + 1) for z in missing if z != PROJECTION] or [""]
    levels = " and ".join([", ".join(some)] * bool(some) + [last])
    places = [f"at z {levels} of {max(stack) + 1}"] * bool(last) + ["as projection"] * (PROJECTION in missing)
    return f"{name} {' and '.join(places)}"


def _fact(value: object) -> str | float:
    """A finite number as it is, all else as printable text of at most 500 characters."""
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    return "".join(c if c.isprintable() else " " for c in str("" if value is None else value))[:500].strip()
