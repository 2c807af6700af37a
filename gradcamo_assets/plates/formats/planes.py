"""The export of a microscope as a table of planes, and the checks that every reader's result passes.

Names, numbers and files are checked before any pixel is read, and missing planes are listed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import polars as pl

from gradcamo_assets.errors import PlateError
from gradcamo_assets.names import normalise_well_name, row_letters
from gradcamo_assets.plates.formats.configuration import read_configuration
from gradcamo_assets.plates.formats.files import existing_files
from gradcamo_assets.plates.formats.shared_files import find_shared_files
from gradcamo_assets.plates.formats.sites import number_sites
from gradcamo_assets.plates.image_layout import VoxelSize
from gradcamo_assets.plates.omezarr import plate_name_of

T = TypeVar("T")
PROJECTION = -1
"""The ``z`` of a projection of the whole stack."""
PLANE_SCHEMA = {
    **{"well": pl.String, "site": pl.Int32, "channel": pl.Int32, "z": pl.Int32},
    **{"file": pl.String, "page": pl.Int32},
}
ROW_SCHEMA = {"well": pl.String, "site": pl.String, "channel": pl.Int32, "z": pl.Int32, "file": pl.String}
"""Columns that readers pass to ``build_export``."""
MAX_PLANES = 10_000_000
_FIELD, _PLANE = ["well", "site"], ["well", "site", "channel", "z"]
PROBED = 8
"""Number of files or fields that are examined to find what most of a plate have in common."""
_REMEDY = "Copy the plate again, or export it again."


@dataclass(frozen=True)
class Export:
    """One exported plate of TIFF planes.

    Attributes:
        path: the plate folder; ``file`` in ``planes`` is relative to it and lies inside it.
        format: format name for users, for example ``MetaXpress``.
        channels: channel names in order. Channels without any file are left out and listed in ``problems``.
        voxel_size: (z, y, x) in micrometres, None where nobody states it.
        planes: columns as in ``PLANE_SCHEMA``, sorted by well, site, channel and z, which together are unique. ``site``
            counts from 1; ``channel`` is an index into ``channels``; ``z`` counts from 0 or is ``PROJECTION``; ``page``
            counts from 0.
        incomplete: fields (well, site) that lack planes which other fields have or the metadata list, or whose planes
            are named for another channel or field too, and what is wrong.
        problems: what a user should know about the plate, without a full stop.
        acquisition: metadata of instrument and objective.
    """

    name: str
    path: Path
    format: str
    channels: tuple[str, ...]
    voxel_size: VoxelSize
    planes: pl.DataFrame
    incomplete: Mapping[tuple[str, int], str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    acquisition: Mapping[str, str | float] = field(default_factory=dict)


def spread_out(items: Sequence[T]) -> Iterator[T]:
    """All items, beginning with a few evenly spaced ones. The first readable ones then stand for the whole plate."""
    step = max(1, len(items) // PROBED)
    yield from items[::step]
    yield from (item for index, item in enumerate(items) if index % step)


def parse_integer(text: object, what: str, low: int, high: int) -> int:
    """Parse an integer between two bounds; ``what`` names it in the error.

    Raises:
        PlateError: not an integer from ``low`` to ``high``.
    """
    plain = str(text).strip()
    if re.fullmatch("[0-9]{1,9}", plain) and low <= int(plain) <= high:
        return int(plain)
    raise PlateError(f"{what} is {plain[:60]!r}, expected an integer from {low} to {high}", _REMEDY)


def well_from_indices(row: object, column: object) -> str:
    """The well name for a row and column counted from 1: (2, 3) is B03. The row may also be given in letters.

    Raises:
        PlateError: not a valid row or column.
    """
    text = str(row).strip()
    if not re.fullmatch("[A-Za-z]{1,2}", text):
        text = row_letters(parse_integer(text, "the row of a well", 1, 32) - 1)
    return normalise_well_name(f"{text}{parse_integer(column, 'the column of a well', 1, 48)}")


def build_export(
    folder: Path, rows: pl.DataFrame, channels: Sequence[str], *, format: str, source: str, noun: str = "channel",
    voxel_size: Sequence[float | None] = (None, None, None), promised: Iterable[tuple[str, int]] = (),
    problems: Sequence[str] = (), acquisition: Mapping[str, object] = {},
) -> Export:  # fmt: skip
    """Check the planes that a reader found, and apply the plate's configuration.

    Args:
        rows: one row for each plane listed in the metadata: ``well`` and ``site`` as text, ``channel`` as an index into
            ``channels``, ``z`` as any increasing numbers (null for a projection), ``file`` relative to the folder (null
            if known to be missing), and optionally ``page`` (default 0).
        source: what lists the planes, for messages, for example ``the HTD``.
        noun: the word for a channel in messages.
        voxel_size: (z, y, x) in micrometres, None where unknown.
        promised: further fields (well, site) that the metadata list.

    Raises:
        PlateError: invalid names, files outside the folder or behind links, two files for one plane, or no plane.
    """
    name, configuration = plate_name_of(folder), read_configuration(folder)
    if not 0 < rows.height <= MAX_PLANES:
        raise PlateError(f"{source} lists {rows.height} planes", f"There must be 1 to {MAX_PLANES}.")
    labels = _channel_labels(channels, configuration.channels)
    wells = {well: normalise_well_name(well) for well in rows["well"].unique()}
    sites, site_notes = number_sites(rows["site"].unique())
    if "page" not in rows.columns:
        rows = rows.with_columns(page=pl.lit(0))
    rows = rows.with_columns(
        pl.col("well").replace_strict(wells, return_dtype=pl.String),
        pl.col("site").replace_strict(sites, return_dtype=pl.Int32),
        (pl.col("z").cast(pl.Float64).rank("dense").cast(pl.Int32) - 1).fill_null(PROJECTION),
        pl.col("channel", "page").cast(pl.Int32),
    ).select(list(PLANE_SCHEMA))
    existing = existing_files(folder, rows["file"].drop_nulls().unique())
    planes = rows.join(existing, on="file", how="semi").sort(_PLANE)
    if planes.is_empty():
        first = ", ".join(rows["file"].drop_nulls()[:1])
        raise PlateError(f"none of the {rows.height} planes that {source} lists has a file ({first})", _REMEDY)
    if (duplicates := planes.filter(pl.struct(_PLANE).is_duplicated())).height:
        first_plane, second_plane = duplicates.rows(named=True)[:2]
        first, second = (f"{plane['file']} (page {plane['page']})" for plane in (first_plane, second_plane))
        raise PlateError(
            f"both {first} and {second} are the same plane",
            "Remove one of them.",
            well=first_plane["well"],
            site=first_plane["site"],
        )

    used = planes["channel"].unique().sort().to_list()
    absent = [label for index, label in enumerate(labels) if index not in used]
    notes = [*problems, *site_notes, *(f"{source} lists {noun} {label}, but it has no files" for label in absent)]
    names = tuple(labels[index] for index in used)
    renumbered = pl.col("channel").replace_strict(used, range(len(used)), return_dtype=pl.Int32)
    planes = planes.with_columns(renumbered)
    rows = rows.filter(pl.col("channel").is_in(used)).with_columns(renumbered)
    shared, shared_notes = find_shared_files(planes, names)
    notes += shared_notes
    z, y, x = configuration.voxel_size or voxel_size
    clean_acquisition = {key: _clean_metadata(value) for key, value in acquisition.items()}
    return Export(
        name=name,
        path=folder,
        format=format,
        channels=names,
        voxel_size=(z, y, x),
        planes=planes,
        incomplete=shared | _describe_incomplete_fields(rows, planes, names, promised, source),
        problems=tuple(notes),
        acquisition={key: value for key, value in clean_acquisition.items() if value != ""},
    )


def _channel_labels(channels: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    if unknown := [name for name in renamed if name not in channels]:
        problem = f"the configuration renames channel {unknown[0]!r}, which does not exist"
        raise PlateError(problem, f"The channels are {', '.join(channels)}.")
    labels: list[str] = []
    for index, channel in enumerate(channels):
        label = renamed.get(channel, channel).strip() or f"channel_{index}"
        if not label.isprintable() or len(label) > 100:
            raise PlateError(f"{label[:100]!r} is not a valid channel name", "Use at most 100 printable characters.")
        labels.append(label if label not in labels else f"{label} ({index + 1})")
    return labels


def _describe_incomplete_fields(
    rows: pl.DataFrame, planes: pl.DataFrame, names: Sequence[str], promised: Iterable[tuple[str, int]], source: str
) -> dict[tuple[str, int], str]:
    """What each incomplete field lacks, compared with the planes of all fields and the fields listed."""
    listed = rows.select(_FIELD)
    fields = listed.vstack(pl.DataFrame(list(promised), listed.schema, orient="row")).unique()
    expected = rows.select("channel", "z").unique()
    missing = fields.join(expected, how="cross").join(planes, on=_PLANE, how="anti").sort(_PLANE)
    stacks = dict(expected.group_by("channel").agg(pl.col("z").sort()).iter_rows())
    field_counts = dict(fields.group_by("well").len().iter_rows())
    missing_in_well = {
        (well, channel)
        for well, channel, count in missing.group_by("well", "channel").len().iter_rows()
        if count == field_counts[well] * len(stacks[channel])
    }
    lacks: dict[tuple[str, int], list[str]] = {}
    for well, site, channel, zs in missing.group_by(_PLANE[:3], maintain_order=True).agg("z").iter_rows():
        if (well, channel) in missing_in_well:
            text = f"{names[channel]} in the whole well"
        else:
            text = _describe_missing_planes(names[channel], zs, stacks[channel])
        lacks.setdefault((well, site), []).append(text)
    counts = missing.group_by(_FIELD).len()
    empty = set(counts.filter(pl.col("len") == expected.height).select(_FIELD).iter_rows())
    return {
        field: f"{source} lists it, but it has no files" if field in empty else f"lacks {', '.join(texts)}"
        for field, texts in lacks.items()
    }


def _describe_missing_planes(name: str, missing: list[int], stack: list[int]) -> str:
    """For example ``AGP at z 2 and 3 of 5``, with z from 1."""
    if missing == stack:
        return f"{name} at all z" if len(stack) > 1 else name
    parts = []
    levels = [str(z + 1) for z in missing if z != PROJECTION]
    if levels:
        *first, last = levels
        listed = f"{', '.join(first)} and {last}" if first else last
        parts.append(f"at z {listed} of {max(stack) + 1}")
    if PROJECTION in missing:
        parts.append("as projection")
    return f"{name} {' and '.join(parts)}"


def _clean_metadata(value: object) -> str | float:
    """Keep finite numbers; turn anything else into printable text of at most 500 characters."""
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    return "".join(c if c.isprintable() else " " for c in str("" if value is None else value))[:500].strip()
