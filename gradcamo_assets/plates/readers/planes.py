"""From what a reader found to a checked ``Export``: names, numbers, files that are there, and what is missing."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISLNK

import polars as pl

from gradcamo_assets.common.errors import PlateError
from gradcamo_assets.common.names import natural_key, well_name
from gradcamo_assets.plates.hcs import name_of
from gradcamo_assets.plates.readers.configuration import NOTHING, Configuration
from gradcamo_assets.plates.readers.export import PLANES, PROJECTION, Export

MAX_PLANES = 10_000_000
_FIELD = ["well", "site"]
_PLANE = [*_FIELD, "channel", "z"]
_OUTSIDE = r"^/|(^|/)[A-Za-z]:|//|(^|/)\.\.?(/|$)|[\x00-\x1f\x7f\\]|^$"
_MICRONS = {"m": 1e6, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3}
_AGAIN = "Copy the plate again, or export it again."


def micrometres(value: object, unit: str = "um") -> float | None:
    """A length in micrometres, or None where it is no positive number or the unit is none of length."""
    try:
        length = float(str(value)) * _MICRONS[unit.strip()]
    except (ValueError, KeyError):
        return None
    return length if math.isfinite(length) and 0 < length < 1e6 else None


def whole_number(text: object, what: str, low: int, high: int) -> int:
    """An integer between two bounds, from text.

    Raises:
        PlateError: where it is none.
    """
    plain = str(text).strip()
    if re.fullmatch("[0-9]{1,9}", plain) and low <= int(plain) <= high:
        return int(plain)
    raise PlateError(f"{what} is {plain[:60]!r}, no number from {low} to {high}", _AGAIN)


def well_at(row: object, column: object) -> str:
    """The name of a well by its numbers, from 1: (2, 3) is B03. A row may be letters already.

    Raises:
        PlateError: outside a plate of 1536 wells.
    """
    text = str(row).strip()
    if not re.fullmatch("[A-Za-z]{1,2}", text):
        index = whole_number(text, "the row of a well", 1, 32) - 1
        text = ("A" if index >= 26 else "") + chr(ord("A") + index % 26)
    return well_name(f"{text}{whole_number(column, 'the column of a well', 1, 48)}")


def finish(
    folder: Path,
    rows: pl.DataFrame,
    channels: Sequence[str],
    *,
    format: str,
    source: str,
    noun: str = "channel",
    voxel_size: tuple[float | None, float | None, float | None] = (None, None, None),
    configuration: Configuration = NOTHING,
    promised: Iterable[tuple[str, int]] = (),
    problems: Sequence[str] = (),
    acquisition: Mapping[str, object] | None = None,
) -> Export:
    """Check what a reader found and complete it.

    Args:
        rows: one a plane that the metadata name: ``well`` and ``site`` as text, ``channel`` an index into ``channels``,
            ``z`` any numbers that rise (null: a projection), ``file`` below the folder (null: known to be missing),
            ``page``.
        source: where the planes are named, for sentences: ``the HTD``; ``noun`` is its word for a channel.
        promised: further fields that should be there.

    Raises:
        PlateError: names that are none, files outside the folder or behind links, two files for one plane, no plane.
    """
    name = name_of(folder)
    if not 0 < rows.height <= MAX_PLANES:
        raise PlateError(f"{source} names {rows.height} planes", f"There must be 1 to {MAX_PLANES}.")
    number = pl.col("z").cast(pl.Float64)
    rows = rows.with_columns(
        _translated(rows["well"], {well: well_name(well) for well in rows["well"].unique()}, pl.String),
        _translated(rows["site"], _sites(rows["site"].unique().to_list()), pl.Int32),
        (number.rank("dense").cast(pl.Int32) - 1).fill_null(PROJECTION).alias("z"),
        pl.col("channel", "page").cast(pl.Int32),
    )
    there = _files_there(folder, rows["file"].drop_nulls().unique())
    planes = rows.join(there, on="file", how="semi").sort(_PLANE)
    if planes.is_empty():
        first = rows["file"].drop_nulls().head(1).to_list()
        raise PlateError(
            f"none of the {rows.height} planes that {source} names has a file{first and f': {first[0]}'}", _AGAIN
        )
    twice = planes.filter(pl.struct(_PLANE).is_duplicated()).head(2)
    if twice.height:
        one, two = (f"{file} (page {page})" for file, page in twice.select("file", "page").iter_rows())
        well, site = twice.row(0)[:2] if twice.columns[:2] == _FIELD else (twice["well"][0], twice["site"][0])
        raise PlateError(f"both {one} and {two} are the same plane", "Leave one of them.", well=well, site=site)

    labels = _labels(channels, configuration.channels)
    used = planes["channel"].unique().sort().to_list()
    absent = [label for index, label in enumerate(labels) if index not in used]
    notes = [*problems, *(f"{source} names {noun} {label}, but there is no file of it" for label in absent)]
    renumbered = {old: new for new, old in enumerate(used)}
    rows = rows.filter(pl.col("channel").is_in(used))
    rows, planes = (frame.with_columns(_translated(frame["channel"], renumbered, pl.Int32)) for frame in (rows, planes))
    names = tuple(labels[index] for index in used)
    if configuration.voxel_size is None:
        needed = [
            axis
            for axis, size in zip("zyx", voxel_size, strict=True)
            if size is None and (axis != "z" or planes["z"].max() != planes["z"].min())
        ]
        if needed:
            notes.append(
                f"the voxel size along {', '.join(needed)} is not known and taken as 1 um; "
                f"give voxel_size = [z, y, x] in {name}.toml beside the plate"
            )
    z, y, x = configuration.voxel_size or (size or 1.0 for size in voxel_size)
    return Export(
        name, folder, format, names, (float(z), float(y), float(x)), planes.select(pl.col(c).cast(t) for c, t in PLANES.items()),
        _incomplete(rows, planes, names, promised, source), tuple(notes), _short(acquisition or {}),
    )  # fmt: skip


def _translated(column: pl.Series, words: Mapping[object, object], dtype: type[pl.DataType]) -> pl.Series:
    return column.replace_strict(list(words), list(words.values()), return_dtype=dtype)


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
            raise PlateError(
                f"{label[:100]!r} is no usable channel name", "Rename it in at most 100 printable characters."
            )
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
        at = folder
        for part in parent.split("/")[:-1]:
            at = at / part
            try:
                mode = at.lstat().st_mode
            except OSError:
                break
            if S_ISLNK(mode):
                raise PlateError(f"{at.relative_to(folder)} is a link", "Copy what it points to.", path=at)
            if not S_ISDIR(mode):
                break
        else:
            with os.scandir(at) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        links.append(parent + entry.name)
                    elif entry.is_file():
                        there.append(parent + entry.name)
    if linked := files.filter(files.is_in(links)).to_list():
        raise PlateError(f"{linked[0]} is a link", "Copy the file that it points to.", path=folder / linked[0])
    return pl.DataFrame({"file": there}, schema={"file": pl.String})


def _incomplete(
    rows: pl.DataFrame, planes: pl.DataFrame, names: Sequence[str], promised: Iterable[tuple[str, int]], source: str
) -> dict[tuple[str, int], str]:
    """What each field lacks of the planes that any field has or should have."""
    fields = rows.select(_FIELD).vstack(pl.DataFrame(list(promised), rows.select(_FIELD).schema, orient="row")).unique()
    expected = rows.select("channel", "z").unique()
    missing = fields.join(expected, how="cross").join(planes, on=_PLANE, how="anti").sort(_PLANE)
    stacks = expected.group_by("channel").agg(pl.col("z").sort())
    depth = {channel: zs for channel, zs in stacks.iter_rows()}
    whole = set(
        missing.group_by("well", "channel").len().join(fields.group_by("well").len(), on="well", suffix="_fields")
        .join(stacks.select("channel", pl.col("z").list.len().alias("depth")), on="channel")
        .filter(pl.col("len") == pl.col("len_fields") * pl.col("depth")).select("well", "channel").iter_rows()
    )  # fmt: skip
    reasons: dict[tuple[str, int], str] = {}
    for (well, site), group in missing.group_by(_FIELD, maintain_order=True):
        if group.height == expected.height:
            reasons[str(well), int(str(site))] = f"{source} names it, but there is no file of it"
            continue
        lost = {channel: zs for channel, zs in group.group_by("channel", maintain_order=True).agg("z").iter_rows()}
        of_well = [names[channel] for channel in lost if (well, channel) in whole]
        own = [
            _lack(names[channel], zs, depth[channel]) for channel, zs in lost.items() if (well, channel) not in whole
        ]
        sentences = [f"the whole well lacks {_listed(of_well)}"] * bool(of_well) + [f"lacks {', '.join(own)}"] * bool(
            own
        )
        reasons[str(well), int(str(site))] = "; ".join(sentences)
    return reasons


def _lack(name: str, missing: list[int], stack: list[int]) -> str:
    """``AGP at z 2 and 3 of 5``, z from 1."""
    if len(stack) == 1:
        return name
    if missing == stack:
        return f"{name} at all z"
    levels = [z + 1 for z in missing if z != PROJECTION]
    places = [
        f"at z {_listed(levels)} of {max(stack) + 1}" if len(levels) < 7 else f"at {len(levels)} of {max(stack) + 1} z"
    ]
    return f"{name} {_listed(places * bool(levels) + ['as projection'] * (PROJECTION in missing))}"


def _listed(items: Sequence[object]) -> str:
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), *texts[-1:]]) if len(texts) > 1 else "".join(texts)


def _short(facts: Mapping[str, object]) -> dict[str, str | float]:
    """Numbers as they are, all else as printable text of at most 500 characters; what is empty is left out."""
    kept: dict[str, str | float] = {}
    for key, fact in facts.items():
        if isinstance(fact, int | float) and not isinstance(fact, bool):
            if math.isfinite(fact):
                kept[key] = fact
        elif fact is not None and (text := "".join(c if c.isprintable() else " " for c in str(fact))[:500].strip()):
            kept[key] = text
    return kept
